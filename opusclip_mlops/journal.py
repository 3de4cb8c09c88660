"""The append-only log: every log call is one frame in a local file, readable after any crash.

A frame is `magic, u32 length, u32 crc32, payload`, little-endian, the payload MessagePack. One
`write` to an O_APPEND descriptor puts it into the page cache before the call returns, so that it
outlives the process, and keeps frames of threads and forked children whole.
"""

import contextlib
import operator
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from opusclip_mlops.errors import RecordError
from opusclip_mlops.records import Metrics, RankMetrics, Record

SUFFIX = ".journal"
SEGMENT_BYTES = 64 * 1024 * 1024
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
"""How much of a segment is read at once; more where a record is larger."""

_MOST_CHUNK_BYTES = 16 * 1024 * 1024
_MAGIC = b"\xf5OpJ"
_HEADER = struct.Struct("<4sII")

_decode = msgspec.msgpack.Decoder(Record).decode


def _plain(value: object) -> str | int:
    """Python's own text or whole number for one of a kin type, such as NumPy's."""
    return str.__str__(value) if isinstance(value, str) else operator.index(value)  # type: ignore[arg-type]


_encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode


class Journal:
    """Appends records to segments `<name>-<n>.journal` in one folder.

    `append` never raises for a fault of the disk: what could not be kept is counted in `lost`,
    `fault` says why in one line, and `on_loss` is called. Safe in threads and in forked children.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        on_loss: Callable[[], None] | None = None,
    ) -> None:
        self.lost = 0
        self.fault = ""
        self._folder = folder
        self._name = name
        self._segment_bytes = segment_bytes
        self._on_loss = on_loss
        self._roll_lock = threading.Lock()
        self._descriptor = self._open_next_segment()
        self._size_bytes = 0

    @property
    def descriptor(self) -> int:
        """The open segment's file descriptor, the same one for the journal's whole life."""
        return self._descriptor

    def append(self, record: Record) -> None:
        """Append one record; it is in the page cache when this returns.

        Raises:
            RecordError: a field is of a wrong type, or the record is larger than 64 MiB.
        """
        # Metrics are made of plain numbers by `records.to_values`; the rest holds what users gave.
        kind = type(record)
        is_plain = kind is Metrics or kind is RankMetrics
        payload = _encode(record) if is_plain else _payload(record)
        frame = _HEADER.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload
        try:
            written = os.write(self._descriptor, frame)
        except OSError as error:
            self.count_lost(error)
            return
        self._size_bytes += written
        if written < len(frame):
            self._write_again(frame)
        elif self._size_bytes >= self._segment_bytes:
            # Where no new segment can be opened, the old one goes on.
            with contextlib.suppress(OSError):
                self._roll()

    def close(self) -> None:
        """Close the file; what is appended afterwards counts as lost."""
        # First the number goes: a thread that appends late must not write into another's file.
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _open_next_segment(self) -> int:
        number = 0
        while True:
            path = self._folder / f"{self._name}-{number:06d}{SUFFIX}"
            try:
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            except FileExistsError:
                number += 1

    def _roll(self) -> None:
        # It never waits: a forked child may have got the lock held, by a thread it hasn't got.
        if not self._roll_lock.acquire(blocking=False):
            return
        try:
            if self._size_bytes >= self._segment_bytes:
                descriptor = self._open_next_segment()
                # One number for ever: a thread in the midst of a write ends it in the old file.
                os.dup2(descriptor, self._descriptor, inheritable=False)
                os.close(descriptor)
                self._size_bytes = 0
        finally:
            self._roll_lock.release()

    def _write_again(self, frame: bytes) -> None:
        """A short write left a torn frame: begin a new segment and write the whole frame there."""
        try:
            self._size_bytes = self._segment_bytes
            self._roll()
            if os.write(self._descriptor, frame) < len(frame):
                self.count_lost(OSError("disk full"))
        except OSError as error:
            self.count_lost(error)

    def count_lost(self, error: OSError) -> None:
        """Count a record that the disk could not take, and remember why."""
        self.lost += 1
        self.fault = f"journal {self._folder}: {error.strerror or error}"
        if self._on_loss:
            self._on_loss()


def framed(record: Record) -> bytes:
    """A record as it stands in a journal.

    Raises:
        RecordError: a field is of a wrong type, or the record is larger than 64 MiB.
    """
    payload = _payload(record)
    return _HEADER.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload


def _payload(record: Record) -> bytes:
    """A record as MessagePack that is sure to be read back."""
    try:
        payload = _encoded(record)
        _decode(payload)
    except (TypeError, OverflowError, msgspec.ValidationError) as error:
        raise RecordError(f"{type(record).__name__} cannot be kept: {error}") from None
    if len(payload) > MAX_PAYLOAD_BYTES:
        size = f"{len(payload):,} bytes: at most {MAX_PAYLOAD_BYTES:,} are kept"
        raise RecordError(f"{type(record).__name__} has {size}")
    return payload


def _encoded(record: Record) -> bytes:
    try:
        return _encode(record)
    except UnicodeEncodeError:
        return _encode(_escaped(msgspec.to_builtins(record, enc_hook=_plain)))


def _escaped(value: Any) -> Any:
    """Half characters, which UTF-8 has not, written as `\\udc80`."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_escaped(key): _escaped(one) for key, one in value.items()}
    return [_escaped(one) for one in value] if isinstance(value, list | tuple) else value


