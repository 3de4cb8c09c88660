"""W&B's transaction log (`run-<id>.wandb`), read back: what is truly on disk of a run.

The format is LevelDB's log: 32 KiB blocks of chunks, each `crc32, length, type`, after a header of
seven bytes. The checksum is plain CRC-32 over the chunk's type and data.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

_BLOCK_BYTES = 32 * 1024
_FILE_HEADER = struct.Struct("<4sHB")
_CHUNK_HEADER = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class LogReader:
    """Reads a log that may still be growing: each call of `new_records` goes on where it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at_bytes = _FILE_HEADER.size

    def new_records(self) -> Iterator[WandbRecord]:
        """Records that are whole on disk and were not read before."""
        base_bytes = self._at_bytes - self._at_bytes % _BLOCK_BYTES
        try:
            with self._path.open("rb") as file:
                file.seek(base_bytes)
                content = file.read()
        except FileNotFoundError:
            return
        while whole := self._next(content, self._at_bytes - base_bytes):
            payload, end = whole
            self._at_bytes = base_bytes + end
            yield WandbRecord.FromString(payload)

    @staticmethod
    def _next(content: bytes, at: int) -> tuple[bytes, int] | None:
        payload = b""
        while chunk := _chunk(content, at):
            kind, data, at = chunk
            payload = data if kind in (_FULL, _FIRST) else payload + data
            if kind in (_FULL, _LAST):
                return payload, at
        return None


def _chunk(content: bytes, at: int) -> tuple[int, bytes, int] | None:
    left = _BLOCK_BYTES - at % _BLOCK_BYTES
    if left < _CHUNK_HEADER.size:
        at += left
    if at + _CHUNK_HEADER.size > len(content):
        return None
    checksum, length, kind = _CHUNK_HEADER.unpack_from(content, at)
    begin = at + _CHUNK_HEADER.size
    data = content[begin : begin + length]
    if len(data) < length or not _FULL <= kind <= _LAST:
        return None
    if zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
        return None
    return kind, data, begin + length


def read_records(path: Path) -> list[WandbRecord]:
    """All whole records of a log."""
    return list(LogReader(path).new_records())


def row(record: WandbRecord) -> dict[str, Any]:
    """A history record as a mapping of keys to values, `_step` and `_timestamp` among them.

    A media object, which the log holds field by field, is a mapping of its fields.
    """
    found: dict[str, Any] = {}
    for item in record.history.item:
        *outer, last = item.nested_key or (item.key,)
        place = found
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    """The history rows of a log, in order."""
    return [row(record) for record in read_records(path) if record.HasField("history")]


def logs_of(wandb_dir: Path, run_id: str) -> list[Path]:
    """The logs of a run in a W&B folder, oldest first; a run that was resumed has several."""
    # Parts begun within one second get -1, -2 … behind the id.
    found = wandb_dir.glob(f"wandb/*run-*-{run_id}*/run-{run_id}.wandb")
    return sorted(found, key=lambda path: (len(path.parent.name), path.parent.name))
