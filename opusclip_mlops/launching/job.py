"""What a job does beside training: it begins, says how it ended, and a last one tells MLflow.

begin FOLDER                          prints the number of the attempt, or "over"
end FOLDER ATTEMPT CODE STOPPED_BY    says how the ranks ended; ATTEMPT "" for none that began
close FOLDER                          when all jobs are over: tells MLflow how
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from opusclip_mlops.errors import LaunchError, OpusclipError
from opusclip_mlops.launching import slurm
from opusclip_mlops.launching.outcomes import (
    STOPPED_BY_US,
    AgentOutcome,
    Ending,
    ending_of,
    exit_words,
    first_failure,
    shell_code,
)
from opusclip_mlops.launching.telling import say, told
from opusclip_mlops.launching.workplace import Workplace
from opusclip_mlops.lean_mlflow import load_mlflow

OVER = "over"
BEGIN_WAIT_S = 120.0
END_WAIT_S = 20.0
CLOSE_WAIT_S = 600.0  # for Slurm's answer, then for delivery: the closing job has time for both
_POLL_S = 2.0


def main(arguments: Sequence[str]) -> int:
    """Do one of the three; the job's exit code."""
    verb, folder, *rest = arguments
    place = Workplace(Path(folder))
    try:
        return {"begin": _begin, "end": _end, "close": _close}[verb](place, rest)
    except (OpusclipError, OSError) as error:
        say(f"opusclip: {error}")
        return 1


def _begin(place: Workplace, _: Sequence[str]) -> int:
    """An earlier attempt may have left its journal: checkpoints in it are to go on from."""
    if place.ending() is not None:
        print(OVER)
        return 0
    attempt = place.begin_attempt(_own_job())
    # Before what takes long: the job may be told to end meanwhile.
    print(attempt, flush=True)
    if attempt:
        ending = _mlflow()
        ending.deliver(place.plan(), wait_s=BEGIN_WAIT_S)
        told(lambda: ending.go_on(place.plan()))
    return 0


def _end(place: Workplace, rest: Sequence[str]) -> int:
    """What ranks did of themselves ends the launch; what Slurm did may be gone on from."""
    code, stopped_by = int(rest[1]), rest[2]
    attempt = _attempt(place, rest[0])
    outcomes = place.outcomes(attempt)
    if code and (stopped_by or _was_told(code, outcomes)):
        word = stopped_by or "SIGTERM"
        place.note_stop(attempt, f"job {_own_job()} was told to end ({word}), and not by a rank")
        told(lambda: _mlflow().deliver(place.plan(), wait_s=END_WAIT_S))
        return code
    ending = _end_of_itself(code, outcomes)
    place.end(ending)
    _cancel_the_rest(place)
    if told(lambda: _mlflow().settle(place.plan(), ending, delivery_wait_s=END_WAIT_S)):
        place.note_told()
    return ending.exit_code


def _attempt(place: Workplace, number: str) -> int:
    """The attempt's number; a job that was told to end before it had begun is one, too."""
    try:
        return int(number or place.begin_attempt(_own_job()))
    except OSError:
        # A full disk has room for the attempt's file, and none for the name in it.
        return len(place.attempts()) - 1


def _was_told(code: int, outcomes: Sequence[AgentOutcome]) -> bool:
    """Whether the ranks were told to end, and none had failed before of itself."""
    if (first := first_failure(outcomes)) is not None:
        return first.exit_code == -signal.SIGTERM
    return code == STOPPED_BY_US or any(one.stopped_by for one in outcomes)


def _end_of_itself(code: int, outcomes: Sequence[AgentOutcome]) -> Ending:
    """An agent that could not begin leaves no word: then srun's exit code is all there is."""
    if code and first_failure(outcomes) is None:
        reason = f"srun: {exit_words(code)}, no rank said why"
        return Ending(status="FAILED", reason=reason, exit_code=shell_code(code))
    return ending_of(code, outcomes)


def _close(place: Workplace, _: Sequence[str]) -> int:
    """Whatever the jobs could not say themselves is said here; none of them runs any more."""
    ends_s = time.monotonic() + CLOSE_WAIT_S
    while (ending := _ending(place)) is None and time.monotonic() < ends_s:
        time.sleep(_POLL_S)
    if ending is None:
        raise LaunchError("Slurm does not say how the jobs ended")
    place.end(ending)
    if not told(lambda: _mlflow().settle(place.plan(), ending, delivery_wait_s=CLOSE_WAIT_S)):
        return 1
    place.note_told()
    return 0


def _ending(place: Workplace) -> Ending | None:
    """How the jobs ended; None while Slurm still cleans up behind one, or does not answer."""
    if (said := place.ending()) is not None:
        return said
    submitted = place.submitted()
    try:
        states = [slurm.state_of(job) for job in submitted.jobs] if submitted else []
        return slurm.ending_of(place, states)
    except slurm.SlurmAwayError:
        return None


def _mlflow() -> ModuleType:
    """What tells MLflow; that takes seconds to load, for which no first attempt waits."""
    load_mlflow()
    from opusclip_mlops.launching import ending

    return ending


def _cancel_the_rest(place: Workplace) -> None:
    """The jobs behind this one have nothing to do; where Slurm is not to be had they see that."""
    submitted, own = place.submitted(), _own_job()
    if submitted is None or own not in submitted.jobs:
        return
    try:
        slurm.cancel(submitted.jobs[submitted.jobs.index(own) + 1 :])
    except OpusclipError:
        return


def _own_job() -> str:
    return os.environ.get("SLURM_JOB_ID", str(os.getpid()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
