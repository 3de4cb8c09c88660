"""What a process leaves in its run's folder for the case that it dies, at next to no cost.

`<session>.flight` says who it was; `<session>.lines` holds its last log lines, `<session>.open` the
operations it was in. The last two are files in memory: what stands there survives a `kill -9`, and
costs no call of the system.
"""

import contextlib
import itertools
import logging
import mmap
import os
import stat
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from opusclip_mlops.faults import attempted
from opusclip_mlops.folder import write_whole
from opusclip_mlops.ranks import launch_command, rank_in
from opusclip_mlops.redaction import may_be_secret, redacted, secret_names_here, secrets_here

MOST_LINES = 500
"""How many of the last log lines are kept."""

_SLOT_BYTES, _SLOTS = 256, 1024
_SLOT = struct.Struct("<QQH")  # its number from 1, that of its line's first slot, bytes of text
_TEXT_BYTES = _SLOT_BYTES - _SLOT.size
_LINE_SLOTS = 32
_LINE_CHARACTERS = 4000
_ARGUMENT_CHARACTERS, _ARGUMENTS = 1000, 100

_CELLS, _NAME_BYTES = 256, 120
_OFFSET = struct.Struct("<q")
_NAMES_AT = _OFFSET.size + 8 * _CELLS


class Flight(msgspec.Struct, frozen=True, kw_only=True):
    """Who a process is, noted at the start of its part in a run; without its environment.

    `stderr_file` is the file that its errors go to, "" where that is none; `oom_kills` counts what
    the kernel had killed on this machine for want of memory, None where it does not say.
    `secret_names` are its variables whose values nobody is to read; `launched` is the command that
    started it with all others that it trains with.
    """

    argv: list[str]
    cwd: str
    python: str
    boot_id: str
    started_ms: int
    rank: int | None = None
    stderr_file: str = ""
    oom_kills: int | None = None
    secret_names: tuple[str, ...] = ()
    launched: list[str] = []


class FlightNotes:
    """The notes of this process in a run's folder, from now until `release`.

    A note that can't be taken, because the disk is full for example, is left out.
    """

    def __init__(self, folder: Path, session: str) -> None:
        self.operations = OpenOperations(None)
        self._lines: LogLines | None = None
        # The disk may be full: then the run goes on without what explains its death.
        with contextlib.suppress(OSError):
            self._begin(folder, session)

    def _begin(self, folder: Path, session: str) -> None:
        write_whole(folder / f"{session}.flight", msgspec.json.encode(_this_process()))
        self.operations = OpenOperations(folder / f"{session}.open")
        self._lines = LogLines(folder / f"{session}.lines")
        _tap.add(self._lines)

    def release(self) -> None:
        """Take no more notes; what was noted stays."""
        if self._lines is not None:
            _tap.remove(self._lines)
        self.operations.release()


def flight_of(folder: Path, session: str) -> Flight | None:
    """What a process said of itself; None where it could not."""
    try:
        return msgspec.json.decode((folder / f"{session}.flight").read_bytes(), type=Flight)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def boot_id() -> str:
    """What tells this start of the machine from all others, "" where it has no name."""
    return _content("/proc/sys/kernel/random/boot_id").strip()


def oom_kills() -> int | None:
    """How many processes the kernel has killed here for want of memory since the machine began."""
    for line in _content("/proc/vmstat").splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill" and count.isdigit():
            return int(count)
    return None


