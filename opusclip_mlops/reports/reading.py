"""A run as its report needs it: read part by part, each by the reader that the package has for it.

A part that cannot be read now, or may not be read by this user, is named with the reason; the
others are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops.alerts.events import KEY as ALERTS_KEY
from opusclip_mlops.alerts.events import Event
from opusclip_mlops.alerts.past import alerts_in
from opusclip_mlops.artifacts import read_artifacts
from opusclip_mlops.bottleneck_report import bottlenecks, comparable
from opusclip_mlops.bottlenecks import Report
from opusclip_mlops.comparing import Beside, Show, laid_beside
from opusclip_mlops.contents import Contents, fetch, read_contents
from opusclip_mlops.contrasts import Facts, facts_of
from opusclip_mlops.crash_report import KEY as CRASH_KEY
from opusclip_mlops.curves import Curve, curves_of, parted
from opusclip_mlops.errors import DataError, OpusclipError, PanelError
from opusclip_mlops.generations import Generation, Line, generations_of, is_superseded, line_of
from opusclip_mlops.listing import Found, LeftOut, Part
from opusclip_mlops.panel_steps import panel_titles, repository_of
from opusclip_mlops.points import Points
from opusclip_mlops.records import Image, Record, Table, Text, Video
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import asking_faults, reason_of
from opusclip_mlops.reports.registry_past import ModelPast, read_past
from opusclip_mlops.reports.wording import main_keys
from opusclip_mlops.run_history import open_history
from opusclip_mlops.versions import ModelReader
from opusclip_mlops.wall_page import Wall, page_bytes
from opusclip_mlops.walls import LAST, RunOfWall, lay_out

MOST_PANELS = 6
"""Of how many panels of a run the last samples are shown."""

_Keyed = Video | Image | Table | Text
MAIN_METRICS = 12
"""How many metrics a summary has."""

_MOST_KEYS: Mapping[type[_Keyed], int] = {Video: 12, Image: 24, Table: 12}
_PANEL_KEYS = "panels/"
_Answer = TypeVar("_Answer")
_Of = TypeVar("_Of")


@dataclass(frozen=True, kw_only=True)
class Unread:
    """A part of a report that could not be read.

    Attributes:
        run: What its run is called, "" for a part of several.
        part: Which.
        reason: Why, on one line.
    """

    run: str
    part: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A record of a run, and the file here that it is shown from; None for what needs none."""

    record: Record
    path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class RunRead:
    """All that a report says of one run.

    Attributes:
        run: As MLflow has it.
        called: Its name, else its id.
        facts: What it was made of, and how it ended.
        generations: Each time training went on from a checkpoint.
        curves: Its metrics as the run looks back on them now, by key.
        branches: What training went back behind, by key: a curve for each part that was left.
        experiment: What its experiment is called, "" where that cannot be read.
        parts: Its words, files and models; what stands at a step is not fetched.
        left_out: What no record can be made of.
        crash: The newest crash report, "" where it did not die.
        walls: The last samples of each panel.
        media: The newest clip, picture and table of each key.
        more: What there is more media of than is shown.
        models: The versions made of it and what was decided about them.
        bottlenecks: Where its time went, None where nothing was timed.
        alerts: What its rules raised, the oldest first.
        changes: The run beside its parent, or the run in Production; None where there is none.
        unread: What could not be read.
    """

    run: Run
    called: str
    facts: Facts
    generations: tuple[Generation, ...] = ()
    curves: Mapping[str, Curve] = field(default_factory=dict)
    branches: Mapping[str, tuple[Curve, ...]] = field(default_factory=dict)
    experiment: str = ""
    parts: tuple[Part, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    crash: str = ""
    walls: tuple[Wall, ...] = ()
    media: tuple[Fetched, ...] = ()
    more: tuple[str, ...] = ()
    models: tuple[ModelPast, ...] = ()
    bottlenecks: Report | None = None
    alerts: tuple[Event, ...] = ()
    changes: Beside | None = None
    unread: tuple[Unread, ...] = ()

    def records(self, kind: type[_Of]) -> list[_Of]:
        """The records of a kind that the run holds; what stands at a step is not fetched."""
        return [part.record for part in self.parts if isinstance(part.record, kind)]

    def in_short(self) -> RunRead:
        """The same with the main metrics alone, and without what only its own sections need."""
        kept = {key: self.curves[key] for key in main_keys(self.curves)[:MAIN_METRICS]}
        return replace(self, curves=kept, branches={}, walls=(), media=())


class Asking:
    """Asks for the parts of a run, and notes those that cannot be read.

    Args:
        called: What the run is called.
    """

    def __init__(self, called: str = "") -> None:
        self.unread: list[Unread] = []
        self._called = called

    def part(self, name: str, read: Callable[[], _Answer], otherwise: _Answer) -> _Answer:
        """What `read` gives, or `otherwise` where MLflow, a store or a broken file refuses."""
        try:
            return read()
        except _faults() as error:
            reason = one_line(reason_of(error))
            self.unread.append(Unread(run=self._called, part=name, reason=reason))
            return otherwise


@dataclass(frozen=True, kw_only=True)
class RunReader:
    """Reads runs for one report.

    Attributes:
        client: Asks MLflow.
        folder: Where fetched files are put.
        wanted: Whether the curve of a key is wanted.
        compares: Whether a run is put beside its parent, or the run in Production.
        most_clip_bytes: About how many bytes of clips a panel may have.
        show: Is told how far it is.
    """

    client: MlflowClient
    folder: Path
    wanted: Callable[[str], bool]
    compares: bool
    most_clip_bytes: int
    show: Show

    def read(self, run: Run) -> RunRead:
        """All of a run, as far as it can be read."""
        called = one_line(run.info.run_name or run.info.run_id, at_most=120)
        ask = Asking(called)
        found = RunRead(
            run=run, called=called, facts=facts_of(run), generations=generations_of(run.data.tags)
        )
        self._tell(found, "its points", 0)
        found = ask.part("curves", lambda: self._with_curves(found), found)
        self._tell(found, "its files", 1)
        found = self._with_contents(found, ask)
        self._tell(found, "its samples", 2)
        found = replace(found, walls=tuple(self._walls(found, ask)))
        self._tell(found, "its registry history", 3)
        found = self._with_the_rest(found, ask)
        return replace(found, unread=tuple(ask.unread))

    def _tell(self, found: RunRead, what: str, done: int) -> None:
        self.show(f"reading {found.called}: {what}", done, 4)

    # Points

    def _with_curves(self, found: RunRead) -> RunRead:
        points, _ = open_history(self.client).read(found.run)
        now = line_of(found.generations, len(found.generations))
        return replace(
            found,
            curves=curves_of(points, wanted=self.wanted, line=now),
            branches=_branches(points, self.wanted, now) if found.generations else {},
        )

    # Files

    def _with_contents(self, found: RunRead, ask: Asking) -> RunRead:
        """Words, files and models, each by itself: where one store is away the others are there."""
        client, run = self.client, found.run
        words = ask.part(
            "params and tags", lambda: read_contents(client, run, with_artifacts=False), None
        )
        if words is None:
            return found
        files = ask.part("files", lambda: self._files(run, words), Found())
        models = ask.part("logged models", lambda: ModelReader(client, run).read(), Found())
        crash = self._fetched(found, _newest(files.parts, Text, (), CRASH_KEY), ask)
        chosen, more = _chosen(files.parts, found.generations)
        return replace(
            found,
            experiment=words.identity.experiment_name,
            parts=(*words.parts, *files.parts, *models.parts),
            left_out=(*files.left_out, *models.left_out),
            crash="".join(one.record.text for one in crash if isinstance(one.record, Text)),
            media=tuple(self._fetched(found, chosen, ask)),
            more=tuple(more),
        )

    def _files(self, run: Run, words: Contents) -> Found:
        repository = repository_of(self.client, run)
        return read_artifacts(repository, words.identity, run, is_over=words.is_over)

    def _fetched(self, found: RunRead, parts: Iterable[Part], ask: Asking) -> list[Fetched]:
        folder = self._folder_of(found)
        made = []
        for part in parts:
            read = partial(self._one, found, part, folder)
            one = ask.part(part.artifact_path, read, None)
            if one is not None:
                made.append(one)
        return made

    def _one(self, found: RunRead, part: Part, folder: Path) -> Fetched | None:
        record = fetch(self.client, found.run.info.run_id, part, folder)
        file = record.file if isinstance(record, Video | Image) else ""
        return Fetched(record=record, path=folder / file if file else None)

    def _folder_of(self, found: RunRead) -> Path:
        """A folder for each run: artifacts of two runs may have one path."""
        folder = self.folder / str(found.run.info.run_id)
        folder.mkdir(exist_ok=True)
        return folder

    # Samples

    def _walls(self, found: RunRead, ask: Asking) -> list[Wall]:
        run, none = found.run, list[str]()
        titles = ask.part("samples", lambda: panel_titles(repository_of(self.client, run)), none)
        made = (
            ask.part(f"samples of {title}", partial(self._wall, found, title), None)
            for title in titles[:MOST_PANELS]
        )
        return [one for one in made if one is not None]

    def _wall(self, found: RunRead, title: str) -> Wall | None:
        run = RunOfWall.of(self.client, found.run, title, self._folder_of(found))
        last = run.candidates(title, called=found.called, steps=LAST, show=self.show)
        if last.notes and not last.steps:
            raise PanelError(one_line(" ".join(last.notes)))
        if not last.steps:
            return None
        panel = last.steps[-1].step.panel
        most = page_bytes(self.most_clip_bytes)
        return lay_out(panel, last.steps, last.notes, show=self.show, most_bytes=most)

    # What else is known

    def _with_the_rest(self, found: RunRead, ask: Asking) -> RunRead:
        run_id, uri = str(found.run.info.run_id), self.client.tracking_uri
        has_alerts = any(one.key == ALERTS_KEY for one in found.records(Text))
        return replace(
            found,
            models=ask.part("registry", lambda: read_past(self.client, run_id), ()),
            bottlenecks=ask.part("bottlenecks", lambda: _timed(run_id, uri), None),
            alerts=tuple(
                ask.part("alerts", lambda: alerts_in(run_id, tracking_uri=uri), [])
                if has_alerts
                else ()
            ),
            changes=ask.part("changes", lambda: self._changes(found), None),
        )

    def _changes(self, found: RunRead) -> Beside | None:
        other = comparable(self.client, found.run) if self.compares else None
        if other is None or other.info.run_id == found.run.info.run_id:
            return None
        ids = [str(one.info.run_id) for one in (other, found.run)]
        return laid_beside(ids, tracking_uri=self.client.tracking_uri, show=self.show)


def _faults() -> tuple[type[Exception], ...]:
    """What reading a part may raise, asked when it has: a store's client is loaded on the way."""
    return OpusclipError, *asking_faults()


def _branches(
    points: Points, wanted: Callable[[str], bool], now: Line
) -> dict[str, tuple[Curve, ...]]:
    """What was logged of each metric, and the run does not look back on now."""
    every = curves_of(points, wanted=wanted)
    left = {key: parted(key, curve, now)[1] for key, curve in every.items()}
    return {key: curves for key, curves in left.items() if curves}


def _chosen(parts: Sequence[Part], begun: Sequence[Generation]) -> tuple[list[Part], list[str]]:
    """The newest clip, picture and table of each key, and what there is more of."""
    chosen, left_out = [], []
    for kind, most in _MOST_KEYS.items():
        newest = _newest(parts, kind, begun)
        chosen += newest[:most]
        if len(newest) > most:
            more = len(newest) - most
            left_out.append(f"{more} more keys of kind {kind.__name__.lower()}, in MLflow")
    return chosen, left_out


def _newest(
    parts: Sequence[Part], kind: type[_Keyed], begun: Sequence[Generation], only: str = ""
) -> list[Part]:
    """Of each key the part of the last step that counts, by key; samples of panels are walls."""
    last: dict[str, tuple[tuple[int, int], Part]] = {}
    for part in parts:
        one = part.record
        if not isinstance(one, kind) or (only and one.key != only):
            continue
        if one.key.startswith(_PANEL_KEYS) or _is_behind(begun, one):
            continue
        at = (one.step, one.timestamp_ms)
        if one.key not in last or last[one.key][0] <= at:
            last[one.key] = (at, part)
    return [last[key][1] for key in sorted(last)]


def _is_behind(begun: Sequence[Generation], one: _Keyed) -> bool:
    return is_superseded(begun, key=one.key, step=one.step, timestamp_ms=one.timestamp_ms)


def _timed(run_id: str, tracking_uri: str) -> Report | None:
    """Where a run's time went; None where nothing was timed."""
    try:
        return bottlenecks(run_id, tracking_uri=tracking_uri).report
    except DataError:
        return None
