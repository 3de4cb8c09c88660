"""Facts about `opusclip_mlops.server.builders`: MLflow finds the stores by their scheme."""

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.server import handlers
from mlflow.server.constants import READ_REPLICA_BACKEND_STORE_URI_ENV_VAR
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient

from opusclip_mlops.server.builders import tracking_store
from opusclip_mlops.server.models import RegistryStore
from opusclip_mlops.server.tracking import TrackingStore
from tests.journeys import store


def test_a_client_and_a_server_get_our_stores_for_our_scheme(tmp_path: Path) -> None:
    uri = f"opusclip+{store(tmp_path)}"
    client = MlflowClient(uri)
    run = client.create_run("0")
    client.log_metric(run.info.run_id, "loss", 0.5)
    assert isinstance(client._tracking_client.store, TrackingStore)
    runs = handlers.TrackingStoreRegistryWrapper().get_store(uri, str(tmp_path))
    models = handlers.ModelRegistryStoreRegistryWrapper().get_store(uri)
    assert isinstance(runs, TrackingStore)
    assert isinstance(models, RegistryStore)
    assert runs.get_run(run.info.run_id).data.metrics == {"loss": 0.5}


def test_an_engine_is_shared_with_mlflows_own_store_of_the_database(tmp_path: Path) -> None:
    uri = store(tmp_path)
    ours = tracking_store(f"opusclip+{uri}", str(tmp_path))
    assert ours.engine is SqlAlchemyStore(uri, str(tmp_path)).engine


def test_reading_goes_to_a_replica_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, replica = store(tmp_path / "primary"), store(tmp_path / "replica")
    monkeypatch.setenv(READ_REPLICA_BACKEND_STORE_URI_ENV_VAR, f"opusclip+{replica}")
    ours = tracking_store(f"opusclip+{primary}", str(tmp_path))
    run_id = ours.create_run("0", "kim", 1, [], "one").info.run_id
    ours.log_batch(run_id, [Metric("loss", 1.0, 1, 1)], [], [])
    with pytest.raises(MlflowException, match="not found"):
        ours.get_run(run_id)
    assert SqlAlchemyStore(primary, str(tmp_path)).get_run(run_id).data.metrics == {"loss": 1.0}


def test_mysql_is_not_offered(tmp_path: Path) -> None:
    with pytest.raises(MlflowException, match="unsupported URI"):
        handlers.TrackingStoreRegistryWrapper().get_store(
            "opusclip+mysql://u:pw@h/d", str(tmp_path)
        )


def test_naming_the_builders_loads_neither_mlflow_nor_sqlalchemy() -> None:
    code = (
        "import sys; import opusclip_mlops.server.builders\n"
        "assert not {'mlflow', 'sqlalchemy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
