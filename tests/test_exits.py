"""Facts about `opusclip_mlops.exits`: what is noted of a process that ends, and where."""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from opusclip_mlops.exits import (
    SIGNALS,
    DeathNotes,
    ExitWatch,
    as_tag,
    end_declared,
    end_of,
    stacks_now,
    traceback_of,
)

PROCESS = """
import ctypes, faulthandler, os, resource, shutil, signal, sys, threading, time
from pathlib import Path
from opusclip_mlops.exits import DeathNotes
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
folder = Path(sys.argv[1])
def train(act, *arguments):
    act(*arguments)
def send(name):
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(0.1)
"""
BEGIN = 'notes = DeathNotes(folder, "s1")\n'
SURVIVED = 'print("survived", flush=True)\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for notes."""
    path = tmp_path / "notes"
    path.mkdir()
    return path


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """A process that runs this code to its end."""
    argv = [sys.executable, "-c", PROCESS + code, str(folder)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def notes(folder: Path) -> dict[str, bytes]:
    """What was noted, by file name; empty notes are none."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {name: content for name, content in found.items() if content}


# Signals and crashes


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_is_noted_before_it_kills(folder: Path, name: str) -> None:
    """The note names the lines the process was at; the signal kills it as ever."""
    done = run(folder, BEGIN + f'train(send, "{name}")')
    assert done.returncode == -getattr(signal, name)
    assert list(notes(folder)) == [f"s1.{name}"]
    assert b"in train" in notes(folder)[f"s1.{name}"]


@pytest.mark.parametrize(
    ("code", "number", "words"),
    [
        ("train(ctypes.string_at, 0)", signal.SIGSEGV, b"Segmentation fault"),
        ("train(os.abort)", signal.SIGABRT, b"Aborted"),
    ],
)
def test_a_crash_is_noted(folder: Path, code: str, number: int, words: bytes) -> None:
    """What kills the interpreter from inside leaves its name and the lines it was at."""
    assert run(folder, BEGIN + code).returncode == -number
    assert list(notes(folder)) == ["s1.fatal"]
    assert words in notes(folder)["s1.fatal"]
    assert b"in train" in notes(folder)["s1.fatal"]


def test_kill_9_leaves_no_note(folder: Path) -> None:
    """Nobody can note what nobody can catch."""
    assert run(folder, BEGIN + 'send("SIGKILL")').returncode == -signal.SIGKILL
    assert notes(folder) == {}


# Exit codes


@pytest.mark.parametrize(
    ("code", "noted"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("sys.exit('words')", 1),
        ("1 / 0", 1),
        ("ctypes.CDLL(None).exit(9)", 9),
        ("sys.exit(-1)", 255),
    ],
)
def test_the_exit_code_is_noted(folder: Path, code: str, noted: int) -> None:
    """The C library writes it, whoever ends the process and how."""
    assert run(folder, BEGIN + code).returncode == noted
    assert notes(folder) == {"s1.exit": bytes([noted])}


def test_an_end_without_the_c_library_leaves_no_code(folder: Path) -> None:
    """`os._exit` asks nobody."""
    assert run(folder, BEGIN + "os._exit(5)").returncode == 5
    assert notes(folder) == {}


# Several runs in one process

TWO = """
for name in "ab":
    (folder / name).mkdir()
first, second = (DeathNotes(folder / name, name) for name in "ab")
"""


@pytest.mark.parametrize(("code", "kind"), [("send('SIGTERM')", "SIGTERM"), ("exit(3)", "exit")])
def test_each_run_of_a_process_has_its_notes(folder: Path, code: str, kind: str) -> None:
    """Two trackers of one process are told the same."""
    run(folder, TWO + code)
    first, second = notes(folder / "a"), notes(folder / "b")
    assert first.keys() == {f"a.{kind}"}
    assert second == {f"b.{kind}": first[f"a.{kind}"]}


def test_a_run_that_goes_on_keeps_its_notes(folder: Path) -> None:
    """Of two trackers one is closed: the death of the process is noted for the other."""
    run(folder, TWO + "first.release(); first.release(); send('SIGTERM')")
    assert notes(folder / "b").keys() == {"b.SIGTERM"}


@pytest.mark.parametrize(("code", "kind"), [("send('SIGTERM')", "SIGTERM"), ("exit(3)", "exit")])
def test_a_short_run_before_and_after_takes_no_notes_from_a_long_one(
    folder: Path, code: str, kind: str
) -> None:
    """The first run's folder is gone when the third begins: the second goes on taking notes."""
    again = """
first.release()
shutil.rmtree(folder / "a")
(folder / "c").mkdir()
third = DeathNotes(folder / "c", "c")
"""
    run(folder, TWO + again + code)
    assert notes(folder / "b").keys() == {f"b.{kind}"}
    assert notes(folder / "c").keys() == {f"c.{kind}"}


def test_runs_after_each_other_have_their_own_notes(folder: Path) -> None:
    """The first one's folder is gone when the second begins."""
    code = 'notes.release(); [one.unlink() for one in folder.iterdir()]; DeathNotes(folder, "s2")\n'
    run(folder, BEGIN + code + "send('SIGHUP')")
    assert notes(folder).keys() == {"s2.SIGHUP"}
    for path in folder.iterdir():
        path.unlink()
    run(folder, BEGIN + code + "sys.exit(4)")
    assert notes(folder) == {"s2.exit": b"\x04"}


# Children

FORK = """
child = os.fork()
if not child:
    {}
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), flush=True)
"""
POOL = """
import multiprocessing
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
worker.start()
time.sleep(0.2)
worker.terminate()
worker.join()
print(worker.exitcode, flush=True)
"""


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        (POOL, "-15"),
        (FORK.format("send('SIGTERM')"), "-15"),
        (FORK.format("sys.exit(7)"), "7"),
        (FORK.format("ctypes.string_at(0)"), "-11"),
    ],
    ids=["a terminated worker", "SIGTERM", "exit 7", "a segfault"],
)
def test_a_forked_child_notes_nothing_for_its_parent(folder: Path, code: str, printed: str) -> None:
    """A data loader's worker dies its own death; its parent's is noted afterwards."""
    assert run(folder, BEGIN + code + "sys.exit(3)").stdout == f"{printed}\n"
    assert notes(folder) == {"s1.exit": b"\x03"}


