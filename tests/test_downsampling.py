"""Facts about `opusclip_mlops.downsampling`: a curve for the eye keeps every spike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusclip_mlops.downsampling import note_of, thinned


def test_a_short_curve_stays_as_it_is() -> None:
    """Up to the most points that may be left; nothing is said of it then."""
    found = thinned([1, 2, 3, 4], [4.0, 3.0, 2.0, 1.0], most=4)
    assert (found.x.tolist(), found.y.tolist(), found.of) == ([1, 2, 3, 4], [4, 3, 2, 1], 4)
    assert note_of(found) == ""


@pytest.mark.parametrize("at", [0, 1, 49_999, 77_777, 99_998, 99_999])
def test_a_spike_of_one_point_in_a_hundred_thousand_stays(at: int) -> None:
    """Up or down, wherever it is."""
    for spike in (9.0, -9.0):
        y = np.sin(np.arange(100_000) / 300)
        y[at] = spike
        found = thinned(np.arange(100_000), y)
        assert len(found.x) <= 1500
        assert found.y[found.x == at].tolist() == [spike]


def test_every_stretch_keeps_its_own_low_and_high() -> None:
    """Those of the whole curve are not enough: each of a hundred hills has its top and its foot."""
    y = np.concatenate([np.sin(np.arange(100)) * hill for hill in range(1, 101)])
    found = thinned(np.arange(10_000), y, most=400)
    assert len(found.x) <= 400
    for hill in range(100):
        part = (found.x >= hill * 100) & (found.x < hill * 100 + 100)
        whole = y[hill * 100 : hill * 100 + 100]
        assert (found.y[part].min(), found.y[part].max()) == (whole.min(), whole.max())


def test_it_is_said_how_much_is_shown() -> None:
    """Of several curves together."""
    one = thinned(np.arange(10_000), np.zeros(10_000), most=400)
    short = thinned([0, 1], [0, 1])
    shown = len(one.x) + 2
    assert note_of(one, short) == f"{shown:,} of 10,002 points shown, every low and high kept"


@given(
    steps=st.lists(st.integers(0, 60), min_size=1, max_size=300),
    values=st.data(),
    most=st.integers(4, 40),
)
def test_of_every_bucket_the_extremes_and_ends_stay(
    steps: list[int], values: st.DataObject, most: int
) -> None:
    """Whatever the curve: no more than was asked for, in order, of its own points."""
    x = np.sort(np.array(steps, dtype=float))
    y = np.array(values.draw(st.lists(st.floats(-9, 9), min_size=len(x), max_size=len(x))))
    found = thinned(x, y, most=most)
    assert len(found.x) <= max(most, 4)
    assert (np.diff(found.x) >= 0).all()
    assert set(zip(found.x, found.y, strict=True)) <= set(zip(x, y, strict=True))
    for edge in (0, -1):
        assert (found.x[edge], found.y[edge]) == (x[edge], y[edge])
    inner = np.linspace(x[0], x[-1], most // 4 + 1)[1:-1]
    of, of_found = (np.searchsorted(inner, one, side="right") for one in (x, found.x))
    for bucket in np.unique(of):
        whole, kept = y[of == bucket], found.y[of_found == bucket]
        assert (kept.min(), kept.max()) == (whole.min(), whole.max())
        assert (kept[0], kept[-1]) == (whole[0], whole[-1])


def test_wrong_use_is_refused() -> None:
    """Fewer than a bucket's four, or a value without a place."""
    for x, y, most in (([1.0], [1.0], 3), ([1.0, 2.0], [1.0], 4)):
        with pytest.raises(ValueError, match="as many of x as of y"):
            thinned(x, y, most=most)
