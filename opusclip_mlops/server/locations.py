"""Where experiments may keep their files: on the server's own disk in its own folders alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.server.constants import BACKEND_STORE_URI_ENV_VAR
from mlflow.utils.uri import is_local_uri

from opusclip_mlops.redaction import one_line
from opusclip_mlops.server.served_artifacts import Served

if TYPE_CHECKING:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    _Store = SqlAlchemyStore
else:
    _Store = object


class OwnLocations(_Store):
    """Comes before a tracking store of a server, to which clients say where their files go.

    MLflow's server would write there with its own rights, whoever asked.
    """

    def create_experiment(
        self, name: str, artifact_location: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Make an experiment.

        Raises:
            MlflowException: Its files would lie on the server's disk, outside of its folders.
        """
        if artifact_location and is_serving():
            demand_own(artifact_location)
        return super().create_experiment(  # type: ignore[no-untyped-call]
            name, artifact_location, *args, **kwargs
        )


def is_serving() -> bool:
    """Whether this process answers the clients of a server."""
    return bool(os.environ.get(BACKEND_STORE_URI_ENV_VAR))


def demand_own(location: str) -> None:
    """Let pass what is no place on this machine's disk, or is below a folder of the server.

    Raises:
        MlflowException: It is a place on the server's disk that is not for artifacts.
    """
    if is_local_uri(location):
        try:
            Served.of().place(location)
        except MlflowException:
            raise MlflowException(
                f"artifact_location {one_line(location, at_most=200)} is on the server's own disk, "
                "outside of its artifacts: leave it out, or name a place in object storage",
                INVALID_PARAMETER_VALUE,
            ) from None
