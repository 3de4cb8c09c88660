"""Gathers what was logged to a run since a position: of many journals what was logged first.

Starts and ends come before all else. Of the other journals that one is read on whose next record is
the oldest by its time: so ranks stay together however much more, or larger, one of them logs, and
what a training says that goes on comes behind what was said before. A batch stands in that order,
too, which follows from its records alone: so it is the same when it is read again.
"""

import heapq
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from os import DirEntry
from pathlib import Path

from opusclip_mlops import journal
from opusclip_mlops.folder import CONTROL, Position, RunFolder
from opusclip_mlops.records import Record

SETTLED_S = 2.0
_LEAST_CHUNK_BYTES = 16 * 1024
_FIRST_FEW = 100
_Item = journal.Entry | journal.Damage


@dataclass(frozen=True)
class Amount:
    """So many records, so many bytes of them."""

    records: int
    size_bytes: int

    def part(self, of: int) -> "Amount":
        """One of so many equal parts."""
        return Amount(-(-self.records // of), -(-self.size_bytes // of))

    def without(self, other: "Amount") -> "Amount":
        """What is left."""
        return Amount(self.records - other.records, self.size_bytes - other.size_bytes)


@dataclass(frozen=True)
class Gathered:
    """Records, the position behind them, and how many bytes of damage lay between."""

    records: list[Record]
    position: Position
    damaged_bytes: int


def gather(
    folder: RunFolder, since: Position, most: Amount, *, ended: bool, by_time_alone: bool
) -> Gathered:
    """What was logged since a position, as much as makes a batch.

    Args:
        folder: The run's.
        since: The position.
        most: What makes a batch; its last record may go beyond the bytes.
        ended: Whether the run has: what is torn at the end of a journal is damage then.
        by_time_alone: Whether nothing is read before what is older. Else half of the batch goes in
            equal parts to the journals that were read before, small ones first, so that a long
            backlog of one holds up none of the others.
    """
    entries = folder.entries()
    batch = _Batch(since, [one.name for one in entries])
    starts = [one for one in entries if CONTROL in one.name]
    most = _take_starts(batch, _Source(starts, since, ended=ended), most)
    sources = _journals(entries[len(starts) :], since, ended=ended)
    _open(sources, most)
    if len(sources) > 1 and not by_time_alone:
        most = _take_parts(batch, sources, most)
    _take_by_time(batch, sources, most)
    return batch.gathered()


def gather_again(folder: RunFolder, since: Position, until: Position, *, ended: bool) -> Gathered:
    """The very batch that was gathered between two positions."""
    paths = folder.segments()
    batch = _Batch(since, [path.name for path in paths])
    for path in paths:
        start, end = since.get(path.name, 0), until.get(path.name, 0)
        for item in _items(path, start, ended=ended) if start < end else ():
            if item.end_bytes > end:
                break
            batch.add(path.name, item)
    return batch.gathered()


class _Source:
    """A journal behind a position, over its segments; `head`, None at its end, is taken next.

    `time_ms` is the head's time; of a record that has none, that of the one before.
    """

    def __init__(self, segments: Sequence[DirEntry[str]], since: Position, *, ended: bool) -> None:
        starts = [(one, since.get(one.name, 0)) for one in segments]
        # A segment that follows another was listed before that one's size is asked.
        sizes = [(one, start, one.stat().st_size) for one, start in starts]
        self.has_begun = any(start for _, start in starts)
        self.unread_bytes = sum(max(0, size - start) for _, start, size in sizes)
        self._unread = [(Path(one.path), start) for one, start, size in sizes if size > start]
        self._ended = ended
        self.head: _Item | None = None
        self.name, self.time_ms = "", 0

    def open(self, *, chunk_bytes: int, is_alone: bool) -> None:
        """Read its first record; of a journal that is alone no time is asked for."""
        items = _chained(self._unread, ended=self._ended, chunk_bytes=chunk_bytes)
        # What follows on a record that was taken is due; what begins waits for what is older.
        time_ms = 0 if self.has_begun or is_alone else _begin_ms(self._unread[0][0], chunk_bytes)
        self._found = ((*one, 0) for one in items) if is_alone else _timed(items, time_ms)
        self.advance()

    def advance(self) -> None:
        """Go on to the next record."""
        self.head, self.name, self.time_ms = next(self._found, (None, "", 0))


class _Batch:
    """Records by segment, and how far each segment is read with them."""

    def __init__(self, since: Position, names: list[str]) -> None:
        self._position = {**dict.fromkeys(names, 0), **since}
        self._begun = {_journal_of(name) for name, end_bytes in since.items() if end_bytes}
        self._records: dict[str, list[Record]] = {name: [] for name in names}
        self._damaged_bytes = 0

    def gathered(self) -> Gathered:
        """All of it in the order of time, each journal in its own."""
        journals: dict[str, list[Record]] = {}
        for name, found in self._records.items():
            if found:
                journals.setdefault(_journal_of(name), []).extend(found)
        records = [one for name, found in journals.items() if CONTROL in name for one in found]
        others = [one for one in journals.items() if CONTROL not in one[0]]
        if len(others) == 1:
            records += others[0][1]
        else:
            timed = [pair for name, found in others for pair in self._timed(name, found)]
            records += [record for _, record in sorted(timed, key=itemgetter(0))]
        return Gathered(records, self._position, self._damaged_bytes)

    def _timed(self, name: str, records: list[Record]) -> Iterator[tuple[float, Record]]:
        """The records of a journal by times that never fall."""
        times = (time_ms for one in records if (time_ms := _time_ms(one)))
        last_ms = 0 if name in self._begun else next(times, _begun_ms(name))
        for one in records:
            last_ms = max(last_ms, _time_ms(one))
            yield last_ms, one

    def take(self, source: _Source, most: Amount, *, until_ms: float = math.inf) -> Amount:
        """Take a record of a journal, and others that are older than that; what is left."""
        records, size_bytes = most.records, most.size_bytes
        while records > 0 and size_bytes > 0 and (item := source.head) is not None:
            size_bytes -= self.add(source.name, item)
            records -= type(item) is journal.Entry
            source.advance()
            if source.time_ms >= until_ms:
                break
        return Amount(records, size_bytes)

    def add(self, name: str, item: _Item) -> int:
        """Add what comes next in a segment; how many bytes it has."""
        start_bytes, self._position[name] = self._position[name], item.end_bytes
        if isinstance(item, journal.Entry):
            self._records[name].append(item.record)
        else:
            damaged = f"bytes {item.start_bytes:,} to {item.end_bytes:,} of {name}"
            print(f"damage passed over: {damaged}", flush=True)
            self._damaged_bytes += item.end_bytes - item.start_bytes
        return item.end_bytes - start_bytes


def _take_starts(batch: _Batch, source: _Source, most: Amount) -> Amount:
    """Take what sessions start and end with; what is left for the rest."""
    if source.unread_bytes:
        source.open(chunk_bytes=_LEAST_CHUNK_BYTES, is_alone=True)
    return batch.take(source, most)


def _journals(entries: Sequence[DirEntry[str]], since: Position, *, ended: bool) -> list[_Source]:
    """The journals that have grown."""
    segments = groupby(entries, key=lambda one: _journal_of(one.name))
    sources = [_Source([*found], since, ended=ended) for _, found in segments]
    return [one for one in sources if one.unread_bytes]


def _open(sources: list[_Source], most: Amount) -> None:
    """Read the first records: of many journals small chunks, so that memory stays bounded."""
    is_alone = len(sources) == 1
    share_bytes = max(_LEAST_CHUNK_BYTES, most.size_bytes // max(1, 2 * len(sources)))
    chunk_bytes = journal.CHUNK_BYTES if is_alone else share_bytes
    for source in sources:
        source.open(chunk_bytes=chunk_bytes, is_alone=is_alone)


def _take_parts(batch: _Batch, sources: list[_Source], most: Amount) -> Amount:
    """Take equal parts of half a batch; what is left of the whole.

    A journal that was never read is not among them: what comes of it first waits for all that is
    older, the last words of a process that it goes on from.
    """
    half = most.part(2)
    begun = sorted((one for one in sources if one.has_begun), key=lambda one: one.unread_bytes)
    for source, others in zip(begun, range(len(begun), 0, -1), strict=True):
        part = half.part(others)
        taken = part.without(batch.take(source, part))
        half, most = half.without(taken), most.without(taken)
    return most


def _take_by_time(batch: _Batch, sources: list[_Source], most: Amount) -> None:
    """Take what is oldest first, by turns what is of the same time."""
    heap = [(one.time_ms, 0, number, one) for number, one in enumerate(sources) if one.head]
    heapq.heapify(heap)
    while heap and most.records > 0 and most.size_bytes > 0:
        _, turns, number, source = heapq.heappop(heap)
        most = batch.take(source, most, until_ms=heap[0][0] if heap else math.inf)
        if source.head:
            heapq.heappush(heap, (source.time_ms, turns + 1, number, source))


def _chained(
    unread: list[tuple[Path, int]], *, ended: bool, chunk_bytes: int
) -> Iterator[tuple[_Item, str]]:
    for path, start in unread:
        name = path.name
        for item in _items(path, start, ended=ended, chunk_bytes=chunk_bytes):
            yield item, name


def _timed(items: Iterator[tuple[_Item, str]], time_ms: int) -> Iterator[tuple[_Item, str, int]]:
    for item, name in items:
        if isinstance(item, journal.Entry):
            time_ms = _time_ms(item.record) or time_ms
        yield item, name, time_ms


def _begin_ms(path: Path, chunk_bytes: int) -> int:
    """When a journal began, also where its first records have no time."""
    last_ms = path.stat().st_mtime_ns // 1_000_000
    first = islice(journal.read(path, chunk_bytes=chunk_bytes), _FIRST_FEW)
    times = (_time_ms(one.record) for one in first if isinstance(one, journal.Entry))
    return next(filter(None, times), last_ms)


def _items(
    path: Path, start_bytes: int, *, ended: bool, chunk_bytes: int = journal.CHUNK_BYTES
) -> Iterator[_Item]:
    is_over = ended and _is_settled(path)
    return journal.read(path, start_bytes, ended=is_over, chunk_bytes=chunk_bytes)


def _is_settled(path: Path) -> bool:
    """Whether nobody is in the midst of a write: a child may outlive the process that ended."""
    return abs(time.time() - path.stat().st_mtime) > SETTLED_S


def _begun_ms(name: str) -> float:
    """When the process of a journal began, as its name ends; for ever where that says nothing."""
    last = name.rpartition("-")[2]
    return int(last) if last.isdecimal() and not name.startswith("+") else math.inf


def _journal_of(segment: str) -> str:
    return segment.rpartition("-")[0]


def _time_ms(record: Record) -> int:
    """When a record was logged, 0 where it does not say."""
    return getattr(record, "timestamp_ms", 0)
