"""Runs a launch on this machine: a process that outlives nobody, and sees every rank end.

It is the parent of torchrun's agent. Whoever launched may wait for it, signal it, or be gone: the
run's end in MLflow is told here.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from opusclip_mlops.launching import commands, leftovers
from opusclip_mlops.launching.outcomes import Ending, ending_of
from opusclip_mlops.launching.settings import LaunchConfig
from opusclip_mlops.launching.telling import told
from opusclip_mlops.launching.workplace import Plan, Workplace, python_of
from opusclip_mlops.lean_mlflow import load_mlflow
from opusclip_mlops.redaction import one_line

POLL_S = 0.2
DELIVERY_WAIT_S = 60.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Supervisor:
    """Starts the ranks of a launch, ends them when it is told to, and knows how they ended."""

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._plan = place.plan()
        self._stopped_by = ""

    def listen(self) -> None:
        """Take a signal to end for one to end the ranks."""
        for number in _STOPS:
            signal.signal(number, self._on_signal)

    def run(self) -> Ending:
        """Run it to its end."""
        try:
            attempt = self._place.begin_attempt(f"{socket.gethostname()}:{os.getpid()}")
            agent = self._start(attempt)
        except OSError as error:
            reason = one_line(f"never started: {error}")
            return Ending(status="FAILED", reason=reason, exit_code=1)
        self._watch(agent)
        if agent.returncode:
            left = list(leftovers.ranks_of(self._plan, [attempt]))
            leftovers.end_processes(left, grace_s=self._plan.config.grace_s)
        outcomes = self._place.outcomes(attempt)
        return ending_of(agent.returncode, outcomes, stopped_by=self._stopped_by)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._stopped_by = self._stopped_by or f"cancelled ({signal.Signals(number).name})"

    def _start(self, attempt: int) -> subprocess.Popen[bytes]:
        config = self._plan.config
        arguments = commands.torchrun_arguments(
            config,
            self._plan.program,
            meeting_id=leftovers.meeting_id(self._plan, attempt),
            endpoint=endpoint(config),
        )
        return subprocess.Popen(
            [
                *python_of(config, sys.executable),
                commands.AGENT,
                self._place.outcome_file(attempt),
                *arguments,
            ],
            cwd=self._plan.cwd,
            env={**os.environ, **self._plan.environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )

    def _watch(self, agent: subprocess.Popen[bytes]) -> None:
        """Wait for the agent's end, and see that it comes once it was asked for."""
        limit_s = self._plan.config.time_limit_s
        ends_s = time.monotonic() + limit_s if limit_s else float("inf")
        kill_s = float("inf")
        while agent.poll() is None:
            if time.monotonic() >= ends_s:
                self._stopped_by = self._stopped_by or (
                    f"the time limit of {self._plan.config.time_limit} was over"
                )
            if self._stopped_by and kill_s == float("inf"):
                agent.terminate()
                kill_s = time.monotonic() + self._plan.config.grace_s + leftovers.AGENT_WAIT_S
            if time.monotonic() >= kill_s:
                agent.kill()
            time.sleep(POLL_S)


def endpoint(config: LaunchConfig) -> str:
    """Where the ranks of this machine meet; port 0 for one that is free."""
    return f"localhost:{config.port or 0}"


def _die_with_parent() -> None:
    """Have the agent end its ranks when this process is killed; it runs between fork and exec."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def start_supervisor(
    place: Workplace, plan: Plan, *, tied: bool, secrets: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start the process that runs a launch here.

    Args:
        place: The launch's folder.
        plan: What it says.
        tied: Whether the launch ends with this process, however that ends.
        secrets: What the ranks find in their environment, and in no file.
    """
    with contextlib.ExitStack() as files:
        # What outlives its launcher cannot print where that did: the pipe may be closed.
        log = None if tied else files.enter_context(place.open_log())
        return subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                commands.SUPERVISOR,
                str(place.path),
                *(["--tied"] if tied else []),
            ],
            cwd=plan.cwd,
            env={**os.environ, **plan.environment, **secrets},
            stdin=subprocess.PIPE if tied else subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def main(arguments: Sequence[str]) -> int:
    """Run the launch in a folder, tell MLflow how it ended; its exit code."""
    place = Workplace(Path(arguments[0]))
    if (over := place.ending()) is not None:
        # It was cancelled, or given up for never started, before this process was there.
        return over.exit_code
    supervisor = Supervisor(place)
    supervisor.listen()
    if "--tied" in arguments:
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    ending = supervisor.run()
    place.end(ending)
    # MLflow takes seconds to load, for which no rank waits.
    load_mlflow()
    from opusclip_mlops.launching.ending import settle

    if told(lambda: settle(place.plan(), ending, delivery_wait_s=DELIVERY_WAIT_S)):
        place.note_told()
    return ending.exit_code


def _end_with_launcher() -> None:
    """The pipe to the launcher ends when that process does."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
