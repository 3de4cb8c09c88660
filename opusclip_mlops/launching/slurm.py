"""Asking Slurm: submitting, cancelling, and what became of a job; never by a shell."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from opusclip_mlops.errors import LaunchError
from opusclip_mlops.launching.outcomes import Ending, Status
from opusclip_mlops.launching.workplace import Submitted, Workplace
from opusclip_mlops.redaction import one_line

_ANSWER_WAIT_S = 60.0
_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"}
_WAITING |= {"RESV_DEL_HOLD", "POWER_UP_NODE"}
_GOING_ON = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "SUSPENDED", "RESIZING"}
_ENDS: Mapping[str, Status] = {
    "COMPLETED": "FINISHED",
    "CANCELLED": "KILLED",
    "DEADLINE": "KILLED",
    "PREEMPTED": "KILLED",
    "REVOKED": "KILLED",
    "TIMEOUT": "KILLED",
    "BOOT_FAIL": "FAILED",
    "FAILED": "FAILED",
    "LAUNCH_FAILED": "FAILED",
    "NODE_FAIL": "FAILED",
    "OUT_OF_MEMORY": "FAILED",
    "RECONFIG_FAIL": "FAILED",
}
_WORDS = {
    "CANCELLED": "was cancelled",
    "DEADLINE": "could not end before its deadline",
    "PREEMPTED": "was preempted",
    "TIMEOUT": "reached its time limit",
    "BOOT_FAIL": "could not start: its node did not boot",
    "NODE_FAIL": "lost its node",
    "OUT_OF_MEMORY": "ran out of memory",
}
_FIELD = re.compile(r"(?:^|\s)(JobState|Reason|ExitCode|Restarts)=(\S*)")
_GONE = "Invalid job id"


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What Slurm says of a job.

    Attributes:
        job: Its number.
        state: Slurm's long word; "GONE" where Slurm knows nothing of it any more.
        reason: Why it waits, or ended; "" for none.
    """

    job: str
    state: str
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it will not run again; so is a state that a later Slurm invented."""
        return self.state not in _WAITING | _GOING_ON

    @property
    def is_waiting(self) -> bool:
        """Whether it has not begun, or waits to begin again."""
        return self.state in _WAITING

    @property
    def status(self) -> Status:
        """MLflow's word for how it ended."""
        return _ENDS.get(self.state, "FAILED")

    def __str__(self) -> str:
        if self.state == "GONE":
            return f"Slurm has forgotten job {self.job}, and it did not say how it ended"
        # Why it waited is kept by Slurm when it was cancelled, and is no reason for that.
        reason = f" ({self.reason})" if self.reason and self.state not in _WORDS else ""
        return f"Slurm's job {self.job} {_WORDS.get(self.state, self.state)}{reason}"


class SlurmAwayError(LaunchError):
    """Slurm does not answer; what it runs goes on."""


def submit(script: Path, *, cwd: str, after: str = "", secrets: Mapping[str, str]) -> str:
    """Submit a script, its log beside it; the job's number.

    Args:
        script: Its file.
        cwd: Where it runs.
        after: The job that has to be over before, however it ended; "" for none.
        secrets: What it finds in its environment, and in no file.

    Raises:
        LaunchError: Slurm refused it, or is not there.
    """
    words = sbatch_words(script, cwd=cwd, after=after)
    environment = {**os.environ, **secrets}
    for name in [one for one in environment if one.startswith(("SBATCH_", "SLURM_"))]:
        if name not in ("SLURM_CONF", "SLURM_CLUSTERS"):
            # Inside an allocation these would ask for its amounts again.
            del environment[name]
    done = _answer(words, environment=environment)
    if done.returncode:
        why = one_line(done.stderr) or "sbatch does not say why"
        raise LaunchError(f"Slurm refused the job: {why}")
    return done.stdout.strip().partition(";")[0]


