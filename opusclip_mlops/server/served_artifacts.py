"""Where the files of models and runs are for the server itself: it does not ask itself over HTTP.

A client may name any place as that of its files. The server reads none but those it serves: below
its `--artifacts-destination`, and below the place it gives to new experiments.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow.entities import LoggedModel, Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR, ARTIFACTS_DESTINATION_ENV_VAR
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import append_to_uri_path

from opusclip_mlops.redaction import one_line
from opusclip_mlops.server.transaction import BoundModels, BoundRuns

_SERVED = "mlflow-artifacts"
_NOWHERE = "opusclip-not-served:/"


@dataclass(frozen=True, slots=True)
class Served:
    """The two places whose files a server reads.

    Attributes:
        destination: Where `mlflow-artifacts:/` leads, empty where it leads nowhere.
        root: What new experiments are given, empty for nothing.
    """

    destination: str
    root: str

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Served:
        """The places of the server in this process."""
        known = (ARTIFACTS_DESTINATION_ENV_VAR, ARTIFACT_ROOT_ENV_VAR)
        return cls(*(environment.get(name, "") for name in known))

    def place(self, location: str) -> str:
        """Where the server itself finds what is at a location.

        Raises:
            MlflowException: It is not one of the places that this server reads.
        """
        found = self._below_destination(location) if _is_served(location) else location
        if not any(root and _is_below(found, root) for root in self._roots()):
            raise MlflowException(
                f"{one_line(location, at_most=200)} is not kept by this server",
                INVALID_PARAMETER_VALUE,
            )
        return found

    def place_or_nowhere(self, location: str) -> str:
        """The same; a place that cannot be read where it is none of this server's."""
        try:
            return self.place(location)
        except MlflowException:
            return _NOWHERE

    def _roots(self) -> tuple[str, ...]:
        return self.destination, "" if _is_served(self.root) else self.root

    def _below_destination(self, location: str) -> str:
        parts = urlsplit(location)
        path = parts.path.lstrip("/")
        if parts.netloc or not self.destination or ".." in unquote(path).split("/"):
            return _NOWHERE
        return str(append_to_uri_path(self.destination, path)) if path else self.destination


class ServedRuns(BoundRuns):
    """MLflow's runs, with their files where the server itself finds them."""

    served: Served

    def get_run(self, run_id: str) -> Run:
        """A run; its files are nowhere where this server does not keep them."""
        run: Run = super().get_run(run_id)  # type: ignore[no-untyped-call]
        run.info._artifact_uri = self.served.place_or_nowhere(run.info.artifact_uri)
        return run

    def get_logged_model(self, model_id: str, *args: Any, **kwargs: Any) -> LoggedModel:
        """A logged model.

        Raises:
            MlflowException: There is none, or this server does not keep its files.
        """
        model = super().get_logged_model(model_id, *args, **kwargs)
        model.artifact_location = self.served.place(model.artifact_location)
        return model


class ServedModels(BoundModels):
    """MLflow's registered models, with their files where the server itself finds them."""

    runs: ServedRuns

    def get_model_version_download_uri(self, name: str, version: str) -> str:
        """Where the files of a version are.

        Raises:
            MlflowException: There is none, or this server does not keep its files.
        """
        location = str(super().get_model_version_download_uri(name, version))  # type: ignore[no-untyped-call]
        if urlsplit(location).scheme == "runs":
            run_id, path = RunsArtifactRepository.parse_runs_uri(location)
            location = str(append_to_uri_path(self.runs.get_run(run_id).info.artifact_uri, path))
        return self.runs.served.place(location)


def _is_served(location: str) -> bool:
    return urlsplit(location).scheme == _SERVED


def _is_below(location: str, root: str) -> bool:
    """Whether a place lies in another one, whatever dots and links its path has."""
    inside, outside = urlsplit(location), urlsplit(root)
    if _is_local(outside.scheme):
        return _is_local(inside.scheme) and _real(location).is_relative_to(_real(root))
    if (inside.scheme, inside.netloc) != (outside.scheme, outside.netloc):
        return False
    path = posixpath.normpath(unquote(inside.path) or "/")
    top = posixpath.normpath(unquote(outside.path) or "/").rstrip("/")
    return path == top or path.startswith(f"{top}/")


def _is_local(scheme: str) -> bool:
    return scheme in ("", "file")


def _real(location: str) -> Path:
    return Path(local_file_uri_to_path(location)).resolve()
