"""Facts about `opusclip_mlops.temporal`, on clips whose numbers are known, and on real ones."""

import math
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from opusclip_mlops.decoding import read_clip
from opusclip_mlops.errors import VideoError
from opusclip_mlops.passports import Score
from opusclip_mlops.temporal import NAMES, TemporalScores, added, value_of
from tests.clips import BUNNY, CARPHONE, clip_path

BIKES = clip_path("bikes.mp4")
DISTORTED = clip_path("carphone_distorted.mp4")
HEIGHT, WIDTH = 100, 130


def gray(levels: Sequence[float], side: int = 32) -> np.ndarray:
    """A clip of flat frames, one of each level."""
    pixels = np.rint(np.array(levels, float)).astype(np.uint8)
    return np.broadcast_to(pixels[:, None, None, None], (len(levels), side, side, 3))


def measured(clip: np.ndarray, *, with_flow: bool = False) -> dict[str, Score]:
    """The metrics of a clip."""
    scores = TemporalScores(with_flow=with_flow)
    scores.add(clip)
    return scores.scores()


def cuts_in(clip: np.ndarray) -> tuple[int, ...]:
    """The frames with which a shot begins."""
    scores = TemporalScores(with_flow=False)
    scores.add(clip)
    return scores.cuts


def panned(scene: np.ndarray, count: int, *, down: int, right: int) -> np.ndarray:
    """A camera's way over a scene: each frame moves everything by so many pixels."""
    return np.stack(
        [
            scene[20 - at * down :, 30 - at * right :][:HEIGHT, :WIDTH]
            for at in range(-(count // 2), count - count // 2)
        ]
    )


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """A real picture, larger than what is cut out of it."""
    return read_clip(CARPHONE, max_frames=1).frames[0]


@pytest.fixture(scope="module")
def bikes() -> np.ndarray:
    """The first 200 frames of a clip of several shots."""
    return read_clip(BIKES, max_frames=200).frames


@pytest.mark.parametrize(
    ("levels", "flicker"),
    [
        ([50, 250] * 10, 200.0),
        ([50, 50, 250, 250] * 5, 100.0),
        ([90] * 20, 0.0),
        (range(10, 210, 10), 0.0),
    ],
)
def test_flicker_is_half_the_second_difference(levels: Sequence[int], flicker: float) -> None:
    """Pictures in turn flicker by their difference, steady ones and fades not at all."""
    assert measured(gray(levels))["flicker"] == pytest.approx(flicker, abs=1e-4)


def test_a_swing_of_brightness_is_pumping_and_a_fade_is_not() -> None:
    """A swing of amplitude 40 has 40 / √2, on top of a fade too."""
    at = np.arange(60)
    swing = 40 * np.cos(2 * math.pi * 3 * (at + 0.5) / 60)
    for levels in (100 + swing, 60 + at + swing):
        # Bytes are rounded.
        assert measured(gray(levels))["brightness_pumping"] == pytest.approx(28.28, abs=0.2)
    assert measured(gray(60 + at))["brightness_pumping"] == pytest.approx(0, abs=1e-4)


def test_each_shot_has_a_line_of_its_own() -> None:
    """A bright shot after a dark one does not pump."""
    clip = gray([30] * 10 + [200] * 10)
    assert cuts_in(clip) == (10,)
    found = measured(clip)
    assert found["brightness_pumping"] == pytest.approx(0, abs=1e-4)
    assert (found["flicker"], found["cuts"]) == (0.0, 1.0)


def test_frozen_and_black_frames_are_shares() -> None:
    """Of 10 pairs 3 repeat a frame, of 11 frames 6 are black: at most a tenth of white."""
    levels = [0, 0, 1, 9, 18, 18, 27, 36, 45, 45, 54]
    found = measured(gray(levels))
    assert (found["frozen_frames"], found["frozen_frames"].passport.count) == (0.3, 10)
    assert found["black_frames"] == pytest.approx(6 / 11)
    assert found["black_frames"].passport.unit == "frames"


def test_a_black_picture_may_have_a_spot() -> None:
    """Two of a hundred pixels may be white, more make it a picture."""
    clip = np.zeros((2, 20, 20, 3), np.uint8)
    clip[0, 0, :8] = 255
    clip[1, 0, :9] = 255
    assert measured(clip)["black_frames"] == 0.5


def test_a_loop_is_seamless_when_its_end_leads_to_its_beginning() -> None:
    """Up and down again has no seam; a ramp has all its steps but one."""
    ramp = list(range(0, 100, 5))
    assert measured(gray(ramp + ramp[::-1]))["loop_seam"] == 0
    assert measured(gray(ramp))["loop_seam"] == pytest.approx(95 - 5, abs=1e-4)


def test_the_cuts_of_a_real_clip_are_found(bikes: np.ndarray) -> None:
    """Looked at by eye: new shots begin with frames 30, 76, 137 and 187; others have none."""
    assert cuts_in(bikes) == (30, 76, 137, 187)
    assert measured(bikes)["cuts"] == 4
    for path in (BUNNY, CARPHONE):
        assert cuts_in(read_clip(path, start_frame=24, max_frames=24).frames) == ()


@pytest.mark.parametrize("levels", [[0, 200], [0, 0, 200, 200], [0, 0, 0, 200, 200, 200]])
def test_flicker_is_not_taken_for_cuts(levels: list[int]) -> None:
    """Else what flickers worst would be compared with nothing, and be the steadiest of all."""
    found = measured(gray(levels * 8))
    assert found["cuts"] == 0
    assert found["flicker"] > 60


def test_a_flash_is_not_a_cut() -> None:
    """One bright frame begins no shot, and flickers."""
    found = measured(gray([50] * 20 + [250] + [50] * 20))
    assert found["cuts"] == 0
    assert found["flicker"] == pytest.approx((100 + 200 + 100) / 39, abs=1e-4)


@pytest.mark.parametrize(("down", "right"), [(1, 0), (-1, 2)])
def test_a_picture_that_moves_as_a_whole_warps_onto_itself(
    scene: np.ndarray, down: int, right: int
) -> None:
    """Its warping error is a hundredth of its change, its motion what it was moved by."""
    clip = panned(scene, 5, down=down, right=right)
    found = measured(clip, with_flow=True)
    change = np.square(np.diff(clip.astype(float).mean(-1), axis=0) / 255).mean()
    assert found["warping_error"] < 0.01 * change
    percent = 100 * math.hypot(down, right) / math.hypot(HEIGHT, WIDTH)
    assert found["motion"] == pytest.approx(percent, rel=0.05)


def test_what_no_motion_explains_is_warping_error() -> None:
    """Flat pictures in turn, 51 levels apart, have (51/255)², and no motion."""
    found = measured(gray([100, 151] * 4), with_flow=True)
    assert found["warping_error"] == pytest.approx(0.04, rel=1e-4)
    assert found["motion"] == 0


def test_a_frozen_clip_is_told_by_its_motion(scene: np.ndarray) -> None:
    """It has no flicker and no warping error: 0 motion and frozen frames say why."""
    found = measured(np.stack([scene] * 6), with_flow=True)
    assert {name for name in NAMES if found[name]} == {"frozen_frames"}
    assert (found["frozen_frames"], found["motion"]) == (1, 0)


def test_a_clip_that_is_black_has_an_answer_to_everything() -> None:
    """All black and all frozen, everything else 0."""
    found = measured(gray([0] * 8), with_flow=True)
    assert {name: float(value) for name, value in found.items() if value} == {
        "frozen_frames": 1.0,
        "black_frames": 1.0,
    }
    assert set(found) == set(NAMES)


@pytest.mark.parametrize(
    ("count", "defined"),
    [
        (0, set()),
        (1, {"black_frames"}),
        (2, set(NAMES) - {"flicker", "brightness_pumping"}),
        (3, set(NAMES)),
    ],
)
def test_what_so_few_frames_do_not_define_is_not_there(
    scene: np.ndarray, count: int, defined: set[str]
) -> None:
    """One frame can be black, two can move, three can flicker; none of it is ever NaN."""
    found = measured(np.stack([scene] * 4)[:count], with_flow=True) if count else {}
    assert set(found) == defined
    assert all(math.isfinite(value) for value in found.values())


def test_two_frames_with_nothing_in_common_are_two_shots() -> None:
    """Nothing is compared across the cut."""
    found = measured(gray([10, 240]), with_flow=True)
    assert set(found) == {"black_frames", "cuts"}
    assert found["cuts"] == 1


def test_pictures_too_small_to_follow_have_no_motion() -> None:
    """15 pixels are too few, 16 are enough; all else is measured."""
    assert set(NAMES) - set(measured(gray([5] * 4, 15), with_flow=True)) == {
        "motion",
        "warping_error",
    }
    assert set(measured(gray([5] * 4, 16), with_flow=True)) == set(NAMES)


def test_noise_has_finite_numbers() -> None:
    """Pictures of odd sizes, long and thin, without anything that could be followed."""
    random = np.random.default_rng(0)
    for shape in ((5, 17, 600, 3), (5, 301, 1, 3), (4, 64, 48, 3)):
        found = measured(random.integers(0, 256, shape, np.uint8), with_flow=True)
        assert all(math.isfinite(value) for value in found.values())
        assert found["frozen_frames"] == 0


def test_the_distorted_clip_is_told_from_its_original() -> None:
    """Coded at a low rate a real clip moves less, flickers less and freezes."""
    clips = [read_clip(path, max_frames=60).frames for path in (CARPHONE, DISTORTED)]
    first, second = (measured(clip[:24], with_flow=True) for clip in clips)
    assert second["motion"] < first["motion"]
    assert second["flicker"] < first["flicker"]
    frozen = [measured(clip)["frozen_frames"] for clip in clips]
    assert frozen[1] > frozen[0] == 0
    assert 0 < second["warping_error"] < first["warping_error"] < 0.01
    interval = first["flicker"].passport.interval
    assert interval is not None
    assert interval.low < first["flicker"] < interval.high


def test_frames_may_come_in_any_portions(bikes: np.ndarray) -> None:
    """One by one or all at once, larger than is looked at too: the numbers are the same."""
    one_by_one = TemporalScores(with_flow=False)
    for frame in bikes[20:60]:
        one_by_one.add(frame)
    assert one_by_one.totals() == pytest.approx(_totals(bikes[20:60]))
    assert one_by_one.scores()["flicker"].passport.resize == "by whole factors to at most 256 px"


def _totals(clip: np.ndarray) -> dict[str, object]:
    scores = TemporalScores(with_flow=False)
    scores.add(clip)
    return dict(scores.totals())


def test_totals_of_clips_add_up() -> None:
    """Two clips of different length count frame for frame."""
    both = []
    for levels in ([0, 100] * 5, [90] * 20):
        scores = TemporalScores(with_flow=False)
        scores.add(gray(levels))
        both.append(scores.totals())
    found = added(both)
    assert value_of("flicker", found["flicker"]) == pytest.approx(8 * 100 / 26)
    assert value_of("black_frames", found["black_frames"]) == pytest.approx(5 / 30)
    assert found["cuts"].total == 0


def test_memory_does_not_grow_with_the_pictures() -> None:
    """450 frames more of 12 kB each cost less than eight of them would."""
    frame = gray([7], 64)[0]

    def peak_bytes(count: int) -> int:
        scores = TemporalScores(with_flow=False)
        tracemalloc.start()
        for _ in range(count):
            scores.add(frame)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak_bytes(500) - peak_bytes(50) < 8 * frame.nbytes


def test_frames_of_another_size_or_kind_are_refused() -> None:
    """The message names both sizes, or what was given."""
    scores = TemporalScores()
    scores.add(gray([1, 2]))
    with pytest.raises(VideoError, match="a frame of 16x16 follows frames of 32x32: bring them"):
        scores.add(gray([3], 16))
    with pytest.raises(VideoError, match=r"not float64 \(1, 32, 32, 3\): use to_frames"):
        scores.add(gray([3]).astype(float))
    with pytest.raises(VideoError, match=r"not uint8 \(32, 32\)"):
        scores.add(gray([3])[0, ..., 0])
    with pytest.raises(VideoError, match=r"shape \(0, 4, 3\) is empty"):
        TemporalScores().add(np.zeros((1, 0, 4, 3), np.uint8))
