"""Facts about `opusclip_mlops.operating`: what was left behind is delivered, whatever was wrong."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops import operating
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.folder import CONTROL, RunFolder
from opusclip_mlops.launch import start_shipper
from opusclip_mlops.operating import Recovery, recover, status
from opusclip_mlops.records import Metrics
from tests.journeys import LOCAL_ID, append, end, make_run, store, wait_until
from tests.reading import points_of_mlflow
from tests.servers import BIN, free_port, mlflow_server

OTHER_ID = "fedcba9876543210fedcba9876543210"


@pytest.fixture(autouse=True)
def _no_shipper_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    kill_shippers(tmp_path)


def shippers(tmp_path: Path) -> list[psutil.Process]:
    """All processes that ship a run of this test, supervisors and sinks."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "opusclip_mlops.shipper" in words and any(str(tmp_path) in one for one in words):
                found.append(process)
    return found


def kill_shippers(tmp_path: Path) -> None:
    """What a reboot does to them."""
    while left := shippers(tmp_path):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)


def points(count: int) -> list[Metrics]:
    return [Metrics(1_700_000_001_000 + n, n, {"loss": 0.5 * n}) for n in range(count)]


def ended_run(tmp_path: Path, count: int = 20, **about: Any) -> RunFolder:
    """A run that has ended and of which nothing was delivered."""
    folder = make_run(tmp_path, **about)
    append(folder, points(count))
    end(folder)
    return folder


def recover_all(tmp_path: Path, **options: Any) -> list[Recovery]:
    return recover(every=True, journal_dir=tmp_path / "journal", **options)


def recover_only(tmp_path: Path, **options: Any) -> Recovery:
    [one] = recover_all(tmp_path, **options)
    return one


