"""Walls out of MLflow: which steps stand on one, where their clips are, what is said of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from opusclip_mlops.checkpoints import place_of
from opusclip_mlops.errors import PassportError
from opusclip_mlops.layout import BEST_TAG
from opusclip_mlops.page_text import moment_text
from opusclip_mlops.panel_steps import (
    ListedStep,
    PanelStep,
    SampledCell,
    StepReader,
    listed,
    repository_of,
    that_count,
)
from opusclip_mlops.panels import Cell, Panel
from opusclip_mlops.passports import Passport
from opusclip_mlops.redaction import one_line
from opusclip_mlops.wall_clips import ClipFolder
from opusclip_mlops.wall_page import MOST_BYTES, Column, Film, Sample, ShownScore, Wall, page_bytes

MOST_STEPS = 200
"""The most steps of a run whose accounts are read for a wall."""

Steps = Collection[int] | Literal["all", "last"]
"""Which steps of a run are wanted."""

LAST: Literal["last"] = "last"

Show = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and how much there is."""

GUESSED_CLIP_BYTES = 256 * 1024
"""What a clip takes whose account does not say it."""

_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A step of a run that may stand on a wall.

    Attributes:
        run: What the run is called on the page.
        step: Its samples.
        clips: Where the run's clips are.
        marks: What is special about it.
        is_kept: Whether it is left out only when all others are.
    """

    run: str
    step: PanelStep
    clips: ClipFolder
    marks: tuple[str, ...] = ()
    is_kept: bool = False

    @cached_property
    def size_bytes(self) -> int:
        """How much its clips take, guessed where their account does not say, and what is said."""
        cells = self.step.cells.values()
        clips = sum(one.size_bytes or GUESSED_CLIP_BYTES for one in cells if one.clip)
        return clips + sum(map(_said_bytes, cells))


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The steps of one run that count, and what is to be said about the others."""

    steps: Sequence[Candidate]
    notes: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class RunOfWall:
    """Reads one run for walls of one panel, again and again."""

    run: Run
    repository: ArtifactRepository
    reader: StepReader
    clips: ClipFolder

    @classmethod
    def of(cls, client: MlflowClient, run: Run, title: str, folder: Path) -> RunOfWall:
        """A run that was not read before; `folder` keeps its clips."""
        repository = repository_of(client, run)
        return cls(run, repository, StepReader(repository, title), ClipFolder(repository, folder))

    def candidates(
        self, title: str, *, called: str, steps: Steps = "all", show: Show
    ) -> Candidates:
        """The steps of a panel.

        Args:
            title: The panel's.
            called: What the run is called on the page.
            steps: Those that are wanted.
            show: Is told how far it is.

        Raises:
            MlflowException, OSError, or S3's own: MLflow does not answer now.
        """
        found, notes = that_count(listed(self.repository, title), self.run)
        best = self.run.data.tags.get(BEST_TAG, "")
        wanted, more = _wanted(found, steps, called, best)
        read, problems = self.reader.read(
            wanted, lambda done, of: show(f"reading steps of {called}", done, of)
        )
        marked = [
            Candidate(
                run=called,
                step=one,
                clips=self.clips,
                marks=("best",) if best and best in _checkpoints(one) else (),
            )
            for one in read
        ]
        return Candidates(steps=_kept(marked), notes=[*notes, *more, *problems])


def _said_bytes(cell: SampledCell) -> int:
    """About how much of a page is said of a cell."""
    return len(repr(cell))


def _wanted(
    found: Sequence[ListedStep], steps: Steps, called: str, best: str
) -> tuple[list[ListedStep], list[str]]:
    if steps == LAST:
        return list(found[-1:]), []
    if not isinstance(steps, str):
        lacking = sorted(set(steps) - {one.step for one in found})
        notes = [f"Run {called} has no samples of step {one}." for one in lacking]
        return [one for one in found if one.step in steps], notes
    if len(found) <= MOST_STEPS:
        return list(found), []
    place, even = place_of(best), set(evenly(MOST_STEPS, len(found)))
    best_step = place[0] if place else None
    few = [one for index, one in enumerate(found) if index in even or one.step == best_step]
    return few, [f"Of {len(found)} steps of run {called}, {len(few)} were looked at."]


