"""How a process died, as far as anything tells: its own notes, and the kernel."""

import contextlib
import fcntl
import os
import signal
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from opusclip_mlops.exits import EXIT_CODE, FATAL, SIGNALS
from opusclip_mlops.flight import boot_id, flight_of
from opusclip_mlops.layout import REASON_TAG
from opusclip_mlops.records import RunEnded, RunStarted

TRACEBACK_TAG = "opusclip.traceback"
"""The tag that holds the lines a run's process was at when it failed."""

# ioctl PIDFD_GET_INFO, Linux 6.15 and later: <linux/pidfd.h>
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_INFO = struct.Struct("@QQ11Ii")
_ASKED_TO_STOP = ("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGXCPU")
_NOTE_BYTES = 7000


@dataclass(frozen=True)
class Death:
    """The status of a run whose process is gone, the reason, and the lines it was at.

    Attributes:
        signal: The name of the signal that ended it, "" where none is known to have.
        exit_code: What it left with, None where that is not known or a signal ended it.
        told_by: Who says so: "the process", "its notes", "its exit code", "the kernel", "nobody".
        stacks: The lines of all its threads, of one that closed its run itself.
    """

    status: str
    reason: str
    traceback: str = ""
    signal: str = ""
    exit_code: int | None = None
    told_by: str = "nobody"
    stacks: str = ""


def death_of(folder: Path, start: RunStarted, *, wait_status: int | None) -> Death:
    """How the process of a session died without closing its run.

    Args:
        folder: The run's folder, with the notes it may have left.
        start: The session.
        wait_status: What the kernel says about its end, as `os.wait` gives it; None if unknown.
    """
    notes = _notes(folder, start.session)
    if wait_status is not None and os.WIFSIGNALED(wait_status):
        name = _signal_name(os.WTERMSIG(wait_status))
        return _killed(start, name, notes.get(name, ""), "the kernel")
    if wait_status is None and notes:
        return _killed(start, *next(iter(notes.items())), "its notes")
    code = exit_code(folder, start.session) if wait_status is None else wait_status >> 8
    if code is None:
        vanished = f"process {start.pid} vanished without closing its run"
        return Death("FAILED", vanished + _since_a_restart(folder, start))
    reason = f"process {start.pid} left with exit code {code} without closing its run"
    told_by = "its exit code" if wait_status is None else "the kernel"
    return Death("FAILED" if code else "FINISHED", reason, exit_code=code, told_by=told_by)


def _since_a_restart(folder: Path, start: RunStarted) -> str:
    """That the machine has been started anew since, where that is known."""
    begun = flight_of(folder, start.session)
    is_other = bool(begun and begun.boot_id and begun.boot_id != boot_id())
    is_here = start.host == socket.gethostname()
    return "; its machine was started anew since" if is_other and is_here else ""


def exit_code(folder: Path, session: str) -> int | None:
    """The exit code that a process left behind when it ended by itself; None where it did not."""
    note = b""
    with contextlib.suppress(OSError):
        note = (folder / f"{session}.{EXIT_CODE}").read_bytes()
    return note[-1] if note else None


def takes_exit_code(folder: Path, session: str) -> bool:
    """Whether a process would have left its exit code, had it ended by itself."""
    return (folder / f"{session}.{EXIT_CODE}").exists()


def wait_status(pidfd: int) -> int | None:
    """What the kernel says about the end of a process; None while it lives or where it can't."""
    question = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, question)
    except OSError:
        return None
    mask, *_, status = _PIDFD_INFO.unpack(question)
    return int(status) if mask & _PIDFD_INFO_EXIT else None


def _killed(start: RunStarted, name: str, note: str, told_by: str) -> Death:
    status = "KILLED" if name in _ASKED_TO_STOP else "FAILED"
    reason = f"process {start.pid} was ended by {name}"
    return Death(status, reason, note, name, told_by=told_by)


def _notes(folder: Path, session: str) -> dict[str, str]:
    """What the process wrote down when signals struck it, by their names."""
    notes = {name: _note(folder / f"{session}.{name}") for name in SIGNALS}
    fatal = _note(folder / f"{session}.{FATAL}")
    return {name: note for name, note in {**notes, _fatal_name(fatal): fatal}.items() if note}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _fatal_name(note: str) -> str:
    """The signal behind the interpreter's last words."""
    words = {
        "Segmentation fault": "SIGSEGV", "Aborted": "SIGABRT", "Bus error": "SIGBUS",
        "Illegal instruction": "SIGILL", "Floating-point exception": "SIGFPE",
        "Floating point exception": "SIGFPE",
    }  # fmt: skip
    first = note.partition("\n")[0]
    return next((name for text, name in words.items() if text in first), first)


def _note(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_NOTE_BYTES).decode(errors="replace")
    except OSError:
        return ""


def stale_tags(end: RunEnded, *, ranks: int) -> set[str]:
    """The tags that would tell of another end of the run than this."""
    if not end.reason:
        return {REASON_TAG, TRACEBACK_TAG}
    return {TRACEBACK_TAG} if ranks > 1 and not end.traceback else set()
