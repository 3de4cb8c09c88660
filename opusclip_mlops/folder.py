"""A run's folder on this machine: journal segments, staged files, and where each sink has got to.

<journal_dir>/<local id>/
  manifest.json          what the run is called and which sinks it goes to; no credentials
  identity.json          what MLflow answered: run id, experiment, where artifacts lie
  *.journal              the records
  media/ checkpoints/    files that records refer to
  sinks/<name>.0 .1      the position each sink has acknowledged, written in turn
  sinks/rejected.jsonl   records a sink refused for good, with the reason
"""

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.manifest import Identity as Identity
from opusclip_mlops.manifest import Manifest as Manifest
from opusclip_mlops.slots import read_slot, write_slot

S = TypeVar("S", bound=msgspec.Struct)
CONTROL = "+control"
"""Ends the name of a session's journal of starts and ends, kept apart so that it stays short.

No host name has a `+` in it, so that no other journal is taken for one.
"""

_LOCK_POLL_S = 0.05
_SLOT_BYTES = 16 * 1024

Position = dict[str, int]
"""How many bytes of each journal segment, by file name."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a sink is: what it has acknowledged, and what it was given since.

    `given` holds the end of each batch that is not acknowledged yet, in order; `row` is the ordinal
    of the first row behind `position`; `state` is the sink's own; `error` is the last fault, empty
    once it works again; `rejected` counts the records it refused for good; `last_step` is the
    highest step that was acknowledged; `damaged_bytes` of the journal could not be read; `number`
    counts how often this was written.
    """

    number: int = 0
    position: Position = {}
    given: list[Position] = []
    row: int = 0
    state: dict[str, Any] = {}
    records: int = 0
    rejected: int = 0
    last_step: int = -1
    damaged_bytes: int = 0
    faults: int = 0
    error: str = ""
    done: bool = False

    def has_all(self, sizes: Position) -> bool:
        """Whether that many bytes of each segment are acknowledged.

        A power cut may have taken bytes that were acknowledged: more is as good.
        """
        return all(self.position.get(name, -1) >= size for name, size in sizes.items())


