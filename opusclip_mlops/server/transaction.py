"""One transaction of a database in which MLflow's own stores read and write.

Each call of a store commits, as it always does, but only up to a savepoint: what a block writes is
there for others when the block ends, all of it, or nothing where it raises. Nobody else decides
about the model meanwhile: sqlite lets one write at a time, and in PostgreSQL the model's row is
locked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.store.db.utils import _get_managed_session_maker
from mlflow.store.model_registry.dbmodels.models import SqlRegisteredModel
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Models
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Runs
from mlflow.tracking._model_registry.client import ModelRegistryClient
from mlflow.tracking._tracking_service.client import TrackingServiceClient
from sqlalchemy import select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import sessionmaker

from opusclip_mlops.patience import without_waiting

_SQLITE = "sqlite"
_WAIT_MS = 20_000


class StoreClient(MlflowClient):
    """MLflow's client of two stores that are there already."""

    def __init__(self, runs: Runs, models: Models) -> None:
        self._tracking_client = _RunsService(runs)
        self._registry_uri = self._workspace_store_uri = models.db_uri
        self._registry_client_lazy = _ModelsService(models)
        self._workspace_client = None
        self.models: Any = models


class BoundRuns(Runs):
    """MLflow's tracking store on a database that is set up already."""

    def __init__(self, like: Models, sessions: Any, *, artifact_root: str) -> None:
        self.db_uri, self.db_type, self.engine = like.db_uri, like.db_type, like.engine
        self.artifact_root_uri, self.ManagedSessionMaker = artifact_root, sessions


class BoundModels(Models):
    """MLflow's registry store on a database that is set up already."""

    def __init__(self, like: Models, sessions: Any) -> None:
        self.db_uri, self.db_type, self.engine = like.db_uri, like.db_type, like.engine
        self.ManagedSessionMaker = sessions


@contextmanager
def transaction(store: Models, model: str, *, artifact_root: str) -> Iterator[StoreClient]:
    """A client whose writes are committed together when the block ends, and not where it raises.

    Args:
        store: Where models are, and runs.
        model: The registered model that is decided about; others who do so wait.
        artifact_root: Where artifacts of new experiments go.

    Raises:
        MlflowException: The database does not answer, or is locked for longer than 20 s.
    """
    try:
        with store.engine.connect() as connection, without_waiting():
            _begin(connection, store.db_type, model)
            yield _client(store, connection, artifact_root)
            connection.commit()
    except SQLAlchemyError as error:
        why = type(getattr(error, "orig", None) or error).__name__
        text = f"the database did not take the decision about {model!r} ({why}): call again"
        raise MlflowException(text, TEMPORARILY_UNAVAILABLE) from error


def _begin(connection: Connection, db_type: str, model: str) -> None:
    if db_type == _SQLITE:
        # Foreign keys are switched before a transaction only.
        connection.exec_driver_sql("PRAGMA foreign_keys = ON")
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {_WAIT_MS}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_WAIT_MS}")
    row: Any = select(SqlRegisteredModel.name).where(SqlRegisteredModel.name == model)
    connection.execute(row.with_for_update())


def _client(store: Models, connection: Connection, artifact_root: str) -> StoreClient:
    maker = sessionmaker(bind=connection, join_transaction_mode="create_savepoint")
    sessions = _get_managed_session_maker(maker, store.db_type)
    runs = BoundRuns(store, sessions, artifact_root=artifact_root)
    return StoreClient(runs, BoundModels(store, sessions))


class _RunsService(TrackingServiceClient):
    def __init__(self, store: Runs) -> None:
        self._given = store
        super().__init__(store.db_uri)  # type: ignore[no-untyped-call]

    @property
    def store(self) -> Runs:
        return self._given


class _ModelsService(ModelRegistryClient):
    def __init__(self, store: Models) -> None:
        self._given = store
        super().__init__(store.db_uri, store.db_uri)  # type: ignore[no-untyped-call]

    @property
    def store(self) -> Models:
        return self._given