def test_a_child_with_a_run_of_its_own_has_its_own_notes(folder: Path) -> None:
    """A forked process that begins a run is noted for that run only."""
    code = FORK.format('DeathNotes(folder, "s2"); sys.exit(7)')
    run(folder, BEGIN + code + "os.kill(os.getpid(), 15)")
    assert notes(folder).keys() == {"s1.SIGTERM", "s2.exit"}
    assert notes(folder)["s2.exit"] == b"\x07"


# What belongs to the user


HANDLER = "signal.signal(signal.SIGTERM, lambda *_: print('handled', flush=True))\n"


@pytest.mark.parametrize("code", [HANDLER + BEGIN, BEGIN + HANDLER], ids=["before", "after"])
def test_a_handler_of_the_script_stays_its_own(folder: Path, code: str) -> None:
    """It is called, before or after the run began, and no death is noted."""
    done = run(folder, code + "send('SIGTERM')")
    assert (done.returncode, done.stdout) == (0, "handled\n")
    assert notes(folder) == {"s1.exit": b"\0"}


def test_a_handler_outlasts_the_run(folder: Path) -> None:
    """A handler that was there before the run is there after it."""
    done = run(folder, HANDLER + BEGIN + "notes.release(); send('SIGTERM')")
    assert (done.returncode, done.stdout) == (0, "handled\n")


RELEASE = "notes.release()\n"
AGAIN = 'again = DeathNotes(folder, "s2"); again.release()\n'
DEFAULT = "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"


@pytest.mark.parametrize("end", [RELEASE, RELEASE + AGAIN, AGAIN + RELEASE])
def test_a_handler_that_came_during_the_run_outlasts_it(folder: Path, end: str) -> None:
    """What `fit()` installs is called after the run is closed, and after a further run too."""
    done = run(folder, BEGIN + HANDLER + end + "send('SIGTERM')")
    assert (done.returncode, done.stdout) == (0, "handled\n")


def test_a_handler_that_came_during_the_run_is_there_in_a_forked_child(folder: Path) -> None:
    """It is the child's as it is the parent's."""
    done = run(folder, BEGIN + HANDLER + FORK.format("send('SIGTERM'); os._exit(0)"))
    assert done.stdout == "handled\n0\n"


