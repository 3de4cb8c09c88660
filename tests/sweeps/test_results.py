"""The run of a sweep in MLflow."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.layout import REASON_TAG
from opusclip_mlops.sweeps.results import begin_run, end_run, go_on, or_failed
from opusclip_mlops.sweeps.schema import Metric
from tests.journeys import store
from tests.sweeps.small_sweeps import config_of
from tests.sweeps.test_plots import outcome


def test_under_mlflow_run_the_sweeps_run_is_the_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mlflow run . -e sweep` has made one: no second one is made."""
    client = MlflowClient(store(tmp_path))
    run = client.create_run("0")
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    assert begin_run(client, config_of(), name="s", experiment="x") == run.info.run_id
    assert client.get_experiment_by_name("x") is None
    found = client.get_run(run.info.run_id).data
    assert (found.params["sweep.method"], found.tags["opusclip.sweep"]) == ("random", "s")


def test_a_sweep_is_described_as_its_file_says(tmp_path: Path) -> None:
    """Name, description, and the file itself among the artifacts."""
    client = MlflowClient(store(tmp_path))
    config = config_of(name="tune", description="why")
    runs = [begin_run(client, config, name="s", experiment="films") for _ in range(2)]
    run = client.get_run(runs[1])
    assert (run.info.run_name, run.data.tags["mlflow.note.content"]) == ("tune", "why")
    assert [one.path for one in client.list_artifacts(runs[0], "sweep")] == ["sweep/sweep.yaml"]


def test_values_that_no_picture_holds_end_a_sweep_all_the_same(tmp_path: Path) -> None:
    """The picture is left out; a name that looks like a formula is a name. Points are kept once."""
    client = MlflowClient(store(tmp_path))
    run_id = begin_run(client, config_of(), name="s", experiment="films")
    huge = [outcome(0, -1e308), outcome(1, 1e308)]
    for _ in range(2):
        end_run(
            client, run_id, huge, metric=Metric("$a^$"), best=huge[0], shares={}, status="FINISHED"
        )
    assert client.get_run(run_id).info.status == "FINISHED"
    assert len(client.get_metric_history(run_id, "sweep/value")) == 2
    end_run(
        client, run_id, [outcome(0, 1.0)], metric=Metric("$a^$"), best=None, shares={}, status=None
    )
    names = {one.path for one in client.list_artifacts(run_id, "sweep")}
    assert "sweep/history.png" in names


def test_a_sweep_of_nothing_ends_and_goes_on(tmp_path: Path) -> None:
    """No trial, no metric: the list is empty, and there is no picture."""
    client = MlflowClient(store(tmp_path))
    run_id = begin_run(client, config_of(), name="s", experiment="films")
    end_run(
        client, run_id, [], metric=None, best=None, shares={}, status="KILLED", reason="it\nstopped"
    )
    ended = client.get_run(run_id)
    assert (ended.info.status, ended.data.tags[REASON_TAG]) == ("KILLED", "it stopped")
    names = {one.path for one in client.list_artifacts(run_id, "sweep")}
    assert names == {"sweep/sweep.yaml", "sweep/trials.json"}
    go_on(client, run_id)
    goes_on = client.get_run(run_id)
    assert (goes_on.info.status, REASON_TAG in goes_on.data.tags) == ("RUNNING", False)


def test_a_sweep_that_cannot_begin_has_failed(tmp_path: Path) -> None:
    """Its run says why, and who began it too; what can be done is had."""
    client = MlflowClient(store(tmp_path))
    run_id = begin_run(client, config_of(), name="s", experiment="films")
    assert or_failed(client, run_id, "s", lambda: 3) == 3
    assert client.get_run(run_id).info.status == "RUNNING"
    with pytest.raises(OpusclipError, match=r"^sweep s cannot begin: .*No such file"):
        or_failed(client, run_id, "s", (tmp_path / "none").read_bytes)
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert "No such file" in run.data.tags[REASON_TAG]


def test_who_is_interrupted_as_a_sweep_begins_leaves_no_run_as_running(tmp_path: Path) -> None:
    """Nobody else knows of it yet."""
    client = MlflowClient(store(tmp_path))
    run_id = begin_run(client, config_of(), name="s", experiment="films")

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        or_failed(client, run_id, "s", interrupt)
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags[REASON_TAG].endswith("interrupted")
