"""Facts about `opusclip_mlops.meeting`: what ranks are told of their run, and which of them."""

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.flight import boot_id
from opusclip_mlops.meeting import Answering, Asking, Meeting, folder_of, said, seen_here
from opusclip_mlops.ranks import Place
from opusclip_mlops.rendezvous import FOLDER, Board, FileBoard, board_of
from opusclip_mlops.sessions import process_started_s
from tests.journeys import wait_until
from tests.servers import free_port

MEETING = Meeting(
    local_id="abc",
    run_id=None,
    run_name="a run",
    experiment_name="films",
    experiment_id=None,
    start_time_ms=5,
    host=socket.gethostname(),
    journal_dir="/data/journal",
    attempt=0,
    boot=boot_id(),
)
AGAIN = msgspec.structs.replace(MEETING, attempt=1)
STORE = Place(rank=0, local_rank=0, world_size=2)


@pytest.fixture(params=["files", "store"])
def board(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Board]:
    """Where ranks meet, of either kind."""
    if request.param == "files":
        yield FileBoard(tmp_path)
        return
    monkeypatch.setattr("opusclip_mlops.rendezvous._hosted", [])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    yield board_of(STORE, where, tmp_path, wait_s=30)


def owner(board: Board, meeting: Meeting = MEETING) -> Answering:
    return Answering(board, "run", meeting, may_ask=True, keep=lambda: None)


def answer(asking: Asking) -> Meeting:
    found: list[Meeting | None] = []
    wait_until(lambda: found.append(asking.look()) or found[-1] is not None)
    assert found[-1] is not None
    return found[-1]


def test_who_asks_is_answered_by_the_owner_that_lives(board: Board) -> None:
    """However late that is, and whatever the dead have asked or were told."""
    dead = Asking(board, "run")
    assert dead.look() is None
    first = owner(board)
    wait_until(lambda: said(board, f"run/answer/{dead._word}") == MEETING)
    asking = Asking(board, "run")
    killed(first)
    assert asking.look() is None
    time.sleep(0.2)
    assert asking.look() is None
    second = owner(board, AGAIN)
    assert answer(asking) == AGAIN
    second.leave()


def killed(answers: Answering) -> None:
    """End it as a kill does: it says nothing."""
    answers.board = _Gone()
    answers.leave()


class _Gone:
    """A board that does not answer."""

    def read(self, name: str) -> bytes | None:
        raise ConfigError(f"no store answers for {name}")

    def write(self, name: str, content: bytes | None) -> None:
        raise ConfigError(f"no store answers for {name}, {content!r}")

    append = write


def test_a_rank_that_is_started_anew_alone_is_answered_anew(board: Board) -> None:
    """While the owner trains on; what was answered is removed by who has read it."""
    answers = owner(board)
    for _ in range(2):
        asking = Asking(board, "run")
        assert answer(asking) == MEETING
        assert board.read(f"run/answer/{asking._word}") is None
    answers.leave()


@pytest.mark.parametrize(("age_s", "is_ours"), [(-1.0, True), (1.0, False)])
def test_the_last_words_of_an_owner_are_for_who_lived_then(
    tmp_path: Path, age_s: float, is_ours: bool
) -> None:
    """A run of a second is joined; that of an attempt before is not, nor by another machine."""
    board, asking = FileBoard(tmp_path), Asking(FileBoard(tmp_path), "run")
    left = msgspec.structs.replace(MEETING, ended_s=process_started_s(os.getpid()) - age_s)
    board.write("run/over", msgspec.json.encode(left))
    assert asking.look() == (left if is_ours else None)
    other = msgspec.structs.replace(left, boot="another")
    board.write("run/over", msgspec.json.encode(other))
    assert asking.look() is None
    assert asking.left() == other


@pytest.mark.parametrize("is_read", [False, True])
def test_a_question_that_another_machine_has_overwritten_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_read: bool
) -> None:
    """As over NFS, where two may write at one place; each is answered once, and little is left."""
    monkeypatch.setattr("opusclip_mlops.meeting._ASK_AGAIN_S", 0.0)
    board: Board = FileBoard(tmp_path)
    answers = None
    first, second = Asking(board, "run"), Asking(board, "run")
    assert first.look() is None
    if is_read:
        answers = owner(board)
        wait_until(lambda: said(board, f"run/answer/{first._word}") == MEETING)
    board.write("run/asks", None)
    assert second.look() is None
    answers = answers or owner(board)
    assert answer(second) == answer(first) == MEETING
    answers.leave()
    assert len(list((tmp_path / FOLDER).iterdir())) == 2


def test_a_question_of_which_the_disk_took_half_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it has room; neither half a word nor what is behind it is taken for another."""
    monkeypatch.setattr("opusclip_mlops.meeting._ASK_AGAIN_S", 0.0)
    board, asking = FileBoard(tmp_path), Asking(FileBoard(tmp_path), "run")
    assert asking.look() is None
    board.write("run/asks", asking._word[:20].encode())
    answers = owner(board)
    assert answer(asking) == MEETING
    answers.leave()
    assert len(list((tmp_path / FOLDER).iterdir())) == 2


def test_a_question_that_is_seen_is_not_asked_again(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the owner takes; a store, which loses none, is not even looked at."""
    monkeypatch.setattr("opusclip_mlops.meeting._ASK_AGAIN_S", 0.0)
    asking = Asking(board, "run")
    for _ in range(3):
        assert asking.look() is None
    assert board.read("run/asks") == f"\n{asking._word}".encode()
    board.write("run/asks", None)
    assert asking.look() is None
    assert (board.read("run/asks") is not None) == isinstance(board, FileBoard)


