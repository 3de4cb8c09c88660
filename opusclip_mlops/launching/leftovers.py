"""What runs of a launch on this machine, also when whoever started it is gone.

Each rank has a session of its own: neither its agent nor the supervisor takes it along.
"""

import math
import signal
import time
from collections.abc import Iterator, Sequence

import psutil

from opusclip_mlops.launching import commands
from opusclip_mlops.launching.workplace import Plan, Workplace

AGENT_WAIT_S = 5.0  # torchrun gives its ranks grace_s, then kills them, and ends itself
_KILL_WAIT_S = 10.0
_POLL_S = 0.1


def meeting_id(plan: Plan, attempt: int) -> str:
    """What the ranks of an attempt have in common, and no other's."""
    return f"{plan.run_id}-{attempt}"


def ranks_of(plan: Plan, attempts: Sequence[int]) -> Iterator[psutil.Process]:
    """The ranks of these attempts, by their command and their meeting's name."""
    command = plan.program
    meetings = {meeting_id(plan, attempt) for attempt in attempts}
    for process, words in _processes():
        if words[-len(command) :] == command and _meeting_of(process) in meetings:
            yield process


def is_supervised(place: Workplace) -> bool:
    """Whether a supervisor of the launch runs here, named or not yet."""
    return any(
        commands.SUPERVISOR in words and str(place.path) in words for _, words in _processes()
    )


def run_on(place: Workplace) -> bool:
    """Whether an agent or a rank of the launch runs here."""
    return any(True for found in (_agents(place), _ranks(place)) for _ in found)


def end_supervisor(supervisor: psutil.Process) -> None:
    """Tell a supervisor to end; return when it has: it ends the ranks, and tells MLflow."""
    _end_by(signal.SIGTERM, [supervisor])
    _living([supervisor], math.inf)


def end(place: Workplace) -> None:
    """End agents and ranks that nobody watches any more; return when none of them runs.

    An agent was told when its supervisor died. Told again it would leave its ranks: it is waited
    for.
    """
    grace_s = place.plan().config.grace_s
    _kill(_living(list(_agents(place)), grace_s + AGENT_WAIT_S))
    end_processes(list(_ranks(place)), grace_s=grace_s)


def end_processes(processes: Sequence[psutil.Process], *, grace_s: float) -> None:
    """Tell processes to end, and kill those that have not by then."""
    _end_by(signal.SIGTERM, processes)
    _kill(_living(processes, grace_s))


def _kill(processes: Sequence[psutil.Process]) -> None:
    """It takes a moment to be gone; what hangs in the kernel is not waited for."""
    _end_by(signal.SIGKILL, processes)
    _living(processes, _KILL_WAIT_S)


def _agents(place: Workplace) -> Iterator[psutil.Process]:
    outcomes = f"{place.path}/outcomes/"
    for process, words in _processes():
        if commands.AGENT in words and any(word.startswith(outcomes) for word in words):
            yield process


def _ranks(place: Workplace) -> Iterator[psutil.Process]:
    return ranks_of(place.plan(), range(len(place.attempts())))


def _processes() -> Iterator[tuple[psutil.Process, list[str]]]:
    """Every process that can be seen, with its command; one that is dead has none."""
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        yield process, words


def _meeting_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("TORCHELASTIC_RUN_ID")
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def _living(processes: Sequence[psutil.Process], wait_s: float) -> list[psutil.Process]:
    """Those that still run after so long."""
    ends_s = time.monotonic() + wait_s
    living = [one for one in processes if _lives(one)]
    while living and time.monotonic() < ends_s:
        time.sleep(_POLL_S)
        living = [one for one in living if _lives(one)]
    return living


def _lives(process: psutil.Process) -> bool:
    """Whether it runs; one that is dead and that nobody buries does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end_by(number: signal.Signals, processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue
