"""Facts about `opusclip_mlops.flight`: what a process leaves for the case that it dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opusclip_mlops import flight
from opusclip_mlops.flight import (
    MOST_LINES,
    FlightNotes,
    LogLines,
    OpenOperations,
    flight_of,
    log_lines,
    open_operations,
)

PROCESS = """
import logging, os, signal, sys, threading, time
from pathlib import Path
from opusclip_mlops.flight import FlightNotes
folder = Path(sys.argv[1])
log = logging.getLogger("train.loop")
"""
BEGIN = 'notes = FlightNotes(folder, "s1")\n'
INFO = "logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
KILL = "os.kill(os.getpid(), signal.SIGKILL)\n"


def run(folder: Path, code: str, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A process that runs this code to its end."""
    argv = [sys.executable, "-c", PROCESS + code, str(folder), *words]
    environment = {**os.environ, **settings}
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=60, check=False, env=environment
    )


def messages(folder: Path, session: str = "s1") -> list[str]:
    """The log lines of a process, without their times."""
    return [line.partition(" ")[2] for line in log_lines(folder, session)]


# The last lines of the log


def test_the_last_lines_outlive_a_kill(tmp_path: Path) -> None:
    """Each line whose call returned before `kill -9` is there, in order; the first ones are not."""
    code = "for step in range(700): log.info('step %d of %s', step, 'clips')\n"
    before_s = time.time()
    assert run(tmp_path, INFO + BEGIN + code + KILL).returncode == -signal.SIGKILL
    assert messages(tmp_path) == [f"INFO train.loop: step {n} of clips" for n in range(200, 700)]
    times = [float(line.split()[0]) for line in log_lines(tmp_path, "s1")]
    assert times == sorted(times)
    assert before_s - 1 < times[0] <= time.time()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("s1.*")} == {0o600}


def test_a_long_line_is_kept_whole_a_very_long_one_in_part(tmp_path: Path) -> None:
    """Between its neighbours, whatever alphabet it is in."""
    lines = LogLines(tmp_path / "s1.lines")
    long, very_long = "один кадр из кино " * 40, "x" * 100_000
    for text in ("before", long, "between", very_long, "after"):
        lines.write(text)
    before, whole, between, part, after = log_lines(tmp_path, "s1")
    assert (before, whole, between, after) == ("before", long, "between", "after")
    assert 4000 < len(part) < 10_000
    assert set(part) == {"x"}


def test_of_a_line_whose_beginning_is_gone_nothing_is_told(tmp_path: Path) -> None:
    """The ring goes round in the midst of one: its rest is no line."""
    lines = LogLines(tmp_path / "s1.lines")
    lines.write("first " * 100)
    for number in range(1022):
        lines.write(str(number))
    found = log_lines(tmp_path, "s1")
    assert found == [str(number) for number in range(1022 - MOST_LINES, 1022)]


def test_lines_of_many_threads_do_not_mix(tmp_path: Path) -> None:
    """Each is whole, long or short, though no lock is held."""
    code = """
logging.raiseExceptions = False
def write(n):
    for step in range(50): log.warning("%d %s", n, str(n) * (30 + 20 * step))
log.propagate = False
threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
"""
    done = run(tmp_path, BEGIN + code)
    assert done.returncode == 0, done.stderr
    found = messages(tmp_path)
    assert len(found) > 100
    for message in found:
        number, text = message.removeprefix("WARNING train.loop: ").split()
        assert text == number * len(text)


def test_only_what_a_logger_lets_through_is_kept(tmp_path: Path) -> None:
    """No level is changed: without a configuration that is warnings, of every logger."""
    code = """
log.info("not this one")
log.warning("but this one")
logging.getLogger().error("and this one")
alone = logging.getLogger("alone")
alone.propagate = False
alone.addHandler(logging.NullHandler())
alone.error("this too")
"""
    run(tmp_path, BEGIN + code)
    assert messages(tmp_path) == [
        "WARNING train.loop: but this one",
        "ERROR root: and this one",
        "ERROR alone: this too",
    ]


def test_an_exception_is_kept_with_its_lines(tmp_path: Path) -> None:
    """As the log shows it."""
    code = "try: {}['no key']\nexcept KeyError: log.exception('no clip')\n"
    run(tmp_path, BEGIN + code)
    [line] = messages(tmp_path)
    assert line.startswith("ERROR train.loop: no clip\nTraceback")
    assert line.endswith("KeyError: 'no key'\n")


def test_the_program_logs_as_it_would_without(tmp_path: Path) -> None:
    """`basicConfig` after the beginning works, warnings before it are printed, nothing is added."""
    code = """
log.warning("before")
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
log.info("after")
print(len(logging.getLogger().handlers), log.level, flush=True)
"""
    done, bare = run(tmp_path, BEGIN + code), run(tmp_path, code)
    assert (done.stdout, done.stderr) == (bare.stdout, bare.stderr)
    assert done.stdout == "after\n1 0\n"
    assert done.stderr == "before\n"
    assert messages(tmp_path) == ["WARNING train.loop: before", "INFO train.loop: after"]


