"""Each kind of rule judged by points made by hand."""

import math
from collections.abc import Sequence

import pytest

from opusclip_mlops.alerts.judging import Memory, Seen, judged
from opusclip_mlops.alerts.rules import (
    DiskFilling,
    Divergence,
    DroppedPoints,
    GpuIdle,
    NotFinite,
    Plateau,
    Rule,
    Threshold,
    WorseThanProduction,
)

NAN, INF = math.nan, math.inf
KEYS = ("loss",)


def verdicts(
    rule: Rule,
    values: Sequence[float],
    *,
    every_steps: int = 1,
    every_s: float = 1.0,
    production: float | None = None,
) -> str:
    """The verdicts over a row of values: X broken, o well, . neither."""
    memory: Memory = {}
    signs = {True: "X", False: "o", None: "."}
    seen = (
        Seen("loss", value, at * every_steps, round(at * every_s * 1000), production)
        for at, value in enumerate(values)
    )
    return "".join(signs[judged(rule, memory, one).is_broken] for one in seen)


def test_a_threshold_counts_points_in_a_row() -> None:
    """Three above it, not three of five; and three below it end that."""
    rule = Threshold(keys=KEYS, above=10, points=3)
    assert verdicts(rule, [11, 12, 9, 11, 11, 11, 12, 9, 9, 9]) == ".....XX..o"


def test_a_threshold_has_recovered_only_at_the_value_that_says_so() -> None:
    """Between the bound and `recover_at` it stays as it is; the bound itself is not above it."""
    assert verdicts(Threshold(keys=KEYS, above=10, recover_at=8), [10, 11, 9, 8]) == ".X.o"
    assert verdicts(Threshold(keys=KEYS, below=1, recover_at=2), [1, 0.5, 1.5, 2]) == ".X.o"


def test_infinity_is_above_and_nan_is_on_no_side() -> None:
    """NaN is another rule's."""
    rule = Threshold(keys=KEYS, above=10, points=2)
    assert verdicts(rule, [INF, INF, 11, NAN, 11, 11]) == ".XX..X"


def test_nan_and_infinities_are_broken_at_once_and_well_after_some_numbers() -> None:
    """One more NaN begins the count of numbers anew."""
    rule = NotFinite(keys=KEYS, recover_points=2)
    assert verdicts(rule, [NAN, 1, INF, -INF, 1, 1]) == "X.XX.o"


@pytest.mark.parametrize("against", ["median", "best"])
def test_a_divergence_is_measured_by_what_was_before(against: str) -> None:
    """It does not come to be what is usual, and is well halfway back."""
    rule = Divergence(keys=KEYS, factor=3, window=5, against=against)  # type: ignore[arg-type]
    values = [1.0] * 5 + [2.9, 3.1, *[50.0] * 20, 2.5, 1.5, NAN, INF]
    assert verdicts(rule, values) == "." * 6 + "X" * 21 + ".o.X"


def test_a_divergence_against_the_best_forgets_what_left_the_window() -> None:
    """A best of long ago is none; that of the points before is, and not their median."""
    rule = Divergence(keys=KEYS, window=5, against="best")
    assert verdicts(rule, [1.0, *[2.0] * 10, 3.5])[-1] == "o"
    assert verdicts(rule, [*[2.0] * 10, 1.0, 3.5])[-1] == "X"
    assert verdicts(Divergence(keys=KEYS, window=5), [*[2.0] * 10, 1.0, 3.5])[-1] == "o"


def test_where_high_is_good_a_divergence_is_a_fall() -> None:
    """And the reference may be negative."""
    rule = Divergence(keys=KEYS, factor=2, window=5, goal="maximize")
    assert verdicts(rule, [30.0] * 5 + [31, 90, -1]) == ".....ooX"
    low = Divergence(keys=KEYS, factor=2, window=5)
    assert verdicts(low, [-10.0] * 5 + [-11, 0.5]) == ".....oX"


def test_nothing_is_a_multiple_of_zero() -> None:
    """A loss that has reached zero diverges by no factor."""
    assert verdicts(Divergence(keys=KEYS, window=5), [0.0] * 5 + [1e-9]) == "......"


def test_a_plateau_is_steps_without_a_better_value() -> None:
    """As good as before, or better by less than `min_delta`, is no better."""
    rule = Plateau(keys=KEYS, steps=300, min_delta=0.1)
    assert verdicts(rule, [5, 4, 3.95, 3.95, 3.95, 3.8], every_steps=100) == "oo..Xo"
    up = Plateau(keys=KEYS, steps=200, goal="maximize")
    assert verdicts(up, [5, 4, 4, NAN, 6], every_steps=100) == "o.X.o"


def test_a_plateau_begins_anew_where_training_goes_on_from_an_earlier_step() -> None:
    """The steps that were lost are not counted."""
    memory: Memory = {}
    rule = Plateau(keys=KEYS, steps=100)
    steps = [(500, 1.0), (590, 1.0), (400, 1.1), (490, 1.1), (500, 1.1)]
    found = [judged(rule, memory, Seen("loss", value, at, 0)).is_broken for at, value in steps]
    assert found == [False, None, None, None, True]


def test_worse_than_production_is_by_more_than_the_margin() -> None:
    """Nothing is judged before the value in Production is known."""
    rule = WorseThanProduction(keys=KEYS, model="clip", by=0.5)
    assert verdicts(rule, [2.4, 2.6, 2.5], production=2.0) == "oXo"
    assert verdicts(rule, [9.0], production=None) == "."
    up = WorseThanProduction(keys=KEYS, model="clip", by=1, goal="maximize", points=2)
    assert verdicts(up, [28.5, 28.9, 30, 30], production=30.0) == ".X.o"


def test_a_gpu_is_idle_after_minutes_on_end() -> None:
    """One busy moment begins the minutes anew."""
    rule = GpuIdle(below_percent=5, minutes=1)
    assert verdicts(rule, [0, 1, 0, 90, 0, 0, 0, 50], every_s=30) == "..Xo..Xo"


def test_a_gpu_whose_use_is_nan_is_neither_idle_nor_used() -> None:
    """The minutes go on, and nothing recovers."""
    rule = GpuIdle(below_percent=5, minutes=1)
    assert verdicts(rule, [NAN, 0, NAN, 0, NAN, 50], every_s=30) == "...X.o"


def test_a_disk_is_well_again_two_percent_below() -> None:
    """Files that come and go about the bound raise one alert."""
    assert verdicts(DiskFilling(above_percent=90), [80, 91, 89, 91, 88]) == "oX.Xo"


def test_a_verdict_says_why_in_words() -> None:
    """Key, value, step and bound."""
    rule = Threshold(keys=KEYS, above=10, points=2)
    memory: Memory = {"beyond": 1}
    verdict = judged(rule, memory, Seen("loss", 12.5, 40, 0))
    assert verdict.why == "loss is 12.5 at step 40, above 10 for 2 points"


def test_what_no_point_tells_is_judged_by_none() -> None:
    """Such a rule reaches no point; one that did is a mistake of ours."""
    with pytest.raises(TypeError, match="DroppedPoints"):
        judged(DroppedPoints(), {}, Seen("loss", 1, 1, 1))
