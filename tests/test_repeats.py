"""Points that were logged twice are passed on once."""

import math

from opusclip_mlops import repeats
from opusclip_mlops.records import Metrics
from opusclip_mlops.repeats import Repeats


def test_equal_points_are_left_out() -> None:
    """Key, step, time and value must all be equal; NaN equals NaN."""
    seen = Repeats()
    assert seen.left_of(Metrics(10, 1, {"a": 1.0, "b": math.nan})).keys() == {"a", "b"}
    assert seen.left_of(Metrics(10, 1, {"a": 1.0, "b": math.nan, "c": 2.0})) == {"c": 2.0}
    assert seen.left_of(Metrics(10, 1, {"a": 2.0, "c": 2.0})) == {"a": 2.0}
    assert seen.left_of(Metrics(10, 1, {"a": 1.0, "b": math.nan})) == {}
    assert seen.left_of(Metrics(11, 1, {"a": 1.0})) == {"a": 1.0}
    assert seen.left_of(Metrics(10, 2, {"a": 1.0})) == {"a": 1.0}


def test_only_what_is_recent_is_remembered() -> None:
    """Memory stays bounded however long a run is."""
    seen = Repeats()
    for step in range(repeats._RECENT_CALLS + 10):
        seen.left_of(Metrics(step, step, {"a": 1.0}))
    assert len(seen._recent) == repeats._RECENT_CALLS
