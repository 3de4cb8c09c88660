"""Launches under way, as MLflow asks for them: wait, status, cancel, each true in every place."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Protocol

import psutil
from mlflow.projects.submitted_run import SubmittedRun

from opusclip_mlops.errors import LaunchError
from opusclip_mlops.launching import leftovers, slurm
from opusclip_mlops.launching.ending import settle
from opusclip_mlops.launching.kubernetes import Cluster, KubernetesAwayError
from opusclip_mlops.launching.outcomes import Ending, exit_words, shell_code
from opusclip_mlops.launching.slurm import SlurmAwayError
from opusclip_mlops.launching.workplace import Workplace

DELIVERY_WAIT_S = 30.0
_FIRST_PAUSE_S = 1.0
_POLL_S = 0.5
_START_WAIT_S = 60.0
State = Ending | str
"""How it ended; "SCHEDULED" or "RUNNING" while it has not."""


class Watched(Protocol):
    """A launch that can be asked about, not more seldom than that."""

    longest_pause_s: float

    def state(self) -> State:
        """What is known of it now; raises LaunchError where its place does not answer."""

    def cancel(self) -> None:
        """End it, and return once it has ended."""


class LaunchedRun(SubmittedRun):
    """A launch, wherever it runs."""

    def __init__(self, place: Workplace, watched: Watched, *, last: State | None = None) -> None:
        """Ask after a launch; `last` is what is known of it already."""
        super().__init__()
        self._place = place
        self._plan = place.plan()
        self._watched = watched
        self._last = last
        self._shown = ""

    @property
    def run_id(self) -> str:
        """The MLflow run that the ranks log to."""
        return self._plan.run_id

    @property
    def ending(self) -> Ending | None:
        """How it ended, where that is known."""
        return self._last if isinstance(self._last, Ending) else None

    def wait(self) -> bool:
        """Wait for the end, tell MLflow how it was; whether all was done."""
        pause_s = min(_FIRST_PAUSE_S, self._watched.longest_pause_s)
        while not isinstance(state := self._asked(), Ending):
            self._show(f"run {self.run_id}: {state}")
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, self._watched.longest_pause_s)
        self._settle(state)
        return state.is_good

    def get_status(self) -> str:
        """SCHEDULED, RUNNING, FINISHED, FAILED or KILLED; the last known where nobody answers.

        Raises:
            LaunchError: its place does not answer, and never has.
        """
        state = self._asked()
        return state.status if isinstance(state, Ending) else state

    def cancel(self) -> None:
        """End it and tell MLflow; nothing where it is over.

        Raises:
            LaunchError: its place refused, or does not answer.
        """
        if isinstance(self._asked(), Ending):
            return
        self._watched.cancel()
        known = self._place.ending()
        cancelled = Ending(status="KILLED", reason="cancelled", exit_code=143)
        self._settle(known if known is not None else cancelled)

    def _asked(self) -> State:
        """A scheduler that is away for a time has not ended anything."""
        if not isinstance(self._last, Ending):
            try:
                self._last = self._watched.state()
            except (SlurmAwayError, KubernetesAwayError) as error:
                if self._last is None:
                    raise
                self._show(str(error))
        return self._last

    def _show(self, line: str) -> None:
        """What has changed, on a terminal."""
        if sys.stderr.isatty() and line != self._shown:
            print(line, file=sys.stderr)
        self._shown = line

    def _settle(self, ending: Ending) -> None:
        if self._place.ending() is None:
            self._place.end(ending)
        self._last = ending
        if not self._place.is_told():
            settle(self._plan, ending, delivery_wait_s=DELIVERY_WAIT_S)
            self._place.note_told()


class LocalLaunch:
    """A launch on this machine; its supervisor tells MLflow how it ended."""

    longest_pause_s = 0.2

    def __init__(self, place: Workplace, supervisor: "subprocess.Popen[bytes]") -> None:
        self._place = place
        self._supervisor = supervisor

    def state(self) -> State:
        """It runs as long as its supervisor does."""
        code = self._supervisor.poll()
        if code is None:
            return "RUNNING"
        gone = f"what ran it here ended without a word: {exit_words(code)}"
        return _left_by(self._place, gone, shell_code(code))

    def cancel(self) -> None:
        """The supervisor ends the ranks, then itself; those of one that was killed end here."""
        self._supervisor.terminate()
        self._supervisor.wait()
        leftovers.end(self._place)


class LocalLaunchElsewhere:
    """A launch on this machine that another process began."""

    longest_pause_s = 1.0

    def __init__(self, place: Workplace) -> None:
        self._place = place

    def state(self) -> State:
        """What its supervisor has said; or that it is gone without a word."""
        is_started = self._place.ending() is not None or self._is_started()
        if (ending := self._place.ending()) is not None or not is_started:
            return ending or "SCHEDULED"
        if not (named := self._named()):
            reason = "never started: what launched it is gone"
            return Ending(status="FAILED", reason=reason, exit_code=1)
        host, _, pid = named.rpartition(":")
        _check_host(self._place, host)
        if self._supervisor(int(pid)) is not None:
            return "RUNNING"
        return _left_by(self._place, "what ran it here ended without a word")

    def cancel(self) -> None:
        """Its supervisor ends the ranks, then itself; those of one that was killed end here."""
        # It would go on behind a cancellation that comes before it.
        _until(self._is_started, _START_WAIT_S, "what launches it has not started it")
        named = self._named()
        supervisor = self._supervisor(int(named.rpartition(":")[2])) if named else None
        if supervisor is not None:
            leftovers.end_supervisor(supervisor)
        leftovers.end(self._place)

    def _is_started(self) -> bool:
        """Whether nobody is about to start it: it has a supervisor, or never will."""
        launcher = self._place.launcher()
        if self._named() or launcher is None:
            return bool(self._named())
        _check_host(self._place, launcher.host)
        return not launcher.runs_here and not leftovers.is_supervised(self._place)

    def _named(self) -> str:
        """The supervisor's host and process, by itself or by who started it; "" before both."""
        submitted = self._place.submitted()
        names = [*self._place.attempts(), *(submitted.jobs if submitted else [])]
        return next(filter(None, names), "")

    def _supervisor(self, pid: int) -> psutil.Process | None:
        """The process, unless its number is another's by now."""
        try:
            process = psutil.Process(pid)
            return process if str(self._place.path) in process.cmdline() else None
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None


