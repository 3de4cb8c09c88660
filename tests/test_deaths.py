"""Facts about `opusclip_mlops.deaths`: how a process died, told by its notes or the kernel."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from opusclip_mlops.deaths import (
    Death,
    death_of,
    exit_code,
    stale_tags,
    takes_exit_code,
    wait_status,
)
from opusclip_mlops.exits import EXIT_CODE, FATAL, SIGNALS
from opusclip_mlops.flight import FlightNotes, flight_of
from opusclip_mlops.records import RunEnded, RunStarted

START = RunStarted("s1", "here", 4711, 0.0, 0)
LINES = 'Current thread 0x01 (most recent call first):\n  File "train.py", line 3 in train\n'
CORE_DUMPED = 0x80

needs_telling_kernel = pytest.mark.skipif(
    [int(number) for number in re.findall(r"\d+", os.uname().release)[:2]] < [6, 15],
    reason="before Linux 6.15 the kernel tells only the parent how a process ended",
)


def note(folder: Path, kind: str, content: bytes | str) -> None:
    """Leave a note, as the process would have."""
    text = content.encode() if isinstance(content, str) else content
    (folder / f"s1.{kind}").write_bytes(text)


# What the process noted


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_that_asks_to_stop_kills_the_run(tmp_path: Path, name: str) -> None:
    """Whoever sent it wanted it to end: KILLED, with the lines it was at."""
    for kind in (*SIGNALS, FATAL, EXIT_CODE):
        note(tmp_path, kind, LINES if kind == name else "")
    died = death_of(tmp_path, START, wait_status=None)
    reason = f"process 4711 was ended by {name}"
    assert died == Death("KILLED", reason, LINES, name, told_by="its notes")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("Fatal Python error: Segmentation fault", "SIGSEGV"),
        ("Fatal Python error: Aborted", "SIGABRT"),
        ("Fatal Python error: Bus error", "SIGBUS"),
        ("Fatal Python error: Illegal instruction", "SIGILL"),
        ("Fatal Python error: Floating-point exception", "SIGFPE"),
        ("Fatal Python error: Cannot recover", "Fatal Python error: Cannot recover"),
    ],
)
def test_a_crash_fails_the_run(tmp_path: Path, words: str, name: str) -> None:
    """The interpreter's last words are told as the signal behind them, where there is one."""
    said = f"{words}\n\n{LINES}"
    note(tmp_path, FATAL, said)
    died = death_of(tmp_path, START, wait_status=None)
    reason = f"process 4711 was ended by {name}"
    assert died == Death("FAILED", reason, said, name, told_by="its notes")


def test_a_machine_that_was_started_anew_is_told(tmp_path: Path) -> None:
    """By the name that the kernel gives each start of the machine; another host's is not known."""
    here = RunStarted("s1", socket.gethostname(), 4711, 0.0, 0)
    notes = FlightNotes(tmp_path, "s1")
    notes.release()
    assert death_of(tmp_path, here, wait_status=None).reason.endswith("closing its run")
    flight = flight_of(tmp_path, "s1")
    assert flight is not None
    earlier = msgspec.structs.replace(flight, boot_id="an-earlier-one")
    note(tmp_path, "flight", msgspec.json.encode(earlier))
    assert death_of(tmp_path, here, wait_status=None).reason.endswith("started anew since")
    assert death_of(tmp_path, START, wait_status=None).reason.endswith("closing its run")


def test_a_note_goes_before_what_the_kernel_says(tmp_path: Path) -> None:
    """It holds the lines, too."""
    note(tmp_path, "SIGTERM", LINES)
    assert death_of(tmp_path, START, wait_status=signal.SIGTERM).traceback == LINES


def test_a_long_note_fits_a_tag(tmp_path: Path) -> None:
    """Half characters in it are no fault either."""
    note(tmp_path, FATAL, b"\xff" + b"x" * 100_000)
    assert len(death_of(tmp_path, START, wait_status=None).traceback) <= 8000


def test_the_notes_of_another_process_do_not_count(tmp_path: Path) -> None:
    """Each session has its own, and one whose name begins alike is another."""
    (tmp_path / "s12.SIGTERM").write_text(LINES)
    (tmp_path / "s12.exit").write_bytes(b"\3")
    assert "vanished" in death_of(tmp_path, START, wait_status=None).reason


# What the exit code says


