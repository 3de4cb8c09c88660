"""What MLflow calls for a store whose URI begins with `opusclip+`; it loads nothing before."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from opusclip_mlops.server import joining

if TYPE_CHECKING:
    from opusclip_mlops.server.models import RegistryStore
    from opusclip_mlops.server.tracking import TrackingStore


def tracking_store(store_uri: str, artifact_uri: str) -> TrackingStore:
    """The runs of a database.

    Args:
        store_uri: The database's URI with `opusclip+` before it.
        artifact_uri: Where artifacts of new experiments go.

    Raises:
        MlflowException: This MLflow, or this kind of database, is not supported.
    """
    _demand_supported(store_uri)
    from opusclip_mlops.server.tracking import TrackingStore

    # MLflow's job runner takes no store but its own, and logs the URI with the password.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    store = TrackingStore(store_uri, artifact_uri or _artifact_root(), _replica_uri())
    _tell_webhooks(store_uri, store.artifact_root_uri)
    return store


def registry_store(store_uri: str) -> RegistryStore:
    """The registered models of a database.

    Args:
        store_uri: The database's URI with `opusclip+` before it.

    Raises:
        MlflowException: This MLflow, or this kind of database, is not supported.
    """
    _demand_supported(store_uri)
    from opusclip_mlops.server.models import RegistryStore

    return RegistryStore(store_uri)


def _demand_supported(uri: str) -> None:
    from opusclip_mlops.server.compatibility import demand_supported

    demand_supported(uri)


def _tell_webhooks(uri: str, artifact_root: str) -> None:
    """Tell those whom the setting of a server names, from now on."""
    if os.environ.get("OPUSCLIP_WEBHOOKS"):
        from opusclip_mlops.server import announcements

        announcements.start(uri, artifact_root=artifact_root)


def _artifact_root() -> str:
    """Where a client that opens the database itself keeps artifacts, as with MLflow's own store."""
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH

    return os.environ.get("_MLFLOW_SERVER_ARTIFACT_ROOT", DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)


def _replica_uri() -> str | None:
    from mlflow.server.constants import READ_REPLICA_BACKEND_STORE_URI_ENV_VAR

    return os.environ.get(READ_REPLICA_BACKEND_STORE_URI_ENV_VAR)


# In a server's process the routes for decisions have to be there before its first request.
joining.if_guarding()
