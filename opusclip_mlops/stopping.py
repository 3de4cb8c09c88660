"""Asks the processes that train on a run to stop, and tells them why.

The reason lies in the run's folder, where a training loop sees it by `tracker.should_stop`; those
that do not look are ended by SIGTERM. It is about those that had begun by then: who goes on with
the run afterwards trains on.
"""

import contextlib
import os
import signal
import socket
from pathlib import Path

import msgspec

from opusclip_mlops.folder import RunFolder, write_whole
from opusclip_mlops.records import RunStarted
from opusclip_mlops.redaction import one_line
from opusclip_mlops.sessions import is_visible, sessions

_FILE = "stop.json"


class _Stop(msgspec.Struct, frozen=True):
    """That the run is to stop: since when, in Unix milliseconds, and why."""

    timestamp_ms: int
    reason: str


def ask_to_stop(folder: RunFolder, reason: str, *, now_ms: int) -> int:
    """Ask everybody who trains on the run to stop; returns how many processes were signalled.

    Args:
        folder: The run's.
        reason: Why, on one line.
        now_ms: Who began after this time, in Unix milliseconds, is not meant.

    Raises:
        OSError: the disk can't take the reason.
    """
    stop = _Stop(now_ms, one_line(reason))
    write_whole(folder.path / _FILE, msgspec.json.encode(stop))
    every = (one for one in sessions(folder) if not one.is_elsewhere)
    living = [one.start for one in every if one.end is None]
    meant = {one.pid: one for one in living if one.start_time_ms <= now_ms}
    return sum(_is_signalled(start) for start in meant.values())


def reason_to_stop(folder: RunFolder, *, since_ms: int = 0) -> str:
    """Why who began at that time is to stop; empty where nobody asks for it."""
    path = f"{folder.path}/{_FILE}"
    # A training loop asks each step: where nobody wants it to stop, this is all.
    if not os.path.exists(path):
        return ""
    try:
        stop = msgspec.json.decode(Path(path).read_bytes(), type=_Stop)
    except (OSError, msgspec.DecodeError):
        return ""
    return stop.reason if stop.timestamp_ms >= since_ms else ""


def stopped(status: str, reason: str, why: str) -> tuple[str, str]:
    """How a run ends that was asked to stop: a failure of its own stays one."""
    own = reason.partition(":")[0]
    if status == "FAILED" and own != "SystemExit":
        return status, f"{reason} (after {why})"
    return "KILLED", f"{why} ({reason})" if reason else why


def _is_signalled(start: RunStarted) -> bool:
    """Send SIGTERM to the process of a session, and to no other that has its number since."""
    if start.host != socket.gethostname() or start.pid == os.getpid():
        return False
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(start.pid)
        try:
            if is_visible(start):
                signal.pidfd_send_signal(descriptor, signal.SIGTERM)
                return True
        finally:
            os.close(descriptor)
    return False
