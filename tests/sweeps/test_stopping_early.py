"""Hyperband as W&B has it."""

import math

from opusclip_mlops.sweeps.schema import Hyperband
from opusclip_mlops.sweeps.stopping_early import Progress, is_behind, threshold_of


def progress_of(
    *values: float, bands: tuple[int, ...] = (1, 2, 4), maximizes: bool = False
) -> Progress:
    made = Progress(Hyperband(bands, 2, False), maximizes=maximizes)
    for step, value in enumerate(values):
        made.add(step, value)
    return made


def test_bands_count_logged_values() -> None:
    """Not steps; NaN and infinities do not count, as in W&B."""
    made = progress_of(9, math.nan, 8, math.inf, 7)
    assert (made.count, made.last, made.best) == (3, 7, 7)
    assert made.at_bands == {1: 8, 2: 7}
    assert made.band == 2


def test_of_several_values_at_a_step_the_last_counts() -> None:
    """Whoever logs one twice, or from two processes, comes no sooner to a band."""
    made = progress_of(bands=(1,))
    assert [made.add(0, 9), made.add(0, 1), made.add(0, 8)] == [None] * 3
    assert (made.count, made.last, made.best) == (1, 8, 8)
    assert [made.add(1, 7), made.add(1, 6)] == [1, 1]
    assert made.at_bands == {1: 6}
    assert made.add(0, 5) is None
    assert (made.count, made.last) == (2, 5)


def test_who_is_worse_than_the_best_part_is_behind() -> None:
    """Of four values at a band and eta 2 the third best is the last that goes on."""
    bands = Hyperband((2,), 2, False)
    others = [1.0, 2.0, 3.0, 4.0]
    assert threshold_of(others, 2) == 3.0
    for value, expected in ((2.9, False), (3.0, False), (3.1, True)):
        made = progress_of(9, 9, value, bands=(2,))
        assert is_behind(made, others, bands, maximizes=False) is expected


def test_strict_looks_at_the_band_alone() -> None:
    """Otherwise the best value that a trial ever had counts."""
    made = progress_of(0.5, 9.0, 9.0, bands=(2,))
    assert not is_behind(made, [1, 2, 9], Hyperband((2,), 3, False), maximizes=False)
    assert is_behind(made, [1, 2, 9], Hyperband((2,), 3, True), maximizes=False)


def test_large_values_may_be_the_good_ones() -> None:
    """Then the smallest fall behind."""
    made = progress_of(1.0, 2.0, 2.0, bands=(2,), maximizes=True)
    assert is_behind(made, [2, 8, 9], Hyperband((2,), 3, False), maximizes=True)
    assert not is_behind(
        progress_of(9, 9, 9, bands=(2,), maximizes=True),
        [9, 8, 2],
        Hyperband((2,), 3, False),
        maximizes=True,
    )


def test_who_has_reached_no_band_or_is_alone_goes_on() -> None:
    """There is nothing to compare with."""
    bands = Hyperband((2,), 2, False)
    assert not is_behind(progress_of(9, bands=(2,)), [1, 2], bands, maximizes=False)
    assert not is_behind(progress_of(9, 9, 9, bands=(2,)), [9], bands, maximizes=False)
    assert not is_behind(progress_of(9, 9, 9, bands=(2,)), [], bands, maximizes=False)