@pytest.mark.parametrize(
    ("code", "status"), [(0, "FINISHED"), (1, "FAILED"), (3, "FAILED"), (255, "FAILED")]
)
@pytest.mark.parametrize("by", ["note", "kernel"])
def test_an_exit_code_tells_success_from_failure(
    tmp_path: Path, code: int, status: str, by: str
) -> None:
    """The process's note and the kernel say the same about a process that ended by itself."""
    if by == "note":
        note(tmp_path, EXIT_CODE, bytes([code]))
    died = death_of(tmp_path, START, wait_status=None if by == "note" else code << 8)
    reason = f"process 4711 left with exit code {code} without closing its run"
    told_by = "its exit code" if by == "note" else "the kernel"
    assert died == Death(status, reason, exit_code=code, told_by=told_by)


def test_an_empty_note_holds_no_code(tmp_path: Path) -> None:
    """The file is there from the start, the code only at the end."""
    assert exit_code(tmp_path, "s1") is None
    assert not takes_exit_code(tmp_path, "s1")
    note(tmp_path, EXIT_CODE, b"")
    assert exit_code(tmp_path, "s1") is None
    assert takes_exit_code(tmp_path, "s1")
    note(tmp_path, EXIT_CODE, b"\3")
    assert exit_code(tmp_path, "s1") == 3


# What the kernel says


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGKILL, "FAILED"),
        (signal.SIGSEGV | CORE_DUMPED, "FAILED"),
        (signal.SIGINT, "KILLED"),
        (signal.SIGTERM, "KILLED"),
    ],
)
def test_a_signal_without_a_note_is_told_by_the_kernel(
    tmp_path: Path, number: int, status: str
) -> None:
    """Kill -9, the machine out of memory: nobody could note it, the kernel knows."""
    note(tmp_path, EXIT_CODE, b"")
    name = signal.Signals(number & 0x7F).name
    died = death_of(tmp_path, START, wait_status=number)
    reason = f"process 4711 was ended by {name}"
    assert died == Death(status, reason, signal=name, told_by="the kernel")


def test_a_signal_without_a_name_is_told_by_its_number(tmp_path: Path) -> None:
    """Batch systems send real-time signals, most of which have none."""
    died = death_of(tmp_path, START, wait_status=40)
    reason = "process 4711 was ended by signal 40"
    assert died == Death("FAILED", reason, signal="signal 40", told_by="the kernel")


def test_without_anything_a_process_has_vanished(tmp_path: Path) -> None:
    """Neither a note nor the kernel: FAILED, and it says no more than it knows."""
    died = death_of(tmp_path, START, wait_status=None)
    assert died == Death("FAILED", "process 4711 vanished without closing its run")
    assert death_of(tmp_path / "gone", START, wait_status=None) == died


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leaves with the code it is told."""
    code = "import sys; sys.exit(int(sys.stdin.readline()))"
    process = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def pidfd(child: subprocess.Popen[bytes]) -> Iterator[int]:
    """A hold on the child."""
    descriptor = os.pidfd_open(child.pid)
    yield descriptor
    os.close(descriptor)


@needs_telling_kernel
@pytest.mark.parametrize("killed", [False, True])
def test_the_kernel_says_what_the_parent_was_told(
    child: subprocess.Popen[bytes], pidfd: int, killed: bool
) -> None:
    """While it lives, and until its parent has taken note, nothing; then the same as to it."""
    assert wait_status(pidfd) is None
    assert child.stdin is not None
    if killed:
        child.kill()
    else:
        child.stdin.write(b"3\n")
        child.stdin.flush()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert wait_status(pidfd) is None
    code = child.wait()
    found = wait_status(pidfd)
    assert found is not None
    assert os.waitstatus_to_exitcode(found) == code == (-signal.SIGKILL if killed else 3)


def test_where_the_kernel_cannot_be_asked_nothing_is_known(tmp_path: Path) -> None:
    """A descriptor of something else, or one that is closed."""
    with (tmp_path / "file").open("wb") as file:
        descriptor = file.fileno()
        assert wait_status(descriptor) is None
    assert wait_status(descriptor) is None


@pytest.mark.parametrize(
    ("reason", "lines", "ranks", "stale"),
    [
        ("", "", 1, {"opusclip.end_reason", "opusclip.traceback"}),
        ("killed", "", 2, {"opusclip.traceback"}),
        ("ValueError", "at line 7", 2, set()),
        ("ValueError", "", 1, set()),
    ],
)
def test_tags_of_another_end_are_taken_off(
    reason: str, lines: str, ranks: int, stale: set[str]
) -> None:
    """Those of an attempt before; what a process that is alone said goes before its end."""
    end = RunEnded("s1", "FAILED", 5, reason, traceback=lines)
    assert stale_tags(end, ranks=ranks) == stale
