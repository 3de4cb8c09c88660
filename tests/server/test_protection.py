"""Histories are read by everybody and written by decisions only."""

from collections.abc import Callable

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.exceptions import MlflowException

from opusclip_mlops import chronicle
from opusclip_mlops.ledger import EXPERIMENT
from tests.promoters import NAME
from tests.server.guarding import guarded

WRITES: dict[str, Callable[[MlflowClient, str, str], object]] = {
    "a forged record": lambda client, run, _: client.log_param(run, "000002", "{}"),
    "a batch": lambda client, run, _: client.log_batch(
        run, [Metric("a", 1.0, 1, 1)], [Param("000002", "{}")], [RunTag("a", "b")]
    ),
    "points alone": lambda client, run, _: client.log_batch(run, [Metric("a", 1.0, 1, 1)]),
    "a point": lambda client, run, _: client.log_metric(run, "a", 1.0),
    "a tag": lambda client, run, _: client.set_tag(run, "opusclip.settling.x", "0 0"),
    "no tag": lambda client, run, _: client.delete_tag(run, "opusclip.model"),
    "its name": lambda client, run, _: client.set_tag(run, "mlflow.runName", "x"),
    "its end": lambda client, run, _: client.update_run(run, status="FAILED"),
    "its deletion": lambda client, run, _: client.delete_run(run),
    "its return": lambda client, run, _: client.restore_run(run),
    "inputs": lambda client, run, _: client.log_inputs(run, []),
    "another run": lambda client, _, experiment: client.create_run(experiment),
    "a logged model": lambda client, _, experiment: client.create_logged_model(experiment),
    "another name": lambda client, _, experiment: client.rename_experiment(experiment, "x"),
    "the experiment's end": lambda client, _, experiment: client.delete_experiment(experiment),
    "the experiment's return": lambda client, _, experiment: client.restore_experiment(experiment),
    "its root": lambda client, _, experiment: client.set_experiment_tag(
        experiment, "opusclip.root", "0" * 32
    ),
    "no root": lambda client, _, experiment: client.delete_experiment_tag(
        experiment, "opusclip.root"
    ),
    "an end by another spelling": lambda client, _, experiment: client.delete_experiment(
        f"+{experiment}"
    ),
    "a root by another spelling": lambda client, _, experiment: client.set_experiment_tag(
        f" {experiment}", "opusclip.root", "0" * 32
    ),
    "a run by another spelling": lambda client, _, experiment: client.create_run(f"{experiment}\n"),
    "one of that name": lambda client, _, __: client.create_experiment(EXPERIMENT),
    "one renamed so": lambda client, _, __: client.rename_experiment("0", EXPERIMENT),
}


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, str, str]:
    """A client of a guarded database, and the run and the experiment of a history there."""
    registry, stock = guarded(tmp_path_factory.mktemp("history"))
    registry.transition_model_version_stage(NAME, "1", "Production", False)
    run_id = stock.get_registered_model(NAME).tags["opusclip.history"]
    client = MlflowClient(f"opusclip+{stock.tracking_uri}")
    return client, run_id, stock.get_run(run_id).info.experiment_id


@pytest.mark.parametrize("what", WRITES)
def test_no_client_writes_a_history(history: tuple[MlflowClient, str, str], what: str) -> None:
    """Whatever MLflow offers is refused in one line, and nothing is changed."""
    client, run_id, experiment_id = history
    before = client.get_run(run_id).to_dictionary()
    with pytest.raises(MlflowException, match="holds the histories of registered models") as raised:
        WRITES[what](client, run_id, experiment_id)
    assert raised.value.get_http_status_code() == 400
    assert "\n" not in raised.value.message
    assert client.get_run(run_id).to_dictionary() == before
    assert client.get_experiment(experiment_id).name == EXPERIMENT
    assert chronicle.verify_history(NAME, client=client) == []


def test_all_else_is_written_as_ever(history: tuple[MlflowClient, str, str]) -> None:
    """Runs and experiments of people are made, written, deleted and restored."""
    client, _, _ = history
    experiment_id = client.create_experiment("films")
    run_id = client.create_run(experiment_id).info.run_id
    client.log_batch(run_id, [Metric("a", 1.0, 1, 1)], [Param("p", "1")], [RunTag("t", "1")])
    client.delete_run(run_id)
    client.restore_run(run_id)
    client.rename_experiment(experiment_id, "clips")
    client.set_experiment_tag(experiment_id, "a", "b")
    client.delete_experiment(experiment_id)
    client.restore_experiment(experiment_id)
    assert client.get_run(run_id).data.metrics == {"a": 1.0}
    assert client.get_experiment_by_name("clips").tags == {"a": "b"}
    found = client.search_experiments(ViewType.ALL)
    assert sorted(one.name for one in found) == ["Default", "clips", EXPERIMENT]


def test_what_is_not_there_is_refused_by_mlflow_itself(
    history: tuple[MlflowClient, str, str],
) -> None:
    """Runs and experiments that nobody knows are told of as ever."""
    client, _, _ = history
    with pytest.raises(MlflowException, match=r"Run with id=.* not found"):
        client.delete_run("0" * 32)
    with pytest.raises(MlflowException, match="No Experiment with id=99 exists"):
        client.delete_experiment("99")