def _content(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _this_process() -> Flight:
    arguments = _arguments()
    return Flight(
        argv=arguments,
        launched=launch_command(os.environ, arguments),
        cwd=_cwd(),
        python=sys.version.split()[0],
        boot_id=boot_id(),
        started_ms=time.time_ns() // 1_000_000,
        rank=rank_in(os.environ),
        stderr_file=_stderr_file(),
        oom_kills=oom_kills(),
        secret_names=secret_names_here(),
    )


def _arguments() -> list[str]:
    """The command line; a secret may stand in the word after the one that names it."""
    cut = [
        " ".join(_sayable(one[:_ARGUMENT_CHARACTERS]).split("\n"))
        for one in sys.orig_argv[:_ARGUMENTS]
    ]
    words = redacted("\n".join(cut)).split("\n")
    return words if len(words) == len(cut) else [*cut[:1], "***"]


def _sayable(text: str) -> str:
    """What the system gave, where its bytes were no UTF-8 in a form that can be written."""
    return text.encode(errors="backslashreplace").decode()


def _cwd() -> str:
    try:
        return _sayable(os.getcwd())
    except OSError:
        return ""


def _stderr_file() -> str:
    """Where errors go, if that is a file: it can be read without being in anybody's way."""
    try:
        is_file = stat.S_ISREG(os.fstat(2).st_mode)
        return _sayable(os.readlink("/proc/self/fd/2")) if is_file else ""
    except OSError:
        return ""


def _mapped(path: Path, size_bytes: int) -> mmap.mmap:
    """A new file in memory; its blocks are taken now: later a full disk would kill the writer."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
        return mmap.mmap(descriptor, size_bytes)
    finally:
        os.close(descriptor)


# The last lines of the log


class LogLines:
    """A ring of lines in a file. Safe in threads and signal handlers: it holds no lock.

    A line takes as many slots as it needs; each has the number of the line's first one, so that
    lines written at the same time are told apart.
    """

    def __init__(self, path: Path) -> None:
        self._map = _mapped(path, _SLOT_BYTES * _SLOTS)
        self._numbers = itertools.count(1)

    def write(self, text: str) -> None:
        """Keep a line, its beginning if it is a very long one."""
        data = text.encode(errors="replace")
        first = next(self._numbers)
        self._put(first, first, data[:_TEXT_BYTES])
        if len(data) > _TEXT_BYTES:
            for at in range(_TEXT_BYTES, min(len(data), _LINE_SLOTS * _TEXT_BYTES), _TEXT_BYTES):
                self._put(next(self._numbers), first, data[at : at + _TEXT_BYTES])

    def _put(self, number: int, first: int, data: bytes) -> None:
        at = number % _SLOTS * _SLOT_BYTES
        frame = _SLOT.pack(number, first, len(data)) + data
        self._map[at : at + len(frame)] = frame


def log_lines(folder: Path, session: str) -> list[str]:
    """The last log lines of a process, the oldest first; at most `MOST_LINES`."""
    try:
        content = (folder / f"{session}.lines").read_bytes()
    except OSError:
        return []
    parts: dict[int, list[tuple[int, bytes]]] = {}
    for at in range(0, len(content) - _SLOT_BYTES + 1, _SLOT_BYTES):
        number, first, size_bytes = _SLOT.unpack_from(content, at)
        if 0 < first <= number and size_bytes <= _TEXT_BYTES:
            text = content[at + _SLOT.size : at + _SLOT.size + size_bytes]
            parts.setdefault(first, []).append((number, text))
    whole = [sorted(parts[first]) for first in sorted(parts) if min(parts[first])[0] == first]
    lines = [b"".join(text for _, text in one).decode(errors="replace") for one in whole]
    return lines[-MOST_LINES:]


class _LogTap:
    """Sees every log record that a logger lets through, while a run of this process is open.

    It stands in the record factory. A handler on the root logger would change what the program
    does: `logging.basicConfig` does nothing once there is one, and warnings are no longer printed.
    """

    def __init__(self) -> None:
        self._open: list[LogLines] = []
        self._factory: Callable[..., logging.LogRecord] | None = None
        self._before: Callable[..., logging.LogRecord] = logging.LogRecord
        self._secrets: tuple[str, ...] = ()
        self._last = (0, 0.0)
        os.register_at_fork(after_in_child=self._open.clear)

    def add(self, lines: LogLines) -> None:
        """Begin to keep lines here too."""
        self._secrets = secrets_here()
        if logging.getLogRecordFactory() is not self._factory:
            self._before = logging.getLogRecordFactory()
            self._factory = _noting(self._before, self._open, self._note)
            logging.setLogRecordFactory(self._factory)
        self._open.append(lines)

    def remove(self, lines: LogLines) -> None:
        """Keep no more lines here; behind the last, put back the factory that was there before."""
        if lines in self._open:
            self._open.remove(lines)
        # One that somebody has put in its place, or round it, stays.
        if not self._open and logging.getLogRecordFactory() is self._factory:
            logging.setLogRecordFactory(self._before)

    def _note(self, record: logging.LogRecord) -> None:
        this = (id(record), record.created)
        # A factory of somebody's may stand between two of ours.
        if record.name is None or this == self._last:
            return
        self._last = this
        text = f"{record.created:.3f} {record.levelname} {record.name}: {record.getMessage()}"
        if record.exc_info and record.exc_info[0]:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info))
        text = text[:_LINE_CHARACTERS]
        if may_be_secret(text) or (self._secrets and any(one in text for one in self._secrets)):
            text = redacted(text, values=self._secrets)
        for lines in self._open:
            lines.write(text)


def _noting(
    factory: Callable[..., logging.LogRecord],
    open_lines: list[LogLines],
    note: Callable[[logging.LogRecord], None],
) -> Callable[..., logging.LogRecord]:
    """A factory that makes what another makes, and has it noted."""

    def made(*arguments: object, **words: object) -> logging.LogRecord:
        record = factory(*arguments, **words)
        if open_lines:
            # Its words may be of any kind, and fail in any way: that is its logger's to tell.
            attempted(partial(note, record))
        return record

    return made


_tap = _LogTap()


# The operations that are open


@dataclass(frozen=True)
class OpenOperation:
    """An operation that had begun and not ended, and when it began, in Unix milliseconds."""

    name: str
    began_ms: int


class OpenOperations:
    """Which operations this process is in, in a file that survives it.

    `cells[cell(name)]` is to be set to `time.perf_counter_ns()` when the operation of this name
    begins, and to 0 when it ends: an assignment each, no call. A forked child writes to nothing.

    Args:
        path: The file; without one nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._names: dict[str, int] = {}
        self._map: mmap.mmap | None = None
        self.cells = memoryview(bytearray(8 * _CELLS)).cast("Q")
        if path is not None:
            self._map = _mapped(path, _NAMES_AT + _CELLS * _NAME_BYTES)
            _OFFSET.pack_into(self._map, 0, time.time_ns() - time.perf_counter_ns())
            self.cells = memoryview(self._map)[_OFFSET.size : _NAMES_AT].cast("Q")
            _in_files.add(self)

    def cell(self, name: str) -> int:
        """The number of an operation's cell; those behind the 255th name share one."""
        found = self._names.get(name)
        if found is None:
            found = self._names[name] = min(len(self._names), _CELLS - 1)
            said = name if found < _CELLS - 1 else "(another operation)"
            if self._map is not None:
                data = said.encode(errors="replace")[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
                at = _NAMES_AT + found * _NAME_BYTES
                self._map[at : at + _NAME_BYTES] = data
        return found

    def release(self) -> None:
        """Note nothing more: what is set from now on goes nowhere."""
        _in_files.discard(self)
        self._map = None
        self.cells = memoryview(bytearray(8 * _CELLS)).cast("Q")


_in_files: set[OpenOperations] = set()


def _forget_operations() -> None:
    """In a forked child: the files are its parent's."""
    for one in list(_in_files):
        one.release()


os.register_at_fork(after_in_child=_forget_operations)


def open_operations(folder: Path, session: str) -> list[OpenOperation]:
    """The operations a process was in when it was last heard of, the longest first."""
    try:
        content = (folder / f"{session}.open").read_bytes()
    except OSError:
        return []
    return sorted(_read_open(content), key=lambda one: (one.began_ms, one.name))


def _read_open(content: bytes) -> Iterator[OpenOperation]:
    if len(content) < _NAMES_AT + _CELLS * _NAME_BYTES:
        return
    [offset_ns] = _OFFSET.unpack_from(content)
    for number, began_ns in enumerate(struct.unpack_from(f"<{_CELLS}Q", content, _OFFSET.size)):
        at = _NAMES_AT + number * _NAME_BYTES
        name = content[at : at + _NAME_BYTES].rstrip(b"\0").decode(errors="replace")
        if began_ns and name:
            yield OpenOperation(name, (began_ns + offset_ns) // 1_000_000)
