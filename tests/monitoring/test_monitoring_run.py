"""The monitoring run: like any other in MLflow, in the model's own experiment."""

import os
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.monitoring.monitoring_run import MonitoringRun, places_of
from opusclip_mlops.monitoring.served import ServedVersion
from opusclip_mlops.monitoring.settings import MonitorSettings

SERVED = ServedVersion(model="clips", version="3", model_id="m-1", run_id="r1")


def test_a_run_says_what_is_served_and_how_it_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never goes on with the run that the environment names; its intervals are steps."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "training")
    monkeypatch.setenv("OPUSCLIP_TAGS", "team=clips")
    monkeypatch.setenv("OPUSCLIP_DRAIN_TIMEOUT_S", "120")
    run = MonitoringRun(SERVED, MonitorSettings())
    for requests in (3.0, 5.0):
        run.log({"serving/requests": requests})
    run.tag(stage="Staging")
    run.close()
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("clips monitoring")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "serving/requests")
    assert [(one.step, one.value) for one in history] == [(0, 3.0), (1, 5.0)]
    assert found.info.status == "FINISHED"
    assert found.info.run_name.startswith("clips v3 on ")
    expected = {
        "team": "clips",
        "opusclip.kind": "monitoring",
        "opusclip.serving.version": "3",
        "opusclip.serving.trained_by": "r1",
        "opusclip.serving.pid": str(os.getpid()),
        "opusclip.serving.stage": "Staging",
    }
    assert expected.items() <= found.data.tags.items()
    assert not (tmp_path / "runs").exists()


def test_a_model_without_a_version_has_no_place() -> None:
    """Nobody is asked for it."""
    assert places_of(ServedVersion(model="m-1", version="", model_id="m-1", run_id="")) == {}
