"""The program of one trial: started, asked to end, and ended with all that it has started."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opusclip_mlops.redaction import one_line
from opusclip_mlops.sessions import process_started_s
from opusclip_mlops.sweeps import leash
from opusclip_mlops.trial_values import FILE_VARIABLE, METRIC_VARIABLE

GRACE_S = 30.0
"""How long a program that is asked to end may take, in seconds."""

_POLL_S = 0.05
_LEASH = (sys.executable, "-I", "-S", str(leash.__file__))

STRAY_VARIABLES = (
    "OPUSCLIP_RUN_ID", "OPUSCLIP_RUN_NAME", "OPUSCLIP_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_NAME",
    FILE_VARIABLE, METRIC_VARIABLE,
)  # fmt: skip
"""What a trial does not inherit: it names another run."""

_LOG_TAIL_BYTES, _LINE_CHARACTERS = 4096, 200
_DEAD_STATES = ("Z", "X", "x")


class _Guard:
    """A process that outlives this one, and then ends the session that it was told of, if any."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            [*_LEASH, str(GRACE_S)],
            env={},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def tell(self, session: int) -> None:
        self._say(f"{session}\n")

    def release(self) -> None:
        """Let it go: nothing is left to end."""
        self._say("over\n")
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._process.wait()

    def _say(self, words: str) -> None:
        # It may have been killed itself.
        with contextlib.suppress(OSError, ValueError):
            if self._process.stdin:
                self._process.stdin.write(words.encode())
                self._process.stdin.flush()


class TrialProcess:
    """A program in a session of its own; it dies with the process that started it.

    So does all that it has started there.

    Args:
        words: What starts it.
        environment: All of its environment.
        log: Where its output goes.

    Raises:
        OSError: no process can be started, or the log cannot be written.
    """

    def __init__(self, words: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        self._asked_s: float | None = None
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._guard = _Guard()
            self._process = subprocess.Popen(
                [*_LEASH, str(os.getpid()), *words],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        self._guard.tell(self._process.pid)

    @property
    def group(self) -> dict[str, Any]:
        """Names its processes for whoever must end them later."""
        pid = self._process.pid
        with contextlib.suppress(ProcessLookupError):
            return {"pid": pid, "started_s": process_started_s(pid)}
        return {}

    def poll(self) -> int | None:
        """The exit code, None while it or what it started runs.

        Who was asked to end and did not is ended.
        """
        code, pid = self._process.poll(), self._process.pid
        if code is not None:
            if not _has_members(pid):
                self._guard.release()
                return code
            # Workers of its own have outlived it.
            self.ask_to_end()
        if self._asked_s is not None and time.monotonic() - self._asked_s > GRACE_S:
            _end_group(pid)
        return None

    def ask_to_end(self) -> None:
        """Send SIGTERM, once, to the program and all that it has started."""
        if self._asked_s is None:
            self._asked_s = time.monotonic()
            _end_group(self._process.pid, signal.SIGTERM)

    def end(self) -> int:
        """Ask it to end, and wait until it has."""
        self.ask_to_end()
        while (code := self.poll()) is None:
            time.sleep(_POLL_S)
        return code


def last_line(log: Path) -> str:
    """What was printed last, on one line and without credentials; empty where nothing was."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return one_line(lines[-1], at_most=_LINE_CHARACTERS) if lines else ""


def exit_reason(code: int, log: Path) -> str:
    """Why a trial failed: its program's exit code, and what it printed last."""
    words = last_line(log)
    return f"exit code {code}{f': {words}' if words else ''}"


def end_left_group(group: Mapping[str, Any]) -> None:
    """End what a dead worker of this machine has left of a trial, and nobody who has its number."""
    if not group:
        return
    pid = int(group["pid"])
    with contextlib.suppress(ProcessLookupError):
        if process_started_s(pid) != group["started_s"]:
            return
    # Where it is dead its number is nobody else's while the group has members.
    _end_group(pid)


def _end_group(pid: int, signum: signal.Signals = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signum)


def _has_members(pid: int) -> bool:
    """Whether a group has a process that runs; who is dead and not yet fetched does not count."""
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return any(_runs_in(pid, stat) for stat in Path("/proc").glob("[0-9]*/stat"))


def _runs_in(group: int, stat: Path) -> bool:
    try:
        state, _, found = stat.read_text(errors="replace").rpartition(")")[2].split()[:3]
    except (OSError, ValueError):
        return False
    return state not in _DEAD_STATES and int(found) == group