def _checkpoints(step: PanelStep) -> set[str]:
    return {str(one.origin.get("checkpoint", "")) for one in step.cells.values()} - {""}


def _kept(candidates: Sequence[Candidate]) -> list[Candidate]:
    """With the first, the last and the best marked as such that are kept."""
    ends = {0, len(candidates) - 1}
    return [
        replace(one, is_kept=number in ends or bool(one.marks))
        for number, one in enumerate(candidates)
    ]


def evenly(count: int, of: int) -> list[int]:
    """So many of the numbers from 0 to `of` - 1, the first and the last among them."""
    if of <= count:
        return list(range(of))
    if count < 2:
        return [of - 1][:count]
    return sorted({round(index * (of - 1) / (count - 1)) for index in range(count)})


def thinned(candidates: Sequence[Candidate], *, most_bytes: int) -> list[Candidate]:
    """As many of them, evenly, as a page can hold; those that are kept are among them.

    Where not even those fit, the last alone.
    """

    def taken(count: int) -> list[Candidate]:
        few = set(evenly(count, len(candidates)))
        return [one for index, one in enumerate(candidates) if one.is_kept or index in few]

    def fits(some: Sequence[Candidate]) -> bool:
        return page_bytes(sum(one.size_bytes for one in some)) <= most_bytes

    if not fits(taken(0)):
        return list(candidates[-1:])
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(taken(middle)) else (low, middle - 1)
    return taken(low)


def lay_out(
    panel: Panel,
    candidates: Sequence[Candidate],
    notes: Sequence[str],
    *,
    show: Show,
    most_bytes: int = MOST_BYTES,
) -> Wall:
    """Fetch the clips of as many steps as the page can hold.

    Raises:
        MlflowException, OSError, or S3's own: MLflow does not answer now.
    """
    chosen = thinned(candidates, most_bytes=most_bytes)
    said = list(notes)
    if left := len(candidates) - len(chosen):
        said.append(
            f"Of {len(candidates)} sampled steps {left} are left out, evenly: the page would be "
            f"longer than {most_bytes >> 20} MiB. Their clips are in MLflow, under media/video/."
        )
    room, columns = _Room(most_bytes), []
    for number, one in enumerate(chosen):
        show("fetching clips", number, len(chosen))
        columns.append(_column(one, _samples(one, panel, room)))
    return Wall(panel=panel, columns=columns, notes=said)


class _Room:
    """How much of a page is taken; a clip that stands there twice is counted once."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._taken_bytes = most_bytes, 0
        self._paths: set[Path] = set()

    def clip(self, cell: SampledCell, clips: ClipFolder) -> Film | str:
        """A cell's clip, or why there is none; one that does not fit is not fetched."""
        self._taken_bytes += _said_bytes(cell)
        if not cell.clip:
            return "no clip was logged"
        if not self._holds(cell.size_bytes):
            return self._full()
        film = clips.film(cell.clip)
        if isinstance(film, Film) and film.path not in self._paths:
            size_bytes = film.path.stat().st_size
            if not self._holds(size_bytes):
                return self._full()
            self._taken_bytes += size_bytes
            self._paths.add(film.path)
        return film

    def _holds(self, size_bytes: int) -> bool:
        return page_bytes(self._taken_bytes + size_bytes) <= self._most_bytes

    def _full(self) -> str:
        return f"left out: the page would be longer than {self._most_bytes >> 20} MiB"


