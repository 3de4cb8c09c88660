"""What a job does beside training: attempts are counted, and what ended a rank is told apart."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from mlflow import MlflowClient

from opusclip_mlops.launching import ending, job, slurm
from opusclip_mlops.launching.outcomes import AgentOutcome, Ending
from opusclip_mlops.launching.workplace import Plan, Submitted, Workplace
from tests.launching.made import end_of, full_disk, full_log, launch, without_database
from tests.launching.programs import only_on_path, program


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Workplace, Plan]:
    """A launch of three jobs, in the first of which this is."""
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("OPUSCLIP_JOURNAL_DIR", str(tmp_path / "journal"))
    place, plan = launch(tmp_path, kind="slurm")
    place.write_submitted(Submitted(jobs=["12", "13", "14"], closing="15"))
    return place, plan


def left(place: Workplace, exit_code: int) -> None:
    """What an agent left of the first attempt."""
    one = AgentOutcome(node=0, host="host", timestamp_ms=1, exit_code=exit_code, rank=2)
    Path(place.outcome_file(0).replace("{node}", "0")).write_bytes(msgspec.json.encode(one))


def test_a_second_attempt_goes_on_in_the_same_run(
    made: tuple[Workplace, Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    """The run that the first one's tracker ended is running again; a launch that is over is not."""
    place, plan = made
    client = MlflowClient(plan.tracking_uri)
    assert job.main(["begin", str(place.path)]) == 0
    client.set_terminated(plan.run_id, "KILLED")
    assert job.main(["begin", str(place.path)]) == 0
    assert end_of(plan)[0] == "RUNNING"
    place.end(Ending(status="FINISHED"))
    assert job.main(["begin", str(place.path)]) == 0
    assert capsys.readouterr().out.split() == ["0", "1", "over"]


