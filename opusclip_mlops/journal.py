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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from opusclip_mlops.errors import RecordError
from opusclip_mlops.records import Metrics, Record

SUFFIX = ".journal"
SEGMENT_BYTES = 64 * 1024 * 1024
MAX_PAYLOAD_BYTES = 64 * 1024 * 1024

_MAGIC = b"\xf5OpJ"
_HEADER = struct.Struct("<4sII")
_READ_BYTES = 1024 * 1024

_decode = msgspec.msgpack.Decoder(Record).decode


def _plain(value: object) -> str | int:
    """Python's own text or whole number for one of a kin type, such as NumPy's."""
    return str.__str__(value) if isinstance(value, str) else operator.index(value)  # type: ignore[arg-type]


_encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode


class Journal:
    """Appends records to segments `<name>-<n>.journal` in one folder.

    `append` never raises for a fault of the disk: what could not be kept is counted in `lost`, and
    `fault` says why in one line. Safe in threads and in forked children.
    """

    def __init__(self, folder: Path, name: str, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.lost = 0
        self.fault = ""
        self._folder = folder
        self._name = name
        self._segment_bytes = segment_bytes
        self._roll_lock = threading.Lock()
        self._old_descriptors: list[int] = []
        self._descriptor = self._open_next_segment()
        self._size_bytes = 0

    def append(self, record: Record) -> None:
        """Append one record; it is in the page cache when this returns.

        Raises:
            RecordError: a field is of a wrong type, or the record is larger than 64 MiB.
        """
        payload = _payload(record)
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
        """Close the files; what is appended afterwards counts as lost."""
        for descriptor in (*self._old_descriptors, self._descriptor):
            if descriptor >= 0:
                os.close(descriptor)
        self._old_descriptors.clear()
        self._descriptor = -1

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
                # Another thread may be writing to the old one: it stays open until close().
                self._old_descriptors.append(self._descriptor)
                self._descriptor, self._size_bytes = descriptor, 0
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


def _payload(record: Record) -> bytes:
    """A record as MessagePack that is sure to be read back."""
    try:
        payload = _encoded(record)
        # Metrics are made of plain numbers by `records.to_values`; the rest holds what users gave.
        if type(record) is not Metrics:
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


@dataclass(frozen=True)
class Entry:
    """A record, and the offset in bytes just behind its frame."""

    record: Record
    end_bytes: int


@dataclass(frozen=True)
class Damage:
    """Bytes that hold no whole frame and were passed over."""

    start_bytes: int
    end_bytes: int


def read(path: Path, start_bytes: int = 0, *, ended: bool = False) -> Iterator[Entry | Damage]:
    """Read a segment from an offset, whole frames only.

    A torn frame at the end is taken for one being written, and reading stops before it; with
    `ended` it is reported as `Damage`. Damage between whole frames is always reported.
    """
    with path.open("rb") as file:
        file.seek(start_bytes)
        buffer, base_bytes = b"", start_bytes
        while True:
            chunk = file.read(_READ_BYTES)
            buffer += chunk
            consumed_bytes = 0
            for item in _frames(buffer, base_bytes, ended=ended and not chunk):
                yield item
                consumed_bytes = item.end_bytes - base_bytes
            buffer, base_bytes = buffer[consumed_bytes:], base_bytes + consumed_bytes
            if not chunk:
                return


def _frames(buffer: bytes, base_bytes: int, *, ended: bool) -> Iterator[Entry | Damage]:
    """Whole frames of a buffer; after a bad one, the next whole one that can be found.

    A frame that goes on behind the buffer hides none: no text holds the magic's first byte.
    """
    at = 0
    while at < len(buffer):
        found = _whole_frame(buffer, at)
        if found:
            yield Entry(found[0], base_bytes + found[1])
            at = found[1]
            continue
        resume = _next_whole_frame(buffer, at + 1)
        if resume is None:
            if not ended:
                return
            resume = len(buffer)
        yield Damage(base_bytes + at, base_bytes + resume)
        at = resume


def _whole_frame(buffer: bytes, at: int) -> tuple[Record, int] | None:
    if len(buffer) - at < _HEADER.size:
        return None
    magic, length, checksum = _HEADER.unpack_from(buffer, at)
    begin, end = at + _HEADER.size, at + _HEADER.size + length
    if magic != _MAGIC or end > len(buffer) or zlib.crc32(buffer[begin:end]) != checksum:
        return None
    try:
        return _decode(buffer[begin:end]), end
    except msgspec.DecodeError:
        return None


def _next_whole_frame(buffer: bytes, at: int) -> int | None:
    while (at := buffer.find(_MAGIC, at)) >= 0:
        if _whole_frame(buffer, at):
            return at
        at += 1
    return None
