"""A launch asked for by who did not start it."""

import socket
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import psutil
import pytest

from opusclip_mlops.errors import LaunchError
from opusclip_mlops.launching import local
from opusclip_mlops.launching.outcomes import Ending
from opusclip_mlops.launching.starting import start
from opusclip_mlops.launching.submitted import (
    LaunchedRun,
    LocalLaunch,
    LocalLaunchElsewhere,
    launch_of,
)
from opusclip_mlops.launching.workplace import Launcher, Submitted
from tests.journeys import wait_until
from tests.launching.made import end_of, gone_supervisor, launch
from tests.launching.programs import only_on_path, program


def test_a_supervisor_that_is_gone_without_a_word_has_failed(tmp_path: Path) -> None:
    """Its process's number may be another's by now; another machine's is not looked for here."""
    place, plan = launch(tmp_path)
    place.begin_attempt(f"{socket.gethostname()}:1")
    launched = LaunchedRun(place, launch_of(place))
    assert not launched.wait()
    assert end_of(plan) == ("FAILED", "what ran it here ended without a word")
    (place.path / "ended.json").unlink()
    (place.path / "attempts" / "0").unlink()
    place.write_submitted(Submitted(jobs=[f"{socket.gethostname()}:1"]))
    assert LaunchedRun(place, launch_of(place)).get_status() == "FAILED"
    place.begin_attempt("elsewhere:1")
    with pytest.raises(LaunchError, match="is on elsewhere: ask there"):
        LocalLaunchElsewhere(place).state()


def test_a_launch_whose_launcher_died_was_never_started(tmp_path: Path) -> None:
    """Until then it is SCHEDULED; a supervisor that came up all the same finds that it is over."""
    place, plan = launch(tmp_path)
    assert LaunchedRun(place, launch_of(place)).get_status() == "SCHEDULED"
    dead = subprocess.Popen(["true"])
    dead.wait()
    place.note_launcher(Launcher(host=socket.gethostname(), pid=dead.pid, started_s=1.0))
    late = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)",
                             "opusclip_mlops.launching.local", str(place.path)])  # fmt: skip
    try:
        wait_until(lambda: str(place.path) in psutil.Process(late.pid).cmdline())
        assert LaunchedRun(place, launch_of(place)).get_status() == "SCHEDULED"
    finally:
        late.kill()
        late.wait()
    launched = LaunchedRun(place, launch_of(place))
    assert not launched.wait()
    assert end_of(plan) == ("FAILED", "never started: what launched it is gone")
    assert local.main([str(place.path)]) == 1
    assert place.attempts() == []


def test_one_that_is_being_started_is_cancelled_once_it_was(tmp_path: Path) -> None:
    """Else it would run on behind a cancellation that MLflow knows of."""
    place, plan = launch(tmp_path)
    names = threading.Timer(1.0, lambda: gone_supervisor(place))
    names.start()
    LaunchedRun(place, launch_of(place)).cancel()
    assert place.attempts() != []
    assert end_of(plan) == ("KILLED", "cancelled")


def test_a_supervisor_that_nobody_buries_has_ended(tmp_path: Path) -> None:
    """Its parent is a notebook that never asks after it: cancelling does not wait for that."""
    place, plan = launch(tmp_path)
    code = (
        "import subprocess, sys, time\n"
        "wait = [sys.executable, '-c', 'import time; time.sleep(600)', *sys.argv[1:]]\n"
        "print(subprocess.Popen(wait).pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    notebook = subprocess.Popen([sys.executable, "-c", code, str(place.path)],
                                stdout=subprocess.PIPE)  # fmt: skip
    assert notebook.stdout is not None
    supervisor = int(notebook.stdout.readline())
    place.begin_attempt(f"{socket.gethostname()}:{supervisor}")
    wait_until(lambda: str(place.path) in psutil.Process(supervisor).cmdline())
    cancels = threading.Thread(target=LaunchedRun(place, launch_of(place)).cancel, daemon=True)
    cancels.start()
    cancels.join(timeout=60)
    try:
        assert psutil.Process(supervisor).status() == psutil.STATUS_ZOMBIE
        assert not cancels.is_alive()
        assert end_of(plan) == ("KILLED", "cancelled")
    finally:
        notebook.kill()
        notebook.wait()