class Entry(msgspec.Struct, frozen=True):
    """A record, and the offset in bytes just behind its frame."""

    record: Record
    end_bytes: int


class Damage(msgspec.Struct, frozen=True):
    """Bytes that hold no whole frame and were passed over."""

    start_bytes: int
    end_bytes: int


def read(
    path: Path, start_bytes: int = 0, *, ended: bool = False, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[Entry | Damage]:
    """Read a segment from an offset, whole frames only; the file is open only to read a chunk.

    A torn frame at the end is taken for one being written, and reading stops before it; with
    `ended` it is reported as `Damage`. Damage between whole frames is always reported.
    """
    buffer, base_bytes, bad_from = b"", start_bytes, -1
    while True:
        # A record larger than a chunk takes few turns: each reads as much as those before.
        size_bytes = max(chunk_bytes, min(len(buffer), _MOST_CHUNK_BYTES))
        chunk = _chunk(path, base_bytes + len(buffer), size_bytes)
        buffer += chunk
        at = 0
        for record, begin, end in _whole_frames(buffer):
            if begin > at or bad_from >= 0:
                yield Damage(base_bytes + at if bad_from < 0 else bad_from, base_bytes + begin)
            yield Entry(record, base_bytes + end)
            at, bad_from = end, -1
        keep = _next_possible_frame(buffer, at)
        if keep > at and bad_from < 0:
            bad_from = base_bytes + at
        buffer, base_bytes = buffer[keep:], base_bytes + keep
        if not chunk:
            break
    if ended and (buffer or bad_from >= 0):
        yield Damage(base_bytes if bad_from < 0 else bad_from, base_bytes + len(buffer))


def _chunk(path: Path, start_bytes: int, size_bytes: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(start_bytes)
        return file.read(size_bytes)


def _whole_frames(buffer: bytes) -> Iterator[tuple[Record, int, int]]:
    """Each whole frame of a buffer: its record, where it begins and ends.

    A frame that goes on behind the buffer hides none: no text holds the magic's first byte.
    """
    at = 0
    while (at := _next_magic(buffer, at)) >= 0:
        found = _whole_frame(buffer, at)
        if found:
            yield found[0], at, found[1]
        at = found[1] if found else at + 1


def _next_magic(buffer: bytes, at: int) -> int:
    return at if buffer.startswith(_MAGIC, at) else buffer.find(_MAGIC, at)


def _next_possible_frame(buffer: bytes, at: int) -> int:
    """Where a frame may begin that goes on behind the buffer; all before it can be forgotten."""
    first = at
    while (at := _next_magic(buffer, at)) >= 0:
        header_end = at + _HEADER.size
        if header_end > len(buffer):
            return at
        length = _HEADER.unpack_from(buffer, at)[1]
        if len(buffer) < header_end + length <= header_end + MAX_PAYLOAD_BYTES:
            return at
        at += 1
    cut = next((n for n in range(len(_MAGIC) - 1, 0, -1) if buffer.endswith(_MAGIC[:n])), 0)
    return max(first, len(buffer) - cut)


def _whole_frame(buffer: bytes, at: int) -> tuple[Record, int] | None:
    if len(buffer) - at < _HEADER.size:
        return None
    _, length, checksum = _HEADER.unpack_from(buffer, at)
    begin, end = at + _HEADER.size, at + _HEADER.size + length
    if end > len(buffer):
        return None
    payload = memoryview(buffer)[begin:end]
    if zlib.crc32(payload) != checksum:
        return None
    try:
        return _decode(payload), end
    except msgspec.DecodeError:
        return None
