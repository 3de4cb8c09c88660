"""Becomes the program of a trial, and ends it with the worker that started it.

Started as a file, without the package: `python -I -S leash.py PID WORD...`.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_NOT_FOUND = 127


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


if __name__ == "__main__":
    tie_to(int(sys.argv[1]))
    become(sys.argv[2:])
