"""Checkpoints out of MLflow: of a run, or of a version in the registry.

A run keeps them under `checkpoints/<name>/`; two of its tags name the best and the last. A version
that `register` made holds the weights and their metadata alone.
"""

import os
import posixpath
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

# A bar for each file would be all that a terminal shows.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from opusclip_mlops.checkpoints import place_of
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.faults import attempted
from opusclip_mlops.layout import BEST_TAG, CHECKPOINTS, LAST_TAG
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import reason_of

T = TypeVar("T")
Which = str | int
"""A checkpoint of several: "best", "last", its step, or its name."""

REGISTERED = "artifacts/checkpoint"
"""Where a version that `register` made keeps its checkpoint."""

_MARKS = {"best": BEST_TAG, "last": LAST_TAG}
_LISTED = 8


def fetch_from_run(
    run_id: str, which: Which, into: Path | None, *, tracking_uri: str | None = None
) -> Path | None:
    """Fetch a checkpoint of a run, and check nothing of it; its folder.

    None where `into` is None, and it does not lie on this machine's disk.

    Args:
        run_id: The MLflow run.
        which: Which of its checkpoints.
        into: The folder to put it in; None to have it where it is.
        tracking_uri: Where the run is, MLflow's default when None.

    Raises:
        CheckpointError: no such run or checkpoint, or MLflow did not answer.
    """
    client = _asked("cannot reach MLflow", lambda: MlflowClient(tracking_uri))
    run = _asked(f"cannot find run {run_id!r:.80}", lambda: client.get_run(run_id))
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        raise CheckpointError(f"run {run_id} is deleted: restore it to load its checkpoints")
    repository = _repository(run.info.artifact_uri, client.tracking_uri)
    what = f"cannot list the checkpoints of run {run_id}"
    chosen = _choice(run, _asked(what, lambda: checkpoint_names(repository)), which)
    what = f"cannot fetch checkpoint {chosen} of run {run_id}"
    return _fetched(repository, f"{CHECKPOINTS}/{chosen}", into, what)


def checkpoint_names(repository: ArtifactRepository) -> list[str]:
    """Names of a run's checkpoints as they stand in its artifacts, sorted."""
    entries = repository.list_artifacts(CHECKPOINTS)
    names = (posixpath.basename(entry.path) for entry in entries if entry.is_dir)
    return sorted(name for name in names if name not in ("", ".", ".."))


def fetch_registered(
    uri: str,
    into: Path | None,
    *,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> Path | None:
    """Fetch the checkpoint of a registered version, and check nothing of it; its folder.

    None where `into` is None, and it does not lie on this machine's disk.

    Args:
        uri: models:/NAME/3, models:/NAME/Production, models:/NAME/latest or models:/NAME@ALIAS.
        into: The folder to put it in; None to have it where it is.
        tracking_uri: Where runs are, MLflow's default when None.
        registry_uri: Where versions are, the tracking server when None.

    Raises:
        CheckpointError: no such version, it holds no checkpoint, or MLflow did not answer.
    """
    name, suffix, is_alias = _parsed(uri)
    client = _asked("cannot reach MLflow", lambda: MlflowClient(tracking_uri, registry_uri))
    version = _asked(f"cannot find {uri}", lambda: _version(client, name, suffix, alias=is_alias))
    if version is None:
        raise CheckpointError(f"cannot find {uri}: model {name} has no version there")
    number = str(version.version)
    place = _asked(
        f"cannot find the files of {uri}",
        lambda: client.get_model_version_download_uri(name, number),
    )
    repository = _repository(_resolved(client, place), client.tracking_uri)
    entries = _asked(f"cannot list {uri}", lambda: repository.list_artifacts(REGISTERED))
    if not entries:
        raise CheckpointError(f"{uri} holds no checkpoint: only what `register` made has one")
    return _fetched(repository, REGISTERED, into, f"cannot fetch {uri}")


def _asked(what: str, action: Callable[[], T]) -> T:
    """What an action of MLflow or its artifact store gives, its fault as one line."""
    answers: list[T] = []
    fault = attempted(lambda: answers.append(action()))
    if fault is None:
        return answers[0]
    raise CheckpointError(f"{one_line(what)}: {reason_of(fault)}") from fault


def _choice(run: Run, names: list[str], which: Which) -> str:
    """The name of the checkpoint that is meant."""
    run_id, listed = run.info.run_id, ", ".join(names[-_LISTED:]) or "none"
    if isinstance(which, int):
        places = {name: place for name in names if (place := place_of(name))}
        found = [name for name, place in places.items() if place[0] == which]
        chosen = max(found, key=lambda name: places[name], default=None)
        wanted = f"no checkpoint of step {which}"
    else:
        tag = _MARKS.get(which)
        chosen = run.data.tags.get(tag) if tag else which
        wanted = f"no checkpoint {chosen!r:.80}"
        if chosen is None:
            wanted = f"no checkpoint marked {which} (tag {tag})"
    if chosen not in names:
        raise CheckpointError(f"run {run_id} has {wanted}; it has: {listed}")
    return chosen


def _parsed(uri: str) -> tuple[str, str, bool]:
    """Name, suffix, and whether that is an alias."""
    place = uri.removeprefix("models:/").lstrip("/")
    is_alias = "/" not in place
    name, _, suffix = place.rpartition("@" if is_alias else "/")
    if not name.strip() or not suffix.strip() or "/" in name:
        known = "models:/NAME/3, models:/NAME/Production or models:/NAME@ALIAS"
        raise CheckpointError(f"{uri!r:.120} names no registered version: give {known}")
    return name, suffix, is_alias


def _version(client: MlflowClient, name: str, suffix: str, *, alias: bool) -> ModelVersion | None:
    if alias:
        return client.get_model_version_by_alias(name, suffix)
    if suffix.isdecimal():
        return client.get_model_version(name, suffix)
    stages = None if suffix.lower() == "latest" else [suffix]
    with warnings.catch_warnings():
        # MLflow warns that stages will go one day.
        warnings.simplefilter("ignore", FutureWarning)
        found = client.get_latest_versions(name, stages)
    return max(found, key=lambda one: int(one.version), default=None)


def _resolved(client: MlflowClient, place: str) -> str:
    """Where a version's files lie; a logged model is asked for its own place."""
    if not place.startswith("models:/"):
        return place
    model_id = place.removeprefix("models:/")
    model = _asked(f"cannot find {place}", lambda: client.get_logged_model(model_id))
    return str(model.artifact_location)


def _repository(uri: str, tracking_uri: str) -> ArtifactRepository:
    return _asked(
        f"cannot open {uri}", lambda: get_artifact_repository(uri, tracking_uri=tracking_uri)
    )


def _fetched(
    repository: ArtifactRepository, path: str, into: Path | None, what: str
) -> Path | None:
    if into is None and not isinstance(repository, LocalArtifactRepository):
        return None
    where = None if into is None else str(into)
    return Path(_asked(what, lambda: repository.download_artifacts(path, where)))
