"""MLflow's own tracking store, faster where points are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.validation import (
    _validate_batch_log_data,
    _validate_batch_log_limits,
    _validate_param_keys_unique,
    _validate_run_id,
)

from opusclip_mlops.server import metric_rows
from opusclip_mlops.server.authorship import KnownAuthors
from opusclip_mlops.server.locations import OwnLocations
from opusclip_mlops.server.places import stock_uri
from opusclip_mlops.server.protection import ProtectedHistories

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param, RunTag


class TrackingStore(ProtectedHistories, KnownAuthors, OwnLocations, SqlAlchemyStore):
    """Runs in a database, as stock MLflow keeps them.

    Args:
        db_uri: The database's URI, with `opusclip+` before it or not.
        default_artifact_root: Where artifacts of new experiments go.
        read_db_uri: The URI of a replica that reading goes to.

    Raises:
        MlflowException: The tables are those of another MLflow, or the database does not answer.
    """

    def __init__(
        self, db_uri: str, default_artifact_root: str, read_db_uri: str | None = None
    ) -> None:
        replica = stock_uri(read_db_uri) if read_db_uri else None
        super().__init__(stock_uri(db_uri), default_artifact_root, replica)

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric],
        params: Sequence[Param],
        tags: Sequence[RunTag],
    ) -> None:
        """Log up to 1000 points, params and tags of a run.

        One connection is held at a time, and the points are one transaction. Points out of the
        ordinary go MLflow's own way.

        Raises:
            MlflowException: MLflow refuses something, with its own words.
        """
        stock: Any = super()
        _validate_run_id(run_id)
        rows = metric_rows.ordinary_rows(metrics)
        if rows is None:
            stock.log_batch(run_id, metrics, params, tags)
            return
        _, params, tags = _validate_batch_log_data([], params, tags)
        _validate_batch_log_limits(metrics, params, tags)
        _validate_param_keys_unique(params)
        stock._log_params(run_id, params)
        experiment_id = stock._run_with_deadlock_retry(self._log_rows, run_id, rows)
        stock._log_model_metrics(run_id, metrics, experiment_id=experiment_id)
        stock._set_tags(run_id, tags)

    def _log_metrics_once(self, run_id: str, metrics: Sequence[Metric]) -> None:
        rows = metric_rows.ordinary_rows(metrics)
        if rows is None:
            stock: Any = super()
            stock._log_metrics_once(run_id, metrics)
        else:
            self._log_rows(run_id, rows)

    def _log_rows(self, run_id: str, rows: Sequence[metric_rows.Row]) -> int:
        """Write points in a transaction of their own; the id of the run's experiment."""
        stock: Any = super()
        with self.ManagedSessionMaker(read_only=False) as session:
            run = stock._get_run(run_uuid=run_id, session=session)
            stock._check_run_is_active(run)
            metric_rows.write(session.connection(), run_id, rows)
            return int(run.experiment_id)
