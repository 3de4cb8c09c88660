"""All that an MLflow run holds besides its points, read back as records."""

import functools
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from opusclip_mlops import layout, media
from opusclip_mlops.artifacts import read_artifacts
from opusclip_mlops.errors import RecordError
from opusclip_mlops.folder import Identity
from opusclip_mlops.generations import tags_of_generations
from opusclip_mlops.insight_reading import check_insight, fetch_insight, fetch_table
from opusclip_mlops.listing import Found, LeftOut, Part, content, download, is_listed
from opusclip_mlops.records import (
    About,
    Dataset,
    Image,
    Insight,
    Params,
    Record,
    Row,
    Table,
    Tags,
    Text,
    Video,
)
from opusclip_mlops.redaction import redacted
from opusclip_mlops.refusals import asking_faults, is_for_good, reason_of
from opusclip_mlops.run_families import PARENT_TAG, family_of
from opusclip_mlops.versions import ModelReader
from opusclip_mlops.words import NOTE_TAG

__all__ = ["Contents", "LeftOut", "Part", "fetch", "read_contents", "unreadable"]

OVER = frozenset({"FINISHED", "FAILED", "KILLED"})
"""The statuses of a run that goes on no more."""

_Fetched = Video | Image | Text | Table | Insight
_CONTEXT_TAG = "mlflow.data.context"
_MIRROR_ID = re.compile(r"[A-Za-z0-9_\-]{1,64}")
# Tags that are said otherwise, or by which MLflow finds its own files.
_UNSAID_TAGS = frozenset(
    {
        NOTE_TAG, PARENT_TAG, "mlflow.user", "mlflow.runName", "mlflow.loggedImages",
        "mlflow.loggedArtifacts", "mlflow.log-model.history", layout.LOCAL_ID_TAG,
        layout.MIRROR_ID_TAG,
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What MLflow holds of a run besides its points.

    Args:
        identity: What the run is, and is to be called in mirrors.
        status: RUNNING, FINISHED, FAILED, KILLED or SCHEDULED.
        end_time_ms: When it ended, None while it runs.
        parts: Records without a step first, then those with one, in the order of their times.
        left_out: What no record can be made of.
    """

    identity: Identity
    status: str
    end_time_ms: int | None
    parts: tuple[Part, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.status in OVER


def read_contents(client: MlflowClient, run: Run, *, with_artifacts: bool = True) -> Contents:
    """Read all of a run but its points.

    What stands at a step is named but not downloaded: see `fetch`. Without artifacts only
    what `run` itself says is read: no files, models, versions or traces.

    Raises:
        MlflowException, OSError: MLflow or its artifact store does not answer now.
    """
    identity = identity_of(client, run)
    found = _words(run, identity)
    if with_artifacts:
        repository = _repository(client, identity.artifact_uri)
        is_over = run.info.status in OVER
        found.take(read_artifacts(repository, identity, run, is_over=is_over))
        found.take(ModelReader(client, run).read())
        _count_traces(client, run, found)
    return Contents(
        identity=identity,
        status=run.info.status,
        end_time_ms=run.info.end_time,
        parts=tuple(sorted(found.parts, key=_place)),
        left_out=tuple(found.left_out),
    )


def fetch(client: MlflowClient, run_id: str, part: Part, folder: Path) -> Record:
    """Download what a part's record needs and return the record complete.

    A clip, a picture and an insight's files are put into `folder` and named in the record, and not
    downloaded again when they are there from an earlier call; all else is read.

    Raises:
        RecordError: the artifact is gone for good, or broken.
        VideoError: the clip can't be read.
        MlflowException, OSError, or the error of another artifact store: it does not answer now.
    """
    record = part.record
    if not part.artifact_path or not isinstance(record, _Fetched):
        return record
    try:
        return _completed(client, run_id, record, part.artifact_path, folder)
    except asking_faults() as error:
        repository = _repository(client, _artifact_uri(client, run_id))
        if not is_for_good(error) and is_listed(repository, part.artifact_path):
            raise
        reason = f"artifact {part.artifact_path} of run {run_id}: {reason_of(error)}"
        raise RecordError(reason) from None


def unreadable(client: MlflowClient, run_id: str, parts: Iterable[Part]) -> list[LeftOut]:
    """Which of these insights and tables of ours are broken, by their paths, and why.

    Raises:
        MlflowException, OSError, or the error of another artifact store: it does not answer now.
    """
    repository = _repository(client, _artifact_uri(client, run_id))
    found = []
    for part in parts:
        try:
            if isinstance(part.record, Insight):
                check_insight(repository, part.artifact_path)
            elif isinstance(part.record, Table) and part.artifact_path:
                fetch_table(repository, part.artifact_path)
        except RecordError as error:
            found.append(LeftOut(part.artifact_path, str(error)))
        except asking_faults() as error:
            if not is_for_good(error):
                raise
            found.append(LeftOut(part.artifact_path, reason_of(error)))
    return found


def _completed(
    client: MlflowClient, run_id: str, record: "_Fetched", artifact: str, folder: Path
) -> Record:
    repository = _repository(client, _artifact_uri(client, run_id))
    if isinstance(record, Insight):
        return fetch_insight(repository, artifact, folder, run_id)
    if isinstance(record, Table):
        return fetch_table(repository, artifact)
    if isinstance(record, Text):
        text = content(repository, artifact).decode(errors="replace")
        return msgspec.structs.replace(record, text=text)
    path = folder / _local_name(run_id, record, artifact)
    if not path.exists():
        download(repository, artifact, path)
    if isinstance(record, Image):
        return msgspec.structs.replace(record, file=path.name)
    said = media.said_in(path)
    return msgspec.structs.replace(
        record,
        file=path.name,
        fps=said.fps,
        caption=said.caption,
        origin=_origin(said.comment),
        codec=media.codec_of(path.name),
    )


def _origin(comment: str) -> dict[str, Any]:
    """Where a clip comes from, out of its file; nothing where another tool wrote the comment."""
    try:
        said = json.loads(comment or "{}")
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _local_name(run_id: str, record: Video | Image, artifact: str) -> str:
    """A name of our own: what a server calls a file never leads out of the folder."""
    mark = hashlib.sha256(f"{run_id}\0{artifact}".encode()).hexdigest()[:24]
    if isinstance(record, Video):
        return media.delivered_name(mark, media.CLIP_KINDS[media.codec_of(artifact)])
    return f"{mark}.png" if artifact.endswith(".png") else f"{mark}.webp"


def identity_of(client: MlflowClient, run: Run) -> Identity:
    """What a run is, and is to be called in mirrors."""
    info = run.info
    latest = [one for one in run.data._metric_objs if not one.key.startswith("system/")]
    return Identity(
        mirror_id=_mirror_id(run),
        experiment_name=client.get_experiment(info.experiment_id).name,
        run_name=info.run_name or "",
        run_id=info.run_id,
        experiment_id=info.experiment_id,
        artifact_uri=info.artifact_uri or "",
        last_step=max((one.step for one in latest), default=-1),
        start_time_ms=info.start_time or 0,
        family=family_of(client, run),
        generations=tags_of_generations(run.data.tags),
    )


def _mirror_id(run: Run) -> str:
    """The run's name in mirrors; a tag that could name a place elsewhere is none of ours.

    Nor is one that was copied from another run, with its other tags.
    """
    tagged = run.data.tags.get(layout.MIRROR_ID_TAG, "")
    is_own = run.data.tags.get(layout.MIRROR_OF_TAG, run.info.run_id) == run.info.run_id
    return tagged if is_own and _MIRROR_ID.fullmatch(tagged) else str(run.info.run_id)


@functools.lru_cache(maxsize=64)
def _artifact_uri(client: MlflowClient, run_id: str) -> str:
    return str(client.get_run(run_id).info.artifact_uri)


def _repository(client: MlflowClient, artifact_uri: str) -> ArtifactRepository:
    return _repository_at(artifact_uri, client.tracking_uri)


@functools.lru_cache(maxsize=64)
def _repository_at(artifact_uri: str, tracking_uri: str) -> ArtifactRepository:
    return get_artifact_repository(artifact_uri, tracking_uri=tracking_uri)


def _place(part: Part) -> tuple[int, int, int]:
    record = part.record
    return (1, record.timestamp_ms, record.step) if isinstance(record, Row) else (0, 0, 0)


def _words(run: Run, identity: Identity) -> Found:
    found = Found()
    if run.data.params:
        found.parts.append(Part(Params(dict(sorted(run.data.params.items())))))
    tags = {key: value for key, value in sorted(run.data.tags.items()) if _is_users(key)}
    if tags:
        found.parts.append(Part(Tags(tags)))
    found.parts.append(Part(About("mlflow", _about(run, identity))))
    _add_datasets(run, found)
    return found


def _is_users(tag: str) -> bool:
    return tag == NOTE_TAG or not tag.startswith(("mlflow.", "opusclip."))


def _about(run: Run, identity: Identity) -> dict[str, str]:
    info, tags = run.info, run.data.tags
    inputs = run.inputs.model_inputs if run.inputs else []
    values = {
        "run_id": info.run_id,
        "run_name": identity.run_name,
        "experiment": identity.experiment_name,
        "experiment_id": info.experiment_id,
        "status": info.status,
        "lifecycle": "" if info.lifecycle_stage == "active" else info.lifecycle_stage,
        "started": _moment(info.start_time),
        "ended": _moment(info.end_time),
        "user": tags.get("mlflow.user", info.user_id or ""),
        "parent_run_id": tags.get(PARENT_TAG, ""),
        "artifact_uri": identity.artifact_uri,
        "input_models": ", ".join(sorted(one.model_id for one in inputs or [])),
    }
    own = {key: tags[key] for key in sorted(tags) if not _is_users(key) and key not in _UNSAID_TAGS}
    return {key: redacted(value) for key, value in (values | own).items() if value}


def _moment(time_ms: int | None) -> str:
    if time_ms is None:
        return ""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"


def _add_datasets(run: Run, found: Found) -> None:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    records: dict[tuple[str, str], Dataset] = {}
    for one in inputs:
        tags = {tag.key: tag.value for tag in one.tags}
        dataset, context = one.dataset, tags.pop(_CONTEXT_TAG, "")
        record = Dataset(
            dataset.name, dataset.digest, dataset.source_type, dataset.source, context,
            dataset.profile or "", dataset.schema or "",
        )  # fmt: skip
        if tags:
            name = f"dataset {context}/{dataset.name}"
            found.leave(name, f"its tags {', '.join(sorted(tags))} are only in MLflow")
        _keep_one(records, record, found)
    found.parts.extend(Part(records[key]) for key in sorted(records))


def _keep_one(records: dict[tuple[str, str], Dataset], record: Dataset, found: Found) -> None:
    """Of one name and context a mirror shows one: the same each time it is asked."""
    key = record.context, record.name
    ordered = sorted([records.get(key, record), record], key=lambda one: one.digest)
    if ordered[0] != ordered[1]:
        found.leave(
            f"dataset {record.context}/{record.name}",
            f"digest {ordered[0].digest} has the name of digest {ordered[1].digest}",
        )
    records[key] = ordered[1]


def _count_traces(client: MlflowClient, run: Run, found: Found) -> None:
    try:
        traces = client.search_traces(
            locations=[run.info.experiment_id], run_id=run.info.run_id, max_results=100,
            include_spans=False,
        )  # fmt: skip
    except MlflowException as error:
        # Servers before traces know no such question.
        if not is_for_good(error) and error.error_code != "ENDPOINT_NOT_FOUND":
            raise
        return
    if traces:
        count = f"{len(traces)}{' or more' if traces.token else ''}"
        found.leave("traces", f"{count} traces, with their assessments, are only in MLflow")
