"""Which sweeps of a folder were cut off."""

import os
from pathlib import Path

import msgspec
import pytest

from opusclip_mlops.open_sweeps import FOLDER, Mark, OpenSweep, cut_off

SWEEP = OpenSweep(name="s", run_id="r0", tracking_uri="http://h", is_shared=False)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of this test."""
    monkeypatch.chdir(tmp_path)


def killed(sweep: OpenSweep) -> None:
    """A mark whose process is gone: the kernel has closed what it had open."""
    os.close(Mark(sweep)._descriptor)


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