def test_an_owner_that_leaves_says_so(board: Board) -> None:
    """And answers those that have asked by then."""
    answers = owner(board)
    asking = Asking(board, "run")
    asking.look()
    answers.leave()
    assert answers._thread.is_alive() is False
    assert said(board, f"run/answer/{asking._word}") == MEETING
    late = Asking(board, "run").look()
    assert late is not None
    assert late.ended_s is not None


def test_who_has_asked_last_is_answered_first(tmp_path: Path) -> None:
    """Most that stand before it in a job of many restarts are dead."""
    said_under: list[str] = []

    class Noting(FileBoard):
        def write(self, name: str, content: bytes | None) -> None:
            said_under.append(name)
            super().write(name, content)

    asking = [Asking(FileBoard(tmp_path), "run") for _ in range(3)]
    for one in asking:
        assert one.look() is None
    answers = owner(Noting(tmp_path))
    wait_until(lambda: len(said_under) == 3)
    answers.leave()
    assert said_under[:3] == [f"run/answer/{one._word}" for one in reversed(asking)]


def test_an_answer_that_cannot_be_removed_is_one(tmp_path: Path) -> None:
    """It is given once: who passed it over for a fault of the disk would wait in vain."""

    class Stale(FileBoard):
        def write(self, name: str, content: bytes | None) -> None:
            super().write(name, content)
            raise OSError(errno.ESTALE, "Stale file handle")

    asking = Asking(Stale(tmp_path), "run")
    assert asking.look() is None
    answers = owner(FileBoard(tmp_path))
    assert answer(asking) == MEETING
    answers.leave()


def test_a_board_that_is_gone_ends_the_answers(tmp_path: Path) -> None:
    """No thread is left, nothing is raised, and nobody who leaves waits for it."""
    before = threading.active_count()
    killed(owner(FileBoard(tmp_path)))
    wait_until(lambda: threading.active_count() == before)


class _Hangs(_Gone):
    """A board that says nothing."""

    def __init__(self) -> None:
        self.is_over = threading.Event()

    def read(self, name: str) -> bytes | None:
        self.is_over.wait(60)
        raise ConfigError(f"no store answers for {name}")


def test_a_board_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a run is not held up by it."""
    monkeypatch.setattr("opusclip_mlops.meeting._PARTING_S", 0.1)
    board = _Hangs()
    answers = owner(board)
    answers.leave()
    assert answers._thread.is_alive()
    assert answers._thread.daemon
    board.is_over.set()
    answers._thread.join(60)


@pytest.mark.parametrize("name", ["../../escaped", "a/b", ".ranks", "", "a\n", "x" * 300])
def test_a_name_that_leaves_the_journal_is_none_of_ours(tmp_path: Path, name: str) -> None:
    """Whoever reaches the store may write there; such a word is passed over."""
    board = FileBoard(tmp_path)
    for odd in (
        msgspec.structs.replace(MEETING, local_id=name),
        msgspec.structs.replace(MEETING, run_id=name or "/"),
    ):
        board.write("run", msgspec.json.encode(odd))
        assert said(board, "run") is None
    board.write("run", b"not ours")
    assert said(board, "run") is None
    further = msgspec.structs.replace(MEETING, local_id="abc+gpu-07.local")
    board.write("run", msgspec.json.encode(further))
    assert said(board, "run") == further


def test_a_folder_is_the_owners_where_all_says_so(tmp_path: Path) -> None:
    """Neither the name of a machine nor a path is enough: kernel, device and inode are."""
    owners, own = tmp_path / "owners", tmp_path / "own"
    owners.mkdir()
    own.mkdir()
    told = msgspec.structs.replace(MEETING, journal_dir=str(owners), folder=folder_of(owners))
    assert seen_here(told, own) == owners
    for change in (
        {"boot": "another"},
        {"host": "gpu-07"},
        {"folder": folder_of(tmp_path)},
        {"folder": None},
        {"journal_dir": "/a\0b"},
        {"journal_dir": str(own)},
    ):
        assert seen_here(msgspec.structs.replace(told, **change), own) is None
    # What another machine calls otherwise is the same folder, still.
    elsewhere = msgspec.structs.replace(told, journal_dir="/mounted/elsewhere")
    assert seen_here(elsewhere, owners) == owners


def test_what_is_asked_is_private(tmp_path: Path) -> None:
    """Only the user reads the files of those that meet, and few are left."""
    board = FileBoard(tmp_path)
    answers = owner(board)
    for _ in range(3):
        answer(Asking(board, "run"))
    answers.leave()
    files = list((tmp_path / FOLDER).iterdir())
    assert {one.stat().st_mode & 0o777 for one in files} == {0o600}
    assert len(files) == 2