def test_a_line_that_fails_is_its_loggers_to_tell(tmp_path: Path) -> None:
    """Wrong arguments, or an object that raises: the program goes on, and the next line is kept."""
    code = """
class Bad:
    def __str__(self): raise RuntimeError("no")
log.addHandler(logging.NullHandler())
log.propagate = False
log.warning("%d clips", "many")
log.warning("%s", Bad())
log.warning("fine")
"""
    done = run(tmp_path, BEGIN + code)
    assert (done.returncode, done.stderr) == (0, "")
    assert messages(tmp_path) == ["WARNING train.loop: fine"]


def test_a_credential_is_never_written(tmp_path: Path) -> None:
    """Neither behind a name, nor in a URL, nor as the value of a variable, nor in the command."""
    code = """
log.propagate = False
log.warning("to %s", "postgres://anna:hunter22@db/x")
log.warning("Authorization: Bearer eyJhbGciOi")
log.warning("it is correct-horse")
log.warning("AKIAIOSFODNN7EXAMPLE is not known")
"""
    words = ("--password", "hunter22", "--url=https://anna:hunter22@team/x", "--epochs", "3")
    run(tmp_path, BEGIN + code, *words, STORE_TOKEN="correct-horse")
    assert messages(tmp_path) == [
        "WARNING train.loop: to postgres://anna:***@db/x",
        "WARNING train.loop: Authorization: Bearer ***",
        "WARNING train.loop: it is ***",
        "WARNING train.loop: *** is not known",
    ]
    written = b"".join(path.read_bytes() for path in tmp_path.glob("s1.*"))
    assert not [one for one in (b"hunter22", b"horse", b"eyJ", b"AKIA") if one in written]
    told = flight_of(tmp_path, "s1")
    assert told is not None
    assert told.argv[-5:] == ["--password", "***", "--url=https://anna:***@team/x", "--epochs", "3"]


def test_a_factory_of_the_program_stays_its_own(tmp_path: Path) -> None:
    """One from before is gone on with, and put back; one that came round ours is left."""
    code = """
log.propagate = False
def mine(*arguments, **words):
    record = logging.LogRecord(*arguments, **words)
    record.msg = "mine: " + record.msg
    return record
logging.setLogRecordFactory(mine)
notes = FlightNotes(folder, "s1")
log.warning("one")
notes.release()
assert logging.getLogRecordFactory() is mine
notes = FlightNotes(folder, "s2")
ours = logging.getLogRecordFactory()
def theirs(*arguments, **words):
    return ours(*arguments, **words)
logging.setLogRecordFactory(theirs)
log.warning("two")
notes.release()
assert logging.getLogRecordFactory() is theirs
log.warning("not kept")
notes = FlightNotes(folder, "s3")
log.warning("three")
"""
    done = run(tmp_path, code)
    assert done.returncode == 0, done.stderr
    told = {name: messages(tmp_path, name) for name in ("s1", "s2", "s3")}
    assert told == {
        "s1": ["WARNING train.loop: mine: one"],
        "s2": ["WARNING train.loop: mine: two"],
        "s3": ["WARNING train.loop: mine: three"],
    }


def test_two_runs_of_a_process_both_have_its_lines(tmp_path: Path) -> None:
    """Each until it is closed."""
    code = """
log.propagate = False
second = FlightNotes(folder, "s2")
log.warning("both")
notes.release()
log.warning("second")
"""
    run(tmp_path, BEGIN + code)
    assert messages(tmp_path, "s1") == ["WARNING train.loop: both"]
    assert messages(tmp_path, "s2") == ["WARNING train.loop: both", "WARNING train.loop: second"]


FORKED = """
log.propagate = False
operations, reading = notes.operations, notes.operations.cell("operation/read")
operations.cells[reading] = 5
if os.fork() == 0:
    log.warning("a worker's")
    operations.cells[operations.cell("operation/work")] = 7
    operations.cells[reading] = 0
    own = FlightNotes(folder, "s2")
    log.warning("a worker's own")
    os._exit(0)
os.wait()
log.warning("the trainer's")
"""


def test_a_forked_worker_writes_nothing_into_its_parents_notes(tmp_path: Path) -> None:
    """A run of its own has its lines."""
    done = run(tmp_path, BEGIN + FORKED)
    assert done.returncode == 0, done.stderr
    assert messages(tmp_path, "s1") == ["WARNING train.loop: the trainer's"]
    assert messages(tmp_path, "s2") == ["WARNING train.loop: a worker's own"]
    assert [one.name for one in open_operations(tmp_path, "s1")] == ["operation/read"]


# The operations that are open


