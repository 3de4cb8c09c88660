"""A run as its report needs it: read part by part, each by the reader that the package has for it.

A part that cannot be read now, or may not be read by this user, is named with the reason; the
others are read.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunData

from opusclip_mlops.alerts.events import KEY as ALERTS_KEY
from opusclip_mlops.alerts.events import Event
from opusclip_mlops.alerts.past import alerts_in
from opusclip_mlops.artifacts import read_artifacts
from opusclip_mlops.bottleneck_report import comparable, figures_in
from opusclip_mlops.bottlenecks import Figures, Report, report_of
from opusclip_mlops.comparing import Beside, Show, laid_beside
from opusclip_mlops.contents import Contents, fetch, read_contents
from opusclip_mlops.contrasts import facts_of
from opusclip_mlops.crash_report import KEY as CRASH_KEY
from opusclip_mlops.curves import Curve, counting, curves_of, parted
from opusclip_mlops.errors import PanelError
from opusclip_mlops.generations import Generation, Line, generations_of, is_superseded, line_of
from opusclip_mlops.listing import Found, Part
from opusclip_mlops.panel_steps import panel_titles, repository_of
from opusclip_mlops.points import Points
from opusclip_mlops.records import SYSTEM_PREFIX, Image, Table, Text, Video
from opusclip_mlops.redaction import one_line
from opusclip_mlops.reports.registry_past import read_past
from opusclip_mlops.reports.run_read import Fetched, Place, RunRead
from opusclip_mlops.reports.unread import Asking
from opusclip_mlops.run_history import open_history
from opusclip_mlops.versions import ModelReader
from opusclip_mlops.wall_page import Wall, page_bytes
from opusclip_mlops.walls import LAST, RunOfWall, lay_out

MOST_PANELS = 6
"""Of how many panels of a run the last samples are shown."""

_Keyed = Video | Image | Table | Text
_MOST_KEYS: Mapping[type[_Keyed], int] = {Video: 12, Image: 24, Table: 12}
_SECTIONS: Mapping[type[_Keyed], Place] = {Video: "media", Image: "media", Table: "insights"}
_MOST_NAMED = 5
_PANEL_KEYS = "panels/"


@dataclass(frozen=True, kw_only=True)
class RunReader:
    """Reads runs for one report.

    Attributes:
        client: Asks MLflow.
        compares: Whether a run is put beside its parent, or the run in Production.
        most_clip_bytes: About how many bytes of clips a panel may have.
        has_room: Whether the page takes clips and pictures of so many bytes more.
        place: The words that tell a command where the runs are.
        before: Who asked before, and may have waited in vain.
        show: Is told how far it is.
    """

    client: MlflowClient
    compares: bool
    most_clip_bytes: int
    has_room: Callable[[int], bool] = lambda _: True
    place: Sequence[str] = ()
    before: Asking | None = None
    show: Show = lambda *_: None
    _timed: dict[str, Figures] = field(default_factory=dict, init=False)

    def read(self, run: Run, folder: Path) -> RunRead:
        """All of a run, as far as it can be read.

        Args:
            run: The run.
            folder: Where fetched files are put: artifacts of two runs may have one path.
        """
        called = one_line(run.info.run_name or run.info.run_id, at_most=120)
        found, ask = self._begun(run, called), Asking(called, before=self.before)
        points = self._points(found, ask)
        found = found if points is None else self._with_curves(found, points)
        self._tell(found, "its files", 1)
        found = self._with_contents(found, folder, ask)
        self._tell(found, "its samples", 2)
        found = self._with_walls(found, folder, ask)
        self._tell(found, "its registry history", 3)
        found = self._with_the_rest(found, ask)
        return replace(found, unread=tuple(ask.unread))

    def _begun(self, run: Run, called: str) -> RunRead:
        """What the run itself says."""
        begun = generations_of(run.data.tags)
        found = RunRead(
            run=run, called=called, facts=facts_of(run), place=self.place, generations=begun
        )
        self._tell(found, "its points", 0)
        return found

    def _tell(self, found: RunRead, what: str, done: int) -> None:
        self.show(f"reading {found.called}: {what}", done, 4)

    # Points

    def _points(self, found: RunRead, ask: Asking) -> Points | None:
        """All points; where they cannot be read at once those of each metric that can be."""
        first = Asking(before=ask)
        points = first.part("curves", lambda: self._history(found.run), None)
        if points is not None:
            return points
        every = found.run.data._metric_objs
        parts = [] if first.silent else self._by_metric(found.run, every, ask)
        if not parts:
            ask.miss("curves", first.unread[0].reason)
        return Points.joined(parts) if parts else None

    def _by_metric(self, run: Run, every: Sequence[Metric], ask: Asking) -> list[Points]:
        """The points of single metrics; the others are named together, with the first reason."""
        one_by_one, found = Asking(before=ask), []
        for one in every:
            alone = Run(run.info, RunData([one]))
            points = one_by_one.part(one.key, partial(self._history, alone), None)
            if points is not None:
                found.append(points)
        if lost := one_by_one.unread:
            names = ", ".join(one.part for one in lost[:_MOST_NAMED])
            more = f" and {len(lost) - _MOST_NAMED} more" if len(lost) > _MOST_NAMED else ""
            ask.miss(f"curves of {names}{more}", lost[0].reason)
        return found

    def _history(self, run: Run) -> Points:
        return open_history(self.client).read(run)[0]

    def _with_curves(self, found: RunRead, points: Points) -> RunRead:
        now = line_of(found.generations, len(found.generations))
        figures = self._timed[str(found.run.info.run_id)] = figures_in(points)
        return replace(
            found,
            curves=curves_of(points, wanted=_every, line=now),
            branches=_branches(points, now) if found.generations else {},
            last_step=_last_step(points, now),
            figures=figures,
        )

    # Files

    def _with_contents(self, found: RunRead, folder: Path, ask: Asking) -> RunRead:
        """Words, files and models, each by itself: where one store is away the others are there."""
        client, run = self.client, found.run
        words = ask.part(
            "params and tags", lambda: read_contents(client, run, with_artifacts=False), None
        )
        if words is None:
            return found
        files = ask.part("files", lambda: self._files(run, words), Found())
        models = ask.part("logged models", lambda: ModelReader(client, run).read(), Found())
        found = replace(
            found,
            experiment=words.identity.experiment_name,
            parts=(*words.parts, *files.parts, *models.parts),
            left_out=(*files.left_out, *models.left_out),
        )
        return self._with_media(found, files.parts, folder, ask)

    def _files(self, run: Run, words: Contents) -> Found:
        """The files; a table that may grow yet as it is now."""
        return read_artifacts(repository_of(self.client, run), words.identity, run, is_over=True)

    def _with_media(
        self, found: RunRead, parts: Sequence[Part], folder: Path, ask: Asking
    ) -> RunRead:
        chosen, more = _chosen(parts, found.generations)
        died = self._fetched(found, _newest(parts, Text, (), CRASH_KEY), folder, ask)
        said = [one.record for one in died if isinstance(one.record, Text)]
        media = tuple(self._fetched(found, chosen, folder, ask))
        return replace(found, crash=said[-1] if said else None, media=media, more=more)

    def _fetched(
        self, found: RunRead, parts: Sequence[Part], folder: Path, ask: Asking
    ) -> Iterator[Fetched]:
        sizes = ask.part("sizes of files", lambda: self._sizes(found, parts), dict[str, int]())
        taken_bytes = 0
        for part in parts:
            size_bytes = sizes.get(part.artifact_path, 0)
            is_film = isinstance(part.record, Video | Image)
            if is_film and not self.has_room(taken_bytes + size_bytes):
                yield Fetched(
                    record=part.record, artifact_path=part.artifact_path, left_bytes=size_bytes
                )
                continue
            one = ask.part(part.artifact_path, partial(self._one, found, part, folder), None)
            if one is not None:
                taken_bytes += size_bytes if is_film else 0
                yield one

    def _sizes(self, found: RunRead, parts: Iterable[Part]) -> dict[str, int]:
        """How long the clips and pictures are, where MLflow says it: a request for each folder."""
        films = [one for one in parts if isinstance(one.record, Video | Image)]
        if not films:
            return {}
        folders = dict.fromkeys(posixpath.dirname(one.artifact_path) for one in films)
        repository = repository_of(self.client, found.run)
        every = (one for folder in folders for one in repository.list_artifacts(folder))
        return {one.path: int(one.file_size or 0) for one in every}

    def _one(self, found: RunRead, part: Part, folder: Path) -> Fetched:
        record = fetch(self.client, found.run.info.run_id, part, folder)
        file = record.file if isinstance(record, Video | Image) else ""
        path = folder / file if file else None
        return Fetched(record=record, path=path, artifact_path=part.artifact_path)

    # Samples

    def _with_walls(self, found: RunRead, folder: Path, ask: Asking) -> RunRead:
        run, none = found.run, list[str]()
        titles = ask.part("samples", lambda: panel_titles(repository_of(self.client, run)), none)
        made = (
            ask.part(f"samples of {title}", partial(self._wall, found, title, folder), None)
            for title in titles[:MOST_PANELS]
        )
        walls = tuple(one for one in made if one is not None)
        left = len(titles) - MOST_PANELS
        said = [f"{left} more panels have samples, in MLflow"] if left > 0 else []
        return replace(found, walls=walls, more={**found.more, "samples": said})

    def _wall(self, found: RunRead, title: str, folder: Path) -> Wall | None:
        run = RunOfWall.of(self.client, found.run, title, folder)
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
        is_timed = found.figures is not None and found.figures.seconds > 0
        other = None
        if is_timed or self.compares:
            other = ask.part("the run to compare with", lambda: self._other(found), None)
        return replace(
            found,
            models=read_past(self.client, str(found.run.info.run_id), ask),
            bottlenecks=self._bottlenecks(found, other, ask) if is_timed else None,
            alerts=self._alerts(found, ask),
            changes=ask.part("changes", lambda: self._changes(found, other), None),
        )

    def _alerts(self, found: RunRead, ask: Asking) -> tuple[Event, ...]:
        if not any(one.key == ALERTS_KEY for one in found.records(Text)):
            return ()
        run_id, uri = str(found.run.info.run_id), self.client.tracking_uri
        return tuple(ask.part("alerts", lambda: alerts_in(run_id, tracking_uri=uri), list[Event]()))

    def _other(self, found: RunRead) -> Run | None:
        other = comparable(self.client, found.run)
        return None if other and other.info.run_id == found.run.info.run_id else other

    def _bottlenecks(self, found: RunRead, other: Run | None, ask: Asking) -> Report | None:
        """Where the run's time went, of the points that were read; None where nothing was timed."""
        if found.figures is None:
            return None
        if other is None:
            return report_of(found.figures)
        before = ask.part("bottlenecks of the other", lambda: self._figures(other), None)
        if before is None or not before.seconds:
            return report_of(found.figures)
        called = str(other.info.run_name or other.info.run_id)
        return report_of(found.figures, before=before, against=called)

    def _figures(self, run: Run) -> Figures:
        """What was timed in another run, which is read once for all that are compared with it."""
        run_id = str(run.info.run_id)
        if run_id not in self._timed:
            self._timed[run_id] = figures_in(self._history(run))
        return self._timed[run_id]

    def _changes(self, found: RunRead, other: Run | None) -> Beside | None:
        if other is None or not self.compares:
            return None
        ids = [str(one.info.run_id) for one in (other, found.run)]
        return laid_beside(ids, tracking_uri=self.client.tracking_uri, show=self.show)


