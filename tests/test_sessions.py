import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from opusclip_mlops import journal
from opusclip_mlops import sessions as sessions_module
from opusclip_mlops.folder import CONTROL, RunFolder
from opusclip_mlops.records import RunEnded, RunStarted
from opusclip_mlops.sessions import (
    final_end,
    is_alive,
    process_started_s,
    sessions,
    with_traceback,
)
from tests.journeys import append, end, make_run, wait_until

HOLDER = """
import os, sys, time
from pathlib import Path
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.sessions import hold_alive
hold_alive(RunFolder(Path(sys.argv[1])), "s2")
if sys.argv[2] == "fork" and os.fork() == 0:
    time.sleep(60)
print("held", flush=True)
sys.stdin.read()
os._exit(0)
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path)


def holder(folder: RunFolder, mode: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder.path), mode],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def started(host: str = "elsewhere", pid: int = 1, started_s: float = 0.0) -> RunStarted:
    return RunStarted("s2", host, pid, started_s, 0)


def test_a_process_is_alive_while_it_holds_its_lock(folder: RunFolder) -> None:
    """Neither host name nor pid nor start time is asked: a container may have changed them all."""
    process = holder(folder)
    assert is_alive(folder, started())
    assert is_alive(folder, started(socket.gethostname(), 2**22, 5.0))
    process.kill()
    process.wait()
    assert not is_alive(folder, started())


def test_a_reused_pid_is_not_mistaken_for_the_trainer(folder: RunFolder) -> None:
    """A dead process whose pid another has is dead."""
    process = holder(folder)
    process.kill()
    process.wait()
    own = (socket.gethostname(), os.getppid(), process_started_s(os.getppid()))
    assert not is_alive(folder, started(*own))


def test_a_forked_child_does_not_keep_its_parent_alive(folder: RunFolder) -> None:
    """A data loader's worker that outlives the trainer is not the trainer."""
    process = holder(folder, "fork")
    [child] = psutil.Process(process.pid).children()
    assert is_alive(folder, started())
    process.kill()
    process.wait()
    assert child.is_running()
    assert not is_alive(folder, started())
    child.kill()


def test_without_locks_a_process_is_known_by_pid_and_start(folder: RunFolder) -> None:
    """On a file system that has no locks; a process of another host can't be seen, and lives."""
    here, pid = socket.gethostname(), os.getppid()
    assert is_alive(folder, started(here, pid, process_started_s(pid)))
    assert not is_alive(folder, started(here, pid, process_started_s(pid) - 1))
    assert is_alive(folder, started("elsewhere"))


def test_a_process_sees_itself(folder: RunFolder) -> None:
    """The trainer asks about its own session too."""
    [own] = sessions(folder)
    assert is_alive(folder, own.start)


def test_a_zombie_is_dead() -> None:
    """A process that has ended and is not yet waited for has no start time any more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    with pytest.raises(ProcessLookupError):
        process_started_s(child.pid)
    child.wait()
    with pytest.raises(ProcessLookupError):
        process_started_s(child.pid)


def test_the_exit_code_has_the_last_word(folder: RunFolder) -> None:
    """An end that nobody declared but the interpreter gives way to what the supervisor found."""
    said = RunEnded("s1", "FINISHED", 5, at_exit=True)
    append(folder, [said], journal="s1" + CONTROL)
    assert final_end(folder) == said
    found = RunEnded("s1", "FAILED", 6, "left with code 3")
    append(folder, [found], journal="supervisor" + CONTROL)
    assert final_end(folder) == found
    end(folder)
    assert final_end(folder).status == "FINISHED"


def rank_part(
    folder: RunFolder, rank: int, *, start_ms: int, attempt: int = 0, size: int = 2
) -> str:
    """A rank begins to log to the run; what its part is called."""
    name = f"rank{rank}-{attempt}-{start_ms}"
    start = RunStarted(
        name, f"gpu-{rank}", 1, 0.0, start_ms, rank=rank, attempt=attempt, world_size=size
    )
    append(folder, [start], journal=name + CONTROL)
    return name


def rank_end(folder: RunFolder, name: str, status: str, end_ms: int, reason: str = "") -> None:
    """A rank's part ends."""
    append(folder, [RunEnded(name, status, end_ms, reason)], journal=name + CONTROL)


@pytest.fixture
def shared(tmp_path: Path) -> RunFolder:
    """A run's folder that nobody but ranks logs to."""
    folder = make_run(tmp_path)
    for path in folder.segments():
        path.unlink()
    return folder


