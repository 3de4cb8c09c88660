"""Facts about `opusclip_mlops.crash_report`: what is said of a process that died is so."""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from opusclip_mlops import flight, journal
from opusclip_mlops.crash_report import KEY, TAIL_BYTES, Case, report
from opusclip_mlops.deaths import Death
from opusclip_mlops.flight import FlightNotes, LogLines
from opusclip_mlops.folder import Identity, RunFolder, write_whole
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.records import Crash, Metrics, RunEnded, RunStarted, Text
from opusclip_mlops.sessions import sessions
from opusclip_mlops.watching import Watch
from tests.journeys import append, end, make_run, store
from tests.mlflow_runs import delivered, saved

TRAINER = """
import ctypes, faulthandler, logging, os, resource, signal, socket, sys, threading, time
from pathlib import Path
from opusclip_mlops.exits import DeathNotes
from opusclip_mlops.flight import FlightNotes
from opusclip_mlops.folder import CONTROL, RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.records import Metrics, RunEnded, RunStarted
from opusclip_mlops.sessions import hold_alive, process_started_s
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
folder = RunFolder(Path(sys.argv[1]))
alive = hold_alive(folder, "s2")
notes, flight = DeathNotes(folder.path, "s2"), FlightNotes(folder.path, "s2")
control, points = Journal(folder.path, "s2" + CONTROL), Journal(folder.path, "s2")
started_s, now_ms = process_started_s(os.getpid()), time.time_ns() // 1_000_000
control.append(RunStarted("s2", socket.gethostname(), os.getpid(), started_s, now_ms))
logging.getLogger("train").warning("begun with %s", "postgres://anna:hunter22@db/x")
points.append(Metrics(now_ms, 7, {"loss": 0.25, "nan": float("nan")}))
flight.operations.cells[flight.operations.cell("data/decode")] = time.perf_counter_ns()
def train(act, *arguments):
    act(*arguments)
def leave():
    control.append(RunEnded("s2", "FAILED", now_ms + 5, "SystemExit: 3", True, True))
    sys.exit(3)
print("up", flush=True)
sys.stdin.readline()
"""
FILES = {"report.json", "report.txt", "metrics.json", "log.txt"}

