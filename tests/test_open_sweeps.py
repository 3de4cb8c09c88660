"""Which sweeps of a folder were cut off."""

import contextlib
import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from opusclip_mlops import open_sweeps, sweeps
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.open_sweeps import FOLDER, Mark, OpenSweep, cut_off

SWEEP = OpenSweep(name="s", run_id="r0", tracking_uri="http://h", is_shared=False)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of this test."""
    monkeypatch.chdir(tmp_path)


def killed(sweep: OpenSweep) -> None:
    """A mark whose process is gone: the kernel has closed what it had open."""
    Mark(sweep).close()


def test_a_sweep_is_cut_off_when_nobody_holds_its_mark() -> None:
    """Not while one command works at it, nor once one has ended as it should."""
    assert cut_off() == []
    killed(SWEEP)
    assert cut_off() == [SWEEP]
    going_on = Mark(SWEEP)
    assert cut_off() == []
    going_on.take_away()
    assert cut_off() == []
    assert list((FOLDER / "s").iterdir()) == []


def test_a_mark_is_private_and_holds_no_password() -> None:
    """Then MLflow's address is in the environment only."""
    killed(msgspec.structs.replace(SWEEP, tracking_uri="http://u:hidden@h"))
    [path] = (FOLDER / "s").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"hidden" not in path.read_bytes()
    assert cut_off() == [msgspec.structs.replace(SWEEP, tracking_uri=None)]


def test_what_is_no_mark_is_left_alone() -> None:
    """A torn one, or one that names another folder's sweep."""
    (FOLDER / "s").mkdir(parents=True)
    (FOLDER / "s" / "open-1.json").write_text("{")
    (FOLDER / "t").mkdir()
    (FOLDER / "t" / "open-1.json").write_bytes(msgspec.json.encode(SWEEP))
    assert cut_off() == []


def test_going_on_with_a_shared_sweep_needs_its_place() -> None:
    """Which is written down nowhere: it may hold a password."""
    assert SWEEP.resuming == "opusclip sweep --resume s"
    shared = msgspec.structs.replace(SWEEP, is_shared=True)
    assert shared.resuming == "opusclip sweep --resume s --storage PLACE"


def test_a_mark_that_is_let_go_stays_for_who_looks_for_sweeps() -> None:
    """Its command could not say how the sweep stands, and its process may live on for days."""
    with contextlib.closing(Mark(SWEEP)):
        assert cut_off() == []
    assert cut_off() == [SWEEP]


def test_a_sweep_whose_end_cannot_be_told_lets_go_of_its_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MLflow refuses: the sweep is cut off from then on, and not only once its process is gone."""

    def refuse(*_: object, **__: object) -> None:
        raise RegistryError("MLflow refused")

    monkeypatch.setattr(sweeps, "Crew", lambda *_, **__: SimpleNamespace(work=lambda *_: None))
    monkeypatch.setattr(sweeps, "_ended", refuse)
    study: Any = SimpleNamespace(name="s", parent_run_id="r0")
    client: Any = SimpleNamespace(tracking_uri="http://h")
    with pytest.raises(RegistryError) as refused:
        sweeps._worked(client, study, "study.journal", 1, lambda *_: None)
    assert cut_off() == [SWEEP]
    assert refused.tb is not None, "who keeps the error keeps what it was raised in"


def test_a_mark_that_cannot_be_written_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full: neither an open file nor one on the disk."""
    opened = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(open_sweeps.fcntl, "flock", full)
    with pytest.raises(OSError, match="No space left"):
        Mark(SWEEP)
    assert len(os.listdir("/proc/self/fd")) == opened
    assert list((FOLDER / "s").iterdir()) == []


def full(*_: object) -> None:
    """What needs room on the disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
