"""Facts about `opusclip_mlops.run_status`: what is on its way, read from folders in any state."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opusclip_mlops import run_status
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.folder import CONTROL, Identity, Progress, RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.records import Crash, Metrics, Params, RunStarted, Text
from opusclip_mlops.run_status import RunStatus, SinkStatus, status
from tests.journeys import LOCAL_ID, append, end, make_run

OTHER_ID = "fedcba9876543210fedcba9876543210"


def metrics(count: int, *, age_s: float = 0.0) -> list[Metrics]:
    """Points that were logged `age_s` ago."""
    now_ms = int((time.time() - age_s) * 1000)
    return [Metrics(now_ms, step, {"loss": float(step)}) for step in range(count)]


def journal_dir(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def only(tmp_path: Path) -> RunStatus:
    [run] = status(journal_dir=journal_dir(tmp_path))
    return run


def sink(run: RunStatus, name: str) -> SinkStatus:
    return next(one for one in run.sinks if one.sink == name)


# Which runs there are


def test_without_a_journal_directory_there_are_no_runs(tmp_path: Path) -> None:
    """Nobody has logged here yet: an empty list, and nothing is made."""
    assert status(journal_dir=tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_the_configured_directory_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OPUSCLIP_JOURNAL_DIR, the configuration file, and .opusclip/journal, as for the tracker."""
    assert run_status.configured_journal_dir() == tmp_path / ".opusclip" / "journal"
    (tmp_path / "settings.toml").write_text("journal_dir = 'from-file'")
    monkeypatch.setenv("OPUSCLIP_CONFIG", str(tmp_path / "settings.toml"))
    assert run_status.configured_journal_dir() == tmp_path / "from-file"
    make_run(tmp_path)
    monkeypatch.setenv("OPUSCLIP_JOURNAL_DIR", str(journal_dir(tmp_path)))
    assert [one.local_id for one in status()] == [LOCAL_ID]


def test_locks_and_folders_on_their_way_out_are_no_runs(tmp_path: Path) -> None:
    """What begins with a dot, and plain files, are passed over."""
    os.close(make_run(tmp_path).hold())
    (journal_dir(tmp_path) / f".{OTHER_ID}.123.removed").mkdir()
    (journal_dir(tmp_path) / "notes.txt").write_text("mine")
    assert only(tmp_path).local_id == LOCAL_ID