needs_telling_kernel = pytest.mark.skipif(
    [int(number) for number in re.findall(r"\d+", os.uname().release)[:2]] < [6, 15],
    reason="before Linux 6.15 the kernel tells only the parent how a process ended",
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run that this process has finished its part in."""
    found = make_run(tmp_path)
    end(found)
    return found


@contextlib.contextmanager
def trainer(folder: RunFolder, death: str) -> Iterator[subprocess.Popen[str]]:
    """A process that takes part in the run, and dies so once it is let go on."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINER + death, str(folder.path), "--password", "hunter22"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.communicate()


def die(process: subprocess.Popen[str]) -> None:
    """Let it go on to its death, and wait for that."""
    process.communicate("\n", timeout=60)


def said(folder: RunFolder, kind: type[Any]) -> list[Any]:
    """What the supervisor has said of this kind, with the place of the end behind it."""
    paths = [path for path in folder.segments() if path.name.startswith("supervisor")]
    items = [item for path in paths for item in journal.read(path)]
    found = [item.record for item in items if isinstance(item, journal.Entry)]
    return [record for record in found if isinstance(record, kind)]


def read(folder: RunFolder, crash: Crash) -> dict[str, Any]:
    """A report's files by their names, JSON as values."""
    contents = {name: (folder.media / file).read_text() for name, file in crash.files.items()}
    return {
        name: json.loads(text) if name.endswith(".json") else text
        for name, text in contents.items()
    }


def leave_note(folder: RunFolder, **fields: Any) -> None:
    """What this process says of itself."""
    about = {"argv": [], "cwd": "/", "python": "3", "boot_id": "", "started_ms": 1, **fields}
    write_whole(folder.path / "s1.flight", msgspec.json.encode(flight.Flight(**about)))


def report_of(folder: RunFolder, death: Death | None = None, **fields: Any) -> dict[str, Any]:
    """A report of this process's part, as if it had died."""
    start = sessions(folder)[0].start
    died = death or Death("FAILED", "process 1 was ended by SIGKILL", signal="SIGKILL")
    case = Case(folder=folder, start=start, death=died, end_time_ms=1_700_000_061_500, **fields)
    crash, text = report(case)
    assert isinstance(crash, Crash)
    assert isinstance(text, Text)
    found = read(folder, crash)
    assert (text.key, text.text, text.timestamp_ms) == (KEY, found["report.txt"], case.end_time_ms)
    return found


# Processes that die


@pytest.mark.parametrize(
    ("death", "status", "name", "code", "further"),
    [
        ("train(os.kill, os.getpid(), signal.SIGKILL)", "FAILED", "SIGKILL", None, set()),
        ("train(ctypes.string_at, 0)", "FAILED", "SIGSEGV", None, {"traceback.txt"}),
        ("train(signal.raise_signal, signal.SIGTERM)", "KILLED", "SIGTERM", None,
         {"traceback.txt"}),
        ("train(os._exit, 7)", "FAILED", "", 7, set()),
        ("train(leave)", "FAILED", "", 3, set()),
    ],
    ids=["kill -9", "a segfault", "SIGTERM", "os._exit(7)", "sys.exit(3)"],
)  # fmt: skip
@needs_telling_kernel
def test_a_death_has_a_true_report(
    folder: RunFolder, death: str, status: str, name: str, code: int | None, further: set[str]
) -> None:
    """Once, before the run's end: signal or code, who, what it was doing, its last words."""
    watch = Watch(folder)
    with trainer(folder, death) as process:
        watch.look()
        die(process)
    for _ in range(3):
        watch.look()
    watch.may_end()
    [crash] = said(folder, Crash)
    told = read(folder, crash)
    assert told.keys() == FILES | further
    facts = told["report.json"]
    assert (facts["status"], facts["signal"], facts["exit_code"]) == (status, name, code)
    assert (facts["pid"], facts["session"]) == (process.pid, "s2")
    assert facts["host"] == socket.gethostname()
    assert facts["last_step"] == 7
    [point], [nan] = (told["metrics.json"]["points"][key] for key in ("loss", "nan"))
    assert point[1:] == [7, 0.25]
    assert nan[1:] == [7, "nan"]
    assert facts["open_operations"][0]["name"] == "data/decode"
    assert 0 <= facts["open_operations"][0]["open_s"] < 60
    assert told["log.txt"].endswith("WARNING train: begun with postgres://anna:***@db/x\n")
    assert "hunter22" not in json.dumps(told)
    assert all("in train" in told[one] for one in further)
    assert told["report.txt"].startswith(f"{status}: ")
    [text] = said(folder, Text)
    assert (text.key, text.step, text.text) == (KEY, 7, told["report.txt"])
    ended = next(one for one in sessions(folder) if one.start.session == "s2")
    assert ended.has_report
    assert ended.end is not None
    assert ended.end.status == status


@pytest.mark.parametrize("death", ["os._exit(0)", "leave = lambda: 0\nflight.release()"])
@needs_telling_kernel
def test_a_process_that_finished_has_no_report(folder: RunFolder, death: str) -> None:
    """Though nobody closed its run."""
    watch = Watch(folder)
    with trainer(folder, death) as process:
        watch.look()
        die(process)
    watch.look()
    assert said(folder, Crash) == []
    [ended] = said(folder, RunEnded)
    assert ended.status == "FINISHED"


def test_a_further_supervisor_reports_nothing_twice(folder: RunFolder) -> None:
    """Killed between the report and the run's end it goes on behind the report."""
    with trainer(folder, "os.kill(os.getpid(), 9)") as process:
        die(process)
    append(folder, [Crash("s2", {})], journal="supervisor+control")
    watch = Watch(folder)
    watch.look()
    assert said(folder, Crash) == [Crash("s2", {})]
    assert [one.status for one in said(folder, RunEnded)] == ["FAILED"]


def test_where_no_report_can_be_written_the_run_still_ends(folder: RunFolder) -> None:
    """The end is what matters; the supervisor's log says what is missing."""
    folder.media.rmdir()
    folder.media.write_bytes(b"")
    with trainer(folder, "os.kill(os.getpid(), 9)") as process:
        die(process)
    Watch(folder).look()
    assert said(folder, Crash) == []
    assert [one.status for one in said(folder, RunEnded)] == ["FAILED"]


@needs_telling_kernel
def test_two_ranks_have_a_report_each(folder: RunFolder) -> None:
    """Their files have names of their own."""
    with trainer(folder, "os.kill(os.getpid(), 9)") as process:
        die(process)
    start = RunStarted("s3", socket.gethostname(), 2**22, 0.0, 5)
    append(folder, [start], journal="s3+control")
    (folder.path / "s3.flight").write_bytes((folder.path / "s2.flight").read_bytes())
    Watch(folder).look()
    first, second = said(folder, Crash)
    assert {first.session, second.session} == {"s2", "s3"}
    assert not set(first.files.values()) & set(second.files.values())
    assert all((folder.media / file).exists() for file in second.files.values())


# What is in it


def test_the_last_minute_of_all_metrics_is_kept(folder: RunFolder) -> None:
    """Of every process and of the machine; of a key without a point in it the last one."""
    now_ms = 1_700_000_060_000
    append(folder, [Metrics(now_ms - 1000 * s, 300 - s, {"val": s / 10}) for s in (300, 200)])
    append(folder, [Metrics(now_ms - 1000 * s, 100 - s, {"loss": 0.5}) for s in range(90, 0, -1)])
    append(folder, [Metrics(now_ms - 500, 900, {"system/cpu": 50.0})], journal="supervisor")
    told = report_of(folder)
    points = told["metrics.json"]["points"]
    assert points.keys() == {"val", "loss", "system/cpu"}
    assert points["val"] == [[now_ms - 200_000, 100, 20.0]]
    assert [step for _, step, _ in points["loss"]] == list(range(40, 100))
    assert told["report.json"]["last_step"] == 100
    assert "last step   100\n" in told["report.txt"]


def test_a_report_is_at_most_a_megabyte(folder: RunFolder) -> None:
    """However much there is of everything; of metrics, the log and errors the end is kept."""
    keys = [f"m{number}" + "/x" * 100 for number in range(50)]
    append(
        folder, [Metrics(1_700_000_000_000 + n, n, dict.fromkeys(keys, n / 3)) for n in range(3000)]
    )
    lines = LogLines(folder.path / "s1.lines")
    for number in range(600):
        lines.write(f"1700000000.5 INFO train: {number} " + "ж" * 3000)
    errors = folder.path / "job.err"
    errors.write_text("é\n" * 3_000_000 + "the end")
    leave_note(folder, argv=["x" * 1000] * 100, stderr_file=str(errors))
    died = Death("FAILED", "why", "t" * 99 + "\n", stacks=("s" * 99 + "\n") * 9_000)
    told = report_of(folder, died)
    size_bytes = sum(path.stat().st_size for path in folder.media.glob("crash-*"))
    assert 100_000 < size_bytes < 2**20
    assert told["traceback.txt"] == "t" * 99 + "\n"
    assert " INFO train: 599 жжж" in told["log.txt"].splitlines()[-1]
    assert told["stderr.txt"].endswith("the end\n")
    assert told["metrics.json"]["points"][keys[7]][-1][1] == 2999


def test_a_punched_and_a_torn_journal_are_read(folder: RunFolder) -> None:
    """What was given back to the disk is a hole, and a frame may be half written."""
    log = journal.Journal(folder.path, "s1")
    for number in range(20_000):
        log.append(Metrics(1_700_000_000_000 + number, number, {"loss": 1.0}))
    log.close()
    path = folder.path / "s1-000000.journal"
    kept_bytes = path.stat().st_size - TAIL_BYTES
    with path.open("r+b") as file:
        file.write(bytes(kept_bytes))
        file.seek(-5, 2)
        file.truncate()
    told = report_of(folder)
    assert told["report.json"]["last_step"] == 19_998


def test_no_file_holds_a_credential(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any of its texts, whoever wrote them."""
    monkeypatch.setenv("WANDB_API_KEY", "correct-horse-battery")
    secrets = (
        "s3://x?X-Amz-Credential=AKIAIOSFODNN7EXAMPLE/2026 postgres://anna:hunter22@db/x"
        " Authorization: Bearer eyJhbGciOi correct-horse-battery"
    )
    LogLines(folder.path / "s1.lines").write(f"1700000000.5 INFO train: {secrets}")
    errors = folder.path / "job.err"
    errors.write_text(secrets)
    leave_note(folder, argv=["train.py", secrets], stderr_file=str(errors))
    report_of(folder, Death("FAILED", secrets, secrets, stacks=secrets))
    written = "".join(path.read_text() for path in folder.media.glob("crash-*"))
    assert written.count("***") > 20
    for secret in ("hunter22", "AKIA", "eyJ", "correct-horse"):
        assert secret not in written


def test_errors_are_left_out_where_their_secrets_are_not_known(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes the report may lack variables that the process had."""
    errors = folder.path / "job.err"
    errors.write_text("it is correct-horse-battery")
    names = ("STORE_TOKEN",)
    leave_note(folder, argv=["train.py"], stderr_file=str(errors), secret_names=names)
    assert "stderr.txt" not in report_of(folder)
    monkeypatch.setenv("STORE_TOKEN", "correct-horse-battery")
    assert report_of(folder)["stderr.txt"] == "it is ***\n"


def checkpoint(folder: RunFolder, name: str, step: int, created_ms: int) -> None:
    """A checkpoint of this name stands whole in the run's folder."""
    about = CheckpointMetadata(name=name, step=step, epoch=1, created_ms=created_ms)
    place = folder.checkpoints / name
    place.mkdir()
    (place / "metadata.json").write_text(json.dumps(about.to_dict()))


def test_the_last_checkpoint_and_how_to_go_on_from_it(folder: RunFolder) -> None:
    """The newest that is whole and kept, whether MLflow has it; the lines name run and name."""
    assert report_of(folder)["report.json"]["checkpoint"] is None
    checkpoint(folder, "epoch_0001-step_00000100", 100, 10)
    checkpoint(folder, "epoch_0001-step_00000200", 200, 20)
    checkpoint(folder, "epoch_0001-step_00000300", 300, 30)
    (folder.checkpoints / ".epoch_0001-step_00000300.dropped").touch()
    (folder.checkpoints / "epoch_0001-step_00000400").mkdir()
    told = report_of(folder)
    assert told["report.json"]["checkpoint"]["name"] == "epoch_0001-step_00000200"
    assert not told["report.json"]["checkpoint"]["is_in_mlflow"]
    assert "step 200, on its way to MLflow" in told["report.txt"]
    assert "load_checkpoint('RUN_ID', which='epoch_0001-step_00000200'" in told["report.txt"]
    folder.note_arrival("epoch_0001-step_00000200")
    (folder.path / "identity.json").unlink()
    folder.write_identity(Identity(mirror_id="m", experiment_name="films", run_id="a" * 32))
    told = report_of(folder)
    assert "step 200, in MLflow" in told["report.txt"]
    assert f"load_checkpoint('{'a' * 32}', which='epoch_0001-step_00000200'" in told["report.txt"]


def test_the_lines_to_go_on_with_are_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as they are told, but for the tracker, they load that checkpoint from MLflow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(tmp_path))
    folder = make_run(tmp_path)
    delivered(folder, saved(folder, 3), saved(folder, 5))
    told = report_of(folder)["report.txt"]
    *lines, begin = re.findall(r"^    ((?:from|loaded|tracker) .+)$", told, re.MULTILINE)
    names: dict[str, Any] = {"model": torch.nn.Linear(2, 1), "optimizer": None}
    exec("\n".join(lines), names)
    assert names["loaded"].metadata.step == 5
    assert begin == "tracker = ExperimentTracker(resume=loaded)"


@pytest.mark.parametrize(
    ("name", "before", "now", "told"),
    [
        ("SIGKILL", 3, 4, True),
        ("SIGKILL", 4, 4, False),
        ("SIGKILL", None, None, False),
        ("SIGTERM", 3, 4, False),
    ],
)
def test_a_lack_of_memory_is_told_where_the_kernel_counts_it(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, name: str, before: int, now: int, told: bool
) -> None:
    """Of a process that was killed as the count rose; nothing is claimed otherwise."""
    monkeypatch.setattr("opusclip_mlops.crash_report.oom_kills", lambda: now)
    died = Death("FAILED", f"process 1 was ended by {name}", signal=name)
    found = report_of(folder, died, seen_oom_kills=before)["report.json"]["out_of_memory"]
    words = "the kernel's out-of-memory killer struck on this machine as this process died"
    assert found == (words if told else "")


def test_of_many_ranks_the_launchers_command_is_told(folder: RunFolder) -> None:
    """With what starts all of them; a child of a rank, which has its numbers too, is alone."""
    checkpoint(folder, "epoch_0001-step_00000100", 100, 10)
    launched = ["torchrun", "--nproc-per-node", "2", "train.py"]
    leave_note(folder, argv=["python", "-u", "train.py"], launched=launched)
    assert "command     python -u train.py\n" in report_of(folder)["report.txt"]
    rank = RunStarted("s1", "gpu-1", 1, 0.0, 5, rank=1, world_size=2)
    died = Death("FAILED", "ValueError")
    crash, _ = report(Case(folder=folder, start=rank, death=died, end_time_ms=9))
    assert isinstance(crash, Crash)
    told = read(folder, crash)["report.txt"]
    assert "command     torchrun --nproc-per-node 2 train.py\n" in told
    assert "start all ranks by the command above with these lines" in told


def test_a_process_without_notes_has_a_report(folder: RunFolder) -> None:
    """Of an earlier release, or on a disk that was full: what is known is told."""
    told = report_of(folder, Death("KILLED", ""))
    assert told.keys() == {"report.txt", "report.json", "metrics.json"}
    assert told["report.json"]["command"] == []
    assert told["report.json"]["reason"] == "closed so by the script"
    assert "To train again" in told["report.txt"]


def test_times_are_readable(folder: RunFolder) -> None:
    """In UTC; how long it lived; for how long it was in an operation."""
    notes = FlightNotes(folder.path, "s1")
    notes.operations.cells[notes.operations.cell("data/decode")] = 1
    with (folder.path / "s1.open").open("r+b") as file:
        file.write(struct.pack("<q", 1_700_000_000_000 * 1_000_000))
    notes.release()
    told = report_of(folder)["report.txt"]
    assert (
        "when        2023-11-14 22:14:21 UTC, 1 min 1 s after it began, its last sign of life\n"
        in told
    )
    assert re.search(r"\nin          data/decode, for 1 min 1 s\n", told)
    assert signal.SIGKILL.name in told
