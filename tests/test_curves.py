"""Facts about `opusclip_mlops.curves`: what counts of a metric, and what is made of it."""

import math
from collections.abc import Sequence

import pytest

from opusclip_mlops.curves import (
    At,
    Curve,
    common_span,
    curves_of,
    difference,
    drawn_of,
    mean_over,
    parted,
    path_of,
)
from opusclip_mlops.generations import Generation, line_of
from opusclip_mlops.points import Point, Points

INT64 = 2**63


def curve(*values: float, steps: Sequence[int] | None = None) -> Curve:
    """One logged a second apart, at steps 0, 1, 2 … or at these."""
    places = steps or range(len(values))
    points = [
        Point("m", s, 1000 * at, v) for at, (s, v) in enumerate(zip(places, values, strict=True))
    ]
    return every(points)["m"]


def every(points: Sequence[Point]) -> dict[str, Curve]:
    return curves_of(Points.of(points), wanted=lambda _: True)


def generation(number: int, start_ms: int, after_step: int, parent: int) -> Generation:
    return Generation(
        number=number, start_ms=start_ms, after_step=after_step, checkpoint="c", parent=parent
    )


def test_the_last_and_the_extremes_are_points() -> None:
    """Of equal extremes the first counts; at one step what was logged last is the last."""
    found = curve(3.0, 1.0, 1.0, 5.0, 2.0, steps=(0, 1, 2, 9, 9))
    assert found.last == At(value=2.0, step=9, timestamp_ms=4000)
    assert found.lowest == At(value=1.0, step=1, timestamp_ms=1000)
    assert found.highest == At(value=5.0, step=9, timestamp_ms=3000)


def test_what_is_no_number_is_left_out_and_counted() -> None:
    """And it is told that a curve ends so; a curve of nothing else has no points."""
    found = curve(1.0, math.inf, 0.5, math.nan)
    assert (len(found), found.not_finite, found.ends_finite) == (2, 2, False)
    assert found.last == At(value=0.5, step=2, timestamp_ms=2000)
    none = curve(math.nan)
    assert (len(none), none.first, none.last, none.lowest, none.highest) == (0, *[None] * 4)
    assert curve(math.nan, 1.0).ends_finite


def test_only_wanted_keys_are_kept_and_points_may_come_in_any_order() -> None:
    """Each curve stands by itself, by its steps."""
    points = [Point(key, step, step, step) for step in (2, 0, 1) for key in ("b", "a", "c")]
    found = curves_of(Points.of(points), wanted=lambda key: key != "b")
    assert sorted(found) == ["a", "c"]
    assert found["c"].rows["step"].tolist() == [0, 1, 2]
    assert curves_of(Points.of(()), wanted=lambda _: True) == {}


def test_a_line_leaves_out_just_what_generations_say() -> None:
    """For every point the answer is that of `Line.holds`; the machine's own points always count."""
    begun = (
        generation(1, 100, 5, 0),
        generation(2, 200, 7, 1),
        generation(3, 300, 2, 0),
        generation(4, 400, -INT64, 3),
    )
    points = [
        Point(key, step, at_ms, float(step % 97))
        for key in ("loss", "system/cpu")
        for step in (-INT64, -1, 0, 2, 3, 5, 6, 7, 8, INT64 - 1)
        for at_ms in (0, 99, 100, 199, 200, 299, 300, 399, 400, 500)
    ]
    for number in range(len(begun) + 1):
        line = line_of(begun, number)
        found = curves_of(Points.of(points), wanted=lambda _: True, line=line)
        for key, one in found.items():
            held = [
                (p.step, p.timestamp_ms)
                for p in points
                if p.key == key and line.holds(key=key, step=p.step, timestamp_ms=p.timestamp_ms)
            ]
            rows = zip(one.rows["step"].tolist(), one.rows["timestamp_ms"].tolist(), strict=True)
            assert sorted(rows) == sorted(held)
            assert one.superseded == 100 - len(held)


