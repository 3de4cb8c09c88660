"""Counts every point that was left out, per key, so that "dropped 0" is a proven figure.

A session counts into `<session>.account`, a forked child of it into a file of its own. The file is
a row of entries `u64 count, u32 length, u32 crc32, JSON [kind, key …]`, little-endian, each padded
to 8 bytes: one for each set of keys that was left out together. A count is in the page cache when
the call returns; the file's first blocks are written at the start, so that a full disk has room.
"""

import contextlib
import errno
import os
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from opusclip_mlops.records import Tags, Text

SUFFIX = ".account"
SKIPPED, SHED, LOST, RANK = "skipped", "shed", "lost", "rank"
OTHER_KEYS = "(other keys)"
"""Stands for the keys whose names could not be kept; no legal key has brackets."""

MAX_SHOWN_KEYS = 500
_KINDS = (LOST, SKIPPED, SHED, RANK)

_FIRST_BYTES = 64 * 1024
_SETS_BYTES = 1024 * 1024
_MAX_NAMES = 100_000
_RETRY_S, _NEVER = 1.0, float("inf")
_COUNT = struct.Struct("<Q")
_ENTRY = struct.Struct("<QII")

_DROPPED_TAG, _SKIPPED_TAG = "opusclip.dropped", "opusclip.skipped"
_LOST_TAG, _RANK_TAG = "opusclip.lost_records", "opusclip.other_ranks"
_TAGS = {_DROPPED_TAG, _SKIPPED_TAG, _LOST_TAG, _RANK_TAG}
_TEXT_KEY = "opusclip/left_out"

_Name = tuple[str, ...]


class Account:
    """What one session left out: points by key, and records that the disk could not take.

    Never raises for a fault of the disk: counts are kept in memory until it takes them. Safe in
    threads, signal handlers and forked children.
    """

    def __init__(self, folder: Path, session: str) -> None:
        self._folder = folder
        self._session = session
        self._ledger = _Ledger(folder, session)

    def count(self, kind: str, keys: Sequence[str]) -> None:
        """Count one point of each key as `skipped` by its interval or `shed` by the quota.

        Or as that of a `rank` whose points do not make the run.
        """
        if keys:
            self._own_ledger().count(kind, tuple(keys))

    def count_lost(self, n: int = 1) -> None:
        """Count records that the disk could not take."""
        self._own_ledger().count_unnamed(LOST, n)

    def close(self) -> None:
        """Write what could not be written so far, and close the file."""
        self._own_ledger().close()

    def _own_ledger(self) -> "_Ledger":
        ledger = self._ledger
        if ledger.pid != os.getpid():
            # A forked child: the lock may be held for ever here, and the counts are the parent's.
            ledger = self._ledger = _Ledger(self._folder, f"{self._session}+{os.getpid()}")
        return ledger


@dataclass(slots=True)
class _Tally:
    """The count of one set of keys; `at_bytes` is its place in the file, -1 for none yet."""

    count: int = 0
    written: int = 0
    at_bytes: int = -1


class _Ledger:
    """The counts of one process, and the file they stand in."""

    def __init__(self, folder: Path, name: str) -> None:
        self.pid = os.getpid()
        self._folder, self._name = folder, name
        self._lock = threading.RLock()
        self._descriptor, self._end_bytes = -1, 0
        self._is_behind, self._retry_at_s = True, 0.0
        self._tallies: dict[_Name, _Tally] = {(kind,): _Tally() for kind in _KINDS}
        with self._lock:
            self._catch_up()

    def count(self, kind: str, keys: _Name) -> None:
        """Count one point of each key."""
        name = (kind, *keys)
        with self._lock:
            if name in self._tallies or self._end_bytes < _SETS_BYTES:
                self._increase(name, 1)
            else:
                for key in keys:
                    self._increase((kind, key), 1)
            self._catch_up()

    def count_unnamed(self, kind: str, n: int) -> None:
        """Count what has no key."""
        with self._lock:
            self._increase((kind,), n)
            self._catch_up()

    def close(self) -> None:
        """Write what is left and close the file."""
        with self._lock:
            if self._retry_at_s == _NEVER:
                return
            # All of them: Ctrl-C may have come between a count and its writing.
            self._is_behind, self._retry_at_s = True, 0.0
            self._catch_up()
            self._retry_at_s = _NEVER
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)

    def _increase(self, name: _Name, n: int) -> None:
        tally = self._tallies.get(name) or self._begun(name)
        if tally is None:
            tally, n = self._tallies[name[:1]], n * (len(name) - 1)
        tally.count += n
        try:
            self._write(tally)
        except OSError:
            self._is_behind = True

    def _begun(self, name: _Name) -> _Tally | None:
        """A tally for a new set of keys; None where there is no room for its name."""
        if len(self._tallies) >= _MAX_NAMES:
            return None
        tally = _Tally()
        try:
            if self._descriptor >= 0:
                self._place(name, tally)
        except OSError:
            return None
        return self._tallies.setdefault(name, tally)

    def _place(self, name: _Name, tally: _Tally) -> None:
        """Give a tally its entry in the file, with the count so far."""
        if time.monotonic() < self._retry_at_s:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        entry = _entry(name, tally.count)
        at_bytes = self._end_bytes
        # Taken before it is written: a signal handler may come in between and count too.
        self._end_bytes += len(entry)
        try:
            _write_at(self._descriptor, entry, at_bytes)
        except OSError:
            self._retry_at_s = time.monotonic() + _RETRY_S
            if self._end_bytes == at_bytes + len(entry):
                self._end_bytes = at_bytes
            raise
        tally.at_bytes = at_bytes

    def _write(self, tally: _Tally) -> None:
        if tally.at_bytes < 0:
            return
        # Again, when a signal handler has counted while this was on its way.
        while tally.written != tally.count:
            count = tally.count
            _write_at(self._descriptor, _COUNT.pack(count), tally.at_bytes)
            tally.written = count

    def _catch_up(self) -> None:
        """Open the file and write every count that it lacks, where the disk refused before."""
        if not self._is_behind or time.monotonic() < self._retry_at_s:
            return
        try:
            if self._descriptor < 0:
                self._descriptor = _created(self._folder, self._name)
            self._is_behind = False
            for name, tally in list(self._tallies.items()):
                if tally.at_bytes < 0:
                    self._place(name, tally)
                self._write(tally)
        except OSError:
            self._is_behind, self._retry_at_s = True, time.monotonic() + _RETRY_S