class SlurmLaunch:
    """A launch as jobs of Slurm."""

    longest_pause_s = 30.0

    def __init__(self, place: Workplace) -> None:
        submitted = place.submitted()
        if submitted is None:
            raise LaunchError(f"{place.path} was never submitted")
        self._place = place
        self._submitted = submitted
        self._wait_s = place.plan().config.grace_s + 120.0

    def state(self) -> State:
        """What the jobs left behind, else what Slurm says of them."""
        if (said := self._place.ending()) is not None:
            return said
        states = [slurm.state_of(job) for job in self._submitted.jobs]
        if (ending := slurm.ending_of(self._place, states)) is not None:
            return ending
        going = [one for one in states if not one.is_over]
        return "SCHEDULED" if all(one.is_waiting for one in going) else "RUNNING"

    def cancel(self) -> None:
        """The jobs end first, then the one that would tell of their end: that is done here."""
        slurm.cancel(self._submitted.jobs)
        _until(lambda: isinstance(self.state(), Ending), self._wait_s, "Slurm still ends the jobs")
        if (ending := self.state()) and isinstance(ending, Ending):
            self._place.end(ending)
        if self._submitted.closing:
            slurm.cancel([self._submitted.closing])


class KubernetesLaunch:
    """A launch as a Job of Kubernetes."""

    longest_pause_s = 30.0

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._cluster = Cluster(place.plan())

    def state(self) -> State:
        """What Kubernetes says of the Job; where there is none, what was said of it here."""
        # Asked first: who is gone by now has made the Job, or said that it never started.
        launcher, is_being_made = self._place.launcher(), self._is_being_made()
        said, state = self._place.ending(), self._cluster.status()
        if not (isinstance(state, Ending) and state.is_guess):
            return state
        if said is None and launcher is not None:
            _check_host(self._place, launcher.host)
        return said or ("SCHEDULED" if is_being_made else state)

    def cancel(self) -> None:
        """Its pods have their grace, then the Job is gone."""
        # It would be made behind a cancellation that comes before it.
        problem = "what launches it has not made its Job"
        _until(lambda: not self._is_being_made(), _START_WAIT_S, problem)
        self._cluster.delete()

    def _is_being_made(self) -> bool:
        launcher = self._place.launcher()
        return launcher is not None and launcher.runs_here


def launch_of(place: Workplace) -> Watched:
    """The launch in a folder, for who did not start it.

    Raises:
        LaunchError: it was never submitted, or runs on another machine.
    """
    plan = place.plan()
    if plan.config.kind == "slurm" and not _was_left(place):
        return SlurmLaunch(place)
    if plan.config.kind == "kubernetes":
        return KubernetesLaunch(place)
    return LocalLaunchElsewhere(place)


def _check_host(place: Workplace, host: str) -> None:
    if host != socket.gethostname():
        raise LaunchError(f"run {place.plan().run_id} is on {host}: ask there")


def _was_left(place: Workplace) -> bool:
    """Whether who was to submit jobs died on this machine before that, and none ever began."""
    launcher = place.launcher()
    if launcher is None or launcher.host != socket.gethostname() or launcher.runs_here:
        return False
    return not place.is_submitted() and not place.attempts()


def _left_by(place: Workplace, gone: str, exit_code: int = 1) -> State:
    """How a launch is whose supervisor is gone: its ranks may have outlived it."""
    if place.ending() is None and leftovers.run_on(place):
        return "RUNNING"
    return place.ending() or _guess(gone, exit_code)


def _guess(reason: str, exit_code: int) -> Ending:
    """How a launch ended of whose end nobody wrote anything: 0 is said of what finished only."""
    if exit_code == 0:
        return Ending(status="FINISHED")
    return Ending(status="FAILED", reason=reason, exit_code=exit_code, is_guess=True)


def _until(is_so: Callable[[], bool], wait_s: float, problem: str) -> None:
    ends_s = time.monotonic() + wait_s
    while not is_so():
        if time.monotonic() > ends_s:
            raise LaunchError(f"{problem} after {wait_s:.0f} s")
        time.sleep(_POLL_S)
