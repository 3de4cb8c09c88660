"""Facts about `opusclip_mlops.rendezvous`: where ranks learn which run they log to."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.folder import Identity
from opusclip_mlops.ranks import Place
from opusclip_mlops.rendezvous import (
    FOLDER,
    FileBoard,
    StoreBoard,
    board_of,
    is_in_mind,
    keep_for_longer,
    keep_in_mind,
    memory_of,
    note_run,
    noted_run,
)
from tests.journeys import make_run, wait_until
from tests.servers import free_port

PLACE = Place(rank=1, local_rank=1, world_size=2)


def test_a_file_holds_what_was_written_last(tmp_path: Path) -> None:
    """Names may hold anything: nothing leaves the folder, and only the user can read it."""
    board = FileBoard(tmp_path)
    name = "opusclip/../../job \udcff/0"
    board.write(name, None)
    assert board.read(name) is None
    board.append(name, b"a")
    board.append(name, b"b")
    assert FileBoard(tmp_path).read(name) == b"ab"
    board.write(name, b"c")
    assert board.read(name) == b"c"
    [path] = (tmp_path / FOLDER).iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    board.write(name, None)
    assert list(path.parent.iterdir()) == []


def test_what_is_a_month_old_is_removed(tmp_path: Path) -> None:
    """A folder for journals does not fill up with jobs that are long over."""
    board = FileBoard(tmp_path)
    board.write("old", b"1")
    [old] = (tmp_path / FOLDER).iterdir()
    os.utime(old, (time.time() - 31 * 24 * 3600,) * 2)
    # Who writes often does not look through all of it each time.
    board.write("new", b"2")
    assert board.read("old") == b"1"
    FileBoard(tmp_path).write("new", b"3")
    assert board.read("old") is None
    assert board.read("new") == b"3"


def test_who_writes_for_long_removes_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once an hour."""
    board = FileBoard(tmp_path)
    board.write("old", b"1")
    [old] = (tmp_path / FOLDER).iterdir()
    os.utime(old, (time.time() - 31 * 24 * 3600,) * 2)
    now_s = time.monotonic()
    monkeypatch.setattr("opusclip_mlops.rendezvous.time.monotonic", lambda: now_s + 3601)
    board.write("new", b"2")
    assert board.read("old") is None


def test_what_a_run_needs_is_kept_while_it_trains(tmp_path: Path) -> None:
    """Also for months: its owner renews it."""
    folder = make_run(tmp_path)
    keep_in_mind(folder)
    [path] = (folder.path.parent / FOLDER).iterdir()
    os.utime(path, (time.time() - 31 * 24 * 3600,) * 2)
    keep_for_longer(folder)
    FileBoard(folder.path.parent).write("another", b"")
    assert is_in_mind(folder)


MEMORY = """
import os, sys
from pathlib import Path
from opusclip_mlops.ranks import place_in
from opusclip_mlops.rendezvous import StoreBoard, memory_of

store = StoreBoard.__new__(StoreBoard)
board = memory_of(place_in(os.environ), os.environ, Path(sys.argv[1]), store)
print(None if board is None else board.read("run"))
if board is not None:
    board.write("run", sys.argv[2].encode())
"""
AGENT = """
import os, subprocess, sys
place, *names = sys.argv[2:]
for name in names:
    numbers = dict(RANK="0", WORLD_SIZE="1", TORCHELASTIC_RUN_ID="myjob")
    argv = [sys.executable, "-c", sys.argv[1], place, name]
    # As a script between the agent and its rank would.
    argv = ["sh", "-c", '"$@"; true', "x", *argv] if name == "by-script" else argv
    subprocess.run(argv, env={**os.environ, **numbers}, check=True)
"""


def test_an_agent_remembers_its_own_job_and_no_other(tmp_path: Path) -> None:
    """Another agent may have the same name for its job, at once or a week later."""
    for expected in (["None", "b'one'", "b'by-script'"], ["None", "b'one'", "b'by-script'"]):
        argv = [sys.executable, "-c", AGENT, MEMORY, str(tmp_path), "one", "by-script", "three"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120)
        assert done.stdout.split() == expected