def sbatch_words(script: Path, *, cwd: str, after: str) -> list[str]:
    """The command by which a script is submitted; see `submit`."""
    log = str(script.with_name(f"{script.stem}-")).replace("%", "%%") + "%j.log"
    dependency = [f"--dependency=afterany:{after}"] if after else []
    return ["sbatch", "--parsable", f"--chdir={cwd}", f"--output={log}", *dependency, str(script)]


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs, the last first, so that none begins because the one before it is over.

    Raises:
        LaunchError: Slurm refused, or does not answer.
    """
    for job in reversed(jobs):
        done = _answer(["scancel", job])
        if done.returncode and _GONE not in done.stderr:
            raise SlurmAwayError(f"cannot cancel job {job}: {one_line(done.stderr)}")


def state_of(job: str) -> JobState:
    """What became of a job: Slurm's controller is asked, then its accounting.

    Raises:
        SlurmAwayError: the controller does not answer.
        LaunchError: there is no Slurm here.
    """
    done = _answer(["scontrol", "--oneliner", "show", "job", job])
    if done.returncode == 0:
        fields = dict(_FIELD.findall(done.stdout))
        return _job_state(job, fields.get("JobState", "GONE"), fields.get("Reason", ""))
    if _GONE not in done.stderr + done.stdout:
        raise SlurmAwayError(f"Slurm does not answer: {one_line(done.stderr)}")
    return _accounted(job)


def _accounted(job: str) -> JobState:
    """What the accounting has of a job; Slurm forgets it after some minutes otherwise."""
    wanted = ["--noheader", "--parsable2", "--allocations", "--format=State,Reason"]
    try:
        done = _answer(["sacct", *wanted, f"--jobs={job}"])
    except LaunchError:
        return JobState(job=job, state="GONE")
    rows = done.stdout.split("\n")[0].split("|") if done.returncode == 0 else [""]
    if not rows[0]:
        return JobState(job=job, state="GONE")
    return _job_state(job, rows[0], rows[1] if len(rows) > 1 else "")


def _job_state(job: str, state: str, reason: str) -> JobState:
    # "CANCELLED by 1000"; a "+" stands behind a word that was cut.
    word = state.split()[0].rstrip("+") if state.split() else "GONE"
    return JobState(job=job, state=word, reason="" if reason in ("None", "NONE") else reason)


def ending_of(place: Workplace, states: Sequence[JobState]) -> Ending | None:
    """How a launch ended, by what its jobs said and Slurm says; None as long as it goes on.

    Args:
        place: The launch's folder.
        states: Of the jobs that train, in their order.
    """
    if (said := place.ending()) is not None:
        return said
    if not all(one.is_over for one in states):
        return None
    known = [one for one in states if one.state != "GONE"] or list(states)
    # The jobs behind one that was done are cancelled.
    if any(one.status == "FINISHED" for one in known):
        return Ending(status="FINISHED")
    last = known[-1]
    began = place.attempts()
    if not began and last.state != "GONE":
        return Ending(status=last.status, reason=f"{last} before it began", exit_code=1)
    stop = place.stop_of(len(began) - 1) if began else ""
    if last.state in ("FAILED", "GONE") and stop:
        return Ending(status="KILLED", reason=stop, exit_code=143)
    is_guess = last.state == "GONE"
    return Ending(status=last.status, reason=str(last), exit_code=1, is_guess=is_guess)


def all_jobs(submitted: Submitted) -> list[str]:
    """Every job of a launch, the closing one last."""
    return [*submitted.jobs, *([submitted.closing] if submitted.closing else [])]


def _answer(
    words: Sequence[str], *, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            words,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_ANSWER_WAIT_S,
            check=False,
        )
    except FileNotFoundError:
        raise LaunchError(f"no {words[0]} on PATH: this is no machine of a Slurm cluster") from None
    except subprocess.TimeoutExpired:
        raise SlurmAwayError(f"{words[0]} did not answer within {_ANSWER_WAIT_S:.0f} s") from None
