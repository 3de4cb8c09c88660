"""What a run and its nested runs are called together."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import ExperimentTracker, TrackingConfig
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.run_families import PARENT_TAG, family_of
from tests.journeys import store


def test_a_nested_run_is_live_in_its_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group that a live mirror writes is the one that a later mirror would."""
    client = MlflowClient(store(tmp_path))
    parent = client.create_run("0", run_name="tune")
    child = client.create_run("0", tags={PARENT_TAG: parent.info.run_id})
    monkeypatch.setenv("MLFLOW_RUN_ID", child.info.run_id)
    config = TrackingConfig(
        use_wandb=False, use_tensorboard=False, system_metrics=False, tracking_uri=store(tmp_path)
    )
    with ExperimentTracker(config) as tracker:
        assert tracker.run_id == child.info.run_id
        identity = RunFolder(tracker._session.folder.path).identity()
    assert identity
    assert identity.family == f"tune-{parent.info.run_id[:8]}" == family_of(client, parent)