def test_the_mean_is_the_area_by_the_length() -> None:
    """Trapezoids, with straight lines up to the ends of the span."""
    path = path_of(curve(0.0, 2.0, 2.0, steps=(0, 2, 10)), by="step")
    assert mean_over(path, (0.0, 10.0)) == pytest.approx((2 + 16) / 10)
    assert mean_over(path, (1.0, 4.0)) == pytest.approx((1.5 + 4) / 3)
    assert mean_over(path_of(curve(*[7.25] * 5), by="step"), (0.5, 3.5)) == pytest.approx(7.25)


def test_the_mean_of_the_largest_numbers_is_a_number() -> None:
    """It is never beyond what it is the mean of."""
    path = path_of(curve(*[1.7e308] * 50), by="step")
    assert mean_over(path, (0.0, 49.0)) == pytest.approx(1.7e308)


def test_of_several_points_at_one_place_the_last_counts() -> None:
    """Otherwise what was corrected would count half."""
    path = path_of(curve(9.0, 1.0, 1.0, steps=(0, 0, 4)), by="step")
    assert (path.x.tolist(), path.y.tolist()) == ([0.0, 4.0], [1.0, 1.0])


def test_over_time_a_curve_begins_where_its_run_did() -> None:
    """Seconds since then, in the order of the times."""
    points = [Point("m", 0, 5_000, 1.0), Point("m", 9, 4_000, 3.0), Point("m", 1, 6_500, 2.0)]
    path = path_of(every(points)["m"], by="time", start_ms=4_000)
    assert (path.x.tolist(), path.y.tolist()) == ([0.0, 1.0, 2.5], [3.0, 1.0, 2.0])


def test_the_common_span_is_where_all_are() -> None:
    """None where there is no such place, or only a point of it."""
    long, late = curve(1, 2, 3, 4, 5), curve(1, 2, steps=(3, 9))
    after = curve(1, 2, steps=(4, 6))
    paths = [path_of(one, by="step") for one in (long, late, after)]
    assert common_span(paths[:2]) == (3.0, 4.0)
    assert common_span(paths) is None
    assert common_span([]) is None
    assert common_span([path_of(curve(math.nan), by="step")]) is None


def test_a_difference_is_absolute_and_relative() -> None:
    """Relative to the amount, so that its sign is that of the change; to 0 there is none."""
    found = difference(-3.0, -2.0)
    assert (found.absolute, found.relative) == (-1.0, -0.5)
    assert difference(1.0, 0.0).relative is None
    assert difference(1.7e308, -1.7e308).absolute is None


def test_what_counts_no_more_is_a_curve_for_each_generation_that_left_it() -> None:
    """What counts is what `curves_of` finds of the line; of the machine all counts."""
    begun = (generation(1, 4000, 1, 0), generation(2, 7000, 0, 0))
    steps = (0, 1, 2, 3, 2, 3, 4, 1, 2)
    points = [Point("m", step, 1000 * at, at) for at, step in enumerate(steps)]
    line = line_of(begun, 2)
    now, left = parted("m", every(points)["m"], line)
    wanted = curves_of(Points.of(points), wanted=lambda _: True, line=line)["m"]
    assert now.rows.tolist() == wanted.rows.tolist()
    assert [one.rows["value"].tolist() for one in left] == [[1, 2, 3], [4, 5, 6]]
    assert parted("system/gpu", every(points)["m"], line)[1] == ()
    assert parted("m", every(points)["m"], line_of((), 0))[1] == ()


def test_every_point_is_drawn_where_a_path_has_the_last_of_a_place() -> None:
    """By steps, and by the seconds since the run began."""
    found = curve(3.0, 1.0, 2.0, steps=(0, 5, 5))
    drawn, path = drawn_of(found, by="step"), path_of(found, by="step")
    assert (drawn.x.tolist(), drawn.y.tolist()) == ([0, 5, 5], [3, 1, 2])
    assert (path.x.tolist(), path.y.tolist()) == ([0, 5], [3, 2])
    assert drawn_of(found, by="time", start_ms=1000).x.tolist() == [-1, 0, 1]