def test_a_handler_that_is_taken_back_makes_room_for_notes(folder: Path) -> None:
    """A later run takes notes again."""
    code = BEGIN + HANDLER + RELEASE + DEFAULT + 'notes = DeathNotes(folder, "s2")\n'
    assert run(folder, code + "send('SIGTERM')").returncode == -signal.SIGTERM
    assert notes(folder).keys() == {"s2.SIGTERM"}


def test_what_is_ignored_stays_ignored(folder: Path) -> None:
    """`nohup` goes on working."""
    ignore = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    done = run(folder, ignore + BEGIN + "send('SIGHUP')\n" + SURVIVED)
    assert (done.returncode, done.stdout) == (0, "survived\n")
    assert notes(folder) == {"s1.exit": b"\0"}


def test_a_faulthandler_of_the_script_stays_its_own(folder: Path) -> None:
    """One that is enabled already writes where it wrote, during the run and after it."""
    code = "faulthandler.enable()\n" + BEGIN + "notes.release()\nctypes.string_at(0)"
    done = run(folder, code)
    assert "Segmentation fault" in done.stderr
    assert notes(folder) == {}


def test_release_puts_back_what_was_there(folder: Path) -> None:
    """Afterwards signals kill without a note, nothing is held open, and the exit code is noted."""
    code = """
before = len(os.listdir("/proc/self/fd"))
notes = DeathNotes(folder, "s1")
notes.release()
print(faulthandler.is_enabled(), len(os.listdir("/proc/self/fd")) - before, flush=True)
send("SIGTERM")
"""
    done = run(folder, code)
    # The one file that stays open is the C library's, for the exit code.
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "False 1\n")
    assert notes(folder) == {}


@pytest.mark.parametrize("where", ["gone", "file"])
def test_notes_that_cannot_be_taken_do_no_harm(folder: Path, where: str) -> None:
    """Without a folder to write to the process runs and dies as it would have."""
    (folder / "file").touch()
    code = f'notes = DeathNotes(folder / "{where}", "s1")\n'
    assert run(folder, code + "notes.release(); sys.exit(3)").returncode == 3
    assert run(folder, code + "send('SIGTERM')").returncode == -signal.SIGTERM


# What Python itself sees


@pytest.fixture
def watch() -> Iterator[ExitWatch]:
    found = ExitWatch()
    yield found
    found.release()


def test_an_exception_nobody_caught_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    """It is printed as ever, by whatever printed it before."""
    watch = ExitWatch()
    error = ValueError("no loss")
    sys.excepthook(ValueError, error, None)
    watch.release()
    assert watch.error is error
    assert "ValueError: no loss" in capsys.readouterr().err


@pytest.mark.parametrize("code", [3, "words", None])
def test_sys_exit_is_noted(watch: ExitWatch, code: object) -> None:
    """With its code, and it exits."""
    with pytest.raises(SystemExit) as raised:
        sys.exit(code)  # type: ignore[arg-type]
    assert raised.value.code == code
    assert isinstance(watch.error, SystemExit)
    assert watch.error.code == code


def test_the_watch_ends_where_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there before is put back; what somebody put there since is left."""
    before = sys.excepthook, sys.exit
    ExitWatch().release()
    assert (sys.excepthook, sys.exit) == before
    watch, theirs = ExitWatch(), print
    monkeypatch.setattr(sys, "excepthook", theirs)
    watch.release()
    assert (sys.excepthook, sys.exit) == (theirs, before[1])
    sys.excepthook = before[0]


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (None, ("FINISHED", "")),
        (SystemExit(), ("FINISHED", "")),
        (SystemExit(0), ("FINISHED", "")),
        (SystemExit(3), ("FAILED", "SystemExit: 3")),
        (SystemExit("no data"), ("FAILED", "SystemExit: no data")),
        (ValueError("two\n lines"), ("FAILED", "ValueError: two lines")),
        (KeyboardInterrupt(), ("KILLED", "KeyboardInterrupt")),
        (OSError("at postgres://me:secret@db/x"), ("FAILED", "OSError: at postgres://me:***@db/x")),
    ],
)
def test_how_an_exception_ends_a_run(error: BaseException | None, end: tuple[str, str]) -> None:
    """Ctrl-C kills it, an exit with 0 finishes it, all else fails it, with the reason."""
    assert end_of(error) == end


class _Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("nothing to say")


def test_an_exception_that_cannot_say_what_it_is_ends_the_run_all_the_same() -> None:
    """By its kind; so the exception that the caller sees is its own."""
    assert end_of(_Wordless()) == ("FAILED", "_Wordless: (no words: RuntimeError)")

    def fail() -> None:
        raise _Wordless

    assert "in fail" in traceback_of(raised_by(fail))


def raised_by(act: Callable[[], object]) -> BaseException:
    """What a call raises, with the lines it came through."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - any
        act()
    return caught.value


