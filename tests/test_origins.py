"""Where a sample comes from, completed by what is known of its checkpoint when it is sent."""

import json
from pathlib import Path

import pytest

from opusclip_mlops.folder import RunFolder
from opusclip_mlops.metadata import WEIGHTS, CheckpointMetadata, StoredFile
from opusclip_mlops.origins import completed, is_told
from tests.journeys import make_run

A, B = "a" * 64, "b" * 64


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with a sealed checkpoint, and one that is being written."""
    made = make_run(tmp_path)
    for name, files in {"sealed": {WEIGHTS: StoredFile(A, 3)}, "open": {}}.items():
        about = CheckpointMetadata(name=name, step=1, epoch=1, files=files)
        (made.checkpoints / name).mkdir()
        (made.checkpoints / name / "metadata.json").write_text(json.dumps(about.to_dict()))
    (made.checkpoints / "broken").mkdir()
    (made.checkpoints / "broken" / "metadata.json").write_text("[")
    return made


def test_the_hash_of_a_sealed_checkpoint_is_added(folder: RunFolder) -> None:
    """What was known is as it was."""
    given = {"checkpoint": "sealed", "seed": 3}
    assert completed(folder, given) == {**given, "weights_sha256": A}
    assert given == {"checkpoint": "sealed", "seed": 3}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"seed": 1},
        {"checkpoint": "open"},
        {"checkpoint": "broken"},
        {"checkpoint": "of another run"},
        {"checkpoint": "sealed", "weights_sha256": B},
        {"checkpoint": "../checkpoints/gone"},
    ],
)
def test_nothing_is_made_up(folder: RunFolder, given: dict[str, object]) -> None:
    """No checkpoint, none that is sealed, none of this run; and what was said stands."""
    assert completed(folder, given) == given


def test_a_clip_by_itself_is_told_of_where_more_is_known_than_its_step() -> None:
    """A panel's clips are in the panel's account."""
    assert not is_told({})
    assert not is_told({"step": 3, "git_commit": "abc"})
    assert is_told({"step": 3, "prompt": "a kite"})
    assert not is_told({"step": 3, "prompt": "a kite", "panel": {"name": "kites"}})
