"""A run's checkpoints in MLflow: counted when it is gone on with, marked, removed when dropped."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from opusclip_mlops.checkpoints import read_metadata
from opusclip_mlops.errors import CheckpointError, DeliveryError
from opusclip_mlops.faults import attempted
from opusclip_mlops.fetching import checkpoint_names, is_there
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.generations import generation_of, generations_of
from opusclip_mlops.layout import BEST_TAG, CHECKPOINTS, LAST_TAG
from opusclip_mlops.listing import content
from opusclip_mlops.metadata import BestValue, CheckpointMetadata
from opusclip_mlops.records import Checkpoint
from opusclip_mlops.redaction import one_line
from opusclip_mlops.retention import WATCHED, Earlier, better_of

MOST_TRIES = 6
"""How often a checkpoint is tried to be removed before it is left where it is."""

_METADATA = "metadata.json"
_CHECKPOINT_TAG = "opusclip.checkpoint"
_PAGE_VERSIONS = 100


def earlier_checkpoints(client: MlflowClient, run: Run) -> Earlier:
    """The checkpoints that a run has in MLflow, and the best values they have reached.

    Raises:
        Any fault of the artifact store.
    """
    repository = _repository(client, run)
    names = [name for name in checkpoint_names(repository) if is_there(repository, name)]
    marked = run.data.tags.get(BEST_TAG, "")
    marked = marked if marked in names else ""
    best: dict[str, BestValue] = {}
    unread = set()
    # The marked one first: of values that were not measured alike the first holds.
    for name in dict.fromkeys([marked, run.data.tags.get(LAST_TAG, "")]):
        if name not in names:
            continue
        if (known := _best_by(repository, name, is_marked=name == marked)) is None:
            unread.add(name)
        best = better_of(best, known or {})
    here = {key: one for key, one in best.items() if one.checkpoint in names}
    is_known = marked not in unread or marked in {one.checkpoint for one in here.values()}
    return Earlier(names=tuple(names), marked=marked, best=here, is_known=is_known)


def _best_by(
    repository: ArtifactRepository, name: str, *, is_marked: bool
) -> Mapping[str, BestValue] | None:
    """The best values that a checkpoint knows of; one of an earlier release knows its own.

    None where it cannot be read.
    """
    try:
        about = CheckpointMetadata.from_dict(
            json.loads(content(repository, f"{CHECKPOINTS}/{name}/{_METADATA}"))
        )
    except (CheckpointError, ValueError, AttributeError, RecursionError) as error:
        print(f"checkpoint {name}: {one_line(str(error))}", flush=True)
        return None
    watched = next((key for key in WATCHED if key in about.metrics), None)
    if about.best or not is_marked or watched is None:
        return about.best
    return {watched: BestValue(name, about.metrics[watched])}


class Marks:
    """Which checkpoint of a run its tags name the best, and which the last.

    Args:
        client: Who asks MLflow.
        run_id: The run.
        folder: Where the process that trains is told what was there before.
        goes_on: Whether MLflow may have checkpoints of the run that were never in the folder.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, folder: RunFolder, *, goes_on: bool
    ) -> None:
        self._client, self._run_id, self._folder = client, run_id, folder
        self._earlier: Earlier | None = None if goes_on else Earlier()

    def look(self) -> Earlier:
        """The checkpoints of earlier parts of the run, looked at once.

        Raises:
            Any fault of MLflow or the artifact store.
        """
        if self._earlier is None:
            run = self._client.get_run(self._run_id)
            self._earlier = earlier_checkpoints(self._client, run)
            self._earlier.write(self._folder)
        return self._earlier

    def at_start(self, tags: Mapping[str, str]) -> dict[str, str]:
        """The checkpoint that a generation goes on from is the last again, if it stands there."""
        attempted(self.look)
        names = [one.checkpoint for one in generations_of(tags) if self._stands(one.checkpoint)]
        return {LAST_TAG: names[0]} if names else {}

    def _stands(self, name: str) -> bool:
        if self._earlier and name in self._earlier.names:
            return True
        # A name from elsewhere may be none that the disk can have.
        with contextlib.suppress(OSError, ValueError):
            return self._folder.has_arrived(name)
        return False

    def _made_ms(self, name: str) -> int:
        """When a checkpoint was made, in Unix milliseconds; 0 for one that is not here."""
        # A name from elsewhere may be none that the disk can have.
        with contextlib.suppress(CheckpointError, OSError, ValueError):
            return read_metadata(self._folder.checkpoints / Path(name).name).created_ms
        return 0

    def at_arrival(self, record: Checkpoint, about: CheckpointMetadata) -> dict[str, str]:
        """What a checkpoint is that has arrived.

        The last no more is one of an earlier generation, or one that a later one has overtaken.

        Raises:
            Any fault of MLflow or the artifact store.
        """
        tags = self._client.get_run(self._run_id).data.tags
        known = generations_of(tags)
        is_last = generation_of(known, record.timestamp_ms) == len(known)
        is_last &= not 0 < about.created_ms < self._made_ms(tags.get(LAST_TAG, ""))
        is_best = record.best and self.look().is_beaten_by(about)
        marks = {LAST_TAG: is_last, BEST_TAG: is_best}
        return {tag: record.name for tag, is_so in marks.items() if is_so}


