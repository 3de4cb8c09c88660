"""The samples of a panel as a run holds them in MLflow: an account for each step they were made at.

Who wrote an account is not known: what it says is checked before anything is made of it.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import msgspec
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from opusclip_mlops import layout
from opusclip_mlops.errors import PanelError
from opusclip_mlops.generations import generations_of, is_superseded
from opusclip_mlops.listing import content
from opusclip_mlops.panels import Panel
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import asking_faults, is_for_good, reason_of

MOST_ACCOUNT_BYTES = 32 * 2**20
"""The longest account that is read: 256 cells, each with where it comes from."""

_SHOWN_ORIGIN = ("checkpoint", "weights_sha256", "git_commit", "sources")
_TITLE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.\-]{0,63})-[0-9a-f]{8}")


class Measured(msgspec.Struct, frozen=True):
    """A value that the clip itself was found to have, and its passport."""

    value: float
    passport: dict[str, Any] = {}


class SampledCell(msgspec.Struct, frozen=True):
    """What an account says of one cell; `clip` is the artifact, "" where there is none.

    Of `origin` a step keeps what the panel itself does not say. A score that is no finite number is
    "nan", "inf" or "-inf".
    """

    clip: str = ""
    size_bytes: int = 0
    origin: dict[str, Any] = {}
    scores: dict[str, float | str] = {}
    passports: dict[str, dict[str, Any]] = {}
    measured: dict[str, Measured] = {}


class _Written(msgspec.Struct):
    panel: dict[str, Any]
    step: int
    timestamp_ms: int
    cells: dict[str, SampledCell]


@dataclass(frozen=True, kw_only=True)
class PanelStep:
    """The samples of a panel at a step.

    Attributes:
        panel: What was sampled.
        step: The training step.
        timestamp_ms: When they were logged, Unix milliseconds.
        cells: By the names of the panel's cells; clips lie where the panel's clips have to lie.
    """

    panel: Panel
    step: int
    timestamp_ms: int
    cells: Mapping[str, SampledCell] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An account by its name alone."""

    path: str
    step: int
    timestamp_ms: int


@dataclass(frozen=True, kw_only=True)
class ListedStep:
    """A step by the names of its accounts, the oldest first: each rank may log its own cells."""

    step: int
    accounts: tuple[Listed, ...]


def repository_of(client: MlflowClient, run: Run) -> ArtifactRepository:
    """Where the artifacts of a run lie.

    Raises:
        MlflowException: There is no such place.
    """
    return get_artifact_repository(run.info.artifact_uri, tracking_uri=client.tracking_uri)


def panel_titles(repository: ArtifactRepository) -> list[str]:
    """The titles of the panels that a run has samples of, sorted.

    Raises:
        MlflowException, OSError, or S3's own: MLflow does not answer now.
    """
    entries = repository.list_artifacts(layout.PANELS)
    titles = (posixpath.basename(one.path) for one in entries if one.is_dir)
    return sorted(title for title in titles if _TITLE.fullmatch(title))


def titles_called(name: str, titles: Iterable[str]) -> list[str]:
    """Those that a name means: a title itself, or all of the panels that are called so."""
    known = list(titles)
    if name in known:
        return [name]
    parts = {title: _TITLE.fullmatch(title) for title in known}
    return [title for title, found in parts.items() if found and found[1] == name]


def listed(repository: ArtifactRepository, title: str) -> list[Listed]:
    """The accounts of a panel, by step and time; nothing is read.

    Raises:
        MlflowException, OSError, or S3's own: MLflow does not answer now.
    """
    found = []
    for entry in repository.list_artifacts(f"{layout.PANELS}/{title}"):
        named = layout.samples_of(entry.path)
        is_long = (entry.file_size or 0) > MOST_ACCOUNT_BYTES
        is_step = named is not None and abs(named.step) <= sys.maxsize
        if named and is_step and named.key == title and not entry.is_dir and not is_long:
            one = Listed(path=entry.path, step=named.step, timestamp_ms=named.timestamp_ms)
            found.append(one)
    return sorted(found, key=lambda one: (one.step, one.timestamp_ms, one.path))


def that_count(accounts: Sequence[Listed], run: Run) -> tuple[list[ListedStep], list[str]]:
    """The steps, but what training went back behind; and what is said of that.

    Args:
        accounts: As `listed` gave them.
        run: With the tags of its generations.
    """
    begun = generations_of(run.data.tags)
    now = [
        one
        for one in accounts
        if not is_superseded(begun, key=layout.PANELS, step=one.step, timestamp_ms=one.timestamp_ms)
    ]
    notes = []
    if left := len(accounts) - len(now):
        notes.append(
            f"Training went on anew from step {begun[-1].after_step}: {_samplings(left)}, of "
            "later steps and made before that."
        )
    steps = groupby(now, key=lambda one: one.step)
    return [ListedStep(step=step, accounts=tuple(every)) for step, every in steps], notes


