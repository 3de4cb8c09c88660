"""What of a run still waits for delivery: how much, what is shed for it, and disk space given back.

The supervisor measures the backlog and writes the level of shedding into `shed.level`; the training
process reads that byte. Journal bytes that every sink has acknowledged become holes in the file, so
that sizes and offsets stay as they are.
"""

import contextlib
import ctypes
import errno
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from opusclip_mlops.folder import CONTROL, Position, RunFolder

LEVEL_FILE = "shed.level"
BLOCK_BYTES = 4096
LEAST_RELEASE_BYTES = 1024 * 1024

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02
_LEVELS = (b"0", b"1", b"2")
_MEDIUM_SHARE = 1.25
_CALM_SHARE = 0.75
_devices_without_holes: set[int] = set()


def backlog_bytes(folder: RunFolder) -> int:
    """Bytes of journal that the slowest sink has not acknowledged."""
    acknowledged = _acknowledged(folder)
    sizes = folder.size_bytes()
    return sum(max(0, size - acknowledged.get(name, 0)) for name, size in sizes.items())


def _acknowledged(folder: RunFolder) -> Position:
    """How many bytes of each segment every sink has acknowledged."""
    positions = [folder.progress(sink).position for sink in folder.manifest().sinks]
    names = set(positions[0]).intersection(*positions[1:]) if positions else set()
    return {name: min(position[name] for position in positions) for name in names}


def shed_level(backlog_bytes: int, quota_bytes: int, level: int = 0) -> int:
    """What is to be shed: 0 nothing, 1 low points, 2 medium ones too.

    Args:
        backlog_bytes: What waits for delivery.
        quota_bytes: What may wait.
        level: The level so far. It is left below the quota (2) and three quarters of it (1) only,
            so that it does not flicker.
    """
    if backlog_bytes > _MEDIUM_SHARE * quota_bytes or (level >= 2 and backlog_bytes > quota_bytes):
        return 2
    if backlog_bytes > quota_bytes:
        return 1
    return 1 if level >= 1 and backlog_bytes > _CALM_SHARE * quota_bytes else 0


def write_level(folder: RunFolder, level: int) -> None:
    """Tell the training process what to shed; the file is made when it isn't there.

    Raises:
        OSError: the file cannot be made or written.
    """
    descriptor = open_level(folder)
    try:
        if read_level(descriptor) != level:
            os.pwrite(descriptor, _LEVELS[level], 0)
    finally:
        os.close(descriptor)


def open_level(folder: RunFolder) -> int:
    """Open the file of the level for `read_level`; it is made when it isn't there.

    Raises:
        OSError: it cannot be made: the folder is gone, or the disk is full.
    """
    descriptor = os.open(folder.path / LEVEL_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(descriptor).st_size == 0:
            os.pwrite(descriptor, _LEVELS[0], 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_level(where: int | RunFolder) -> int:
    """What is to be shed, from the open file or the run's folder; 0 where nothing is known."""
    try:
        if isinstance(where, int):
            found = os.pread(where, 1, 0)
        else:
            found = (where.path / LEVEL_FILE).read_bytes()[:1]
    except OSError:
        return 0
    return _LEVELS.index(found) if found in _LEVELS else 0


def release(folder: RunFolder, *, kept_bytes: int = 0) -> int:
    """Give back the disk blocks of journal bytes that every sink has acknowledged.

    Returns how many bytes were given back: 0 where less than 1 MiB would be, or the file system
    can't. What was given back before is known from the files themselves: their data begins later.
    The last `kept_bytes` of each segment stay, for whoever wants to know what came last.
    """
    done_bytes = 0
    with contextlib.suppress(OSError):
        due = [one for one in _releasable(folder, kept_bytes) if one.size_bytes > 0]
        if sum(one.size_bytes for one in due) >= LEAST_RELEASE_BYTES:
            # After a power cut no sink may stand before a hole.
            _make_positions_durable(folder)
            for one in due:
                done_bytes += _punch(one)
    return done_bytes


@dataclass(frozen=True)
class _Range:
    """Whole blocks of a segment that are no longer needed."""

    segment: Path
    begin_bytes: int
    size_bytes: int


def _releasable(folder: RunFolder, kept_bytes: int) -> Iterator[_Range]:
    if folder.path.stat().st_dev in _devices_without_holes:
        return
    for name, acknowledged_bytes in sorted(_acknowledged(folder).items()):
        last_bytes = (folder.path / name).stat().st_size - kept_bytes
        end_bytes = min(acknowledged_bytes, max(0, last_bytes))
        if CONTROL not in name and end_bytes >= BLOCK_BYTES:
            begin_bytes = _first_data(folder.path / name) // BLOCK_BYTES * BLOCK_BYTES
            size_bytes = end_bytes // BLOCK_BYTES * BLOCK_BYTES - begin_bytes
            yield _Range(folder.path / name, begin_bytes, size_bytes)


def _make_positions_durable(folder: RunFolder) -> None:
    sinks = folder.path / "sinks"
    for path in (sinks, *(p for name in folder.manifest().sinks for p in sinks.glob(f"{name}.*"))):
        with _opened(path, os.O_RDONLY) as descriptor:
            os.fsync(descriptor)


def _punch(one: _Range) -> int:
    with _opened(one.segment, os.O_RDWR) as descriptor:
        before = os.fstat(descriptor)
        try:
            _allocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, one.begin_bytes, one.size_bytes)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                _devices_without_holes.add(before.st_dev)
            raise
        if os.fstat(descriptor).st_size == before.st_size:
            # A hole is no sign of life of the training process.
            os.utime(descriptor, ns=(before.st_atime_ns, before.st_mtime_ns))
    return one.size_bytes


def _first_data(path: Path) -> int:
    """Where a file's first hole ends; its size where there is nothing but a hole."""
    with _opened(path, os.O_RDONLY) as descriptor:
        try:
            return os.lseek(descriptor, 0, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return os.fstat(descriptor).st_size


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def reserve(descriptor: int, size_bytes: int) -> bool:
    """Take disk blocks for the next bytes behind a file's end; its size stays as it is.

    Returns False where the file system can't, or has no room.
    """
    try:
        _allocate(descriptor, _KEEP_SIZE, os.fstat(descriptor).st_size, size_bytes)
    except OSError:
        return False
    return True


def _allocate(descriptor: int, mode: int, begin_bytes: int, size_bytes: int) -> None:
    if _fallocate is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if _fallocate(descriptor, mode, begin_bytes, size_bytes) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _found_fallocate() -> Callable[[int, int, int, int], int] | None:
    """The C library's `fallocate`; None where it has none, or other sizes of offsets."""
    if sys.maxsize < 2**32:
        return None
    try:
        found = ctypes.CDLL(None, use_errno=True).fallocate
    except (AttributeError, OSError):
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    found.restype = ctypes.c_int
    return found


_fallocate = _found_fallocate()
