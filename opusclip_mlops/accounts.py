"""What MLflow holds about samples: accounts of panels and of single clips, many runs at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from mlflow.entities import FileInfo, Run
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from opusclip_mlops import layout
from opusclip_mlops.errors import RecordError
from opusclip_mlops.listing import content, problem_with
from opusclip_mlops.refusals import asking_faults, is_for_good, reason_of
from opusclip_mlops.samples import SourceClip

MOST_AT_ONCE = 8
"""How many files are asked for at a time."""

_PICTURES_TAG = "mlflow.loggedImages"
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Where a sample comes from, as its run tells it.

    Attributes:
        run_id: The run that logged it.
        key: What it was logged as.
        step: At which step.
        panel: The title of its panel, "" for a clip by itself.
        cell: Its place in the panel, "" for none.
        clip: Where its clip lies among the run's artifacts, "" where it has none.
        prompt: What it was asked for with.
        seed: Of the random numbers, None for none.
        checkpoint: The name of the checkpoint that made it, "" where it is not known.
        weights_sha256: Of that checkpoint's weights, "" where it is not known.
        sources: The films it was cut from or conditioned on.
    """

    run_id: str
    key: str
    step: int
    panel: str = ""
    cell: str = ""
    clip: str = ""
    prompt: str = ""
    seed: int | None = None
    checkpoint: str = ""
    weights_sha256: str = ""
    sources: tuple[SourceClip, ...] = ()


@dataclass(frozen=True, slots=True)
class Unread:
    """Something of a run that could not be read, and why."""

    run_id: str
    path: str
    reason: str


def has_clips(run: Run) -> bool:
    """Whether a run may have samples at all: its list says so, and no file is asked for."""
    return _PICTURES_TAG in run.data.tags


def repository_of(run: Run, tracking_uri: str) -> ArtifactRepository:
    """Where a run's files lie."""
    return get_artifact_repository(run.info.artifact_uri, tracking_uri=tracking_uri)


def at_once(ask: Callable[[_In], _Out], given: Iterable[_In]) -> Iterator[_Out]:
    """The answers to many questions, in their order, a few asked at a time."""
    pool = ThreadPoolExecutor(MOST_AT_ONCE)
    try:
        yield from pool.map(ask, given)
    finally:
        # After a fault, or Ctrl-C, what was not asked yet is not.
        pool.shutdown(cancel_futures=True)


def accounts_of(run: Run, tracking_uri: str) -> tuple[list[Account], list[Unread]]:
    """The accounts of all samples of a run, and what could not be read.

    Raises:
        MlflowException, OSError, or another artifact store's own: it does not answer now.
    """
    repository, run_id = repository_of(run, tracking_uri), run.info.run_id
    found: list[Account] = []
    unread: list[Unread] = []
    for path in _paths(run_id, repository, unread):
        try:
            found.extend(_accounts(run_id, path, _json(repository, path)))
        except RecordError as error:
            unread.append(Unread(run_id, path, str(error)))
        except asking_faults() as error:
            if not is_for_good(error):
                raise
            unread.append(Unread(run_id, path, reason_of(error)))
    return found, unread


def _paths(run_id: str, repository: ArtifactRepository, unread: list[Unread]) -> Iterator[str]:
    for panel in listed(run_id, repository, layout.PANELS, unread):
        inside = listed(run_id, repository, panel.path, unread) if panel.is_dir else ()
        yield from (one.path for one in inside if layout.samples_of(one.path))
    told = listed(run_id, repository, layout.ORIGINS, unread)
    yield from (one.path for one in told if layout.origin_of(one.path))


def listed(
    run_id: str, repository: ArtifactRepository, folder: str, unread: list[Unread]
) -> list[FileInfo]:
    """What lies in a folder of a run's files, by path; nothing where there is no such folder.

    What cannot be listed for good, or cannot lie there, is added to `unread`.

    Raises:
        MlflowException, OSError, or another artifact store's own: it does not answer now.
    """
    try:
        entries = sorted(repository.list_artifacts(folder), key=lambda one: str(one.path))
    except asking_faults() as error:
        if not is_for_good(error):
            raise
        unread.append(Unread(run_id, folder, reason_of(error)))
        return []
    problems = {one.path: problem_with(one, folder) for one in entries}
    unread += [Unread(run_id, path, why) for path, why in problems.items() if why]
    return [one for one in entries if not problems[one.path]]


def _json(repository: ArtifactRepository, path: str) -> Mapping[str, Any]:
    try:
        found = json.loads(content(repository, path))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"it is no JSON: {error}") from None
    if not isinstance(found, Mapping):
        raise RecordError("it is no account of samples")
    return found


def _accounts(run_id: str, path: str, found: Mapping[str, Any]) -> Iterator[Account]:
    """What a file tells; a run's own files may be anything.

    Raises:
        RecordError: It is no account.
    """
    try:
        if layout.samples_of(path) is None:
            yield _account(run_id, found, found)
            return
        for name, cell in found["cells"].items():
            about = {"step": found["step"], "panel": found["title"], "cell": name}
            if cell.get("clip"):
                yield _account(run_id, {**cell, **about}, cell)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RecordError(f"it is no account of samples: {error}") from None


def _account(run_id: str, about: Mapping[str, Any], told: Mapping[str, Any]) -> Account:
    origin = told["origin"]
    return Account(
        run_id=run_id,
        key=str(about["key"]),
        step=int(about["step"]),
        panel=str(about.get("panel", "")),
        cell=str(about.get("cell", "")),
        clip=str(about.get("clip", "")),
        prompt=str(origin.get("prompt", "")),
        seed=None if origin.get("seed") is None else int(origin["seed"]),
        checkpoint=str(origin.get("checkpoint", "")),
        weights_sha256=str(origin.get("weights_sha256", "")),
        sources=tuple(SourceClip.from_dict(one) for one in origin.get("sources", ())),
    )