def test_a_traceback_holds_the_lines_and_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a URI or a variable with a secret's name holds is taken out."""
    monkeypatch.setenv("STORE_TOKEN", "abcdef123456")

    def lose() -> None:
        raise OSError("postgres://me:hunter22@db/x refused abcdef123456")

    text = traceback_of(raised_by(lose))
    assert "in lose" in text
    assert text.endswith("OSError: postgres://me:***@db/x refused ***\n")


def test_of_a_long_traceback_the_end_is_a_tag() -> None:
    """It fits MLflow, and names the fault; the whole of it is kept elsewhere."""

    def deep(n: int) -> None:
        deep(n - 1) if n else (lambda: 1 / 0)()

    def even(n: int) -> None:
        odd(n - 1) if n else (lambda: 1 / 0)()

    def odd(n: int) -> None:
        even(n - 1)

    whole = traceback_of(raised_by(lambda: even(100)))
    assert whole.startswith("Traceback")
    text = as_tag(whole)
    assert 7000 < len(text) <= 8000
    assert text.startswith("…")
    assert text.endswith("ZeroDivisionError: division by zero\n")
    assert as_tag("short") == "short"
    assert traceback_of(raised_by(lambda: deep(1))).startswith("Traceback")


def test_a_run_that_is_closed_by_name_has_the_lines_of_what_is_handled() -> None:
    """FAILED in an `except` tells why; FINISHED there, or anything elsewhere, does not."""
    try:
        raise ValueError("no loss")
    except ValueError:
        status, reason, lines = end_declared("FAILED")
        assert end_declared("FINISHED") == ("FINISHED", "", "")
    assert (status, reason) == ("FAILED", "")
    assert lines.endswith("ValueError: no loss\n")
    assert end_declared("FAILED") == ("FAILED", "", "")


def test_the_stacks_of_all_threads_are_told() -> None:
    """Each with its thread's name."""
    is_over = threading.Event()
    thread = threading.Thread(target=is_over.wait, name="a-reader")
    thread.start()
    told = stacks_now()
    is_over.set()
    thread.join()
    assert "Thread a-reader (most recent call last):" in told
    assert "in test_the_stacks_of_all_threads_are_told" in told
    assert "in wait" in told


@pytest.mark.parametrize("act", ["send, 'SIGTERM'", "send, 'SIGABRT'"])
def test_busy_threads_change_no_death(folder: Path, act: str) -> None:
    """The note is of the thread that was struck: walking the others' frames crashes some ends."""
    code = """
def spin():
    while True: sum(n for n in range(50))
for _ in range(3): threading.Thread(target=spin, daemon=True).start()
"""
    done = run(folder, BEGIN + code + f"train({act})")
    assert done.returncode == -getattr(signal, act.split("'")[1])
    [told] = notes(folder).values()
    assert b"in train" in told
    assert b"in spin" not in told


def test_an_exit_that_is_asked_for_has_no_traceback() -> None:
    """`sys.exit` and no exception are no fault."""
    assert traceback_of(None) == ""
    assert traceback_of(SystemExit(3)) == ""


def test_a_process_may_take_notes_of_itself_here(folder: Path) -> None:
    """In this process, where pytest has its own faulthandler, that one goes on."""
    was_enabled = faulthandler.is_enabled()
    taken = DeathNotes(folder, "s1")
    taken.release()
    assert faulthandler.is_enabled() == was_enabled
    assert {path.suffix for path in folder.iterdir()} >= {f".{name}" for name in SIGNALS}
    assert os.stat(folder / "s1.SIGTERM").st_mode & 0o777 == 0o600
