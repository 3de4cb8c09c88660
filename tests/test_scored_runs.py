"""Facts about `opusclip_mlops.scored_runs`: scores are put into a run with their passports."""

import math
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.errors import RecordError, RegistryError
from opusclip_mlops.passport_files import PassportFiles
from opusclip_mlops.passports import Passport, Score
from opusclip_mlops.scored_runs import find_run, log_scores
from tests.journeys import store

PASSPORT = Passport(metric="psnr", version="1", count=120, unit="frames", reference="ab")


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    return MlflowClient(store(tmp_path))


def ended_run(client: MlflowClient) -> str:
    """A run that is over; its name is "evaluated"."""
    run = client.create_run("0", run_name="evaluated")
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def test_scores_join_a_run_that_is_over(tmp_path: Path, client: MlflowClient) -> None:
    """Under their prefix, at their step, each with its passport; the run stays as it ended."""
    run_id = ended_run(client)
    scores = {"psnr": Score(31.5, PASSPORT), "ssim": Score(math.inf, PASSPORT)}
    run = find_run("evaluated", tracking_uri=store(tmp_path))
    assert run.run_id == run_id
    log_scores(run, scores, step=700, prefix="eval/")
    [point] = client.get_metric_history(run_id, "eval/psnr")
    assert (point.value, point.step) == (31.5, 700)
    assert client.get_run(run_id).data.metrics.keys() == {"eval/psnr", "eval/ssim"}
    assert client.get_run(run_id).info.status == "FINISHED"
    files = PassportFiles(client, run_id)
    for key in ("eval/psnr", "eval/ssim"):
        found = files.of(key, step=700, timestamp_ms=point.timestamp)
        assert found == PASSPORT


def test_a_run_that_is_not_there_is_told(tmp_path: Path, client: MlflowClient) -> None:
    """By what it was asked for."""
    ended_run(client)
    with pytest.raises(RegistryError, match="no run in MLflow is called 'other'"):
        find_run("other", tracking_uri=store(tmp_path))


def test_what_mlflow_would_refuse_is_refused_before(tmp_path: Path, client: MlflowClient) -> None:
    """A key or a step that cannot be: nothing is written."""
    run_id = ended_run(client)
    run = find_run(run_id, tracking_uri=store(tmp_path))
    for prefix, step in (("a?b/", 1), ("eval/", 2**63)):
        with pytest.raises(RecordError):
            log_scores(run, {"psnr": Score(1.0, PASSPORT)}, step=step, prefix=prefix)
    assert client.get_run(run_id).data.metrics == {}
    assert client.list_artifacts(run_id) == []
