"""Where a study is shared."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import optuna
import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.sweeps.storage import Asker, KernelLock, open_storage


def test_a_line_that_a_killed_process_left_is_cut_off(tmp_path: Path) -> None:
    """The next line does not join it: the study can be read, and all before it is there."""
    path = tmp_path / "s.journal"
    optuna.create_study(storage=open_storage(str(path)), study_name="a")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "half')
    storage = open_storage(str(path))
    storage.create_new_trial(storage.get_study_id_from_name("a"))
    assert path.read_bytes().startswith(whole + b'{"op_code":4')
    again = open_storage(str(path))
    assert len(again.get_all_trials(again.get_study_id_from_name("a"))) == 1


def test_a_torn_line_alone_is_cut_off(tmp_path: Path) -> None:
    """A file without any whole line begins anew."""
    path = tmp_path / "s.journal"
    path.write_bytes(b"x" * 200_000)
    lock = KernelLock(str(path))
    lock.acquire()
    lock.release()
    assert path.read_bytes() == b""


def test_a_killed_process_keeps_no_lock(tmp_path: Path) -> None:
    """The next one writes at once: the kernel lets go of what the dead held."""
    path = tmp_path / "s.journal"
    code = (
        "import os; from opusclip_mlops.sweeps.storage import KernelLock;"
        f"KernelLock({str(path)!r}).acquire(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -9
    lock = KernelLock(str(path))
    assert lock.acquire()
    lock.release()


def test_a_study_is_private(tmp_path: Path) -> None:
    """Folder and file are the user's alone."""
    open_storage(str(tmp_path / "new" / "s.journal"))
    assert oct((tmp_path / "new").stat().st_mode & 0o777) == "0o700"
    assert oct((tmp_path / "new" / "s.journal").stat().st_mode & 0o777) == "0o600"


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("mysql://a:secret@b/c", "storage is mysql://: give a file"),
        ("grpc://nowhere", "give grpc://HOST:PORT"),
        ("grpc://a:b/c", "give grpc://HOST:PORT"),
        ("postgresql://u:sesame@127.0.0.1:1/x", "storage does not answer"),
    ],
)
def test_a_place_that_is_none_is_refused(place: str, said: str) -> None:
    """In one line, without its password."""
    with pytest.raises(ConfigError, match=said) as told:
        open_storage(place)
    assert "secret" not in str(told.value)
    assert "sesame" not in str(told.value)


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """With the reason."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        open_storage(os.fspath(tmp_path / "file" / "s.journal"))


def test_a_call_that_is_not_answered_holds_up_nobody() -> None:
    """It goes on: who makes it again has its answer, and other calls come after it."""
    asker, go, calls = Asker(), threading.Event(), []

    def slow() -> int:
        calls.append("slow")
        go.wait(60)
        return 5

    for call in (slow, slow, lambda: calls.append("other")):
        with pytest.raises(TimeoutError):
            asker.ask(call, wait_s=0.1)
    go.set()
    assert asker.ask(slow) == 5
    assert calls == ["slow"]
    assert asker.ask(lambda: 6) == 6


def test_who_waits_for_an_answer_may_be_stopped() -> None:
    """What is raised meanwhile ends the waiting, and a fault of the call is raised as it is."""
    asker, go = Asker(), threading.Event()

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        asker.ask(lambda: go.wait(60), before=stop)
    go.set()
    with pytest.raises(KeyError):
        asker.ask(lambda: {}["x"])
