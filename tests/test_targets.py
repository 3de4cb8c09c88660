"""Where runs are mirrored to, by name."""

from pathlib import Path

import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.targets import Target, default_state_dir, parse_target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tensorboard:some/runs", Target(kind="tensorboard", folder="some/runs")),
        ("tensorboard", Target(kind="tensorboard", folder="runs")),
        ("tensorboard:C:odd", Target(kind="tensorboard", folder="C:odd")),
        ("wandb:clips", Target(kind="wandb", folder=".", project="clips")),
        ("wandb:team/clips", Target(kind="wandb", folder=".", entity="team", project="clips")),
    ],
)
def test_a_place_is_read(text: str, expected: Target) -> None:
    """A folder, a project, or a team and its project."""
    assert parse_target(text) == expected


@pytest.mark.parametrize(
    "text", ["", "comet:x", "wandb", "wandb:", "wandb:a/b/c", "wandb:/b", "wandb:a/", "wandb:a b"]
)
def test_anything_else_is_refused(text: str) -> None:
    """The message names what was given and the forms there are."""
    with pytest.raises(ConfigError, match="wandb:ENTITY/PROJECT") as error:
        parse_target(text)
    assert repr(text) in str(error.value)


def test_notes_lie_in_a_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OPUSCLIP_STATE_DIR, else XDG_STATE_HOME, else ~/.local/state."""
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert default_state_dir() == Path.home() / ".local" / "state" / "opusclip"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert default_state_dir() == tmp_path / "state" / "opusclip"
    monkeypatch.setenv("OPUSCLIP_STATE_DIR", str(tmp_path / "own"))
    assert default_state_dir() == tmp_path / "own"