def test_what_a_killed_process_was_in_is_known(tmp_path: Path) -> None:
    """Names and when each began, the longest first; what had ended is none of them."""
    code = """
operations = notes.operations
outer, inner, over = (operations.cell(name) for name in ("data/epoch", "data/decode", "data/read"))
print(time.time_ns() // 1_000_000, flush=True)
operations.cells[outer] = time.perf_counter_ns()
operations.cells[over] = time.perf_counter_ns()
operations.cells[over] = 0
time.sleep(0.05)
operations.cells[inner] = time.perf_counter_ns()
"""
    done = run(tmp_path, BEGIN + code + KILL)
    began_ms, now_ms = int(done.stdout), time.time_ns() // 1_000_000
    outer, inner = open_operations(tmp_path, "s1")
    assert (outer.name, inner.name) == ("data/epoch", "data/decode")
    assert began_ms - 5 <= outer.began_ms < inner.began_ms - 40
    assert inner.began_ms <= now_ms + 5


def test_an_operation_has_one_cell_however_many_there_are(tmp_path: Path) -> None:
    """Names behind the 255th share the last; a long name is cut."""
    operations = OpenOperations(tmp_path / "s1.open")
    cells = [operations.cell(f"operation/{n}") for n in range(300)]
    assert len(set(cells)) == 256
    assert operations.cell("operation/7") == cells[7]
    operations.cells[cells[299]] = 1
    [one] = open_operations(tmp_path, "s1")
    assert one.name == "(another operation)"
    operations.cells[cells[299]] = 0
    long = OpenOperations(tmp_path / "s2.open")
    long.cells[long.cell("x" * 500)] = 1
    assert [one.name for one in open_operations(tmp_path, "s2")] == ["x" * 120]


def test_a_run_that_is_over_notes_nothing_more(tmp_path: Path) -> None:
    """What is set behind its end goes nowhere, and harms nothing."""
    notes = FlightNotes(tmp_path, "s1")
    cell = notes.operations.cell("operation/read")
    notes.release()
    notes.operations.cells[cell] = 5
    notes.release()
    assert open_operations(tmp_path, "s1") == []


# Who it was


def test_a_process_says_who_it_is(tmp_path: Path) -> None:
    """Its command, folder, rank and interpreter; nothing of its environment."""
    run(tmp_path, BEGIN, "--epochs", "3", RANK="2", FAVOURITE="a-film-of-mine")
    told = flight_of(tmp_path, "s1")
    assert told is not None
    assert told.argv[0] == sys.executable
    assert told.argv[-3:] == [str(tmp_path), "--epochs", "3"]
    assert (told.rank, told.cwd) == (2, str(Path.cwd()))
    assert told.python == sys.version.split()[0]
    assert told.boot_id == flight.boot_id()
    assert told.stderr_file == ""
    assert b"a-film-of-mine" not in (tmp_path / "s1.flight").read_bytes()


def test_names_that_are_no_utf8_are_told_as_their_bytes(tmp_path: Path) -> None:
    """A process that was started with such a one, or writes to one, still says who it is."""
    argv = [sys.executable, "-c", PROCESS + BEGIN, str(tmp_path), b"caf\xe9.mp4"]
    with Path(os.fsdecode(b"%s/job\xff.err" % os.fsencode(tmp_path))).open("wb") as errors:
        subprocess.run(argv, stderr=errors, check=True)
    told = flight_of(tmp_path, "s1")
    assert told is not None
    assert told.argv[-1] == "caf\\udce9.mp4"
    assert told.stderr_file == f"{tmp_path}/job\\udcff.err"


def test_a_file_that_errors_go_to_is_known(tmp_path: Path) -> None:
    """As under `nohup`, Slurm or a redirection; nothing is put between."""
    argv = [sys.executable, "-c", PROCESS + BEGIN, str(tmp_path)]
    with (tmp_path / "job.err").open("wb") as errors:
        subprocess.run(argv, stderr=errors, check=True)
    told = flight_of(tmp_path, "s1")
    assert told is not None
    assert told.stderr_file == str(tmp_path / "job.err")


def test_the_kernel_counts_whom_it_killed_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """None where it does not say."""
    content = "nr_free_pages 12\noom_kill 3\noom_kill_disable 0\n"
    monkeypatch.setattr(flight, "_content", lambda _: content)
    assert flight.oom_kills() == 3
    monkeypatch.setattr(flight, "_content", lambda _: "")
    assert flight.oom_kills() is None


@pytest.mark.parametrize("session", ["s1", "gone/s1"])
def test_notes_that_cannot_be_taken_do_no_harm(tmp_path: Path, session: str) -> None:
    """Without a folder to write to the program logs and times as ever; a broken note is none."""
    code = f"""
notes = FlightNotes(folder / "nowhere", "{session}")
notes.operations.cells[notes.operations.cell("operation/read")] = 5
log.warning("said")
notes.release()
"""
    done = run(tmp_path, code)
    assert (done.returncode, done.stderr) == (0, "said\n")
    for kind in ("flight", "lines", "open"):
        (tmp_path / f"s2.{kind}").write_bytes(b"\xff{" * 700)
    for name in ("s1", "s2"):
        assert flight_of(tmp_path, name) is None
        assert open_operations(tmp_path, name) == []
        assert log_lines(tmp_path, name) == []
