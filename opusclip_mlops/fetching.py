"""Checkpoints out of MLflow: of a run, or of a version in the registry.

A run keeps them under `checkpoints/<name>/`; two of its tags name the best and the last. A version
that `register` made holds the weights and their metadata alone.
"""

import contextlib
import itertools
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
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

from opusclip_mlops import object_storage
from opusclip_mlops.checkpoints import METADATA, place_of
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


@object_storage.asking_briefly()
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
    repository, chosen = _chosen(run_id, which, tracking_uri)
    what = f"cannot fetch checkpoint {chosen} of run {run_id}"
    return _fetched(repository, f"{CHECKPOINTS}/{chosen}", into, what)


@object_storage.asking_briefly()
def name_in_run(run_id: str, which: Which, *, tracking_uri: str | None = None) -> str:
    """The name of the checkpoint that is meant, which is there.

    Raises:
        CheckpointError: no such run or checkpoint, or MLflow did not answer.
    """
    return _chosen(run_id, which, tracking_uri)[1]


def _chosen(run_id: str, which: Which, tracking_uri: str | None) -> tuple[ArtifactRepository, str]:
    client = _asked("cannot reach MLflow", lambda: MlflowClient(tracking_uri))
    run = _asked(f"cannot find run {run_id!r:.80}", lambda: client.get_run(run_id))
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        raise CheckpointError(f"run {run_id} is deleted: restore it to load its checkpoints")
    repository = _repository(run.info.artifact_uri, client.tracking_uri)
    listed = _Listed(repository, f"cannot list the checkpoints of run {run_id}")
    return repository, _choice(run, listed, which)


def checkpoint_names(repository: ArtifactRepository) -> list[str]:
    """Names of the folders of a run's checkpoints, sorted.

    An object store may list one for minutes, or for good, after all in it was removed.
    """
    entries = repository.list_artifacts(CHECKPOINTS)
    names = (posixpath.basename(entry.path) for entry in entries if entry.is_dir)
    return sorted(name for name in names if name not in ("", ".", ".."))


def is_there(repository: ArtifactRepository, name: str) -> bool:
    """Whether a folder holds a checkpoint: its metadata, which goes first and is sent with it."""
    entries = repository.list_artifacts(f"{CHECKPOINTS}/{name}")
    return any(posixpath.basename(entry.path) == METADATA for entry in entries)


@object_storage.asking_briefly()
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


class _Listed:
    """The checkpoints of a run, each looked for when it is asked about."""

    def __init__(self, repository: ArtifactRepository, what: str) -> None:
        self._repository, self._what = repository, what
        self.names = _asked(what, lambda: checkpoint_names(repository))

    def has(self, name: str) -> bool:
        """Whether it is there."""
        return name in self.names and _asked(self._what, lambda: is_there(self._repository, name))

    def newest(self) -> str:
        """The last of their names, for an error."""
        found = itertools.islice(filter(self.has, reversed(self.names)), _LISTED)
        return ", ".join([*found][::-1]) or "none"


def _choice(run: Run, listed: _Listed, which: Which) -> str:
    """The name of the checkpoint that is meant."""
    if isinstance(which, int):
        places = {name: place for name in listed.names if (place := place_of(name))}
        of_step = [name for name, place in places.items() if place[0] == which]
        meant = sorted(of_step, key=lambda name: places[name], reverse=True)
        wanted = f"no checkpoint of step {which}"
    else:
        tag = _MARKS.get(which)
        marked = run.data.tags.get(tag) if tag else which
        meant = [] if marked is None else [marked]
        wanted = f"no checkpoint {marked!r:.80}"
        if marked is None:
            wanted = f"no checkpoint marked {which} (tag {tag})"
    for name in filter(listed.has, meant):
        return name
    raise CheckpointError(f"run {run.info.run_id} has {wanted}; it has: {listed.newest()}")


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
    return Path(_asked(what, lambda: _downloaded(repository, path, where)))


def _downloaded(repository: ArtifactRepository, path: str, where: str | None) -> str:
    is_within_reach = _reaches_s3(repository, f"{path}/{METADATA}")
    with contextlib.nullcontext() if is_within_reach else object_storage.through_the_server():
        return str(repository.download_artifacts(path, where))


def _reaches_s3(repository: ArtifactRepository, path: str) -> bool:
    """Whether the S3 that MLflow's server would send us to answers; MLflow finds out in minutes."""
    signed: list[str] = []
    if isinstance(repository, MlflowArtifactsRepository):
        # A server that keeps files on its own disk signs none.
        attempted(lambda: signed.append(repository._get_presigned_download_url(path).url))
    return all(map(object_storage.is_reachable, signed))
