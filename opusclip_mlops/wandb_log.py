"""W&B's transaction log (`run-<id>.wandb`), read back: what is truly on disk of a run.

The format is LevelDB's log: 32 KiB blocks of chunks, each `crc32, length, type`, after a header of
seven bytes. The checksum is plain CRC-32 over the chunk's type and data.
"""

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from wandb.proto.wandb_internal_pb2 import ConfigItem, HistoryItem, HistoryRecord
from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

_BLOCK_BYTES = 32 * 1024
_READ_BYTES = 128 * _BLOCK_BYTES
_FILE_HEADER = struct.Struct("<4sHB")
_CHUNK_HEADER = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_SEEDS = {kind: zlib.crc32(bytes([kind])) for kind in (_FULL, _FIRST, _MIDDLE, _LAST)}


class LogReader:
    """Reads a log that may still be growing: each call of `new_records` goes on where it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at_bytes = _FILE_HEADER.size

    def new_records(self) -> Iterator[WandbRecord]:
        """Records that are whole on disk and were not read before."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            parts: list[bytes] = []
            for kind, data, end_bytes in _chunks(file, self._at_bytes):
                if kind in (_FULL, _FIRST):
                    parts.clear()
                parts.append(data)
                if kind in (_FULL, _LAST):
                    self._at_bytes = end_bytes
                    yield WandbRecord.FromString(b"".join(parts))


def _chunks(file: BinaryIO, at_bytes: int) -> Iterator[tuple[int, bytes, int]]:
    """Type, data and end of each chunk from here on, up to the first that is not whole."""
    base_bytes = at_bytes - at_bytes % _BLOCK_BYTES
    at = at_bytes - base_bytes
    file.seek(base_bytes)
    # No chunk crosses the end of a block, and so none what is read at once.
    while content := file.read(_READ_BYTES):
        while chunk := _chunk(content, at):
            kind, data, at = chunk
            yield kind, data, base_bytes + at
        if len(content) < _READ_BYTES or at + _CHUNK_HEADER.size <= len(content):
            return
        base_bytes, at = base_bytes + _READ_BYTES, 0


def _chunk(content: bytes, at: int) -> tuple[int, bytes, int] | None:
    left = _BLOCK_BYTES - at % _BLOCK_BYTES
    if left < _CHUNK_HEADER.size:
        at += left
    if at + _CHUNK_HEADER.size > len(content):
        return None
    checksum, length, kind = _CHUNK_HEADER.unpack_from(content, at)
    begin = at + _CHUNK_HEADER.size
    data = content[begin : begin + length]
    if len(data) < length or kind not in _SEEDS or zlib.crc32(data, _SEEDS[kind]) != checksum:
        return None
    return kind, data, begin + length


def read_records(path: Path) -> list[WandbRecord]:
    """All whole records of a log."""
    return list(LogReader(path).new_records())


def row(record: WandbRecord) -> dict[str, Any]:
    """A history record as a mapping of keys to values, `_step` and `_timestamp` among them.

    A media object, which the log holds field by field, is a mapping of its fields.
    """
    return row_of(record.history)


def row_of(history: HistoryRecord) -> dict[str, Any]:
    """The same, of what a history record holds."""
    return _nested(history.item)


def rows(path: Path) -> list[dict[str, Any]]:
    """The history rows of a log, in order."""
    return [row(record) for record in LogReader(path).new_records() if record.HasField("history")]


def changed_config(record: WandbRecord, config: dict[str, Any]) -> None:
    """Bring a config up to what a record says of it, if it says anything."""
    for part in (record.run.config, record.config):
        config |= _nested(part.update)
        for item in part.remove:
            config.pop(item.key or item.nested_key[0], None)


def logs_of(wandb_dir: Path, run_id: str, *, project: str = "") -> list[Path]:
    """The logs of a run in a W&B folder, oldest first; a run that was resumed has several.

    With a `project`, those that were written for it; a log without a whole record is anybody's.
    """
    found = wandb_dir.glob(f"wandb/*run-*-{run_id}*/run-{run_id}.wandb")
    every = sorted(found, key=lambda path: _begun(path.parent.name, run_id))
    return [path for path in every if not project or _project_of(path) in (project, "")]


def _begun(folder_name: str, run_id: str) -> tuple[str, int, str]:
    """When a part was begun; parts of one second get -1, -2 … behind the id."""
    begun, _, number = folder_name.removeprefix("offline-").partition(f"-{run_id}")
    return begun, int(number[1:]) if number[1:].isdigit() else 0, number


def _project_of(path: Path) -> str:
    """The project a log says it is for, empty where it does not say so."""
    for record in LogReader(path).new_records():
        if record.HasField("run"):
            return str(record.run.project)
    return ""


def _nested(items: Iterable[HistoryItem | ConfigItem]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or (item.key,)
        place = found
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)
    return found


def next_row(logs: Iterable[Path]) -> int:
    """The number behind the highest of a run's rows in its logs."""
    steps = [-1]
    for path in logs:
        rows = (row(one) for one in read_records(path) if one.HasField("history"))
        steps += [int(one.get("_step", -1)) for one in rows]
    return max(steps) + 1
