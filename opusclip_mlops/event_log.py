"""What a run's event files hold: points as columns, and where each other event stands.

TensorBoard's default loader drops every earlier value of a key whose step is not below a later
one's. Once a run has ended its events are therefore to stand in the order of their steps.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from opusclip_mlops import event_names, events
from opusclip_mlops.event_files import frame, frames
from opusclip_mlops.event_names import AT_A_STEP
from opusclip_mlops.events import Event, Kind, Summary
from opusclip_mlops.mirror_names import FIRST_LINE, Names
from opusclip_mlops.points import Points

_WITHOUT_VALUES = frozenset({"graph_def", "meta_graph_def", "tagged_run_metadata"})
_CHUNK_POINTS = 100_000
_LAYOUTS = "layouts"


@dataclass(frozen=True, slots=True)
class Kept:
    """An event without points, and where in which file it stands."""

    kind: Kind
    tag: str
    step: int
    timestamp_ms: int
    path: Path
    start_bytes: int


@dataclass(frozen=True, kw_only=True)
class EventLog:
    """Everything in a run's event files.

    Args:
        points: All points, in the order they stand in.
        kept: All other events, in the order they stand in.
        words: The last text under each name.
        hparams: The names of the params in the HParams tab, None where there are none.
        end: How the run ended, empty while it has not.
        point_events: How many events hold a point.
        damaged: How many events can't be read.
    """

    points: Points
    kept: tuple[Kept, ...]
    words: dict[str, str]
    hparams: frozenset[str] | None
    end: str
    point_events: int
    damaged: int

    def is_in_order(self, names: Names = FIRST_LINE) -> bool:
        """Whether TensorBoard's loaders show all that a file sorted by step would show."""
        once = [one.kind for one in self.kept if one.kind in ("hparams", "end")]
        if self.damaged or len(once) > len(set(once)):
            return False
        return _rows_rise(self.kept, names) and in_order(self.points)

    def fits(self, names: Names) -> bool:
        """Whether everything stands under the names of now."""
        return all(one.tag == _tag_again(one, names) for one in self.kept) and names.fit(
            self.points
        )


def read_log(paths: Iterable[Path], *, with_points: bool = True) -> EventLog:
    """Read event files, in this order; without points it is faster."""
    reading = _Reading(with_points=with_points)
    for path in paths:
        reading.read(path)
    return reading.log()


class _Numbers(dict[str, int]):
    """Numbers for names, from 0 on in the order they are first asked for."""

    def __missing__(self, name: str) -> int:
        self[name] = number = len(self)
        return number


class _Columns:
    """Points on their way into columns: 8 bytes a point, 20 an event."""

    def __init__(self) -> None:
        self._numbers = _Numbers()
        self._step, self._wall_s, self._count = array("q"), array("d"), array("i")
        self._key, self._value = array("i"), array("f")

    def add(self, event: Event, values: Sequence[Summary.Value]) -> None:
        """Add the points of an event."""
        numbers = self._numbers
        self._step.append(event.step)
        self._wall_s.append(event.wall_time)
        self._count.append(len(values))
        self._key.extend([numbers[value.tag] for value in values])
        self._value.extend([value.simple_value for value in values])

    def points(self) -> Points:
        """All of them."""
        count = np.asarray(self._count)
        timestamp_ms = np.rint(np.asarray(self._wall_s) * 1000).astype(np.int64)
        return Points.of_columns(
            tuple(self._numbers),
            np.asarray(self._key),
            np.repeat(np.asarray(self._step), count),
            np.repeat(timestamp_ms, count),
            np.asarray(self._value),
        )


class _Reading:
    def __init__(self, *, with_points: bool) -> None:
        self._with_points = with_points
        self._columns = _Columns()
        self._kept: list[Kept] = []
        self._words: dict[str, str] = {}
        self._hparams: frozenset[str] | None = None
        self._end = ""
        self._point_events = self._damaged = 0

    def read(self, path: Path) -> None:
        """Add what stands in a file."""
        start = 0
        for content, end in frames(path):
            if content is None:
                self._damaged += 1
            else:
                self._take(Event.FromString(content), path, start)
            start = end

    def _take(self, event: Event, path: Path, start: int) -> None:
        values = event.summary.value
        points = [value for value in values if value.HasField("simple_value")]
        if points:
            self._point_events += 1
            if self._with_points:
                self._columns.add(event, points)
        if len(points) < len(values):
            for value in _telling(values):
                self._keep(event, value, path, start)
        elif not points and event.WhichOneof("what") in _WITHOUT_VALUES:
            self._keep(event, None, path, start)

    def _keep(self, event: Event, value: Summary.Value | None, path: Path, start: int) -> None:
        kind: Kind = "other" if value is None else events.kind_of(value)
        tag = "" if value is None else value.tag
        timestamp_ms = round(event.wall_time * 1000)
        self._kept.append(Kept(kind, tag, event.step, timestamp_ms, path, start))
        if value is not None and kind == "words":
            self._words[tag] = events.text_of(value)
        elif value is not None and kind == "hparams":
            self._hparams = self._hparams or events.hparams_of(value)
        elif value is not None and kind == "end":
            self._end = events.status_of(value)

    def log(self) -> EventLog:
        """All that was read so far."""
        return EventLog(
            points=self._columns.points(),
            kept=tuple(self._kept),
            words=self._words,
            hparams=self._hparams,
            end=self._end,
            point_events=self._point_events,
            damaged=self._damaged,
        )


