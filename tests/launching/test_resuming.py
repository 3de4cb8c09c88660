"""The last checkpoint of the run this process was launched for."""

from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.launching.resuming import last_checkpoint
from opusclip_mlops.tracker import ExperimentTracker
from tests.journeys import store


def test_training_goes_on_where_the_last_job_left_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first job finds none; the next one has the weights, and goes on in the same run."""
    monkeypatch.chdir(tmp_path)
    uri = store(tmp_path)
    client = MlflowClient(uri)
    run_id = client.create_run("0").info.run_id
    model = torch.nn.Linear(2, 1)
    assert last_checkpoint(model=model) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    monkeypatch.setenv("OPUSCLIP_JOURNAL_DIR", str(tmp_path / "journal"))
    assert last_checkpoint(model=model) is None
    config = TrackingConfig(use_tensorboard=False, use_wandb=False, system_metrics=False)
    with ExperimentTracker(config, resume=None) as tracker:
        tracker.log_metrics({"loss": 1.0}, 7)
        tracker.save_checkpoint(model, None, 0, {"loss": 1.0})
    other = torch.nn.Linear(2, 1)
    loaded = last_checkpoint(model=other)
    assert loaded is not None
    assert loaded.metadata.run_id == run_id
    assert torch.equal(other.weight, model.weight)
