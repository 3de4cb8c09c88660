"""What is remembered of mirrors, and what a tracker says of its own."""

import os
import socket
import stat
from pathlib import Path

import msgspec
import pytest

from opusclip_mlops.folder import Identity
from opusclip_mlops.mirror_state import MirrorState, Noted, is_mirrored_live, live_mirrors
from opusclip_mlops.targets import Target
from tests.journeys import make_run

BOARD = Target(kind="tensorboard", folder="/runs")
WANDB = Target(kind="wandb", folder="/here", project="clips")
NOTED = Noted(
    target=BOARD,
    identity=Identity(mirror_id="m", experiment_name="films", run_id="r1"),
    fingerprint="f",
    cursor={"row": 1},
    signature="s",
    words_signature="w",
    parts={"params": "1"},
    is_over=False,
)


def test_notes_are_found_again(tmp_path: Path) -> None:
    """By run and place; other runs and places have notes of their own; private to the user."""
    state = MirrorState(tmp_path)
    state.write(NOTED)
    assert MirrorState(tmp_path).read("r1", BOARD) == NOTED
    assert state.read("r1", WANDB) is None
    assert state.read("r2", BOARD) is None
    assert state.targets_of("r1") == [BOARD]
    assert stat.S_IMODE((tmp_path / "mirrors").stat().st_mode) == 0o700


def test_a_broken_note_is_none(tmp_path: Path) -> None:
    """What a crash or an older version has left costs a full look, nothing else."""
    state = MirrorState(tmp_path)
    state.write(NOTED)
    [file] = (tmp_path / "mirrors" / "r1").iterdir()
    for content in (b"", b"{", b'{"target": 1}', b"\xff"):
        file.write_bytes(content)
        assert state.read("r1", BOARD) is None
        assert state.targets_of("r1") == []


def test_a_run_id_names_no_other_folder(tmp_path: Path) -> None:
    """A server that gives odd ids reaches nothing outside."""
    odd = msgspec.structs.replace(NOTED.identity, run_id="../../x")
    MirrorState(tmp_path / "state").write(msgspec.structs.replace(NOTED, identity=odd))
    assert sorted(os.listdir(tmp_path)) == ["home", "state"]
    assert os.listdir(tmp_path / "state" / "mirrors") == ["x"]


def test_a_tracker_says_where_it_mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's run is one wherever it is written from; folders are those of one machine."""
    folder = make_run(tmp_path, ["mlflow", "tensorboard", "wandb"], wandb_mode="online")
    said = live_mirrors(folder.manifest())
    board = Target(kind="tensorboard", folder=str(tmp_path / "runs"))
    online = Target(kind="wandb", folder="/elsewhere", project="clips", mode="online")
    team = msgspec.structs.replace(online, entity="team")
    other = msgspec.structs.replace(online, project="other")
    offline = msgspec.structs.replace(online, mode="offline")
    assert is_mirrored_live(said, board)
    assert is_mirrored_live(said, online)
    assert is_mirrored_live(said, team)
    assert not is_mirrored_live(said, other)
    assert not is_mirrored_live(said, offline)
    assert not is_mirrored_live(said, BOARD)
    assert not is_mirrored_live("no JSON", board)
    monkeypatch.setattr(socket, "gethostname", lambda: "another-host")
    assert not is_mirrored_live(said, board)
    assert is_mirrored_live(said, online)


def test_a_trackers_mirrors_are_known_here(tmp_path: Path) -> None:
    """They are compared without being named."""
    folder = make_run(tmp_path, ["mlflow", "tensorboard"])
    MirrorState(tmp_path / "state").note_live("r1", folder.manifest())
    [found] = MirrorState(tmp_path / "state").targets_of("r1")
    assert found == Target(kind="tensorboard", folder=str(tmp_path / "runs"))