def test_the_run_that_began_first_stands_first(tmp_path: Path) -> None:
    """Runs are in the order of their starts, not of their ids."""
    make_run(tmp_path, start_time_ms=2000)
    make_run(tmp_path, name=OTHER_ID, start_time_ms=1000)
    assert [one.local_id for one in status(journal_dir=journal_dir(tmp_path))] == [
        OTHER_ID,
        LOCAL_ID,
    ]


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two runs of one name, one of which MLflow knows."""
    known = make_run(tmp_path, run_name="a-run")
    known.write_identity(
        Identity(mirror_id=LOCAL_ID, experiment_name="films", run_name="shown", run_id="c0ffee")
    )
    make_run(tmp_path, name=OTHER_ID, run_name="a-run")
    return journal_dir(tmp_path)


@pytest.mark.parametrize("name", [LOCAL_ID, "01234", "c0ffee", "c0f", "shown", "sho"])
def test_a_run_may_be_called_by_any_of_its_names(two: Path, name: str) -> None:
    """Local id, MLflow run id and run name, whole or as a unique beginning."""
    assert [one.local_id for one in status([name], journal_dir=two)] == [LOCAL_ID]


def test_a_run_named_twice_is_told_once(two: Path) -> None:
    """The same run by two of its names is one run."""
    assert len(status(["01234", "c0ffee", OTHER_ID], journal_dir=two)) == 2


def test_an_ambiguous_name_is_refused_with_the_choices(two: Path) -> None:
    """One line that lists the ids between which to choose."""
    with pytest.raises(OpusclipError, match=f"2 runs are called 'a-run'.*{LOCAL_ID}.*{OTHER_ID}"):
        status(["a-run"], journal_dir=two)


def test_a_whole_name_goes_before_a_beginning(tmp_path: Path) -> None:
    """`a` is the run called `a`, though `a-run` begins with it too."""
    make_run(tmp_path, run_name="a")
    make_run(tmp_path, name=OTHER_ID, run_name="a-run")
    # Both have an identity with the name a-run: the manifest's counts as well.
    assert [one.local_id for one in status(["a"], journal_dir=journal_dir(tmp_path))] == [LOCAL_ID]


@pytest.mark.parametrize("name", ["zebra", ""])
def test_an_unknown_name_is_refused_with_what_there_is(two: Path, name: str) -> None:
    """The message says that it may have been delivered, and what is here."""
    with pytest.raises(OpusclipError, match=f"may have been delivered already; .*{LOCAL_ID}"):
        status([name], journal_dir=two)


def test_only_some_of_many_choices_are_shown(tmp_path: Path) -> None:
    """The message stays one that can be read."""
    for number in range(13):
        (journal_dir(tmp_path) / f"run{number:02}").mkdir(parents=True)
    with pytest.raises(OpusclipError, match="run09 and 3 more"):
        status(["zebra"], journal_dir=journal_dir(tmp_path))


# Folders in a bad state


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "has no manifest.json"),
        (b"", "is damaged"),
        (b'{"local_id": "x', "is damaged"),
        (b'{"local_id": "\xff"}', "is damaged"),
        (b'{"other": 1}', "is damaged"),
        (b"[1]", "is damaged"),
    ],
)
def test_a_folder_that_is_no_whole_run_is_told_and_hides_none(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    """A foreign, half-written or damaged folder has a line of its own; the others are read."""
    make_run(tmp_path)
    bad = journal_dir(tmp_path) / "bad"
    bad.mkdir()
    if content is not None:
        (bad / "manifest.json").write_bytes(content)
    first, second = status(journal_dir=journal_dir(tmp_path))
    assert (first.local_id, first.state) == ("bad", "unreadable")
    assert problem in first.problem
    assert second.problem == ""


def test_a_manifest_that_is_a_folder_is_told(tmp_path: Path) -> None:
    """A fault of the file system is a line, not a traceback."""
    (journal_dir(tmp_path) / "bad" / "manifest.json").mkdir(parents=True)
    assert "Is a directory" in only(tmp_path).problem


def test_a_folder_that_vanishes_while_it_is_read_is_told(tmp_path: Path) -> None:
    """The shipper may remove it at any moment: whatever was read by then, it is a line."""
    folder = make_run(tmp_path)
    append(folder, metrics(10))
    found = set()
    for number in range(20):
        copy = RunFolder(journal_dir(tmp_path) / "copy")
        shutil.copytree(folder.path, copy.path)
        # As the shipper does it: out of sight first.
        mover = subprocess.Popen(["mv", copy.path, tmp_path / f"gone{number}"])
        while copy.path.exists():
            found.add(run_status.status_of(copy).problem)
        mover.wait()
        found.add(run_status.status_of(copy).problem)
    assert found <= {"", "vanished while it was read: delivered whole, or removed"}
    assert len(found) == 2


def test_damaged_progress_and_identity_are_as_none(tmp_path: Path) -> None:
    """What a sink noted is lost with its file; the run is told all the same."""
    folder = make_run(tmp_path)
    for path in [folder.path / "identity.json", *(folder.path / "sinks").iterdir()]:
        path.write_bytes(b"\x00\x01{")
    run = only(tmp_path)
    assert (run.run_name, run.experiment_name) == ("a-run", "films")
    assert sink(run, "mlflow").lag_records == 1


# The state of a run


def start_of(pid: int) -> RunStarted:
    return RunStarted("s2", socket.gethostname(), pid, -1.0, 1_700_000_000_000)


def test_a_run_whose_process_lives_is_training(tmp_path: Path) -> None:
    """The session has no end, and its process runs: this one."""
    make_run(tmp_path)
    run = only(tmp_path)
    assert run.state == "training"
    [session] = run.sessions
    assert (session.host, session.pid) == (socket.gethostname(), os.getpid())
    assert session.is_alive
    assert session.end_time_ms is None


def test_a_run_that_declared_its_end_has_ended(tmp_path: Path) -> None:
    """With status, time and reason."""
    folder = make_run(tmp_path)
    append(folder, [Crash("s1", {})], journal="s1" + CONTROL)
    end(folder, "FAILED", "ValueError: no frames")
    run = only(tmp_path)
    assert (run.state, run.end_status, run.end_time_ms) == ("ended", "FAILED", 1_700_000_100_000)
    assert run.end_reason == "ValueError: no frames"
    assert run.sessions[0].end_status == "FAILED"
    assert run.sessions[0].report == "crash/s1/report.txt"


def test_a_run_whose_process_is_gone_without_an_end_has_crashed(tmp_path: Path) -> None:
    """Another session has ended well, this one vanished."""
    folder = make_run(tmp_path)
    end(folder)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    append(folder, [start_of(child.pid)], journal="s2" + CONTROL)
    run = only(tmp_path)
    assert (run.state, run.end_status) == ("crashed", "")
    assert [one.is_alive for one in run.sessions if one.pid == child.pid] == [False]


def test_a_run_without_any_start_has_crashed(tmp_path: Path) -> None:
    """The power failed before the first record was on the disk."""
    folder = make_run(tmp_path)
    for path in folder.segments():
        path.write_bytes(b"")
    assert only(tmp_path).state == "crashed"


def test_a_shipper_at_work_is_seen(tmp_path: Path) -> None:
    """The right to ship is held by a process, or by none."""
    folder = make_run(tmp_path)
    assert not only(tmp_path).is_shipped
    with folder.shipping():
        assert only(tmp_path).is_shipped
    assert not only(tmp_path).is_shipped


def test_what_mlflow_calls_the_run_is_told(two: Path) -> None:
    """Its run id and its name there, once MLflow has answered."""
    [run] = status(["c0ffee"], journal_dir=two)
    assert (run.run_id, run.run_name, run.experiment_name) == ("c0ffee", "shown", "films")
    [other] = status([OTHER_ID], journal_dir=two)
    assert (other.run_id, other.run_name, other.experiment_name) == ("", "a-run", "films")


# How far its sinks are


def test_a_lag_is_counted_from_where_a_sink_is(tmp_path: Path) -> None:
    """Records, bytes and the age of the oldest, of what the sink has not acknowledged."""
    folder = make_run(tmp_path, ["mlflow", "tensorboard"])
    append(folder, metrics(30, age_s=500))
    before = folder.size_bytes()
    append(folder, metrics(12, age_s=100), journal="s2")
    done = Progress(number=1, position=before, records=31, rejected=2, faults=3, error="it hangs")
    folder.write_progress("mlflow", done)
    run = only(tmp_path)
    mlflow, tensorboard = run.sinks
    assert (mlflow.lag_records, tensorboard.lag_records) == (12, 43)
    assert 100 <= mlflow.lag_s < 200
    assert tensorboard.lag_s > 500
    total = sum(folder.size_bytes().values())
    assert (mlflow.backlog_bytes, tensorboard.backlog_bytes) == (
        total - sum(before.values()),
        total,
    )
    assert run.backlog_bytes == total
    assert (mlflow.lag_is_estimate, tensorboard.lag_is_estimate) == (False, False)
    assert (mlflow.delivered_records, mlflow.refused_records) == (29, 2)
    assert (mlflow.faults, mlflow.last_error) == (3, "it hangs")


def test_a_sink_that_has_everything_lags_by_nothing(tmp_path: Path) -> None:
    """Also one that has yet to declare the end, and one that has more than is there."""
    folder = make_run(tmp_path, ["mlflow", "tensorboard"])
    append(folder, metrics(3))
    end(folder)
    sizes = folder.size_bytes()
    folder.write_progress("mlflow", Progress(number=1, position=sizes, done=True))
    more = {name: size + 100 for name, size in sizes.items()}
    folder.write_progress("tensorboard", Progress(number=1, position=more))
    mlflow, tensorboard = only(tmp_path).sinks
    assert (mlflow.lag_records, mlflow.lag_s, mlflow.is_done) == (0, 0.0, True)
    assert (tensorboard.lag_records, tensorboard.backlog_bytes) == (0, 0)
    assert not tensorboard.is_done


def test_a_record_without_a_time_is_as_old_as_its_file(tmp_path: Path) -> None:
    """Params carry no time; that of the last write stands for it."""
    folder = make_run(tmp_path)
    folder.write_progress("mlflow", Progress(number=1, position=folder.size_bytes()))
    append(folder, [Params({"a": "b"})])
    at_s = time.time() - 1000
    for path in folder.segments():
        os.utime(path, (at_s, at_s))
    assert 1000 <= sink(only(tmp_path), "mlflow").lag_s < 1100


def test_what_is_logged_while_it_is_counted_is_left_out(tmp_path: Path) -> None:
    """Figures of one moment: those that were there when the sizes were read."""
    folder = make_run(tmp_path)
    append(folder, metrics(10))
    sizes = folder.size_bytes()
    [path] = [one for one in folder.segments() if CONTROL not in one.name]
    with path.open("ab") as file:
        file.write(path.read_bytes())
    assert run_status._gap(path, 0, sizes[path.name], run_status.EXACT_BYTES).records == 10


def test_a_run_that_was_gone_on_with_is_not_done(tmp_path: Path) -> None:
    """The sink has declared the end before more was logged."""
    folder = make_run(tmp_path)
    folder.write_progress("mlflow", Progress(number=1, position=folder.size_bytes(), done=True))
    append(folder, metrics(3))
    found = sink(only(tmp_path), "mlflow")
    assert (found.lag_records, found.is_done) == (3, False)


def test_damage_is_no_record(tmp_path: Path) -> None:
    """Whole records on both sides of damage count, a torn one at the end does not."""
    folder = make_run(tmp_path)
    append(folder, metrics(10))
    [path] = [one for one in folder.segments() if CONTROL not in one.name]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content + content[:7])
    assert sink(only(tmp_path), "mlflow").lag_records == 1 + 9


def test_a_large_backlog_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a limit the beginning of each segment stands for the whole, and that is said."""
    folder = make_run(tmp_path)
    log = Journal(folder.path, "s1", segment_bytes=1024 * 1024)
    for step in range(60_000):
        log.append(Metrics(1_700_000_000_000, step, {"loss": 0.5}))
    log.close()
    assert len(folder.segments()) > 2
    assert sink(only(tmp_path), "mlflow").lag_records == 60_001
    monkeypatch.setattr(run_status, "EXACT_BYTES", 1024 * 1024)
    estimated = sink(only(tmp_path), "mlflow")
    assert estimated.lag_is_estimate
    assert estimated.lag_records == pytest.approx(60_001, rel=0.02)
    assert estimated.lag_s > 1_000_000


def test_a_journal_of_gigabytes_is_not_read_whole(tmp_path: Path) -> None:
    """Only the first piece of each segment is decoded: the rest may be anything."""
    folder = make_run(tmp_path)
    append(folder, [Text(1_700_000_000_000, 0, "a", "x" * 1000) for _ in range(3000)])
    [path] = [one for one in folder.segments() if CONTROL not in one.name]
    whole_bytes = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(8 * 1024**3)
    found = sink(only(tmp_path), "mlflow")
    assert found.lag_is_estimate
    assert found.lag_records == pytest.approx(3000 * 8 * 1024**3 / whole_bytes, rel=0.05)


def test_reading_changes_nothing(tmp_path: Path) -> None:
    """Neither sizes nor times of a run's files, whoever looks at them."""
    folder = make_run(tmp_path)
    append(folder, metrics(3))
    with folder.shipping():
        pass
    files = [path for path in sorted(folder.path.rglob("*")) if path.is_file()]
    before = [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    status(journal_dir=journal_dir(tmp_path))
    files = [path for path in sorted(folder.path.rglob("*")) if path.is_file()]
    assert [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in files] == before
