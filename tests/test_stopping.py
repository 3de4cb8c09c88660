"""Training that is asked to stop: by a note it may look at, and by SIGTERM."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import stopping
from opusclip_mlops.folder import CONTROL
from opusclip_mlops.records import RunStarted
from opusclip_mlops.sessions import process_started_s
from tests.journeys import append, make_run, store, wait_until

TRAINER = """
import os, signal, sys, time
from opusclip_mlops import ExperimentTracker, TrackingConfig
alerts = {"rules": {"nan": {"kind": "not_finite", "keys": "train/*", "actions": ["stop"]}}}
config = TrackingConfig(
    tracking_uri=sys.argv[1], run_name=sys.argv[2], use_tensorboard=False, use_wandb=False,
    system_metrics=False, alerts=alerts,
)
if sys.argv[2] == "looks":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with ExperimentTracker(config) as tracker:
    assert not tracker.should_stop
    tracker.log_metrics({"train/loss": float("nan")})
    while not tracker.should_stop or sys.argv[2] != "looks":
        time.sleep(0.02)
"""


@pytest.mark.parametrize("how", ["looks", "is-ended"])
def test_training_that_an_alert_stops_is_killed_with_the_alert_as_the_reason(
    how: str, tmp_path: Path
) -> None:
    """Whether its loop looks at `should_stop` and leaves, or SIGTERM ends it."""
    done = subprocess.run(
        [sys.executable, "-c", TRAINER, store(tmp_path), how], timeout=240, check=False
    )
    assert done.returncode == (0 if how == "looks" else -signal.SIGTERM)
    client = MlflowClient(store(tmp_path))

    def status() -> str:
        runs = client.search_runs(["0"])
        return runs[0].info.status if runs else ""

    wait_until(lambda: status() not in ("", "RUNNING"))
    assert status() == "KILLED"
    reason = client.search_runs(["0"])[0].data.tags["opusclip.end_reason"]
    assert reason.startswith("alert nan: train/loss is nan at step 0")
    wait_until(lambda: not list(tmp_path.glob(".opusclip/journal/*/manifest.json")))


def started(process: subprocess.Popen[bytes], *, late_s: float = 0.0) -> RunStarted:
    """A session of this process; `late_s` off its true start it is another one's."""
    since_s = process_started_s(process.pid) + late_s
    return RunStarted("s2", socket.gethostname(), process.pid, since_s, 5)


@pytest.mark.parametrize(
    ("late_s", "now_ms", "count"), [(0.0, 10, 1), (0.0, 5, 1), (9.0, 10, 0), (0.0, 4, 0)]
)
def test_only_the_process_that_trains_is_signalled(
    late_s: float, now_ms: int, count: int, tmp_path: Path
) -> None:
    """Not one that has its number since or began since, nor this one, which began it as well."""
    folder = make_run(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        append(folder, [started(process, late_s=late_s)], journal="s2" + CONTROL)
        assert stopping.ask_to_stop(folder, "alert nan: it is", now_ms=now_ms) == count
        if count:
            assert process.wait(60) == -signal.SIGTERM
        assert process.poll() is None or count
    finally:
        process.kill()
        process.wait()


def test_a_stop_is_about_those_that_had_begun(tmp_path: Path) -> None:
    """Who goes on with the run afterwards trains on; a damaged note is none."""
    folder = make_run(tmp_path)
    assert stopping.reason_to_stop(folder) == ""
    stopping.ask_to_stop(folder, "alert nan:\n it is", now_ms=10)
    assert stopping.reason_to_stop(folder, since_ms=10) == "alert nan: it is"
    assert stopping.reason_to_stop(folder, since_ms=11) == ""
    (folder.path / "stop.json").write_bytes(b"{")
    assert stopping.reason_to_stop(folder) == ""


@pytest.mark.parametrize(
    ("status", "reason", "ends"),
    [
        ("FINISHED", "", ("KILLED", "why")),
        ("KILLED", "KeyboardInterrupt", ("KILLED", "why (KeyboardInterrupt)")),
        ("FAILED", "SystemExit: 143", ("KILLED", "why (SystemExit: 143)")),
        ("FAILED", "ValueError: x", ("FAILED", "ValueError: x (after why)")),
    ],
)
def test_a_failure_of_ones_own_stays_one(status: str, reason: str, ends: tuple[str, str]) -> None:
    """All else is the stop that was asked for."""
    assert stopping.stopped(status, reason, "why") == ends