class Pruning:
    """Removes what a run's retention has dropped, unless it is still needed there.

    The best, the last, and what a registered version is made of are kept. So is everything where
    the registry does not answer.

    Attributes:
        awaited: Names of the run's checkpoints that MLflow does not take now. Until they are there
            no attempt to remove another counts: what displaces it is on its way.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._tries: dict[str, int] = {}
        self.awaited: set[str] = set()

    def remove(self, name: str) -> None:
        """Remove a checkpoint; removing it again does nothing.

        What can't be removed, however often it is tried, is left, and said once.
        While a checkpoint is `awaited` it is tried for as long as that takes.

        Raises:
            DeliveryError: not now: it is to be tried again.
        """
        fault = attempted(lambda: self._remove(name))
        if fault is None:
            return
        self._tries[name] = self._tries.get(name, 0) + (not self.awaited)
        if self._tries[name] < MOST_TRIES:
            raise DeliveryError(f"checkpoint {name} is not removed: {_said(fault)}") from fault
        print(f"checkpoint {name} stays in MLflow: {_said(fault)}", flush=True)

    def _remove(self, name: str) -> None:
        run = self._client.get_run(self._run_id)
        if marks := [tag for tag in (BEST_TAG, LAST_TAG) if run.data.tags.get(tag) == name]:
            # The one that displaces it may be on its way.
            raise DeliveryError(f"it is marked by {marks[0]}")
        if versions := self._versions_of(name, run.info.experiment_id):
            print(f"checkpoint {name} stays in MLflow: {versions[0]} is made of it", flush=True)
            return
        repository = _repository(self._client, run)
        folder = f"{CHECKPOINTS}/{name}"
        if name not in checkpoint_names(repository):
            return
        # Without its metadata nobody takes what is left of it for a checkpoint.
        repository.delete_artifacts(f"{folder}/{_METADATA}")
        repository.delete_artifacts(folder)

    def _versions_of(self, name: str, experiment_id: str) -> list[str]:
        """The registered versions that were made of a checkpoint of this run.

        One that was made by hand may name the run in its source alone, or a logged model of it.
        """
        its_run = f"run_id = '{self._run_id}'"
        in_its_files = f"source_path LIKE '%{self._run_id}%'"
        found = [
            version
            for condition in (its_run, in_its_files)
            for version in self._versions(condition)
            if _is_made_of(version, name)
        ]
        for model_id in self._models_of(name, experiment_id):
            found += self._versions(f"source_path LIKE '%{model_id}%'")
        return [f"{one.name} {one.version}" for one in found]

    def _versions(self, condition: str) -> Iterator[ModelVersion]:
        token: str | None = None
        while True:
            page = self._client.search_model_versions(condition, _PAGE_VERSIONS, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _models_of(self, name: str, experiment_id: str) -> Iterator[str]:
        """Ids of the logged models that `register` made of a checkpoint of this run."""
        token: str | None = None
        while True:
            page = self._client.search_logged_models(
                [experiment_id], f"source_run_id = '{self._run_id}'", page_token=token
            )
            yield from (one.model_id for one in page if one.tags.get(_CHECKPOINT_TAG) == name)
            token = page.token
            if not token:
                return


def _is_made_of(version: ModelVersion, name: str) -> bool:
    source = f"{version.source}/"
    is_below = f"/{CHECKPOINTS}/{name}/" in source or source.endswith(f"/{CHECKPOINTS}/")
    return is_below or (version.tags or {}).get(_CHECKPOINT_TAG) == name


def _repository(client: MlflowClient, run: Run) -> ArtifactRepository:
    return get_artifact_repository(run.info.artifact_uri, tracking_uri=client.tracking_uri)


def _said(fault: Exception) -> str:
    return one_line(str(fault)) or type(fault).__name__
