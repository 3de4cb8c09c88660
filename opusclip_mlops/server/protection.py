"""Keeps clients of a tracking store from writing the histories of registered models.

Histories are runs of the experiment `opusclip registry`. The guard writes them in transactions with
stores of its own; whoever comes through MLflow may only read them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlRun
from mlflow.utils.validation import _parse_experiment_id

from opusclip_mlops.ledger import EXPERIMENT

if TYPE_CHECKING:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    _Store = SqlAlchemyStore
else:
    _Store = object


class ProtectedHistories(_Store):
    """Comes before a tracking store, whose writes to the histories it refuses.

    Almost all of MLflow's writes to a run look at the run first, and pass `_check_run_is_active`
    with what they found: whether that is a history is known by its experiment's id, which is looked
    up once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._plain: set[int] = set()
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _check_run_is_active(self, run: Any) -> None:
        if run.experiment_id not in self._plain:
            # By the session that found the run: a second one may wait for all who wait here.
            _check_name(run.experiment.name)
            self._plain.add(run.experiment_id)
        super()._check_run_is_active(run)  # type: ignore[no-untyped-call]

    def delete_run(self, run_id: str) -> None:
        """Delete a run that is no history."""
        self._check_run(run_id)
        super().delete_run(run_id)  # type: ignore[no-untyped-call]

    def restore_run(self, run_id: str) -> None:
        """Restore a run that is no history."""
        self._check_run(run_id)
        super().restore_run(run_id)  # type: ignore[no-untyped-call]

    def create_run(self, experiment_id: str, *args: Any, **kwargs: Any) -> Any:
        """Make a run elsewhere than among the histories."""
        self._check_experiment(experiment_id)
        return super().create_run(experiment_id, *args, **kwargs)  # type: ignore[no-untyped-call]

    def create_logged_model(self, experiment_id: str, *args: Any, **kwargs: Any) -> Any:
        """Make a logged model elsewhere than among the histories."""
        self._check_experiment(experiment_id)
        return super().create_logged_model(experiment_id, *args, **kwargs)

    def create_experiment(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Make an experiment that is not called as that of the histories."""
        _check_name(name)
        return super().create_experiment(name, *args, **kwargs)  # type: ignore[no-untyped-call]

    def rename_experiment(self, experiment_id: str, new_name: str) -> None:
        """Rename an experiment, neither from nor to that of the histories."""
        _check_name(new_name)
        self._check_experiment(experiment_id)
        super().rename_experiment(experiment_id, new_name)  # type: ignore[no-untyped-call]

    def delete_experiment(self, experiment_id: str) -> None:
        """Delete an experiment other than that of the histories."""
        self._check_experiment(experiment_id)
        super().delete_experiment(experiment_id)  # type: ignore[no-untyped-call]

    def restore_experiment(self, experiment_id: str) -> None:
        """Restore an experiment other than that of the histories."""
        self._check_experiment(experiment_id)
        super().restore_experiment(experiment_id)  # type: ignore[no-untyped-call]

    def set_experiment_tag(self, experiment_id: str, tag: Any) -> None:
        """Tag an experiment other than that of the histories."""
        self._check_experiment(experiment_id)
        super().set_experiment_tag(experiment_id, tag)  # type: ignore[no-untyped-call]

    def delete_experiment_tag(self, experiment_id: str, key: str) -> None:
        """Take a tag away from an experiment other than that of the histories."""
        self._check_experiment(experiment_id)
        super().delete_experiment_tag(experiment_id, key)  # type: ignore[no-untyped-call]

    def _check_run(self, run_id: str) -> None:
        with self.ManagedSessionMaker(read_only=False) as session:
            row = session.query(SqlRun.experiment_id).filter(SqlRun.run_uuid == run_id).first()
        if row:
            self._check_experiment(str(row[0]))

    def _check_experiment(self, experiment_id: str) -> None:
        """Refuse the experiment of the histories; what is none is MLflow's own to refuse."""
        try:
            # As MLflow reads it, to whom "+1" is 1 too.
            number = _parse_experiment_id(experiment_id)
        except MlflowException:
            return
        if number in self._plain:
            return
        # A replica may not know of it yet.
        with self.ManagedSessionMaker(read_only=False) as session:
            named = session.query(SqlExperiment.name).filter(SqlExperiment.experiment_id == number)
            row = named.first()
        if row:
            _check_name(row[0])
            self._plain.add(number)


def _check_name(name: str) -> None:
    if name == EXPERIMENT:
        raise MlflowException(
            f"experiment {EXPERIMENT!r} holds the histories of registered models: only decisions "
            "write there, such as opusclip promote",
            BAD_REQUEST,
        )
