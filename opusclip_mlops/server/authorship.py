"""Who made a run, as MLflow's login knows it: the name that a client gives may be anybody's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from opusclip_mlops.candidates import MADE_BY
from opusclip_mlops.server import actors

if TYPE_CHECKING:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    _Store = SqlAlchemyStore
else:
    _Store = object


class KnownAuthors(_Store):
    """Comes before a tracking store: it tags a run with who was logged in when it was made.

    Without a login nobody is known, and the tag is as any other.
    """

    def create_run(
        self, experiment_id: str, user_id: str, start_time: int, tags: Any, run_name: str
    ) -> Any:
        """Make a run, as whoever is logged in."""
        if actors.is_known():
            others = [one for one in tags or () if one.key != MADE_BY]
            tags = [*others, RunTag(MADE_BY, actors.deciding().name)]
        stock: Any = super()
        return stock.create_run(experiment_id, user_id, start_time, tags, run_name)

    def set_tag(self, run_id: str, tag: RunTag) -> None:
        """Tag a run, but not with who made it.

        Raises:
            MlflowException: It is that tag, or MLflow refuses.
        """
        _check([tag.key])
        super().set_tag(run_id, tag)  # type: ignore[no-untyped-call]

    def _set_tags(self, run_id: str, tags: Sequence[RunTag]) -> None:
        _check([one.key for one in tags])
        super()._set_tags(run_id, tags)  # type: ignore[no-untyped-call]

    def delete_tag(self, run_id: str, key: str) -> None:
        """Take a tag of a run away, but not who made it.

        Raises:
            MlflowException: It is that tag, or MLflow refuses.
        """
        _check([key])
        super().delete_tag(run_id, key)  # type: ignore[no-untyped-call]


def _check(keys: Sequence[str]) -> None:
    if MADE_BY in keys and actors.is_known():
        raise MlflowException(
            f"tag {MADE_BY} says who made the run: nobody changes it", INVALID_PARAMETER_VALUE
        )
