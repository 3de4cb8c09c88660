"""Facts about `opusclip_mlops.optical_flow`, on pictures that move by a known amount."""

import numpy as np
import pytest

from opusclip_mlops.decoding import read_clip
from opusclip_mlops.optical_flow import LEAST_SIDE, flow_between, moved, visible
from tests.clips import CARPHONE

HEIGHT, WIDTH = 100, 130


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """A real picture in levels of gray, larger than what is cut out of it."""
    return read_clip(CARPHONE, max_frames=1).frames[0].astype(np.float32).mean(-1)


def cut_out(scene: np.ndarray, top: int, left: int) -> np.ndarray:
    """What a camera sees that looks at one place of the scene."""
    return np.ascontiguousarray(scene[top : top + HEIGHT, left : left + WIDTH])


@pytest.mark.parametrize(("down", "right"), [(0, 0), (0, 1), (3, -4), (-5, 6)])
def test_a_shift_is_found(scene: np.ndarray, down: int, right: int) -> None:
    """A picture that moves as a whole is followed to a twentieth of a pixel in nearly all of it."""
    first, second = cut_out(scene, 20, 20), cut_out(scene, 20 - down, 20 - right)
    flow = flow_between(first, second)
    assert np.median(flow[0]) == pytest.approx(down, abs=0.05)
    assert np.median(flow[1]) == pytest.approx(right, abs=0.05)
    apart = np.hypot(flow[0] - down, flow[1] - right)
    assert (apart < 0.25).mean() > 0.8


def test_a_shift_moved_back_is_the_picture(scene: np.ndarray) -> None:
    """What both show is equal to half a percent of what stands still unequal."""
    first, second = cut_out(scene, 20, 20), cut_out(scene, 17, 24)
    flow, back = flow_between(first, second), flow_between(second, first)
    seen = visible(flow, back)
    error = np.square(first - moved(second, flow))[seen].mean()
    assert seen.mean() > 0.8
    assert error < 0.005 * np.square(first - second).mean()


def test_what_leaves_the_picture_is_not_visible() -> None:
    """Of a flow of 7 pixels to the right the last 7 columns are gone, by whoever's word."""
    flow = np.zeros((2, 20, 30), np.float32)
    flow[1] = 7
    seen = visible(flow, -flow)
    assert seen[:, :23].all()
    assert not seen[:, 23:].any()


def test_a_flow_that_does_not_lead_back_is_not_visible() -> None:
    """There by 3 and back by 1: 4 > 0.01 · 10 + 0.5; by 0.7 it is near enough."""
    there = np.zeros((2, 20, 30), np.float32)
    back = there.copy()
    there[1], back[1] = 3, -1
    assert not visible(there, back).any()
    back[1] = -2.3
    assert visible(there, back)[:, :27].all()


def test_nothing_moves_in_flat_pictures() -> None:
    """Black, gray, or from one to the other: no flow, and no NaN, in the smallest size too."""
    for levels in ((0, 0), (128, 128), (0, 255)):
        pair = [np.full((LEAST_SIDE, LEAST_SIDE), one, np.float32) for one in levels]
        assert not flow_between(*pair).any()


def test_noise_and_odd_sizes_give_a_finite_flow() -> None:
    """Pictures without anything in common, of sizes that do not halve, are no error."""
    random = np.random.default_rng(0)
    for shape in ((LEAST_SIDE, 255), (37, 53), (65, 33)):
        pair = random.uniform(0, 255, (2, *shape)).astype(np.float32)
        flow = flow_between(*pair)
        assert flow.shape == (2, *shape)
        assert np.isfinite(flow).all()
