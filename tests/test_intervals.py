"""Facts about `opusclip_mlops.intervals`, on random numbers whose mean is known."""

import math
import tracemalloc

import numpy as np
import pytest

from opusclip_mlops.intervals import over_clips, over_frames, stretch_length

ROUNDS = 120


def covered(draw: np.ndarray, *, of: str) -> float:
    """The share of rows whose interval holds 0."""
    make = over_clips if of == "clips" else over_frames
    found = [make(row) for row in draw]
    return float(np.mean([one is not None and one.low <= 0 <= one.high for one in found]))


def alike(count: int, length: int, r: float) -> np.ndarray:
    """Rows of numbers each of which resembles the one before, by a correlation of r."""
    noise = np.random.default_rng(1).normal(size=(count, length + 100))
    for at in range(1, noise.shape[1]):
        noise[:, at] = r * noise[:, at - 1] + noise[:, at] * math.sqrt(1 - r * r)
    return noise[:, 100:]


@pytest.mark.parametrize("clips", [6, 10, 30])
def test_nineteen_of_twenty_intervals_over_clips_hold_the_mean(clips: int) -> None:
    """Few clips too, where percentiles alone would be too narrow."""
    share = covered(np.random.default_rng(0).normal(size=(ROUNDS, clips)), of="clips")
    assert 0.88 <= share <= 0.99


@pytest.mark.parametrize("r", [0.0, 0.8])
def test_frames_that_are_alike_do_not_make_an_interval_narrow(r: float) -> None:
    """Of 200 frames that depend on each other about as many intervals hold the mean."""
    assert 0.85 <= covered(alike(ROUNDS, 200, r), of="frames") <= 0.99


def test_single_frames_would_make_it_too_narrow() -> None:
    """Drawn one by one, frames that are alike pretend to be more than they are."""
    assert covered(alike(60, 200, 0.8), of="clips") < 0.7


def test_stretches_are_longer_the_more_alike_frames_are() -> None:
    """Single frames where they are not; never longer than makes sense for what is constant."""
    free, bound = alike(1, 400, 0.0)[0], alike(1, 400, 0.9)[0]
    assert stretch_length(free) < 10 < stretch_length(bound)
    assert stretch_length(np.ones(10)) == 1


def test_the_same_values_give_the_same_interval() -> None:
    """Another seed moves it a little, and the passport's words say how it was found."""
    values = np.random.default_rng(2).normal(10, 1, 40)
    first = over_clips(values)
    assert first is not None
    assert first == over_clips(values)
    assert first != over_clips(values, seed=1)
    assert first.low < values.mean() < first.high
    assert (first.level, first.method) == (0.95, "percentile bootstrap over clips")
    assert (first.resamples, first.seed) == (2000, 0)


def test_a_transform_gives_the_interval_of_the_metric() -> None:
    """Of squared errors in dB, which fall as the errors rise, the low end is still the lower."""
    errors = np.random.default_rng(3).uniform(50, 150, 60)

    def decibels(mean: np.ndarray) -> np.ndarray:
        return 10 * np.log10(255**2 / mean)

    plain, found = over_frames(errors), over_frames(errors, transform=decibels)
    assert plain is not None
    assert found is not None
    assert found.low == pytest.approx(decibels(np.array(plain.high)))
    assert found.high == pytest.approx(decibels(np.array(plain.low)))
    assert found.method.startswith("percentile bootstrap over stretches of ")


def test_equal_values_have_a_point_for_an_interval() -> None:
    """A frozen clip's flicker is 0, from 0 to 0."""
    found = over_frames([0.0] * 50)
    assert found is not None
    assert (found.low, found.high) == (0.0, 0.0)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0, 3.0, 4.0, 5.0], [math.inf, *range(9)]])
def test_of_too_little_there_is_none(values: list[float]) -> None:
    """Fewer than six, or a value that is not finite, say nothing about the spread."""
    assert over_clips(values) is None
    assert over_frames(values) is None


def test_a_long_clip_takes_no_more_memory_than_a_short_one() -> None:
    """A hundred thousand frames are drawn in at most 1,000 stretches."""
    values = np.random.default_rng(4).normal(size=100_000)
    tracemalloc.start()
    found = over_frames(values)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None
    assert found.method == "percentile bootstrap over stretches of 100 frames"
    assert found.high - found.low == pytest.approx(2 * 1.96 / math.sqrt(100_000), rel=0.15)
    assert peak_bytes < 150e6