def test_a_job_of_slurm_is_remembered_by_its_number(tmp_path: Path) -> None:
    """It has it again when put back into the queue; no name is no memory, nor is any needed where
    the store itself lasts."""
    store = StoreBoard.__new__(StoreBoard)
    job = Place(rank=0, local_rank=0, world_size=2, job="17.0")
    memory = memory_of(job, {}, tmp_path, store)
    assert memory is not None
    memory.write("run", b"here")
    assert FileBoard(tmp_path).read("run") == b"here"
    assert memory_of(PLACE, {}, tmp_path, store) is None
    assert memory_of(job, {}, tmp_path, memory) is None
    agents = {"TORCHELASTIC_RUN_ID": "myjob", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert memory_of(PLACE, agents, tmp_path, store) is None


def test_unnamed_jobs_of_two_parents_do_not_meet(tmp_path: Path) -> None:
    """Where a launcher has no name for its job, its ranks are those with the same parent."""
    here = board_of(PLACE, {}, tmp_path, wait_s=0)
    here.write("run", b"here")
    code = (
        "import sys; from pathlib import Path; from opusclip_mlops.ranks import Place\n"
        "from opusclip_mlops.rendezvous import board_of\n"
        "place = Place(rank=0, local_rank=0, world_size=2, job=sys.argv[2])\n"
        "found = board_of(place, {}, Path(sys.argv[1]), wait_s=0).read('run')\n"
        "sys.exit(found is not None)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run([*arguments, ""], check=False).returncode == 0
    FileBoard(tmp_path).write("run", b"named")
    assert subprocess.run([*arguments, "a-job"], check=False).returncode == 1


def test_ranks_meet_at_a_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rank 0 holds it where no agent of torchrun does, and PyTorch's own store shares its port."""
    monkeypatch.setattr("opusclip_mlops.rendezvous._hosted", [])
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    owner = Place(rank=0, local_rank=0, world_size=2)
    host = board_of(owner, environment, tmp_path, wait_s=30)
    client = board_of(PLACE, environment, tmp_path, wait_s=30)
    assert isinstance(client, StoreBoard)
    assert client.read("run") is None
    host.write("run", b"1")
    # Who writes does not wait until it is there.
    wait_until(lambda: client.read("run") == b"1")
    client.append("run", b"2")
    wait_until(lambda: host.read("run") == b"12")
    host.write("run", None)
    wait_until(lambda: client.read("run") is None)
    from torch.distributed import TCPStore

    port = int(environment["MASTER_PORT"])
    own = TCPStore("127.0.0.1", port, 2, True, wait_for_workers=False, multi_tenant=True)
    own.set("theirs", "x")
    wait_until(lambda: client.read("theirs") == b"x")


STORE = """
import sys
from torch.distributed import TCPStore

store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


def test_a_store_that_stops_answering_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch would listen for ever."""
    argv = [sys.executable, "-c", STORE]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": other.stdout.readline().strip()}
        board = board_of(PLACE, environment, tmp_path, wait_s=30)
        assert isinstance(board, StoreBoard)
        other.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(board, "_answer_s", 0.2)
        for ask in (
            lambda: board.read("x"),
            lambda: board.write("x", b"1"),
            lambda: board.write("x", None),
            lambda: board.append("x", b"1"),
        ):
            with pytest.raises(ConfigError, match=r"says nothing for 0\.2 s") as caught:
                ask()
            assert "\n" not in str(caught.value)
        other.kill()
    wait_until(lambda: all(one.name != "opusclip-store" for one in threading.enumerate()))


def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    """One line says where it was looked for, for how long, and what to do; torch is not asked."""
    port = free_port()
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    with pytest.raises(ConfigError, match=f"no store answers at 127.0.0.1:{port} ") as caught:
        board_of(PLACE, environment, tmp_path, wait_s=0.2)
    assert "after 0.2 s" in str(caught.value)
    assert "OPUSCLIP_RANKS" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_service_is_no_store(tmp_path: Path) -> None:
    """What listens at the port and does not speak as a store does is told as one that is away."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with pytest.raises(ConfigError, match=f"no store answers at 127.0.0.1:{port} ") as caught:
            board_of(PLACE, environment, tmp_path, wait_s=1)
    assert "\n" not in str(caught.value)


def test_without_an_address_they_meet_in_files(tmp_path: Path) -> None:
    """So do they where the port is none."""
    assert isinstance(board_of(PLACE, {}, tmp_path, wait_s=0), FileBoard)
    odd = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "x"}
    assert isinstance(board_of(PLACE, odd, tmp_path, wait_s=0), FileBoard)


def test_a_run_outlasts_its_folder_where_that_is_wanted(tmp_path: Path) -> None:
    """Ranks that are started anew find the MLflow run of a folder that is gone."""
    folder = make_run(tmp_path)
    folder.write_identity(Identity(mirror_id="m", experiment_name="films", run_id="run-1"))
    note_run(folder)
    assert noted_run(folder) is None
    keep_in_mind(folder)
    assert noted_run(folder) is None
    note_run(folder)
    assert noted_run(folder) == "run-1"