def _samplings(count: int) -> str:
    return "one sampling is left out" if count == 1 else f"{count} samplings are left out"


def read_step(repository: ArtifactRepository, title: str, account: Listed) -> PanelStep:
    """Read an account.

    Raises:
        PanelError: It is none, or is of another panel; or it is gone for good.
        MlflowException, OSError, or S3's own: MLflow does not answer now.
    """
    try:
        text = content(repository, account.path)
    except asking_faults() as error:
        if not is_for_good(error):
            raise
        raise PanelError(f"{account.path}: {reason_of(error)}") from error
    return _decoded(text, title, account)


def _decoded(text: bytes, title: str, account: Listed) -> PanelStep:
    try:
        said = msgspec.convert(json.loads(text), _Written, strict=False)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise PanelError(f"{account.path} is no account: {one_line(str(error))}") from error
    panel = Panel.from_dict(said.panel)
    if panel.title != title or said.step != account.step:
        raise PanelError(f"{account.path} is an account of panel {panel.title}, step {said.step}")
    cells = {
        cell.name: _checked(said.cells[cell.name], panel.key_of(cell))
        for cell in panel.cells
        if cell.name in said.cells
    }
    return PanelStep(panel=panel, step=said.step, timestamp_ms=said.timestamp_ms, cells=cells)


def _checked(cell: SampledCell, key: str) -> SampledCell:
    """The same, without a clip that lies anywhere but where this cell's clips lie.

    Of where it comes from, what every cell repeats from the panel is not held in memory.
    """
    clip = layout.clip_of(cell.clip)
    is_there = clip is not None and clip.key == key and ".." not in cell.clip.split("/")
    size_bytes = cell.size_bytes if 0 <= cell.size_bytes < math.inf else 0
    return msgspec.structs.replace(
        cell,
        clip=cell.clip if is_there else "",
        size_bytes=size_bytes,
        origin={key: cell.origin[key] for key in _SHOWN_ORIGIN if key in cell.origin},
    )


def _joined(parts: Sequence[PanelStep]) -> tuple[PanelStep, int]:
    """Accounts of one step as one, and how many of them say nothing that counts.

    Of each cell the newest counts, but one that says nothing takes no other's place.
    """
    if len(parts) == 1:
        return parts[0], 0
    of_cell: dict[str, PanelStep] = {}
    for part in parts:
        for name, cell in part.cells.items():
            if cell.clip or cell.scores or name not in of_cell:
                of_cell[name] = part
    used = {id(part) for part in of_cell.values()}
    cells = {name: part.cells[name] for name, part in of_cell.items()}
    return replace(parts[-1], cells=cells), len(parts) - len(used)


class StepReader:
    """Reads accounts of one run, each once; what cannot be read is told and passed over.

    Those that are not asked for again are forgotten.
    """

    def __init__(self, repository: ArtifactRepository, title: str) -> None:
        self._repository, self._title = repository, title
        self._known: dict[str, PanelStep] = {}

    def read(
        self, steps: Sequence[ListedStep], show: Callable[[int, int], None] | None = None
    ) -> tuple[list[PanelStep], list[str]]:
        """These steps, and a sentence for each account that is none, or is left out.

        Raises:
            MlflowException, OSError, or S3's own: MLflow does not answer now.
        """
        found: list[PanelStep] = []
        problems: list[str] = []
        again = 0
        for number, listed_step in enumerate(steps):
            if show:
                show(number, len(steps))
            read = [self._step(one) for one in listed_step.accounts]
            problems += [one for one in read if isinstance(one, str)]
            parts = [one for one in read if isinstance(one, PanelStep)]
            if parts:
                step, unused = _joined(parts)
                found.append(step)
                again += unused
        if again:
            left = _samplings(again)
            problems.append(f"Of cells that were sampled again the newest counts: {left}.")
        self._forget_all_but({one.path for step in steps for one in step.accounts})
        return found, problems

    def _forget_all_but(self, paths: Collection[str]) -> None:
        self._known = {path: one for path, one in self._known.items() if path in paths}

    def _step(self, account: Listed) -> PanelStep | str:
        known = self._known.get(account.path)
        if known:
            return known
        try:
            step = self._known[account.path] = read_step(self._repository, self._title, account)
        except PanelError as error:
            return f"Step {account.step} is left out: {error}."
        return step
