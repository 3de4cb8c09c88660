"""The W&B client on its lead: who may write a run, and what outlives a writer that was killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from opusclip_mlops.sessions import process_started_s
from opusclip_mlops.wandb_client import Claim, Taken, is_rewind_refused

_SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.mark.parametrize(
    ("why", "is_refused"),
    [
        ('returned error 403: {"errors":[{"message":"403"}]}', True),
        ("input: rewindRun is not enabled for this account", True),
        ("returned error 429: {}", False),
        ("returned error 503: {}", False),
        ('Post "http://127.0.0.1/graphql": dial tcp: connection refused', False),
    ],
)
def test_a_refused_rewind_is_told_from_a_server_that_is_away(why: str, is_refused: bool) -> None:
    """Only the former would come again; without a word of a rewind it is neither."""
    assert is_rewind_refused(f"failed to rewind run: {why}") == is_refused
    assert not is_rewind_refused(why)


def test_a_dead_child_that_nobody_waited_for_is_no_core(tmp_path: Path) -> None:
    """A process whose child has died without being waited for still writes W&B runs."""
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as dead:
        assert dead.stdout is not None
        dead.stdout.read()
        while _is_running(dead.pid):
            pass
        claim = Claim(tmp_path / "lock")
        claim.take()
        claim.note_cores()
        claim.release()
        assert str(dead.pid) not in json.loads((tmp_path / "lock").read_bytes())


def test_one_process_writes_a_run(tmp_path: Path) -> None:
    """The second claim on one run is refused until the first is given back."""
    first, second = Claim(tmp_path / "lock"), Claim(tmp_path / "lock")
    first.take()
    with pytest.raises(Taken, match="another process"):
        second.take()
    first.release()
    second.take()
    second.release()


def test_what_a_killed_writer_has_left_is_ended(tmp_path: Path) -> None:
    """A core that outlived its writer would write rows that are given again: it is killed."""
    starter = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=2).pid)"
    argv = [sys.executable, "-c", starter, *_SLEEP]
    found = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    left = int(found.stdout)
    (tmp_path / "lock").write_text(json.dumps({left: process_started_s(left)}))
    claim = Claim(tmp_path / "lock")
    claim.take()
    assert not _is_running(left)
    claim.release()


def _is_running(pid: int) -> bool:
    try:
        process_started_s(pid)
    except ProcessLookupError:
        return False
    return True
