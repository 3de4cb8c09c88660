"""Facts about `opusclip_mlops.rendezvous`: where ranks learn which run they log to."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.folder import Identity
from opusclip_mlops.ranks import Place
from opusclip_mlops.rendezvous import (
    FOLDER,
    FileBoard,
    Meeting,
    StoreBoard,
    began_ms,
    board_of,
    keep_in_mind,
    note_run,
    noted_run,
    said,
)
from tests.journeys import make_run, wait_until
from tests.servers import free_port

PLACE = Place(rank=1, local_rank=1, world_size=2)
MEETING = Meeting(
    local_id="abc",
    run_id=None,
    run_name="a run",
    experiment_name="films",
    experiment_id=None,
    start_time_ms=5,
    host="gpu-07",
    node=0,
    journal_dir="/data/journal",
    attempt=0,
)


def test_a_file_holds_what_was_said_last(tmp_path: Path) -> None:
    """Names may hold anything: nothing leaves the folder, and only the user can read it."""
    board = FileBoard(tmp_path)
    name = "opusclip/../../job \udcff/0"
    assert said(board, name) is None
    board.write(name, b"not ours")
    assert said(board, name) is None
    board.write(name, msgspec.json.encode(MEETING))
    assert said(FileBoard(tmp_path), name) == MEETING
    [path] = (tmp_path / FOLDER).iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_name_is_claimed_by_one_process(tmp_path: Path) -> None:
    """Who has claimed it may ask again; any other process is told no."""
    board = FileBoard(tmp_path)
    board.write("run", b"")
    assert board.claim("run/1")
    assert board.claim("run/1")
    code = (
        "import sys; from pathlib import Path; from opusclip_mlops.rendezvous import FileBoard\n"
        "sys.exit(FileBoard(Path(sys.argv[1])).claim('run/1'))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0


def test_what_is_a_month_old_is_removed(tmp_path: Path) -> None:
    """A folder for journals does not fill up with jobs that are long over."""
    board = FileBoard(tmp_path)
    board.write("old", b"1")
    [old] = (tmp_path / FOLDER).iterdir()
    os.utime(old, (time.time() - 31 * 24 * 3600,) * 2)
    board.write("new", b"2")
    assert board.read("old") is None
    assert board.read("new") == b"2"


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
    assert said(client, "run") is None
    host.write("run", msgspec.json.encode(MEETING))
    # Who writes does not wait until it is there.
    wait_until(lambda: said(client, "run") == MEETING)
    later = msgspec.structs.replace(MEETING, attempt=1)
    host.write("run", msgspec.json.encode(later))
    wait_until(lambda: said(client, "run") == later)
    assert client.claim("run/1")
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
    """PyTorch would listen for ever; a name there is claimed by one process as in files."""
    argv = [sys.executable, "-c", STORE]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": other.stdout.readline().strip()}
        board = board_of(PLACE, environment, tmp_path, wait_s=30)
        assert isinstance(board, StoreBoard)
        assert (board.claim("run/1"), board.claim("run/1")) == (True, True)
        monkeypatch.setattr("opusclip_mlops.rendezvous._own_word", lambda: "another")
        assert not board.claim("run/1")
        other.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(board, "_answer_s", 0.2)
        for ask in (
            lambda: board.read("x"),
            lambda: board.write("x", b"1"),
            lambda: board.claim("x"),
        ):
            with pytest.raises(ConfigError, match=r"says nothing for 0\.2 s") as caught:
                ask()
            assert "\n" not in str(caught.value)
        other.kill()
    wait_until(lambda: all(one.name != "opusclip-store" for one in threading.enumerate()))


def test_a_process_knows_when_it_began() -> None:
    """By the clock that it says the time by; it is older than what it does."""
    assert 0 <= time.time() * 1000 - began_ms() < 3_600_000


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