def test_a_dead_mlflow_holds_up_no_training(
    made: tuple[Workplace, Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    """The attempt begins, and what could not be told is told to who reads the log."""
    place, plan = made
    place.begin_attempt("11")
    place.write_plan(msgspec.structs.replace(plan, run_id="f" * 32))
    assert job.main(["begin", str(place.path)]) == 0
    said = capsys.readouterr()
    assert (said.out, "cannot begin run" in said.err) == ("1\n", True)


@pytest.mark.parametrize(
    ("code", "rank_code", "stopped_by"),
    [
        (143, None, "SIGTERM"),
        (1, 1, "SIGTERM"),
        (143, -signal.SIGTERM, ""),
        (143, None, ""),
    ],
    ids=["time is up", "and a rank failed of it", "cancelled step", "and no agent said so"],
)
def test_what_slurm_ended_is_left_to_the_next_job(
    made: tuple[Workplace, Plan], code: int, rank_code: int | None, stopped_by: str
) -> None:
    """It is no end of the launch."""
    place, plan = made
    place.begin_attempt("12")
    if rank_code is not None:
        left(place, rank_code)
    assert job.main(["end", str(place.path), "0", str(code), stopped_by]) == code
    assert place.ending() is None
    assert "job 12 was told to end" in place.stop_of(0)
    assert end_of(plan)[0] == "RUNNING"


def test_a_job_that_was_told_before_it_began_was_one(made: tuple[Workplace, Plan]) -> None:
    """The chain's last one: its launch was ended, and has not failed."""
    place, _ = made
    assert job.main(["end", str(place.path), "", "143", "SIGTERM"]) == 143
    assert place.attempts() == ["12"]
    failed = slurm.JobState(job="12", state="FAILED", reason="NonZeroExitCode")
    ending = slurm.ending_of(place, [failed])
    reason = "job 12 was told to end (SIGTERM), and not by a rank"
    assert ending == Ending(status="KILLED", reason=reason, exit_code=143)


def test_an_attempts_number_is_said_before_anything_is_delivered(
    made: tuple[Workplace, Plan],
) -> None:
    """Slurm may end that: a process killed with SIGKILL has left the number."""
    place, _ = made
    place.begin_attempt("11")
    code = (
        "import os, sys\n"
        "from opusclip_mlops.launching import job\n"
        "job._mlflow = lambda: os.kill(os.getpid(), 9)\n"
        f"job.main(['begin', {str(place.path)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-9, b"1\n")


@pytest.mark.parametrize(("code", "rank_code", "status"), [(0, 0, "FINISHED"), (7, 7, "FAILED")])
def test_what_ranks_did_ends_the_launch(
    made: tuple[Workplace, Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    rank_code: int,
    status: str,
) -> None:
    """The jobs behind it are cancelled, the closing one is not; MLflow knows at once."""
    place, plan = made
    answers = only_on_path(tmp_path, monkeypatch)
    program(answers, "scancel")
    left(place, rank_code)
    assert job.main(["end", str(place.path), "0", str(code), ""]) == code
    assert end_of(plan)[0] == status
    assert place.is_told()
    assert (answers / "scancel.words").read_text().split() == ["14", "13"]


@pytest.mark.parametrize("code", [127, 1])
def test_an_agent_that_could_not_begin_has_failed(
    made: tuple[Workplace, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A module that is missing on a node is missing for the next job of the chain, too."""
    place, plan = made
    program(only_on_path(tmp_path, monkeypatch), "scancel")
    place.begin_attempt("12")
    assert job.main(["end", str(place.path), "0", str(code), ""]) == code
    assert end_of(plan) == ("FAILED", f"srun: exit code {code}, no rank said why")
    assert place.stop_of(0) == ""


def test_the_last_job_tells_what_the_others_could_not(
    made: tuple[Workplace, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them lost their node with everything on it."""
    place, plan = made
    place.begin_attempt("12")
    answer = "JobId=12 JobState=NODE_FAIL Reason=NodeDown"
    program(only_on_path(tmp_path, monkeypatch), "scontrol", answer)
    assert job.main(["close", str(place.path)]) == 0
    assert end_of(plan) == ("FAILED", "Slurm's job 14 lost its node")
    assert place.is_told()


def test_the_last_job_asks_nobody_for_an_end_that_was_said(
    made: tuple[Workplace, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job before it could not reach MLflow; now Slurm's controller is away."""
    place, plan = made
    program(only_on_path(tmp_path, monkeypatch), "scontrol", error="Unable to contact")
    monkeypatch.setattr(job, "CLOSE_WAIT_S", 0.0)
    place.end(Ending(status="FAILED", reason="rank 1 on a: SIGKILL", exit_code=137))
    assert job.main(["close", str(place.path)]) == 0
    assert end_of(plan) == ("FAILED", "rank 1 on a: SIGKILL")


def test_a_full_disk_hides_no_end_of_a_job(
    made: tuple[Workplace, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow knows at once; the closing job, to which Slurm shows cancelled ones, says the same."""
    place, plan = made
    answers = only_on_path(tmp_path, monkeypatch)
    program(answers, "scancel")
    program(answers, "scontrol", "JobId=14 JobState=CANCELLED Reason=None")
    place.begin_attempt("12")
    full_disk(monkeypatch)
    assert job.main(["end", str(place.path), "0", "0", ""]) == 0
    assert end_of(plan)[0] == "FINISHED"
    assert job.main(["close", str(place.path)]) == 0
    assert end_of(plan) == ("FINISHED", "")


def test_a_full_disk_holds_up_no_job_that_was_told_to_end(
    made: tuple[Workplace, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its ranks left in the journal is delivered, and its exit code is theirs."""
    place, plan = made
    place.begin_attempt("12")
    full_disk(monkeypatch)
    delivered: list[Plan] = []
    monkeypatch.setattr(ending, "deliver", lambda plan, **_: delivered.append(plan))
    assert job.main(["end", str(place.path), "0", "143", "SIGTERM"]) == 143
    assert delivered == [plan]


def test_a_job_that_was_told_to_end_on_a_full_disk_has_not_failed(
    made: tuple[Workplace, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain's last one: the closing job finds an empty note, which needed no room."""
    place, plan = made
    program(only_on_path(tmp_path, monkeypatch), "scontrol", "JobId=14 JobState=FAILED Reason=None")
    place.begin_attempt("14")
    full_disk(monkeypatch)
    assert job.main(["end", str(place.path), "0", "143", "SIGTERM"]) == 143
    assert job.main(["close", str(place.path)]) == 0
    assert end_of(plan) == ("KILLED", "its job was told to end, and not by a rank")


def test_a_job_that_was_told_before_it_began_was_one_on_a_full_disk(
    made: tuple[Workplace, Plan],
) -> None:
    """Its file is there, though nothing can be written into it."""
    place, _ = made
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        code = job.main(["end", str(place.path), "", "143", "SIGTERM"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, place.attempts()) == (143, [""])
    failed = slurm.JobState(job="12", state="FAILED", reason="NonZeroExitCode")
    reason = "its job was told to end, and not by a rank"
    assert slurm.ending_of(place, [failed]) == Ending(status="KILLED", reason=reason, exit_code=143)


def test_an_attempt_that_cannot_be_noted_is_an_error_of_one_line(
    made: tuple[Workplace, Plan], capsys: pytest.CaptureFixture[str]
) -> None:
    """It cannot begin, and says why."""
    place, _ = made
    (place.path / "attempts").rmdir()
    assert job.main(["begin", str(place.path)]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n"), "No such file" in said.err) == ("", 1, True)


@pytest.mark.parametrize("code", [0, 7])
def test_a_full_log_hides_no_exit_code(
    made: tuple[Workplace, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """MLflow refused, and not even that could be printed."""
    place, plan = made
    program(only_on_path(tmp_path, monkeypatch), "scancel")
    place.write_plan(msgspec.structs.replace(plan, run_id="f" * 32))
    full_log(monkeypatch)
    assert job.main(["end", str(place.path), "0", str(code), ""]) == code
    assert not place.is_told()


def test_a_database_that_cannot_be_opened_hides_no_exit_code(
    made: tuple[Workplace, Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The closing job says so in a line, too."""
    place, plan = made
    program(only_on_path(tmp_path, monkeypatch), "scancel")
    place.write_plan(without_database(plan, monkeypatch))
    assert job.main(["end", str(place.path), "0", "0", ""]) == 0
    assert job.main(["close", str(place.path)]) == 1
    lines = [one for one in capsys.readouterr().err.splitlines() if one.startswith("opusclip: ")]
    assert [one.partition(": ")[2][:14] for one in lines] == ["cannot reach M"] * 2
    assert not place.is_told()
