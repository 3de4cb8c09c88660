"""A run's event files: their place, what is whole in them, who writes them, how one replaces all.

An event file is TFRecords one behind the other: length, its checksum, content, its checksum.
Beside the event files of a run lie, under names TensorBoard does not read, `.opusclip.lock` and,
while all of them are being replaced by one, `.opusclip.new` and `.opusclip.replacing`.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import google_crc32c
import msgspec

from opusclip_mlops.folder import Identity

LOCK, NEW, REPLACING = ".opusclip.lock", ".opusclip.new", ".opusclip.replacing"
SORTED = f"{NEW}.sorted"
"""What is to become `NEW`."""

FRAME_BYTES = 16
"""What a frame is longer than its content."""

_LENGTH, _CRC = struct.Struct("<Q"), struct.Struct("<I")
_HEAD_BYTES = _LENGTH.size + _CRC.size
_BUFFER_BYTES = 1024 * 1024
_LONGEST_NAME = 200
_MADE_S = re.compile(r"tfevents\.(\d{1,12})")
_LOCK_TRIES, _LOCK_POLL_S = 5, 0.02


class _Replacing(msgspec.Struct, frozen=True):
    """The event file that `NEW` is to become, and those that it stands for."""

    new: str
    old: list[str]


def event_folder(tensorboard_dir: Path, identity: Identity) -> Path:
    """Where a run's event files lie, inside `tensorboard_dir` whatever the experiment is called."""
    experiment = quote(identity.experiment_name, safe=" ").replace("..", "%2E%2E")
    if experiment == ".":
        experiment = "%2E"
    if len(experiment) > _LONGEST_NAME:
        digest = hashlib.sha256(experiment.encode()).hexdigest()[:12]
        experiment = f"{experiment[:_LONGEST_NAME]}-{digest}"
    return tensorboard_dir / experiment / identity.mirror_id


def event_files(folder: Path) -> list[Path]:
    """The event files of a run, in the order TensorBoard reads them; none without a folder."""
    return sorted(path for path in folder.glob("*tfevents*") if path.is_file())


def fresh_name(folder: Path) -> str:
    """A name for a new event file, which TensorBoard reads after all that are there."""
    found = [_MADE_S.search(path.name) for path in event_files(folder)]
    made_s = max([int(time.time()), *(int(one[1]) + 1 for one in found if one)])
    host = quote(socket.gethostname(), safe="")
    return f"events.out.tfevents.{made_s:010}.{host}.{os.getpid()}.{time.monotonic_ns()}"


def frame(content: bytes) -> bytes:
    """A content as it stands in an event file."""
    length = _LENGTH.pack(len(content))
    return b"".join((length, _masked_crc(length), content, _masked_crc(content)))


def frames(path: Path, *, from_bytes: int = 0) -> Iterator[tuple[bytes | None, int]]:
    """The whole records of an event file, each with the offset behind it; None for a damaged one.

    A torn tail ends it. Behind a damaged length nothing can be found: the rest is one damage.
    """
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        end = file.seek(from_bytes)
        read = file.read
        while len(head := read(_HEAD_BYTES)) == _HEAD_BYTES:
            length = head[: _LENGTH.size]
            if head[_LENGTH.size :] != _masked_crc(length):
                yield None, max(end + _HEAD_BYTES, path.stat().st_size)
                return
            (size_bytes,) = _LENGTH.unpack(length)
            body = read(size_bytes + _CRC.size)
            if len(body) < size_bytes + _CRC.size:
                return
            end += size_bytes + FRAME_BYTES
            content = body[:size_bytes]
            yield (content if body[size_bytes:] == _masked_crc(content) else None), end


def cut(path: Path, size_bytes: int) -> None:
    """Shorten an event file; one of which only its first event is left is removed."""
    if path.stat().st_size > size_bytes:
        os.truncate(path, size_bytes)
    remove_if_empty(path)


def remove_if_empty(path: Path) -> None:
    """Remove an event file that has nothing behind its first event."""
    if len(list(islice(frames(path), 2))) < 2:
        path.unlink()


def _masked_crc(content: bytes) -> bytes:
    """The checksum of a TFRecord: CRC-32C, rotated right by 15 bits, plus a constant."""
    crc: int = google_crc32c.value(content)
    return _CRC.pack(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


class Writing:
    """The right to write a run's event files, held by one process at a time until `release`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let others write; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def __del__(self) -> None:
        self.release()


def begin_writing(folder: Path) -> Writing | None:
    """Take the right to write here; None when another has it (`writer_of` says who)."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    writing = Writing(descriptor)
    for _ in range(_LOCK_TRIES):
        if _is_locked_now(descriptor, fcntl.LOCK_EX):
            # On a full disk nobody is told who writes, and the writing goes on.
            with contextlib.suppress(OSError):
                os.pwrite(descriptor, f"{os.getpid():<20}".encode(), 0)
            return writing
        # Somebody may only have looked who writes.
        time.sleep(_LOCK_POLL_S)
    writing.release()
    return None


def writer_of(folder: Path) -> int | None:
    """The process that writes a run's event files now: None for nobody, 0 for an unknown one."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _is_locked_now(descriptor, fcntl.LOCK_SH):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            return None
        written = os.pread(descriptor, 20, 0).strip()
        return int(written) if written.isdigit() else 0
    finally:
        os.close(descriptor)


def _is_locked_now(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: nobody can be kept out.
        return True
    return True


def replace_all(folder: Path) -> Path:
    """Put `NEW`, which is whole, in the place of all event files; returns what it is called then.

    Killed at any moment, `finish_replacing` completes it or, before its first step, takes it back.
    """
    new = fresh_name(folder)
    _sync(folder / NEW)
    plan = _Replacing(new, [path.name for path in event_files(folder)])
    temporary = folder / f"{REPLACING}.{os.getpid()}"
    temporary.write_bytes(msgspec.json.encode(plan))
    _sync(temporary)
    temporary.replace(folder / REPLACING)
    _sync(folder)
    finish_replacing(folder)
    return folder / new


def finish_replacing(folder: Path) -> None:
    """Complete what a process was killed in, or remove what it had not finished writing.

    Only for who has the right to write here.
    """
    plan = _read_plan(folder / REPLACING)
    if plan is not None:
        if (folder / NEW).exists():
            (folder / NEW).replace(folder / Path(plan.new).name)
            _sync(folder)
        if (folder / Path(plan.new).name).exists():
            for name in plan.old:
                (folder / Path(name).name).unlink(missing_ok=True)
            _sync(folder)
    for path in [*folder.glob(f"{NEW}*"), *folder.glob(f"{REPLACING}*")]:
        path.unlink(missing_ok=True)


def is_replacing(folder: Path) -> bool:
    """Whether event files are being replaced, or a process was killed in it."""
    return (folder / REPLACING).exists()


def _read_plan(path: Path) -> _Replacing | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Replacing)
    except (OSError, msgspec.DecodeError):
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
