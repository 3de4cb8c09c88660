"""Points as columns: compared as sets in which each stands so often, sorted, cut into records."""

import math
from collections import Counter

import hypothesis
import hypothesis.strategies as st
import numpy as np

from opusclip_mlops.points import MAX_FLOAT64, Point, Points

_VALUES = st.sampled_from([0.0, -0.0, 1.0, 1 / 3, math.nan, math.inf, -math.inf, 1e300, 1e-300])
_POINTS = st.lists(
    st.builds(
        Point,
        key=st.sampled_from(["a", "b", "ž"]),
        step=st.sampled_from([0, 1, -1, 2**40]),
        timestamp_ms=st.sampled_from([0, 1, 10**12]),
        value=_VALUES,
    ),
    max_size=30,
)


def _counted(points: Points) -> Counter[tuple[object, ...]]:
    found = points.some(len(points))
    return Counter((p.key, p.step, p.timestamp_ms, repr(p.value + 0.0)) for p in found)


@hypothesis.given(_POINTS, _POINTS)
def test_a_difference_is_the_one_of_multisets(ours: list[Point], theirs: list[Point]) -> None:
    """What stands here more often is left over, by as much; NaN equals NaN, -0.0 equals 0.0."""
    a, b = Points.of(ours), Points.of(theirs)
    assert _counted(a.minus(b)) == _counted(a) - _counted(b)
    assert len(a.minus(a)) == 0
    assert _counted(Points.joined([a, b])) == _counted(a) + _counted(b)


@hypothesis.given(_POINTS)
def test_records_hold_each_point_once(points: list[Point]) -> None:
    """Cut into log calls, sorted either way, no point is lost and no key stands twice in one."""
    found = Points.of(points)
    for sorted_points in (found.in_time(), found.in_steps()):
        calls = list(sorted_points.calls())
        again = Points.of(
            Point(key, call.step, call.timestamp_ms, value)
            for call in calls
            for key, value in call.values.items()
        )
        assert _counted(again) == _counted(found)
    places = [(call.timestamp_ms, call.step) for call in found.in_time().calls()]
    assert places == sorted(places)
    places = [(call.step, call.timestamp_ms) for call in found.in_steps().calls()]
    assert places == sorted(places)


@hypothesis.given(_POINTS)
def test_each_point_once(points: list[Point]) -> None:
    """`distinct` leaves one of each."""
    assert set(_counted(Points.of(points).distinct()).values()) <= {1}
    assert _counted(Points.of(points).distinct()).keys() == _counted(Points.of(points)).keys()


def test_the_largest_float_means_infinity() -> None:
    """MLflow's databases keep ±Infinity as ±1.797e308."""
    found = Points.of([Point("a", 0, 0, MAX_FLOAT64), Point("b", 0, 0, -MAX_FLOAT64)])
    assert [one.value for one in found.some(2)] == [math.inf, -math.inf]


def test_values_are_compared_in_32_bits_where_they_are_kept_so() -> None:
    """Two that 32 bits can't tell are two points there, and come back in 64 bits."""
    ours = Points.of([Point("a", 0, 0, 1 / 3), Point("a", 0, 0, 1 / 3 + 1e-12)])
    one = Points.of([Point("a", 0, 0, float(np.float32(1 / 3)))])
    kept = ours.narrow()
    assert [p.value for p in ours.lacking_in(one, kept_as=kept).some(2)] == [1 / 3 + 1e-12]
    assert len(ours.lacking_in(Points.joined([one, one]), kept_as=kept)) == 0
    assert len(Points.joined([one, one, one]).minus(ours.narrow())) == 1
    assert ours.narrow().some(1)[0].value == float(np.float32(1 / 3))


def test_steps_that_only_grow() -> None:
    """Each key by itself, in the order they stand in."""
    rising = [Point("a", 1, 0, 0.0), Point("b", 0, 0, 0.0), Point("a", 2, 0, 0.0)]
    assert Points.of(rising).rises()
    assert not Points.of([*rising, Point("b", 0, 1, 0.0)]).rises()
    assert Points.of([]).rises()
