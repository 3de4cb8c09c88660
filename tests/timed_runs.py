"""Runs whose loops were timed, delivered to MLflow by the test's own process."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from opusclip_mlops import ExperimentTracker, TrackingConfig
from opusclip_mlops.delivery import deliver
from opusclip_mlops.session import Session
from tests.journeys import store


def timed_run(
    tmp_path: Path, patch: pytest.MonkeyPatch, *, name: str, wait_s: float, work_s: float
) -> str:
    """A run of ten steps, each of which waits for its batch and then computes; its run id."""
    patch.setattr(Session, "_start_shipper", lambda _: None)
    patch.setattr(Session, "wait_until_ended", lambda *_, **__: True)
    patch.setattr(Session, "missing", lambda _: [])
    config = TrackingConfig(
        experiment_name="timed", run_name=name, tracking_uri=store(tmp_path), use_wandb=False,
        use_tensorboard=False, system_metrics=False, profile_interval_s=0.1,
        journal_dir=str(tmp_path / "journal"),
    )  # fmt: skip
    with ExperimentTracker(config) as tracker:
        for step, _ in enumerate(tracker.batches(_slow(wait_s), samples=4)):
            with tracker.profile_operation("forward", "loop"):
                compute(work_s)
            tracker.log_metrics({"train/loss": 1.0}, step)
    folder = tracker._session.folder
    assert deliver(folder, "mlflow")
    identity = folder.identity()
    assert identity is not None
    assert identity.run_id
    return identity.run_id


def compute(work_s: float) -> None:
    """Compute for so long, by the clock."""
    end_s = time.perf_counter() + work_s
    while time.perf_counter() < end_s:
        sum(range(100))


def _slow(wait_s: float) -> Iterator[int]:
    for number in range(10):
        time.sleep(wait_s)
        yield number
