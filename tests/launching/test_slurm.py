"""What Slurm says of a job, by recorded answers of scontrol and sacct.

Accounting needs a database, so sacct's part of the contract is what its manual says and Slurm
22.05 prints; the controller's part is tested against a real one in test_starting.py.
"""

from pathlib import Path

import pytest

from opusclip_mlops.errors import LaunchError
from opusclip_mlops.launching import slurm
from opusclip_mlops.launching.outcomes import Ending
from opusclip_mlops.launching.slurm import JobState, SlurmAwayError, ending_of, state_of
from opusclip_mlops.launching.workplace import Workplace
from tests.launching.programs import only_on_path, program
from tests.launching.test_workplace import plan

SCONTROL = (
    "JobId=12 JobName=opusclip-1 UserId=a(1) JobState={state} Reason={reason} Dependency=(null) "
    "Requeue=1 Restarts=0 BatchFlag=1 ExitCode=0:15 RunTime=00:00:00"
)
GONE = "slurm_load_jobs error: Invalid job id specified"
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")
GOING_ON = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "SUSPENDED", "RESIZING")


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """A launch that Slurm knows."""
    made = Workplace(tmp_path / "launch")
    made.create(plan(kind="slurm"))
    return made


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH: no Slurm of this machine answers."""
    return only_on_path(tmp_path, monkeypatch)


@pytest.mark.parametrize("state", [*WAITING, *GOING_ON])
def test_a_job_that_may_run_again_is_not_over(answers: Path, place: Workplace, state: str) -> None:
    """Waiting in the queue, running, or being cleaned up behind."""
    program(answers, "scontrol", SCONTROL.format(state=state, reason="Resources"))
    found = state_of("12")
    assert (found.is_over, found.is_waiting) == (False, state in WAITING)
    assert ending_of(place, [found]) is None


@pytest.mark.parametrize(
    ("state", "status", "words"),
    [
        ("COMPLETED", "FINISHED", ""),
        ("CANCELLED", "KILLED", "was cancelled"),
        ("TIMEOUT", "KILLED", "reached its time limit"),
        ("DEADLINE", "KILLED", "could not end before its deadline"),
        ("PREEMPTED", "KILLED", "was preempted"),
        ("REVOKED", "KILLED", "REVOKED"),
        ("FAILED", "FAILED", "FAILED (NonZeroExitCode)"),
        ("OUT_OF_MEMORY", "FAILED", "ran out of memory"),
        ("NODE_FAIL", "FAILED", "lost its node"),
        ("BOOT_FAIL", "FAILED", "its node did not boot"),
        ("LAUNCH_FAILED", "FAILED", "LAUNCH_FAILED"),
        ("A_NEW_STATE", "FAILED", "A_NEW_STATE"),
    ],
)
def test_every_end_has_a_status(
    answers: Path, place: Workplace, state: str, status: str, words: str
) -> None:
    """Of a job that began, and of the same one by the accounting, which cuts words short."""
    reason = "NonZeroExitCode" if state == "FAILED" else "None"
    place.begin_attempt("12")
    program(answers, "scontrol", SCONTROL.format(state=state, reason=reason))
    ending = ending_of(place, [state_of("12")])
    assert ending is not None
    assert (ending.status, bool(ending.exit_code)) == (status, status != "FINISHED")
    assert words in ending.reason
    program(answers, "scontrol", error=GONE)
    program(answers, "sacct", f"{state} by 1000|{reason}\n")
    assert ending_of(place, [state_of("12")]) == ending


def test_a_job_that_never_began_says_so(place: Workplace) -> None:
    """Cancelled in the queue, or refused by every node."""
    ending = ending_of(place, [JobState(job="12", state="CANCELLED")])
    assert ending == Ending(
        status="KILLED", reason="Slurm's job 12 was cancelled before it began", exit_code=1
    )


@pytest.mark.parametrize(
    "accounting", ["", None, "missing"], ids=["forgotten", "disabled", "not installed"]
)
def test_a_job_that_is_forgotten_has_not_finished(
    answers: Path, place: Workplace, accounting: str | None
) -> None:
    """Slurm forgets a job after some minutes; what it left itself counts, else it FAILED."""
    program(answers, "scontrol", error=GONE)
    if accounting is None:
        program(answers, "sacct", error="Slurm accounting storage is disabled")
    elif not accounting:
        program(answers, "sacct", "")
    place.begin_attempt("12")
    states = [state_of("12")]
    ending = ending_of(place, states)
    assert ending is not None
    assert (ending.status, "forgotten job 12" in ending.reason) == ("FAILED", True)
    assert ending.is_guess
    place.note_stop(0, "told to end")
    told = Ending(status="KILLED", reason="told to end", exit_code=143)
    assert ending_of(place, states) == told
    place.end(Ending(status="FINISHED"))
    assert ending_of(place, states) == Ending(status="FINISHED")


def test_a_controller_that_is_away_has_ended_nothing(answers: Path) -> None:
    """The error is of a kind that is waited out."""
    program(answers, "scontrol", error="Unable to contact slurm controller (connect failure)")
    with pytest.raises(SlurmAwayError, match="Unable to contact slurm controller"):
        state_of("12")


def test_no_slurm_here_is_an_error_that_says_so(answers: Path) -> None:
    """And so is a refusal, with Slurm's own words."""
    with pytest.raises(LaunchError, match="no scontrol on PATH"):
        state_of("12")
    program(answers, "sbatch", error="sbatch: error: invalid partition specified: nope")
    with pytest.raises(LaunchError, match=r"refused the job: .*invalid partition specified: nope"):
        slurm.submit(answers / "train.sh", cwd="/", secrets={})


