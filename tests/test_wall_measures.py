"""Motion and flicker at a glance: small enough work for every clip that is sampled."""

from pathlib import Path

import numpy as np
import pytest

from opusclip_mlops import video
from opusclip_mlops.errors import VideoError
from opusclip_mlops.temporal import TemporalScores
from opusclip_mlops.wall_measures import described, measured, measured_at

RANDOM = np.random.default_rng(0)
GROUND = np.kron(RANDOM.integers(0, 255, (30, 40), np.uint8), np.ones((8, 8), np.uint8))


def moving(pace_px: int, count: int = 12) -> np.ndarray:
    """A textured picture that goes to the left by so many pixels a frame."""
    frames = [GROUND[:160, at * pace_px : at * pace_px + 192] for at in range(count)]
    return np.repeat(np.array(frames)[..., None], 3, axis=3)


def test_more_motion_is_more() -> None:
    """A still clip has none; motion is a share of the diagonal, whatever the picture's size."""
    still, slow, fast = (float(measured(moving(pace))["motion"]) for pace in (0, 2, 6))
    assert still == pytest.approx(0, abs=0.02)
    assert slow == pytest.approx(100 * 2 / np.hypot(160, 192), rel=0.3)
    assert fast > 2 * slow


def test_flicker_is_that_of_the_whole_clip() -> None:
    """The same as is measured otherwise, late frames too."""
    frames = moving(0, 40)
    frames[30::2] = frames[30::2] // 2
    whole = TemporalScores(with_flow=False)
    whole.add(frames)
    found = measured(frames)["flicker"]
    assert float(found) == float(whole.scores()["flicker"]) > 1
    assert found.passport == whole.scores()["flicker"].passport


def test_motion_says_which_frames_it_is_of() -> None:
    """Its passport is not that of a measurement of the whole clip in its size."""
    whole = TemporalScores()
    whole.add(moving(2))
    found = measured(moving(2))["motion"].passport
    assert found.differences(whole.scores()["motion"].passport) == (
        "resize: by a whole factor to at most 96 px and by whole factors to at most 256 px",
        "sampling: the first 17 frames and every frame",
    )


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_not_defined_is_not_there(count: int) -> None:
    """A single frame has neither, two have no flicker."""
    assert set(measured(moving(1, count))) == ({"motion"} if count > 1 else set())
    assert set(measured(np.zeros((5, 1, 200, 3), np.uint8))) == {"flicker"}


def test_a_file_is_measured_and_told_as_json(tmp_path: Path) -> None:
    """What cannot be read tells nothing."""
    path = tmp_path / "clip.mp4"
    video.write_mp4(moving(2), path, fps=8)
    found = measured_at(path)
    said = described(path)
    assert {name: one["value"] for name, one in said.items()} == {**found}
    assert said["motion"]["passport"]["metric"] == "motion"
    path.write_bytes(b"torn")
    assert described(path) == {}
    with pytest.raises(VideoError):
        measured_at(path)
