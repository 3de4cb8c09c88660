"""MLflow's own stores, all of whose writes are committed together or not at all."""

import sqlite3
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.patience import may_wait, patiently
from opusclip_mlops.server import transaction as module
from opusclip_mlops.server.transaction import transaction
from tests.journeys import store
from tests.promoters import NAME, make_model, shown


@pytest.fixture
def models(tmp_path: Path) -> SqlAlchemyStore:
    """A stock store with a model of three versions."""
    uri = store(tmp_path)
    make_model(MlflowClient(uri))
    return SqlAlchemyStore(uri)  # type: ignore[no-untyped-call]


def test_all_is_written_when_the_block_ends(models: SqlAlchemyStore) -> None:
    """Nobody sees any of it before."""
    outside = MlflowClient(models.db_uri)
    with transaction(models, NAME, artifact_root="./mlruns") as client:
        run_id = client.create_run("0").info.run_id
        client.log_param(run_id, "a", "1")
        client.set_registered_model_alias(NAME, "best", "2")
        assert client.get_run(run_id).data.params == {"a": "1"}
        assert outside.search_runs(["0"]) == []
        assert outside.get_registered_model(NAME).aliases == {}
    assert outside.get_run(run_id).data.params == {"a": "1"}
    assert outside.get_registered_model(NAME).aliases == {"best": 2}


def test_nothing_is_written_where_the_block_raises(models: SqlAlchemyStore) -> None:
    """Runs and models are as they were, though each call had committed."""
    outside = MlflowClient(models.db_uri)
    before = shown(outside)

    def fail() -> None:
        with transaction(models, NAME, artifact_root="./mlruns") as client:
            client.create_experiment("films")
            client.set_registered_model_alias(NAME, "production", "2")
            client.models.transition_model_version_stage(NAME, "2", "Production", True)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert shown(outside) == before
    assert outside.get_experiment_by_name("films") is None


def test_a_call_that_fails_takes_only_itself_back(models: SqlAlchemyStore) -> None:
    """A param that is written already is refused, and what was written before stays."""
    outside = MlflowClient(models.db_uri)
    with transaction(models, NAME, artifact_root="./mlruns") as client:
        run_id = client.create_run("0").info.run_id
        client.log_param(run_id, "a", "1")
        with pytest.raises(MlflowException):
            client.log_param(run_id, "a", "2")
        client.log_param(run_id, "b", "3")
    assert outside.get_run(run_id).data.params == {"a": "1", "b": "3"}


def test_nothing_is_waited_for_while_others_wait(models: SqlAlchemyStore) -> None:
    """A fault that may pass ends the transaction at once instead of being tried again."""
    calls: list[bool] = []

    def ask() -> None:
        calls.append(may_wait())
        raise MlflowException("busy")

    asking = pytest.raises(RegistryError, match="cannot ask: busy")
    with transaction(models, NAME, artifact_root="./mlruns"), asking:
        patiently("cannot ask", ask)
    assert calls == [False]
    assert may_wait()


def test_a_database_that_stays_locked_is_told_of(
    models: SqlAlchemyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, as a fault that may pass; the lock is not ours to keep."""
    monkeypatch.setattr(module, "_WAIT_MS", 100)
    other = sqlite3.connect(models.db_uri.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    refusal = pytest.raises(MlflowException, match="did not take the decision about")
    with refusal as raised, transaction(models, NAME, artifact_root="./mlruns"):
        pass
    assert raised.value.error_code == "TEMPORARILY_UNAVAILABLE"
    other.execute("ROLLBACK")
    with transaction(models, NAME, artifact_root="./mlruns") as client:
        client.set_registered_model_tag(NAME, "at", str(time.time_ns()))
    other.close()
