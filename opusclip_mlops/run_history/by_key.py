"""Reads on behind the last point of every key whose latest value changed, and looks at others.

A point that was added late does not always change the latest value of its key. So a few keys are
looked at in every call, in turns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from opusclip_mlops.points import Points
from opusclip_mlops.run_history import Cursor, RunGoneError, latest_of
from opusclip_mlops.watermarks import KeyRows, Mark, Rows, Tail, next_in_round, rows_of, tail_of

if TYPE_CHECKING:
    from mlflow.entities import Run

_TAIL_ROWS, _TAILS_ROWS = 500, 50_000
_RUNS = 32


class _Read(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cursor: for every key its mark, and its latest value when it was read."""

    run_id: str
    marks: dict[str, Mark]
    latest: dict[str, str]


@dataclass
class _Memory:
    """What makes reading on cheaper and is not missed after a restart."""

    tails: dict[str, Tail] = field(default_factory=dict)
    looked_at: str = ""


@dataclass(frozen=True, eq=False)
class _Added:
    """New rows of a key and the mark behind all; `tail` where they came in among others."""

    rows: Rows
    end: Mark
    tail: Rows | None = None

    @classmethod
    def behind(cls, mark: Mark, rows: Rows) -> "_Added":
        """Rows that stand at the end."""
        return cls(rows, mark.moved(rows))


class HistoryByKey:
    """Reads runs key by key.

    Args:
        rows: Where the points of a key come from.
    """

    def __init__(self, rows: KeyRows) -> None:
        self._rows = rows
        self._memories: dict[str, _Memory] = {}

    def read(self, run: "Run") -> tuple[Points, Cursor]:
        """All points of a run that was fetched just now."""
        latest = latest_of(run)
        found = self._rows.all(run.info.run_id, latest)
        _check_whole(run, found)
        self._memories.pop(run.info.run_id, None)
        added = {key: _Added.behind(Mark(), rows) for key, rows in found.items()}
        return _points(added), self._remember(run, {}, latest, added)

    def news(self, run: "Run", cursor: Cursor) -> tuple[Points, Cursor] | None:
        """What was added since; None where only reading all can tell."""
        last, latest = _read_so_far(cursor), latest_of(run)
        if last is None or last.run_id != run.info.run_id or not last.marks.keys() <= latest.keys():
            return None
        looked_at = next_in_round(last.marks, self._memory(last.run_id).looked_at)
        changed = [key for key, value in latest.items() if last.latest.get(key) != value]
        added = self._added(last, changed, looked_at)
        if added is None:
            return None
        _check_whole(run, {key: one.rows for key, one in added.items() if key not in last.marks})
        self._memory(last.run_id).looked_at = looked_at[-1] if looked_at else ""
        if not changed and not added:
            return Points.of(()), cursor
        return _points(added), self._remember(run, last.marks, latest, added)

    def _added(
        self, last: _Read, changed: list[str], looked_at: list[str]
    ) -> dict[str, _Added] | None:
        since = {key: last.marks.get(key, Mark()) for key in changed}
        looked = {key: last.marks[key] for key in looked_at}
        found = self._rows.since(last.run_id, since, looked)
        added = {}
        for key, rows in found.items():
            mark = last.marks.get(key, Mark())
            between = self._between(last.run_id, key, mark) if rows is None else None
            one = between if rows is None else _Added.behind(mark, rows)
            if one is None:
                return None
            added[key] = one
        return added

    def _between(self, run_id: str, key: str, mark: Mark) -> _Added | None:
        """The new rows of a key that has some before its mark, as far back as is remembered."""
        tail = self._memory(run_id).tails.get(key)
        if tail is None or tail.end != mark:
            return None
        begin = {key: tail.begin}
        rows = self._rows.since(run_id, begin, begin)[key]
        new = None if rows is None else tail.unknown(rows)
        return None if rows is None or new is None else _Added(new, tail.begin.moved(rows), rows)

    def _remember(
        self,
        run: "Run",
        marks: Mapping[str, Mark],
        latest: dict[str, str],
        added: Mapping[str, _Added],
    ) -> Cursor:
        now = {**marks, **{key: one.end for key, one in added.items()}}
        tails = self._memory(run.info.run_id).tails
        at_most = max(1, min(_TAIL_ROWS, _TAILS_ROWS // max(1, len(now))))
        for key, one in added.items():
            tail = tails.get(key)
            if one.tail is not None:
                tails[key] = tail_of(one.end, one.tail, at_most)
            elif tail is not None and tail.end == marks.get(key):
                tails[key] = tail.then(one.end, one.rows, at_most)
            elif len(one.rows):
                tails[key] = tail_of(one.end, one.rows, at_most)
        read = _Read(run_id=run.info.run_id, marks=now, latest=latest)
        cursor: Cursor = msgspec.to_builtins(read)
        return cursor

    def _memory(self, run_id: str) -> _Memory:
        """What is kept of a run; the run that was read least recently is forgotten."""
        memory = self._memories.pop(run_id, None) or _Memory()
        while len(self._memories) >= _RUNS:
            del self._memories[next(iter(self._memories))]
        self._memories[run_id] = memory
        return memory


def _read_so_far(cursor: Cursor) -> _Read | None:
    """What a cursor says; None for one of another kind of reader."""
    try:
        return msgspec.convert(cursor, _Read)
    except msgspec.ValidationError:
        return None


def _check_whole(run: "Run", new: Mapping[str, Rows]) -> None:
    """A server does not tell that a run is gone: it answers that its keys have no points."""
    empty = next((key for key, rows in new.items() if not len(rows)), None)
    if empty is not None:
        told = f"run {run.info.run_id} has no points of {empty!r} any more"
        raise RunGoneError(f"{told}: it was removed while it was read")


def _points(added: Mapping[str, _Added]) -> Points:
    every = np.concatenate([rows_of([], [], []), *(one.rows for one in added.values())])
    number = np.repeat(np.arange(len(added)), [len(one.rows) for one in added.values()])
    return Points.of_columns(
        list(added), number, every["step"], every["timestamp_ms"], every["value"]
    )