def test_the_last_job_of_a_chain_says_how_it_ended(place: Workplace) -> None:
    """The ones before it had to end; one that was told to end says by what."""
    chain = [JobState(job="12", state="TIMEOUT"), JobState(job="13", state="FAILED")]
    place.begin_attempt("12")
    place.begin_attempt("13")
    place.note_stop(1, "job 13 was told to end (SIGTERM), and not by a rank")
    ending = ending_of(place, chain)
    assert ending is not None
    assert (ending.status, ending.reason) == ("KILLED", place.stop_of(1))
    assert ending_of(place, [*chain, JobState(job="14", state="PENDING")]) is None


def test_an_allocations_amounts_are_not_asked_for_again(
    answers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside `salloc` Slurm's own variables would become options of sbatch; a password goes on."""
    program(answers, "sbatch", "12;cluster", shows="environment")
    monkeypatch.setenv("SBATCH_PARTITION", "debug")
    monkeypatch.setenv("SLURM_NTASKS", "64")
    monkeypatch.setenv("SLURM_CONF", "/conf")
    secrets = {"MLFLOW_TRACKING_URI": "https://u:p@host"}
    job = slurm.submit(answers / "a%j.sh", cwd="/p q", after="11", secrets=secrets)
    assert job == "12"
    shown = (answers / "sbatch.shown").read_text().split("\n")
    assert {"SLURM_CONF=/conf", "MLFLOW_TRACKING_URI=https://u:p@host"} <= set(shown)
    assert not [one for one in shown if one.startswith(("SBATCH_PARTITION", "SLURM_NTASKS"))]
    words = (answers / "sbatch.words").read_text().split("\n")
    assert "--dependency=afterany:11" in words
    assert f"--output={answers}/a%%j-%j.log" in words
    assert not [one for one in words if "u:p" in one]


def test_cancelling_begins_with_the_last(answers: Path) -> None:
    """So that none begins because the one before it is over; one that is gone is none to cancel."""
    program(answers, "scancel", error=f"scancel: error: Kill job error on job id 13: {GONE}")
    slurm.cancel(["12", "13"])
    assert (answers / "scancel.words").read_text().split() == ["13", "12"]
    program(answers, "scancel", error="Access/permission denied")
    with pytest.raises(LaunchError, match="cannot cancel job 12: Access/permission denied"):
        slurm.cancel(["12"])


def test_a_job_that_was_done_tells_of_the_launch_where_it_could_not_write(place: Workplace) -> None:
    """The jobs behind it were cancelled for that, and are no end of it."""
    chain = [("12", "TIMEOUT"), ("13", "COMPLETED"), ("14", "CANCELLED")]
    states = [JobState(job=job, state=state) for job, state in chain]
    assert ending_of(place, states) == Ending(status="FINISHED")
