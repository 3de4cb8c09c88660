"""Becomes the program of a trial, and ends it with the worker that started it.

Started as a file, without the package: `python -I -S leash.py PID WORD...`, and once more as
`python -I -S leash.py GRACE_S`, which outlives that worker and ends what the program has started.
"""

import ctypes
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_NOT_FOUND = 127
_POLL_S = 0.1


def tie_to(parent: int) -> None:
    """Have this process ended by SIGTERM when its parent dies, or at once where it is dead."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def become(words: list[str]) -> None:
    """Run a command in place of this process."""
    try:
        os.execvp(words[0], words)
    except OSError as error:
        print(f"{words[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(_NOT_FOUND)


def guard(grace_s: float) -> None:
    """Wait until stdin ends, which a worker's death does; then end the session that it names.

    A second line says that the session is over. SIGTERM comes first; its leader has had it.
    """
    lines = sys.stdin.read().split()
    if len(lines) != 1:
        return
    session = int(lines[0])
    _send(signal.SIGTERM, [pid for pid in _members(session) if pid != session])
    end_s = time.monotonic() + grace_s
    while (left := _members(session)) and time.monotonic() < end_s:
        time.sleep(_POLL_S)
    _send(signal.SIGKILL, left)


def _members(session: int) -> list[int]:
    """Who runs in a session, but for groups of its own that a program has made there."""
    return [
        pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_in(session, pid)
    ]


def _is_in(session: int, pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            state, _, group, found = file.read().rpartition(")")[2].split()[:4]
    except (OSError, ValueError):
        return False
    return state not in "ZXx" and int(group) == int(found) == session


def _send(signum: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signum)
        except (ProcessLookupError, PermissionError):
            continue


if __name__ == "__main__":
    if len(sys.argv) == 2:
        guard(float(sys.argv[1]))
    else:
        tie_to(int(sys.argv[1]))
        become(sys.argv[2:])