class Rejection(msgspec.Struct, frozen=True):
    """A record that a sink refused for good, and why."""

    sink: str
    reason: str
    record: object


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run on one machine."""

    path: Path

    def create(self, manifest: Manifest) -> None:
        """Make the folder, private to the user; a manifest that is there already is kept."""
        for part in (self.path, self.media, self.checkpoints, self.path / "sinks"):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        for slot in (slot for sink in manifest.sinks for slot in self._slots(sink)):
            if not slot.exists():
                write_slot(slot, b"".ljust(_SLOT_BYTES))
        if not (self.path / "manifest.json").exists():
            _write_first(self.path / "manifest.json", msgspec.json.encode(manifest))

    @property
    def media(self) -> Path:
        """Where staged clips lie."""
        return self.path / "media"

    @property
    def checkpoints(self) -> Path:
        """Where staged checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def rejected(self) -> Path:
        """The records that were refused for good, one JSON line each."""
        return self.path / "sinks" / "rejected.jsonl"

    def manifest(self) -> Manifest:
        """Read what the run is called.

        Raises:
            OpusclipError: this is not a run's folder.
        """
        found = _read_json(self.path / "manifest.json", Manifest)
        if found is None:
            raise OpusclipError(f"{self.path} is not a run's folder: it has no manifest.json")
        return found

    def identity(self) -> Identity | None:
        """Read what MLflow answered, or None when it has not yet."""
        return _read_json(self.path / "identity.json", Identity)

    def write_identity(self, identity: Identity) -> None:
        """Keep what MLflow answered."""
        if identity != self.identity():
            write_whole(self.path / "identity.json", msgspec.json.encode(identity))

    def progress(self, sink: str) -> Progress:
        """Read where a sink has got to."""
        contents = [read_slot(path) for path in self._slots(sink)]
        found = [_decoded(one, Progress) for one in contents if one]
        return max((one for one in found if one), key=lambda one: one.number, default=Progress())

    def write_progress(self, sink: str, progress: Progress) -> None:
        """Keep where a sink has got to.

        It is written over what was kept the time before last: that needs no room on a full disk,
        and a crash in the middle leaves the last one whole.
        """
        write_slot(self._slots(sink)[progress.number % 2], msgspec.json.encode(progress))

    def _slots(self, sink: str) -> tuple[Path, Path]:
        return self.path / "sinks" / f"{sink}.0", self.path / "sinks" / f"{sink}.1"

    def reject(self, *rejections: Rejection) -> None:
        """Put records on the list of those refused for good: all, or none on a full disk."""
        lines = b"".join(msgspec.json.encode(one) + b"\n" for one in rejections)
        descriptor = os.open(self.rejected, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            size_bytes = os.fstat(descriptor).st_size
            if os.write(descriptor, lines) < len(lines):
                os.ftruncate(descriptor, size_bytes)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.rejected))
        finally:
            os.close(descriptor)

    def note_arrival(self, checkpoint: str) -> None:
        """Remember that a checkpoint stands whole in MLflow, for mirrors that refer to it."""
        write_whole(self._arrival(checkpoint), b"")

    def has_arrived(self, checkpoint: str) -> bool:
        """Whether a checkpoint stands whole in MLflow."""
        return self._arrival(checkpoint).exists()

    def _arrival(self, checkpoint: str) -> Path:
        return self.path / "sinks" / f"{Path(checkpoint).name}.arrived"

    def entries(self) -> "list[os.DirEntry[str]]":
        """The journal segments, sorted: what a session starts with first.

        All are listed before any is asked for its size: one that another follows is whole by then.
        """
        found: list[os.DirEntry[str]] = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.path) as d:
            found += (one for one in d if one.name.endswith(".journal"))
        return sorted(found, key=lambda one: (CONTROL not in one.name, one.name))

    def segments(self) -> list[Path]:
        """Journal segments in the order they are read in: what a session starts with first."""
        return [self.path / one.name for one in self.entries()]

    def size_bytes(self) -> Position:
        """How long each segment is now."""
        return {one.name: one.stat().st_size for one in self.entries()}

    @contextlib.contextmanager
    def sinking(self, sink: str) -> Iterator[None]:
        """Hold the right to write to one sink; waits while a process left over still does."""
        descriptor = os.open(self.path / "sinks" / f"{sink}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def shipping(self, *, wait_s: float = 0.0) -> Iterator[bool]:
        """Hold the right to ship this run; False when another process still does after `wait_s`.

        Raises:
            FileNotFoundError: the folder is gone.
        """
        deadline = time.monotonic() + wait_s
        descriptor = None
        while descriptor is None:
            try:
                descriptor = _locked(self.path / "shipper.lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    break
                time.sleep(_LOCK_POLL_S)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                _unlock(descriptor)

    def wait_until_unshipped(self) -> None:
        """Return once no process holds the right to ship this run; costs nothing while it waits.

        Raises:
            FileNotFoundError: the folder is gone.
        """
        _unlock(_locked(self.path / "shipper.lock", fcntl.LOCK_SH))

    def is_shipped(self) -> bool:
        """Whether a process holds the right to ship this run."""
        try:
            _unlock(_locked(self.path / "shipper.lock", fcntl.LOCK_SH | fcntl.LOCK_NB))
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def hold(self) -> int:
        """Keep the folder from being removed, as long as the returned descriptor is open."""
        lock = _removal_lock(self.path)
        lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _locked(lock, fcntl.LOCK_SH)

    def remove_unless_held(self) -> bool:
        """Remove the folder, unless a process holds it or a segment grew; True when it is gone."""
        return self._remove_if(self.is_delivered)

    def remove_empty(self) -> bool:
        """Remove the folder, unless a process holds it or it has a record; True when it is gone."""
        return self._remove_if(lambda: not any(self.size_bytes().values()))

    def _remove_if(self, may_go: Callable[[], bool]) -> bool:
        lock = _removal_lock(self.path)
        try:
            descriptor = _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            if self.path.exists():
                if not may_go():
                    return False
                _remove(self.path)
            lock.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
        return True

    def is_delivered(self) -> bool:
        """Whether every sink has acknowledged every byte and nothing was refused."""
        sizes = self.size_bytes()
        every = [self.progress(sink) for sink in self.manifest().sinks]
        return all(p.done and not p.rejected and p.has_all(sizes) for p in every)


def _removal_lock(path: Path) -> Path:
    return path.parent / f".{path.name}.lock"


def _locked(path: Path, how: int) -> int:
    """Lock the file that stands here now, not one that was removed while we waited."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, how)
            if _is_still(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _unlock(descriptor: int) -> None:
    # Explicitly: a child forked in between would otherwise hold the lock on.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    """Remove a folder so that nobody finds it half gone."""
    going = path.with_name(f".{path.name}.{os.getpid()}.removed")
    shutil.rmtree(going, ignore_errors=True)
    path.rename(going)
    shutil.rmtree(going)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never a part."""
    with _temporary(path, content) as temporary:
        os.replace(temporary, path)


def _write_first(path: Path, content: bytes) -> None:
    """Write a file for good, unless another process was first."""
    with _temporary(path, content, durable=True) as temporary, contextlib.suppress(FileExistsError):
        os.link(temporary, path)


@contextlib.contextmanager
def _temporary(path: Path, content: bytes, *, durable: bool = False) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(descriptor)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _read_json(path: Path, kind: type[S]) -> S | None:
    try:
        return _decoded(path.read_bytes(), kind)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _decoded(content: bytes, kind: type[S]) -> S | None:
    try:
        return msgspec.json.decode(content, type=kind)
    except (UnicodeDecodeError, msgspec.DecodeError):
        return None
