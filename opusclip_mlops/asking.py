"""Asking a registry: which one is meant, and what goes wrong as an error of one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
from mlflow.tracking import MlflowClient

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.new_store import alone_in_store
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import asking_faults, reason_of


@contextmanager
def told_in_one_line(what: str) -> Iterator[None]:
    """Ask MLflow, or the store of its artifacts; `what` cannot be done where that fails.

    Raises:
        RegistryError: MLflow or the store refused, or did not answer.
    """
    try:
        yield
    except asking_faults() as error:
        raise RegistryError(f"{one_line(what)}: {reason_of(error)}") from error


def client_of(tracking_uri: str | None, registry_uri: str | None) -> MlflowClient:
    """A client of these places, or of those where MLflow itself would look.

    Raises:
        RegistryError: MLflow knows no such place.
    """
    with (
        told_in_one_line("cannot reach MLflow"),
        alone_in_store(tracking_uri or mlflow.get_tracking_uri()),
    ):
        return MlflowClient(tracking_uri=tracking_uri, registry_uri=registry_uri)


def registry_meant(registry_uri: str | None) -> str | None:
    """The registry given, else the one that was set in this process; None for neither."""
    set_here = mlflow.get_registry_uri()
    if registry_uri is None and set_here != mlflow.get_tracking_uri():
        return str(set_here)
    return registry_uri