def _entry(name: _Name, count: int) -> bytes:
    payload = msgspec.json.encode(name)
    payload += b" " * (-len(payload) % 8)
    return _ENTRY.pack(count, len(payload), zlib.crc32(payload)) + payload


def _write_at(descriptor: int, content: bytes, at_bytes: int) -> None:
    if os.pwrite(descriptor, content, at_bytes) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _created(folder: Path, name: str) -> int:
    """A new file with its first blocks written, so that counting needs no room later."""
    path, number = folder / f"{name}{SUFFIX}", 0
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            break
        except FileExistsError:
            number += 1
            path = folder / f"{name}.{number}{SUFFIX}"
    try:
        _write_at(descriptor, bytes(_FIRST_BYTES), 0)
    except OSError:
        os.close(descriptor)
        path.unlink()
        raise
    return descriptor


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What a run left out so far: `lost` in records, the others in points by key.

    `rank` is of ranks that logged beside the one whose points make the run.
    """

    lost: int = 0
    skipped: dict[str, int]
    shed: dict[str, int]
    rank: dict[str, int] = field(default_factory=dict)

    @property
    def dropped(self) -> int:
        """Records lost and points shed: what was meant to be kept and was not."""
        return self.lost + sum(self.shed.values())

    def records(self, *, timestamp_ms: int | None = None, step: int = 0) -> list[Tags | Text]:
        """What is to be logged about it: three tags, and the counts per key where there are any."""
        skipped = sum(self.skipped.values())
        tags = {
            _DROPPED_TAG: str(self.dropped),
            _SKIPPED_TAG: str(skipped),
            _LOST_TAG: str(self.lost),
        }
        if self.rank:
            tags[_RANK_TAG] = str(sum(self.rank.values()))
        found: list[Tags | Text] = [Tags(tags)]
        if self.dropped or skipped or self.rank:
            now_ms = time.time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms
            found.append(Text(now_ms, step, _TEXT_KEY, self._as_json()))
        return found

    def _as_json(self) -> str:
        counts = {
            "lost_records": self.lost,
            SHED: _most_frequent(self.shed),
            SKIPPED: _most_frequent(self.skipped),
            **({RANK: _most_frequent(self.rank)} if self.rank else {}),
        }
        return msgspec.json.format(msgspec.json.encode(counts), indent=2).decode()


def _most_frequent(counts: dict[str, int]) -> dict[str, int]:
    """The keys with the highest counts; the rest is summed up, so that nothing is missing."""
    named = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = Counter(dict(named[:MAX_SHOWN_KEYS]))
    rest = sum(count for _, count in named[MAX_SHOWN_KEYS:])
    if rest:
        shown[OTHER_KEYS] += rest
    return dict(shown)


def is_told(record: object) -> bool:
    """Whether a record is one of those that `Totals.records` gives."""
    if isinstance(record, Text):
        return record.key == _TEXT_KEY
    return isinstance(record, Tags) and bool(record.values) and record.values.keys() <= _TAGS


def as_account(left_out: Totals) -> bytes:
    """The content of an account that holds these totals, to be summed up with others."""
    named = {SKIPPED: left_out.skipped, SHED: left_out.shed, RANK: left_out.rank}
    entries = [_entry((kind, key), n) for kind, keys in named.items() for key, n in keys.items()]
    return b"".join([_entry((LOST,), left_out.lost), *entries])


def totals(folder: Path) -> Totals:
    """Sum up the accounts of all sessions of a run, and of their forked children.

    Raises:
        OSError: an account cannot be read: nothing is proven then.
    """
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in _KINDS}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        with contextlib.suppress(FileNotFoundError):
            for (kind, *keys), count in _entries(path.read_bytes()):
                for key in keys or [OTHER_KEYS]:
                    counts[kind][key] += count
    return Totals(
        lost=counts[LOST].total(),
        skipped=dict(+counts[SKIPPED]),
        shed=dict(+counts[SHED]),
        rank=dict(+counts[RANK]),
    )


def _entries(content: bytes) -> Iterator[tuple[list[str], int]]:
    """Names and counts of all whole entries; what was torn or never written is passed over."""
    at = 0
    while at + _ENTRY.size <= len(content):
        count, length, checksum = _ENTRY.unpack_from(content, at)
        payload = content[at + _ENTRY.size : at + _ENTRY.size + length]
        if length and len(payload) == length and zlib.crc32(payload) == checksum:
            yield msgspec.json.decode(payload, type=list[str]), count
            at += _ENTRY.size + length
        else:
            at += _COUNT.size
