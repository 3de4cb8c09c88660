"""Facts about `opusclip_mlops.session`: a process's part in a run, from its start to its end."""

import contextlib
import fcntl
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from opusclip_mlops import ExperimentTracker, OpusclipError, TrackingConfig, journal, stopping
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.folder import CONTROL, Progress, RunFolder
from opusclip_mlops.generations import generations_of
from opusclip_mlops.loading import LoadedCheckpoint
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.records import (
    Crash,
    Metrics,
    Record,
    RunEnded,
    RunStarted,
    Tags,
    Text,
    now_ms,
)
from opusclip_mlops.session import JoinedSession, Session
from opusclip_mlops.sessions import final_end, sessions
from tests.faults.disks import SmallDisk, small_disk

RUN_ID = "c" * 32


def config(journal_dir: Path, **fields: object) -> TrackingConfig:
    """A run for MLflow only, that is gone on with: so its folder has a known name."""
    wanted = {
        "journal_dir": str(journal_dir),
        "run_id": RUN_ID,
        "tracking_uri": f"sqlite:///{Path.cwd()}/mlflow.db",
        "use_tensorboard": False,
        "use_wandb": False,
        "system_metrics": False,
        "drain_timeout_s": 0.0,
        **fields,
    }
    return TrackingConfig(**wanted)  # type: ignore[arg-type]