def _samples(candidate: Candidate, panel: Panel, room: _Room) -> dict[str, Sample]:
    cells = candidate.step.cells
    return {
        one.name: _sample(one, cells[one.name], room.clip(cells[one.name], candidate.clips))
        for one in panel.cells
        if one.name in cells
    }


def _column(candidate: Candidate, samples: Mapping[str, Sample]) -> Column:
    step = candidate.step
    origins = [one.origin for one in step.cells.values()]
    about = [
        _alike("checkpoint", origins, "checkpoint"),
        _alike("weights", origins, "weights_sha256"),
        _alike("commit", origins, "git_commit"),
        moment_text(step.timestamp_ms),
    ]
    return Column(
        run=candidate.run,
        step=step.step,
        samples=samples,
        marks=candidate.marks,
        about=tuple(one for one in about if one),
    )


def _alike(name: str, origins: Sequence[Mapping[str, Any]], key: str) -> str:
    """What all say of themselves, in a line; that they differ where they do."""
    values = {str(one.get(key, "")) for one in origins}
    if len(values) > 1:
        return f"several {name}s, see each origin"
    value = "".join(values)
    shown = value if key == "checkpoint" else value[:_DIGITS]
    return f"{name} {one_line(shown, at_most=120)}" if value else ""


def _sample(cell: Cell, sampled: SampledCell, film: Film | str) -> Sample:
    shown = film if isinstance(film, Film) else None
    return Sample(
        film=shown,
        missing=film if isinstance(film, str) else "",
        scores=tuple(_scores(sampled)),
        about=_about(cell, sampled, shown),
    )


def _scores(sampled: SampledCell) -> Iterator[ShownScore]:
    """What was logged, then what the clip was found to have."""
    for name, value in sorted(sampled.scores.items()):
        with contextlib.suppress(ValueError):
            lines = _measured(sampled.passports.get(name))
            yield ShownScore(name=name, value=float(value), measured=lines)
    for name, one in sorted(sampled.measured.items()):
        if name not in sampled.scores:
            lines = _measured(one.passport)
            yield ShownScore(name=name, value=one.value, measured=lines, is_given=False)


def _measured(given: Mapping[str, Any] | None) -> tuple[str, ...]:
    """A passport in lines, empty for none."""
    try:
        passport = Passport.from_dict(given) if given else None
    except PassportError:
        return ("its passport cannot be read",)
    if passport is None:
        return ()
    facts = {
        "extractor": passport.extractor,
        "weights": passport.weights_sha256[:_DIGITS],
        "sampling": passport.sampling,
        "resize": passport.resize,
        "colours": passport.colour_range,
        "reference": passport.reference[:_DIGITS],
        **{key: str(value) for key, value in passport.settings.items()},
    }
    of = f"{passport.metric} v{passport.version}, {passport.count} {passport.unit}"
    interval = passport.interval
    between = (
        [f"{interval.level:.0%}: {interval.low:.5g} to {interval.high:.5g}"] if interval else []
    )
    return (of, *between, *(f"{key}: {value}" for key, value in facts.items() if value))


def _about(cell: Cell, sampled: SampledCell, film: Film | None) -> dict[str, str]:
    origin = sampled.origin
    sources = origin.get("sources") or []
    return {
        "seed": str(cell.seed),
        "checkpoint": _text(origin.get("checkpoint")),
        "weights": _text(origin.get("weights_sha256")),
        "commit": _text(origin.get("git_commit")),
        "sources": "; ".join(map(_source, sources)) if isinstance(sources, list) else "",
        "clip": sampled.clip,
        "pictures": film.length if film else "",
    }


def _source(given: Any) -> str:
    if not isinstance(given, Mapping):
        return ""
    start, end = given.get("start_s", 0.0), given.get("end_s")
    span = f" {start} s to {'its end' if end is None else f'{end} s'}"
    return one_line(f"{given.get('uri', '')}{span}", at_most=300)


def _text(value: Any) -> str:
    return one_line(str(value), at_most=300) if value else ""