def only_run(tracking_uri: str, experiment: str = "films") -> Run:
    client = MlflowClient(tracking_uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    [run] = client.search_runs([found.experiment_id])
    return run


def steps(tracking_uri: str, run: Run) -> list[int]:
    return [one.step for one in points_of_mlflow(MlflowClient(tracking_uri), run.info.run_id)]


# After an outage

TRAINER = """
import os, signal, sys, time
from opusclip_mlops import ExperimentTracker, TrackingConfig

config = TrackingConfig(
    experiment_name="films", run_name="night", tracking_uri=sys.argv[1], drain_timeout_s=0,
    use_wandb=False, system_metrics=False,
)
started_ms = time.time_ns() // 1_000_000
tracker = ExperimentTracker(config)
for step in range(50):
    tracker.log_metrics({"loss": 0.5 * step}, step)
logged_ms = time.time_ns() // 1_000_000
print(tracker.local_id, started_ms, logged_ms, flush=True)
if sys.argv[2] == "crash":
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
tracker.close()
"""


def train(tmp_path: Path, tracking_uri: str, how: str) -> tuple[str, int, int]:
    """Run a trainer: local id, when it began, when it had logged the last point."""
    command = [sys.executable, "-c", TRAINER, tracking_uri, how]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == (-9 if how == "crash" else 0), done.stderr
    local_id, started_ms, logged_ms = done.stdout.split()
    return local_id, int(started_ms), int(logged_ms)


@pytest.mark.parametrize(("how", "end_status"), [("close", "FINISHED"), ("crash", "FAILED")])
def test_a_run_that_began_and_ended_in_an_outage_is_made_with_its_true_times(
    tmp_path: Path, how: str, end_status: str
) -> None:
    """MLflow was down from the start, the machine rebooted: the run is there as it happened."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    local_id, started_ms, logged_ms = train(tmp_path, url, how)
    ended_ms = time.time_ns() // 1_000_000
    wait_until(lambda: "refused" in status()[0].sinks[0].last_error)
    kill_shippers(tmp_path)
    [before] = status()
    assert (before.local_id, before.run_name, before.run_id) == (local_id, "night", "")
    assert not before.is_shipped
    assert before.sinks[0].lag_records > 50
    # Time goes by: it must not show in the run.
    time.sleep(1.0)
    with mlflow_server(tmp_path, port=port):
        asked = [BIN / "opusclip", "recover", "night", "--json"]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
        run = only_run(url)
        assert steps(url, run) == list(range(50))
        reports = MlflowClient(url).list_artifacts(run.info.run_id, "crash")
        assert len(reports) == (how == "crash")
    [told] = json.loads(answer.stdout)["runs"]
    assert (told["outcome"], told["run_id"]) == ("delivered", run.info.run_id)
    got = {one["sink"]: one for one in told["sinks"]}
    assert got["mlflow"]["delivered_records"] >= before.sinks[0].lag_records
    assert got["mlflow"]["remaining_records"] == got["tensorboard"]["remaining_records"] == 0
    assert run.info.status == end_status
    assert started_ms <= run.info.start_time <= logged_ms
    assert logged_ms - 50 <= run.info.end_time <= ended_ms
    assert status() == []


# What is delivered, and by whom


def test_what_was_left_is_delivered_and_cleaned_up(tmp_path: Path) -> None:
    """Each sink's count is exact, and neither folder nor lock is left."""
    ended_run(tmp_path, sinks=["mlflow", "tensorboard"])
    told = recover_only(tmp_path)
    assert told.outcome == "delivered"
    assert told.is_settled
    assert [(one.sink, one.delivered_records) for one in told.sinks] == [
        ("mlflow", 22),
        ("tensorboard", 22),
    ]
    assert told.run_id == only_run(store(tmp_path)).info.run_id
    wait_until(lambda: not shippers(tmp_path))
    assert list((tmp_path / "journal").iterdir()) == []


def test_a_shipper_at_work_is_only_waited_for(tmp_path: Path) -> None:
    """No second one is started beside it."""
    folder = ended_run(tmp_path)
    # Such as the core of a W&B client that another test has used.
    before = {child.pid for child in psutil.Process().children()}
    shipper = start_shipper(folder)
    wait_until(folder.is_shipped)
    seen: set[int] = set()

    def watch(_: object) -> None:
        seen.update(child.pid for child in psutil.Process().children())

    assert recover_only(tmp_path, show=watch).outcome == "delivered"
    assert seen - before <= {shipper.pid}
    assert shipper.wait(timeout=30) == 0


def test_a_shipper_that_dies_is_started_again(tmp_path: Path) -> None:
    """Kill -9 of all of them, once: the wait goes on with new ones."""
    ended_run(tmp_path, count=5000)
    killed: list[bool] = []

    def kill_once(_: object) -> None:
        if not killed and len(shippers(tmp_path)) == 2:
            kill_shippers(tmp_path)
            killed.append(True)

    assert recover_only(tmp_path, show=kill_once).outcome == "delivered"
    assert killed
    assert steps(store(tmp_path), only_run(store(tmp_path))) == list(range(5000))


def test_several_at_once_are_harmless(tmp_path: Path) -> None:
    """Three operators at the same time: each is told so, and every point is there once."""
    ended_run(tmp_path, count=500)
    command = [BIN / "opusclip", "recover", "--all", "--journal-dir", tmp_path / "journal"]
    every = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for one in every:
        said, _ = one.communicate(timeout=120)
        assert one.returncode == 0
        assert "delivered" in said or "nothing to recover" in said
    assert steps(store(tmp_path), only_run(store(tmp_path))) == list(range(500))
    assert list((tmp_path / "journal").iterdir()) == []


def test_only_some_runs_are_delivered_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three runs, one after another where one at a time is allowed: a machine is not flooded."""
    monkeypatch.setattr(operating, "AT_ONCE", 1)
    for number in range(3):
        ended_run(tmp_path, name=f"{number}" * 32, sinks=["tensorboard"])
    most: list[int] = []

    def watch(_: object) -> None:
        journal_dir = tmp_path / "journal"
        most.append(sum(RunFolder(path).is_shipped() for path in journal_dir.glob("[0-9]*")))

    assert [one.outcome for one in recover_all(tmp_path, show=watch)] == ["delivered"] * 3
    assert max(most) == 1


def test_a_run_that_is_stuck_keeps_no_other_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one's server is away: the second is delivered meanwhile."""
    monkeypatch.setattr(operating, "AT_ONCE", 1)
    monkeypatch.setattr(operating, "_STUCK_AFTER_S", 0.5)
    ended_run(tmp_path, tracking_uri=f"http://127.0.0.1:{free_port()}")
    ended_run(tmp_path, name=OTHER_ID)
    there = tmp_path / "journal" / OTHER_ID

    def stop_when_it_is_gone(_: object) -> None:
        if not there.exists():
            raise StopIteration

    with pytest.raises(StopIteration):
        recover_all(tmp_path, show=stop_when_it_is_gone)
    assert [one.local_id for one in status(journal_dir=tmp_path / "journal")] == [LOCAL_ID]


def test_a_run_that_is_training_is_delivered_and_not_waited_for(tmp_path: Path) -> None:
    """Its process lives: a shipper is started where there was none, and that is said."""
    folder = make_run(tmp_path)
    append(folder, points(5))
    told = recover_only(tmp_path)
    assert (told.outcome, told.is_settled) == ("training", True)
    wait_until(lambda: folder.progress("mlflow").records == 6)
    end(folder)
    wait_until(lambda: not folder.path.exists())


def test_only_what_was_delivered_now_is_counted(tmp_path: Path) -> None:
    """A sink that had its part before the machine went down got the rest."""
    folder = make_run(tmp_path)
    append(folder, points(5))
    start_shipper(folder)
    wait_until(lambda: folder.progress("mlflow").records == 6)
    kill_shippers(tmp_path)
    append(folder, points(10), journal="s2")
    end(folder)
    told = recover_only(tmp_path)
    assert (told.outcome, told.sinks[0].delivered_records) == ("delivered", 11)


def test_a_run_that_was_delivered_in_between_is_delivered(tmp_path: Path) -> None:
    """Its folder vanished before anything could be asked of it."""
    folder = ended_run(tmp_path)
    work = operating._Work(folder)
    folder.path.rename(tmp_path / "gone")
    work.go_on(discard_refused=False)
    assert work.recovery().outcome == "delivered"
    work.release()
    assert list((tmp_path / "journal").iterdir()) == []


def test_a_folder_that_somebody_holds_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything has arrived: the folder goes when its last user does."""
    monkeypatch.setattr(operating, "_REMOVAL_WAIT_S", 0.5)
    folder = ended_run(tmp_path, sinks=["tensorboard"])
    hold = folder.hold()
    assert recover_only(tmp_path).outcome == "delivered"
    assert folder.path.exists()
    os.close(hold)
    wait_until(lambda: not folder.path.exists())


# What remains


def test_what_remains_at_the_deadline_is_told_with_the_reason(tmp_path: Path) -> None:
    """Records, bytes and the last fault; the shipper goes on."""
    folder = ended_run(tmp_path, tracking_uri=f"http://127.0.0.1:{free_port()}")
    # On a busy machine the first fault takes longer than the first deadline.
    told = next(
        told
        for told in (recover_only(tmp_path, timeout_s=6) for _ in range(15))
        if told.sinks[0].last_error
    )
    assert (told.outcome, told.is_settled) == ("remains", False)
    [sink] = told.sinks
    assert (sink.delivered_records, sink.remaining_records) == (0, 22)
    assert sink.remaining_bytes == sum(folder.size_bytes().values())
    assert "refused" in sink.last_error
    assert told.log_file == str(folder.path / "shipper.log")
    assert folder.is_shipped()


def test_a_working_folder_that_is_gone_is_told_at_once(tmp_path: Path) -> None:
    """Nothing can be started in it: no use in waiting for the deadline."""
    ended_run(tmp_path, cwd=str(tmp_path / "away"))
    told = recover_only(tmp_path)
    assert told.outcome == "remains"
    assert told.problem == f"its working folder {tmp_path}/away is gone: make it again"


def test_a_damaged_run_is_told_and_an_unfinished_folder_passed_over(tmp_path: Path) -> None:
    """The first holds records that nobody can deliver; the second holds nothing."""
    damaged = ended_run(tmp_path)
    (damaged.path / "manifest.json").write_bytes(b"{")
    (tmp_path / "journal" / "unfinished" / "media").mkdir(parents=True)
    before = sorted((tmp_path / "journal").iterdir())
    told = recover_only(tmp_path)
    assert (told.outcome, told.local_id, told.is_settled) == ("unreadable", LOCAL_ID, False)
    assert "manifest.json is damaged" in told.problem
    assert sorted((tmp_path / "journal").iterdir()) == before


def test_a_run_that_was_not_begun_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody thinks that it is being delivered in the background."""
    monkeypatch.setattr(operating, "AT_ONCE", 1)
    ended_run(tmp_path, tracking_uri=f"http://127.0.0.1:{free_port()}")
    other = ended_run(tmp_path, name=OTHER_ID)
    first, second = recover_all(tmp_path, timeout_s=0)
    assert (first.outcome, first.problem) == ("remains", "")
    assert (second.outcome, second.problem[:9]) == ("remains", "not begun")
    assert not other.is_shipped()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_user_is_told_at_once(tmp_path: Path) -> None:
    """One that may not be read, or not be written: nothing comes of waiting."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        folder = ended_run(tmp_path, sinks=["tensorboard"], cwd="/")
        shutil.move(tmp_path / "journal", Path(name) / "journal")
        journal_dir = Path(name) / "journal"
        journal_dir.chmod(0o755)
        os.seteuid(65534)
        try:
            [hidden] = recover(every=True, journal_dir=journal_dir)
            os.seteuid(0)
            subprocess.run(["chmod", "-R", "a+rX", journal_dir], check=True)
            os.seteuid(65534)
            [shown] = recover(every=True, journal_dir=journal_dir)
        finally:
            os.seteuid(0)
    assert (hidden.outcome, hidden.problem) == (
        "unreadable",
        "may not be read: it belongs to another user",
    )
    assert (shown.outcome, shown.sinks[0].remaining_records) == ("remains", 22)
    assert shown.problem.endswith(f"{folder.path.name}/shipper.log: Permission denied")


# What was refused for good


@pytest.fixture
def refused(tmp_path: Path) -> RunFolder:
    """A run that is to go on with one MLflow doesn't know: every record of it is refused."""
    return ended_run(tmp_path, count=3, run_id="f" * 32, name="f" * 32, experiment_name=None)


def test_refused_records_are_told_and_kept(tmp_path: Path, refused: RunFolder) -> None:
    """The file that holds them is named; nothing is thrown away unasked."""
    told = recover_only(tmp_path)
    assert (told.outcome, told.is_settled) == ("refused", False)
    assert told.rejected_file == str(refused.rejected)
    lines = refused.rejected.read_text().splitlines()
    assert told.sinks[0].refused_records == len(lines) > 0
    assert told.sinks[0].remaining_records == 0
    # Nor later, when no shipper is at work any more; and none is started for it.
    wait_until(lambda: not shippers(tmp_path))
    assert recover_only(tmp_path).outcome == "refused"
    assert refused.rejected.read_text().splitlines() == lines
    assert shippers(tmp_path) == []


def test_refused_records_can_be_discarded(tmp_path: Path, refused: RunFolder) -> None:
    """Asked for by name: then the folder goes, as after any other delivery."""
    told = recover_only(tmp_path, discard_refused=True)
    assert (told.outcome, told.is_settled, told.rejected_file) == ("discarded", True, "")
    assert told.sinks[0].refused_records > 0
    assert not refused.path.exists()
    assert list((tmp_path / "journal").iterdir()) == []


def test_nothing_is_discarded_while_a_process_uses_the_folder(
    tmp_path: Path, refused: RunFolder
) -> None:
    """A trainer that goes on with the run holds it: the refused records stay, and are counted."""
    hold = refused.hold()
    told = recover_only(tmp_path, discard_refused=True)
    os.close(hold)
    assert told.outcome == "refused"
    assert "still uses its folder" in told.problem
    assert refused.rejected.exists()
    assert refused.progress("mlflow").rejected == told.sinks[0].refused_records > 0


def test_nothing_is_discarded_before_all_else_has_arrived(tmp_path: Path) -> None:
    """MLflow has refused a record and is away now: everything stays."""
    folder = ended_run(tmp_path, tracking_uri=f"http://127.0.0.1:{free_port()}")
    folder.rejected.write_text("{}\n")
    operating._count_rejected(folder, "mlflow", 1)
    told = recover_only(tmp_path, discard_refused=True, timeout_s=3)
    assert told.outcome == "remains"
    assert folder.rejected.exists()
    assert folder.progress("mlflow").rejected == 1


# What is asked for


def test_without_a_name_the_choices_are_told(tmp_path: Path) -> None:
    """Recovering everything has to be asked for."""
    make_run(tmp_path)
    with pytest.raises(OpusclipError, match=f"--all: choose from {LOCAL_ID} \\(a-run\\)"):
        recover(journal_dir=tmp_path / "journal")


def test_without_any_journal_there_is_nothing_to_recover(tmp_path: Path) -> None:
    """All of none is none; none at all is still a question without an object."""
    assert recover_all(tmp_path) == []
    with pytest.raises(OpusclipError, match=r"--all$"):
        recover(journal_dir=tmp_path / "journal")


def test_only_the_named_runs_are_recovered(tmp_path: Path) -> None:
    """The others are left as they are."""
    ended_run(tmp_path)
    other = ended_run(tmp_path, name=OTHER_ID)
    [told] = recover(["0123"], journal_dir=tmp_path / "journal")
    assert (told.local_id, told.outcome) == (LOCAL_ID, "delivered")
    assert not other.is_shipped()
    assert other.progress("mlflow").records == 0


def test_an_address_with_a_password_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes from the environment; without it nothing is sent anywhere, and one line says so."""
    folder = ended_run(tmp_path, tracking_uri=None, tracking_uri_is_secret=True)
    with pytest.raises(OpusclipError, match=rf"{folder.path.name} .*set MLFLOW_TRACKING_URI"):
        recover_only(tmp_path)
    assert folder.progress("mlflow").records == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(tmp_path))
    assert recover_only(tmp_path).outcome == "delivered"
    assert steps(store(tmp_path), only_run(store(tmp_path))) == list(range(20))


def test_stopping_to_wait_leaves_the_shipper_at_work(tmp_path: Path) -> None:
    """Ctrl-C: one line, exit code 130, and delivery goes on."""
    folder = ended_run(tmp_path, tracking_uri=f"http://127.0.0.1:{free_port()}")
    command = [BIN / "opusclip", "recover", "--all", "--journal-dir", tmp_path / "journal"]
    asked = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: folder.progress("mlflow").faults > 0)
    os.killpg(asked.pid, signal.SIGINT)
    said, told = asked.communicate(timeout=30)
    assert asked.returncode == 130
    assert (said, told.count("\n")) == ("", 1)
    assert "stopped waiting" in told
    assert folder.is_shipped()
    assert folder.path.exists()
    assert CONTROL in "".join(folder.size_bytes())