def test_the_first_failure_of_many_ranks_is_the_reason(shared: RunFolder) -> None:
    """Whoever was told to end, or failed later, did so because of it; the run ends with the last.

    One may fail before another has begun.
    """
    first = rank_part(shared, 0, start_ms=10)
    rank_end(shared, first, "FAILED", 40, "a bad batch")
    told = rank_part(shared, 1, start_ms=50)
    rank_end(shared, told, "KILLED", 30, "SIGTERM")
    later = rank_part(shared, 2, start_ms=20)
    rank_end(shared, later, "FAILED", 70, "a peer is gone")
    assert final_end(shared) == RunEnded(first, "FAILED", 70, "rank 0 on gpu-0: a bad batch")


def test_ranks_that_were_all_told_to_end_were_killed(shared: RunFolder) -> None:
    """The first of them is named."""
    for rank in (0, 1):
        rank_end(shared, rank_part(shared, rank, start_ms=1), "KILLED", 9 - rank, "SIGTERM")
    end = final_end(shared)
    assert end is not None
    assert (end.status, end.reason, end.end_time_ms) == ("KILLED", "rank 1 on gpu-1: SIGTERM", 9)


def test_a_failure_counts_until_the_ranks_were_started_anew(shared: RunFolder) -> None:
    """In a new attempt of their launcher, or in a new launch, where a rank comes again."""
    rank_end(shared, rank_part(shared, 0, start_ms=10), "FAILED", 20, "first")
    rank_end(shared, rank_part(shared, 1, start_ms=10), "FINISHED", 30)
    rank_end(shared, rank_part(shared, 1, start_ms=40, attempt=1), "FINISHED", 50)
    end = final_end(shared)
    assert end is not None
    assert end.status == "FINISHED"
    rank_end(shared, rank_part(shared, 0, start_ms=60, attempt=1), "FAILED", 70, "second")
    end = final_end(shared)
    assert end is not None
    assert end.reason == "rank 0 on gpu-0: second"
    rank_end(shared, rank_part(shared, 0, start_ms=80, attempt=1), "FINISHED", 90)
    end = final_end(shared)
    assert end is not None
    assert end.status == "FINISHED"


@pytest.mark.parametrize("size", [1, 2])
def test_an_attempt_is_over_by_its_number_and_by_no_clock(shared: RunFolder, size: int) -> None:
    """A machine whose clock is ahead says of the first attempt that it ended behind the second."""
    for rank in range(size):
        rank_end(shared, rank_part(shared, rank, start_ms=10, size=size), "FAILED", 900, "first")
    for rank in range(size):
        name = rank_part(shared, rank, start_ms=40, attempt=1, size=size)
        rank_end(shared, name, "FINISHED", 50)
    end = final_end(shared)
    assert end is not None
    assert end.status == "FINISHED"


def test_the_lines_of_a_rank_are_in_its_end() -> None:
    """Under its name; those of a process that is alone are not."""
    rank = RunStarted("s2", "gpu-1", 1, 0.0, 0, rank=1, world_size=2)
    end = RunEnded("s2", "FAILED", 5, "ValueError")
    assert with_traceback(rank, end, "at line 7").traceback == "rank 1 on gpu-1:\nat line 7"
    assert with_traceback(started(), end, "at line 7") == end
    assert with_traceback(rank, end, "") == end


def test_one_rank_alone_is_not_named(shared: RunFolder) -> None:
    """A launcher that starts a single process makes no many of it."""
    rank_end(shared, rank_part(shared, 0, start_ms=1, size=1), "FAILED", 9, "a bad batch")
    end = final_end(shared)
    assert end is not None
    assert end.reason == "a bad batch"


def test_starts_and_ends_are_read_when_there_are_new_ones(
    shared: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sinks ask ten times a second: 64 ranks open no file for that, and miss no end."""
    names = [rank_part(shared, rank, start_ms=1, size=64) for rank in range(64)]
    assert final_end(shared) is None
    opened: list[Path] = []
    read = journal.read
    monkeypatch.setattr(
        sessions_module.journal, "read", lambda path, *_: opened.append(path) or read(path)
    )
    for _ in range(10):
        assert final_end(shared) is None
    assert opened == []
    for rank, name in enumerate(names):
        rank_end(shared, name, "FINISHED", 10 + rank)
    end = final_end(shared)
    assert end is not None
    assert end.end_time_ms == 73


def test_who_logs_is_what_stands_there_after_every_start_and_end(shared: RunFolder) -> None:
    """In any order, of any sessions; and a list that was given is nobody else's."""
    chance = random.Random(3)
    for turn in range(60):
        name = f"rank{chance.randrange(5)}"
        begins = RunStarted(name, "gpu-1", 1, 0.0, turn, rank=0, world_size=5)
        ends = RunEnded(name, chance.choice(("FINISHED", "KILLED")), turn)
        record = chance.choice((begins, ends))
        append(shared, [record], journal=chance.choice((name, "supervisor")) + CONTROL)
        found = sessions(shared)
        key = sessions_module._control_key(shared)
        assert found == list(sessions_module._sessions.__wrapped__(shared.path, key))
        found.clear()