@contextlib.contextmanager
def undelivered(journal_dir: Path) -> Iterator[RunFolder]:
    """The run's folder, which no shipper touches while the block lasts: it is held here."""
    folder = RunFolder(journal_dir / RUN_ID)
    folder.path.mkdir(parents=True)
    lock = os.open(folder.path / "shipper.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        # Its guards find no folder to go on with.
        (folder.path / "manifest.json").unlink(missing_ok=True)
        os.close(lock)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with undelivered(tmp_path / "journal") as found:
        yield found


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 2 MiB."""
    with small_disk(tmp_path / "disk") as found:
        yield found


def records(folder: RunFolder) -> list[Record]:
    """All that was logged to the run."""
    items = (item for path in folder.segments() for item in journal.read(path))
    return [item.record for item in items if isinstance(item, journal.Entry)]


def points(folder: RunFolder) -> list[dict[str, float]]:
    return [record.values for record in records(folder) if isinstance(record, Metrics)]


def held_open(journal_dir: Path) -> list[str]:
    """The files of its runs that this process has open, but for those locked by this test."""
    places = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    paths = [place.readlink() for place in places if place.is_symlink()]
    own = [path for path in paths if path.is_relative_to(journal_dir)]
    return sorted(path.name for path in own if path.name != "shipper.lock")


# The start


def refused(journal_dir: Path) -> str:
    """Why no run can begin here: one line, and nothing is left running or open."""
    before = set(threading.enumerate())  # other files may have left some
    with pytest.raises(ConfigError) as raised:
        Session(config(journal_dir), tags={})
    assert not [one.name for one in set(threading.enumerate()) - before if "shipper" in one.name]
    assert all(name.endswith(".exit") for name in held_open(journal_dir))
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith(f"journal_dir {journal_dir} cannot be written: ")
    assert text.endswith(": make room, or set journal_dir to a folder of yours on a local disk")
    return text


def test_a_read_only_folder_is_told_in_one_line(disk: SmallDisk) -> None:
    """What is wrong, which folder, and what to do."""
    disk.protect()
    assert "Read-only file system" in refused(disk.path / "journal")


def test_a_file_in_the_place_of_the_folder_is_told_in_one_line(tmp_path: Path) -> None:
    """The same for a path that leads through a file."""
    (tmp_path / "file").touch()
    assert "Not a directory" in refused(tmp_path / "file" / "journal")


def test_a_folder_of_event_files_that_cannot_be_made_is_told_at_the_start(
    folder: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, and the run begins all the same."""
    (tmp_path / "file").touch()
    asked = config(folder.path.parent, use_tensorboard=True, tensorboard_dir="file/runs")
    session = Session(asked, tags={})
    assert capsys.readouterr().err.count("opusclip: tensorboard_dir file/runs cannot be made") == 1
    assert session.sinks == ["mlflow", "tensorboard"]
    session.end("FINISHED", "")
    session.release()


def leave_room(disk: SmallDisk, room_kib: int) -> None:
    """Fill a disk but for so much."""
    (disk.path / "room").write_bytes(bytes(room_kib * 1024))
    disk.fill()
    (disk.path / "room").unlink()


FAILED_START = """
import faulthandler, sys, threading
from opusclip_mlops import ExperimentTracker, TrackingConfig
config = TrackingConfig(
    journal_dir=sys.argv[1], run_id=sys.argv[2], use_tensorboard=False, use_wandb=False
)
try:
    ExperimentTracker(config)
except Exception as error:
    print(type(error).__name__, faulthandler.is_enabled(), threading.active_count(), flush=True)
"""


@pytest.mark.parametrize("room_kib", [0, 48])
def test_a_start_that_failed_takes_no_notes_of_death(disk: SmallDisk, room_kib: int) -> None:
    """The process is as it was before, though notes were begun before the room ended."""
    leave_room(disk, room_kib)
    argv = [sys.executable, "-c", FAILED_START, str(disk.path / "journal"), RUN_ID]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "ConfigError False 1\n"


@pytest.mark.parametrize("room_kib", [0, 20, 40, 44, 48, 112])
def test_a_full_disk_is_told_in_one_line(disk: SmallDisk, room_kib: int) -> None:
    """Before training begins, at whichever file the room ends."""
    leave_room(disk, room_kib)
    assert "No space left on device" in refused(disk.path / "journal")


# The end


def test_the_end_finds_room_on_a_full_disk(disk: SmallDisk) -> None:
    """Its record was given room at the start; what could not be kept is counted in the run."""
    with undelivered(disk.path / "journal") as folder:
        session = Session(config(disk.path / "journal"), tags={})
        disk.fill()
        for step in range(300):
            session.append(Metrics(1, step, {f"key/{n}": 0.5 for n in range(20)}))
        session.end("FAILED", "ValueError: no", traceback="line\n" * 1500)
        found = final_end(folder)
        assert found is not None
        assert (found.status, found.reason) == ("FAILED", "ValueError: no")
        lost = 300 - len(points(folder))
        assert lost > 0
        tags = {k: v for one in records(folder) if isinstance(one, Tags) for k, v in
                one.values.items()}  # fmt: skip
        assert tags["opusclip.lost_records"] == str(lost)
        assert tags["opusclip.traceback"] == "line\n" * 1500
        assert any(f"{lost} records could not be kept: " in line for line in session.missing())
        session.release()


def test_a_run_is_begun_and_ended(folder: RunFolder) -> None:
    """Its start, tags and end stand in the journal of starts and ends, in that order."""
    session = Session(config(folder.path.parent), tags={"team": "true"})
    session.append(Metrics(1, 2, {"loss": 0.5}))
    session.end("FINISHED", "", at_exit=True)
    session.release()
    control = [p for p in folder.segments() if CONTROL in p.name]
    kinds = [type(item.record) for p in control for item in journal.read(p)
             if isinstance(item, journal.Entry)]  # fmt: skip
    assert kinds == [RunStarted, Tags, RunEnded]
    [one] = sessions(folder)
    assert one.start.tags == {"team": "true"}
    assert one.end is not None
    assert one.end.at_exit
    assert one.end.end_time_ms >= one.start.start_time_ms


@pytest.mark.parametrize(
    ("status", "reason", "at_exit", "is_reported"),
    [
        ("FAILED", "ValueError: x", True, True),
        ("KILLED", "", False, True),
        ("FINISHED", "", False, False),
        ("FAILED", "SystemExit: 3", True, False),
    ],
    ids=["FAILED", "KILLED", "FINISHED", "a sys.exit that somebody may catch"],
)
def test_a_failure_is_reported_before_the_end(
    folder: RunFolder, status: str, reason: str, at_exit: bool, is_reported: bool
) -> None:
    """Its lines, where its threads are and what it was in; an exit code that decides says more."""
    session = Session(config(folder.path.parent), tags={})
    session.operations.cells[session.operations.cell("data/decode")] = time.perf_counter_ns()
    session.end(status, reason, traceback="line\n" * 2000, at_exit=at_exit)
    session.release()
    found = records(folder)
    assert isinstance(found[-1], RunEnded)
    crashes = [one for one in found if isinstance(one, Crash)]
    assert len(crashes) == is_reported
    assert sessions(folder)[0].has_report == is_reported
    for crash in crashes:
        told = {name: (folder.media / file).read_text() for name, file in crash.files.items()}
        assert told["traceback.txt"] == "line\n" * 2000
        assert "in test_a_failure_is_reported_before_the_end" in told["stacks.txt"]
        assert "data/decode" in told["report.txt"]
        assert isinstance(found[-2], Text)
        assert found[-2].text == told["report.txt"]


def test_a_report_that_cannot_be_written_keeps_no_run_open(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its end is declared all the same; one line says what is missing."""
    session = Session(config(folder.path.parent), tags={})
    folder.media.rmdir()
    folder.media.touch()
    session.end("FAILED", "ValueError: x")
    session.release()
    assert not sessions(folder)[0].has_report
    assert sessions(folder)[0].end is not None
    assert capsys.readouterr().err.startswith("opusclip: no report of this end: NotADirectory")


def test_release_lets_go_of_every_file(folder: RunFolder) -> None:
    """But of the exit code's, which the C library writes last."""
    session = Session(config(folder.path.parent), tags={})
    name = sessions(folder)[0].start.session
    assert len(held_open(folder.path.parent)) > 6
    session.end("FINISHED", "")
    session.release()
    assert held_open(folder.path.parent) in ([], [f"{name}.exit"])


# A further process

WORKER = """
import pickle, sys
tracker = pickle.load(sys.stdin.buffer)
for step in range(3):
    tracker.log_metrics({"worker/loss": step / 2}, step)
tracker.log_text("said by a worker", "notes")
tracker.close("FAILED", "a worker's word")
print(tracker.local_id, len(sys.modules.keys() & {"numpy", "torch", "mlflow", "wandb"}))
"""


def test_a_tracker_sent_to_another_process_logs_to_the_same_run(folder: RunFolder) -> None:
    """What the other logs is there; the run's end stays with the process that began it."""
    tracker = ExperimentTracker(config(folder.path.parent))
    tracker.log_metrics({"train/loss": 1.0}, 7)
    sent = pickle.dumps(tracker)
    argv = [sys.executable, "-c", WORKER]
    done = subprocess.run(argv, input=sent, capture_output=True, timeout=60, check=False)
    assert (done.stderr, done.stdout.decode()) == (b"", f"{RUN_ID} 0\n")
    tracker.log_metrics({"train/loss": 0.5}, 8)
    found = points(folder)
    assert [one["worker/loss"] for one in found if "worker/loss" in one] == [0.0, 0.5, 1.0]
    assert [one["train/loss"] for one in found if "train/loss" in one] == [1.0, 0.5]
    assert any(isinstance(one, Text) and one.key == "notes" for one in records(folder))
    [one] = sessions(folder)
    assert (one.start.pid, one.end) == (os.getpid(), None)
    tracker.close()
    [one] = sessions(folder)
    assert one.end is not None
    assert one.end.status == "FINISHED"


def test_a_part_that_went_back_says_so_in_its_start(folder: RunFolder) -> None:
    """The generation stands beside the start; no point has an earlier time, here or in a worker."""
    made_ms = now_ms() + 3600_000
    about = CheckpointMetadata(name="c", step=5, epoch=0, run_id=RUN_ID, created_ms=made_ms)
    resumed = LoadedCheckpoint(folder=None, metadata=about)
    tracker = ExperimentTracker(config(folder.path.parent), resume=resumed)
    tracker.log_metrics({"train/loss": 1.0})
    argv = [sys.executable, "-c", WORKER]
    subprocess.run(argv, input=pickle.dumps(tracker), capture_output=True, timeout=60, check=True)
    tracker.close()
    [one] = sessions(folder)
    [generation] = generations_of(one.start.tags)
    assert (generation.start_ms, generation.after_step) == (made_ms + 1, 5)
    found = [one for one in records(folder) if isinstance(one, Metrics)]
    assert [record.step for record in found if "train/loss" in record.values] == [6]
    assert {record.timestamp_ms for record in found} == {made_ms + 1}


def test_a_tracker_that_comes_too_late_says_so(folder: RunFolder, tmp_path: Path) -> None:
    """A run that is delivered and gone can't be joined: one line."""
    wanted = config(folder.path.parent)
    with pytest.raises(OpusclipError, match=r"not a run's folder") as raised:
        JoinedSession(wanted, tmp_path / "gone")
    assert "\n" not in str(raised.value)


JOINER = """
import sys
from pathlib import Path
from opusclip_mlops import TrackingConfig
from opusclip_mlops.session import JoinedSession
joined = JoinedSession(TrackingConfig(), Path(sys.argv[1]))
print(joined.local_id, flush=True)
sys.stdin.read()
"""


def test_who_joins_keeps_the_folder(folder: RunFolder) -> None:
    """It is not removed while a worker may still log to it, though everything has arrived."""
    session = Session(config(folder.path.parent), tags={})
    argv = [sys.executable, "-c", JOINER, str(folder.path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, text=True, **pipes) as worker:  # type: ignore[call-overload]
        assert worker.stdout.readline() == f"{RUN_ID}\n"
        session.end("FINISHED", "")
        session.release()
        done = Progress(number=1, position=folder.size_bytes(), done=True)
        folder.write_progress("mlflow", done)
        assert folder.is_delivered()
        assert not folder.remove_unless_held()
        worker.stdin.close()
        worker.wait(timeout=60)
    assert folder.remove_unless_held()
    assert not folder.path.exists()


NAN = {"kind": "not_finite", "keys": ["*"]}


def test_a_run_is_watched_by_the_rules_it_began_with(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a sink of their own; who brings others to the same folder is told so."""
    journal_dir = folder.path.parent
    with pytest.raises(ConfigError, match=r"^alerts: rules: nan: it needs a kind"):
        Session(config(journal_dir, alerts={"rules": {"nan": {}}}), tags={})
    for rules in ({"nan": NAN}, {"nan": NAN}, {"other": NAN}):
        assert capsys.readouterr().err == ""
        session = Session(config(journal_dir, alerts={"rules": rules}), tags={})
        assert session.sinks == ["mlflow", "alerts"]
        session.end("FINISHED", "")
        session.release()
    assert "watched by the rules it began with" in capsys.readouterr().err


def test_a_stop_that_was_asked_for_is_how_the_run_ends(folder: RunFolder) -> None:
    """Whatever its last lines say."""
    session = Session(config(folder.path.parent), tags={})
    assert session.stop_reason == ""
    stopping.ask_to_stop(folder, "alert nan: it is", now_ms=now_ms())
    assert session.stop_reason == "alert nan: it is"
    session.end("FINISHED", "")
    session.release()
    end = final_end(folder)
    assert end is not None
    assert (end.status, end.reason) == ("KILLED", "alert nan: it is")


def test_who_joins_is_stopped_with_its_own_part_and_not_with_an_earlier_one(
    folder: RunFolder,
) -> None:
    """In a run that is gone on with in the same folder the old note still lies there."""
    stopping.ask_to_stop(folder, "alert nan: it was", now_ms=now_ms() - 5)
    begun = Session(config(folder.path.parent), tags={})
    joined = JoinedSession(config(folder.path.parent), folder.path)
    assert joined.stop_reason == ""
    stopping.ask_to_stop(folder, "alert nan: it is", now_ms=now_ms())
    late = JoinedSession(config(folder.path.parent), folder.path)
    assert [one.stop_reason for one in (joined, late)] == ["alert nan: it is"] * 2
    for one in (late, joined, begun):
        one.release()