def test_a_scheduler_that_is_away_has_ended_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last that was known stands, until it answers again."""
    place, plan = launch(tmp_path, kind="slurm")
    with pytest.raises(LaunchError, match="was never submitted"):
        launch_of(place)
    place.write_submitted(Submitted(jobs=["12"], closing="13"))
    answers = only_on_path(tmp_path, monkeypatch)
    program(answers, "scontrol", error="Unable to contact")
    with pytest.raises(LaunchError, match="Unable to contact"):
        LaunchedRun(place, launch_of(place)).wait()
    launched = LaunchedRun(place, launch_of(place))
    seen = []
    for state in ("RUNNING", "", "COMPLETED"):
        answer = f"JobId=12 JobState={state} Reason=None" if state else ""
        program(answers, "scontrol", answer, error="" if state else "Unable to contact")
        seen.append(launched.get_status())
    assert seen == ["RUNNING", "RUNNING", "FINISHED"]
    program(answers, "scontrol", error="Unable to contact")
    place.end(Ending(status="FINISHED"))
    assert LaunchedRun(place, launch_of(place)).get_status() == "FINISHED"
    assert launched.ending == Ending(status="FINISHED")
    assert launched.wait()
    assert end_of(plan)[0] == "FINISHED"


def test_an_end_that_was_said_is_known_from_every_machine(tmp_path: Path) -> None:
    """Who launched it was elsewhere, and could not start it; the folder is on a shared disk."""
    place, _ = launch(tmp_path)
    place.note_launcher(Launcher(host="elsewhere", pid=1, started_s=1.0))
    with pytest.raises(LaunchError, match="is on elsewhere: ask there"):
        LocalLaunchElsewhere(place).state()
    ending = Ending(status="FAILED", reason="never started: no python", exit_code=1)
    place.end(ending)
    assert LocalLaunchElsewhere(place).state() == ending


def test_a_supervisor_whose_attempt_has_no_name_is_known_by_who_started_it(tmp_path: Path) -> None:
    """The disk had room for a file, and none for what is in it."""
    place, _ = launch(tmp_path)
    place.begin_attempt("")
    place.write_submitted(Submitted(jobs=[f"{socket.gethostname()}:1"]))
    ending = LocalLaunchElsewhere(place).state()
    assert isinstance(ending, Ending)
    assert ending.reason == "what ran it here ended without a word"


def test_jobs_that_were_never_submitted_have_failed_once_their_launcher_is_gone(
    tmp_path: Path,
) -> None:
    """It was killed before it asked Slurm: who asks ends the run, a late job finds it over."""
    place, plan = launch(tmp_path, kind="slurm")
    dead = subprocess.Popen(["true"])
    dead.wait()
    place.note_launcher(Launcher(host=socket.gethostname(), pid=dead.pid, started_s=1.0))
    launched = LaunchedRun(place, launch_of(place))
    assert not launched.wait()
    assert end_of(plan) == ("FAILED", "never started: what launched it is gone")
    assert place.ending() == launched.ending


@pytest.mark.parametrize(
    ("code", "status", "said"), [(0, "FINISHED", ""), (7, "FAILED", "exit code 7")]
)
def test_an_exit_code_is_a_word_where_nothing_could_be_written(
    tmp_path: Path, code: int, status: str, said: str
) -> None:
    """The disk is gone to read-only: the command that waits has the code of what ran."""
    place, _ = launch(tmp_path)
    supervisor = subprocess.Popen(["sh", "-c", f"exit {code}"])
    supervisor.wait()
    ending = LocalLaunch(place, supervisor).state()
    assert isinstance(ending, Ending)
    assert (ending.status, ending.exit_code) == (status, code)
    assert ending.reason.endswith(said)


def test_a_note_that_cannot_be_read_ends_no_jobs(tmp_path: Path) -> None:
    """They wait in the queue, and who submitted them is gone as it should be."""
    place, _ = launch(tmp_path, kind="slurm")
    place.note_launcher(Launcher(host=socket.gethostname(), pid=1, started_s=1.0))
    (place.path / "submitted.json").write_bytes(b"{")
    with pytest.raises(LaunchError, match="was never submitted"):
        launch_of(place)


NO_JOB = 'Error from server (NotFound): jobs.batch "opusclip-1" not found'


def test_a_job_that_is_being_made_was_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is SCHEDULED while its launcher is at it; made and deleted, or its launcher dead, not."""
    place, plan = launch(tmp_path, kind="kubernetes", image="clips:1")
    answers = only_on_path(tmp_path, monkeypatch)
    program(answers, "kubectl", error=NO_JOB)
    launched = LaunchedRun(place, launch_of(place))
    assert launched.get_status() == "SCHEDULED"
    place.write_plan(msgspec.structs.replace(plan, tracking_uri="https://mlflow.example.org"))
    program(answers, "kubectl", '{"metadata": {"uid": "u-1"}, "status": {"ready": 1}}')
    begun = LaunchedRun(place, start(place, place.plan(), tied=False, secrets={}))
    assert (begun.get_status(), launched.get_status()) == ("RUNNING", "RUNNING")
    program(answers, "kubectl", error=NO_JOB)
    assert (begun.get_status(), launched.get_status()) == ("KILLED", "KILLED")


def test_a_job_that_is_not_there_is_asked_for_where_it_is_launched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only there is seen whether it is about to be made; killed before that, it never will be."""
    place, _ = launch(tmp_path, kind="kubernetes", image="clips:1")
    program(only_on_path(tmp_path, monkeypatch), "kubectl", error=NO_JOB)
    place.note_launcher(Launcher(host="elsewhere", pid=1, started_s=1.0))
    with pytest.raises(LaunchError, match="is on elsewhere: ask there"):
        launch_of(place).state()
    place.note_launcher(Launcher(host=socket.gethostname(), pid=1, started_s=1.0))
    assert LaunchedRun(place, launch_of(place)).get_status() == "KILLED"


def test_a_job_that_kubernetes_refused_never_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its launcher said; where it was taken all the same, it runs, and can be cancelled."""
    place, plan = launch(tmp_path, kind="kubernetes", image="clips:1")
    answers = only_on_path(tmp_path, monkeypatch)
    program(answers, "kubectl", error=NO_JOB)
    ending = Ending(status="FAILED", reason="never started: kubectl: refused", exit_code=1)
    place.end(ending)
    launched = LaunchedRun(place, launch_of(place))
    assert not launched.wait()
    assert (launched.ending, end_of(plan)) == (ending, ("FAILED", ending.reason))
    program(answers, "kubectl", '{"status": {"ready": 1}}')
    assert LaunchedRun(place, launch_of(place)).get_status() == "RUNNING"


def test_a_job_that_is_being_made_is_cancelled_once_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would run on behind a cancellation that MLflow knows of."""
    place, plan = launch(tmp_path, kind="kubernetes", image="clips:1")
    answers = only_on_path(tmp_path, monkeypatch)
    program(answers, "kubectl", '{"status": {}}')
    threading.Timer(1.0, place.note_started).start()
    LaunchedRun(place, launch_of(place)).cancel()
    assert place.launcher() is None
    assert "delete\njob" in (answers / "kubectl.words").read_text()
    assert end_of(plan) == ("KILLED", "cancelled")
