"""What of a run's configuration can be told before anything is written."""

import os
from pathlib import Path

import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.folder import Manifest
from opusclip_mlops.naming import checked_config, unwritable


def manifest(cwd: Path, tensorboard_dir: str, *sinks: str) -> Manifest:
    """A run with event files in a folder, seen from the current one."""
    wanted = [*sinks] or ["mlflow", "tensorboard"]
    return Manifest(
        local_id="r", cwd=str(cwd), sinks=wanted, start_time_ms=1, tensorboard_dir=tensorboard_dir
    )


@pytest.mark.parametrize("place", ["file", "file/runs", "file/a/b"])
def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path, place: str) -> None:
    """Which setting it is, what stands in its way, and what becomes of the run."""
    (tmp_path / "file").touch()
    assert unwritable(manifest(tmp_path, place)) == (
        f"tensorboard_dir {place} cannot be made or written: {tmp_path}/file is no folder; "
        "training goes on, and TensorBoard gets the run once it can be"
    )


@pytest.mark.parametrize("place", ["runs", "a/b/c", "/tmp", ".", "runs/ö", ""])
def test_a_folder_that_can_be_made_is_none_of_a_fault(tmp_path: Path, place: str) -> None:
    """And it is not made by asking."""
    assert unwritable(manifest(tmp_path, place)) == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("place", "why"), [("a\0b", "it is no path"), ("n" * 300, "File name too long")]
)
def test_what_is_no_path_is_told(tmp_path: Path, place: str, why: str) -> None:
    """In one line that a terminal can show."""
    told = unwritable(manifest(tmp_path, place))
    assert why in told
    assert told.isprintable()


def test_a_folder_that_may_not_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever it belongs to; the user root may write everywhere but where the disk forbids it."""
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert f"{tmp_path}/runs may not be written" in unwritable(manifest(tmp_path, "runs/films"))


def test_a_current_folder_that_cannot_be_written_down_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its name as bytes, before anything is begun."""
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/films\xff"))
    odd.mkdir()
    monkeypatch.chdir(odd)
    with pytest.raises(ConfigError, match=r"films\\xff' has no name in UTF-8: rename it$"):
        checked_config(None)


def test_without_tensorboard_nothing_is_asked(tmp_path: Path) -> None:
    """The folder is nobody's then."""
    (tmp_path / "file").touch()
    assert unwritable(manifest(tmp_path, "file", "mlflow", "wandb")) == ""