def _telling(values: Sequence[Summary.Value]) -> list[Summary.Value]:
    """The values that are no points; of an insight its mark only, which speaks for all."""
    others = [value for value in values if not value.HasField("simple_value")]
    marks = [value for value in others if events.kind_of(value) == "insight"]
    return marks or others


def in_order(points: Points) -> bool:
    """Whether each key's points stand sorted by step, then time, then value."""
    rows = points.rows[np.argsort(points.rows["key"], kind="stable")]
    value = np.where(np.isnan(rows["value"]), -np.inf, rows["value"])
    rises = np.diff(rows["key"]) == 0
    wrong = np.zeros(len(rises), dtype=np.bool_)
    for column in (rows["step"], rows["timestamp_ms"], value):
        wrong |= rises & (column[1:] < column[:-1])
        rises &= column[1:] == column[:-1]
    return not wrong.any()


def _tag_again(one: Kept, names: Names) -> str:
    at = {"step": one.step, "timestamp_ms": one.timestamp_ms}
    return event_names.tag_again(one.tag, names, kind=one.kind, **at)


def _place(one: Kept, names: Names) -> tuple[bool, int, int]:
    """What events without points are sorted by; words keep their order.

    Of graphs without a tag, and of layouts, TensorBoard shows the last: superseded ones come first.
    """
    is_now = names.line.holds(key="", step=one.step, timestamp_ms=one.timestamp_ms)
    is_first = _is_shown_once(one) and not is_now
    return not is_first, one.step, one.timestamp_ms if one.kind in AT_A_STEP else 0


def _is_shown_once(one: Kept) -> bool:
    return not one.tag or (one.kind == "insight" and event_names.is_layout(one.tag))


def _rows_rise(kept: Iterable[Kept], names: Names) -> bool:
    last: dict[str, tuple[bool, int, int]] = {}
    for one in kept:
        place = _place(one, names)
        tag = _LAYOUTS if one.tag and _is_shown_once(one) else one.tag
        if last.get(tag, place) > place:
            return False
        last[tag] = place
    return True


def write_in_order(
    log: EventLog,
    file: IO[bytes],
    *,
    hparams: Event | None,
    end: Event | None,
    names: Names = FIRST_LINE,
) -> None:
    """Write everything sorted by step, under its name of now, and how the run ended.

    Of each words the last is written. With `hparams` these stand for those of before; without an
    `end` the run goes on.
    """
    for content in _contents(log, hparams, names):
        file.write(frame(content))
    points = names.points_again(log.points).in_steps()
    for first in range(0, len(points), _CHUNK_POINTS):
        some = Points(points.keys, points.rows[first : first + _CHUNK_POINTS])
        for record in some.calls():
            file.write(frame(events.scalars(record).SerializeToString()))
    if end is not None:
        file.write(frame(end.SerializeToString()))


def _contents(log: EventLog, hparams: Event | None, names: Names) -> Iterator[bytes]:
    """The events without points in their new order, each once."""
    if hparams is not None:
        yield hparams.SerializeToString()
    told: set[tuple[Path, int]] = set()
    for one in sorted(_still_true(log, hparams), key=lambda one: _place(one, names)):
        if (one.path, one.start_bytes) not in told:
            told.add((one.path, one.start_bytes))
            yield _without_points(one, names)


def _still_true(log: EventLog, hparams: Event | None) -> list[Kept]:
    """Without the words that others stand for, and the ends of before."""
    last_words = {one.tag: one for one in log.kept if one.kind == "words"}
    first_hparams = next((one for one in log.kept if one.kind == "hparams"), None)
    said_again = {
        one
        for one in log.kept
        if (one.kind == "words" and one is not last_words[one.tag])
        or (one.kind == "hparams" and (hparams is not None or one is not first_hparams))
    }
    return [one for one in log.kept if one.kind != "end" and one not in said_again]


def _without_points(one: Kept, names: Names) -> bytes:
    [(content, _)] = islice(frames(one.path, from_bytes=one.start_bytes), 1)
    event = Event.FromString(content or b"")
    kept = [value for value in event.summary.value if not value.HasField("simple_value")]
    if kept and len(kept) < len(event.summary.value):
        del event.summary.value[:]
        event.summary.value.extend(kept)
    event_names.rename(event, names)
    return bytes(event.SerializeToString())