def _every(_: str) -> bool:
    return True


def _last_step(points: Points, now: Line) -> int | None:
    """The highest step that counts of what training logged, whether its value is a number."""
    of_machine = [at for at, key in enumerate(points.keys) if key.startswith(SYSTEM_PREFIX)]
    counts = counting(points.rows, points.keys, now) & ~np.isin(points.rows["key"], of_machine)
    steps = points.rows["step"][counts]
    return int(steps.max()) if len(steps) else None


def _branches(points: Points, now: Line) -> dict[str, tuple[Curve, ...]]:
    """What was logged of each metric, and the run does not look back on now."""
    every = curves_of(points, wanted=_every)
    left = {key: parted(key, curve, now)[1] for key, curve in every.items()}
    return {key: curves for key, curves in left.items() if curves}


def _chosen(
    parts: Sequence[Part], begun: Sequence[Generation]
) -> tuple[list[Part], dict[Place, list[str]]]:
    """The newest clip, picture and table of each key, and what there is more of, by section."""
    chosen: list[Part] = []
    more: dict[Place, list[str]] = {}
    for kind, most in _MOST_KEYS.items():
        newest = _newest(parts, kind, begun)
        chosen += newest[:most]
        if (left := len(newest) - most) > 0:
            said = f"{left} more keys of kind {kind.__name__.lower()}, in MLflow"
            more.setdefault(_SECTIONS[kind], []).append(said)
    return chosen, more


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
