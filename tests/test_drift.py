"""Drift: nothing where nothing moved, more where more did, whatever the values are."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusclip_mlops.drift import MOST_COLUMNS, InputReference, Value, features, psi
from opusclip_mlops.errors import RecordError


def normal(mean: float, count: int = 500, seed: int = 0) -> list[Value]:
    """Numbers about a mean, spread by 1."""
    return [float(one) for one in np.random.default_rng(seed).normal(mean, 1, count)]


def test_the_index_is_that_of_its_formula() -> None:
    """Shares of a half and a half, then of a tenth and nine tenths; half a row more each."""
    before, now = (50.5 / 101, 50.5 / 101), (10.5 / 101, 90.5 / 101)
    told = sum((a - e) * math.log(a / e) for e, a in zip(before, now, strict=True))
    assert psi([50, 50], [10, 90]) == pytest.approx(told)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30).filter(any))
def test_the_same_counts_have_none_and_it_is_symmetric(counts: list[int]) -> None:
    """No index is below 0, and it does not matter which came first."""
    other = counts[::-1]
    assert psi(counts, counts) == pytest.approx(0, abs=1e-12)
    assert psi(counts, other) == pytest.approx(psi(other, counts))
    assert psi(counts, other) >= 0


def test_numbers_that_move_further_drift_more() -> None:
    """Alike, a little off and far off, by both measures; the p-value says how unlikely it is."""
    reference = InputReference.of({"size": normal(0)})
    alike, off, far = (reference.drift({"size": normal(by, seed=1)})["size"] for by in (0, 0.5, 3))
    assert alike.psi < 0.1 < off.psi < 1 < far.psi
    assert alike.ks is not None
    assert off.ks is not None
    assert far.ks is not None
    assert alike.ks < 0.1 < off.ks < 0.5 < far.ks
    assert alike.p_value is not None
    assert alike.p_value > 0.01
    assert far.p_value == pytest.approx(0, abs=1e-9)


def test_the_statistic_is_that_of_its_definition() -> None:
    """The largest distance of the two distribution functions."""
    before, now = normal(0, 50), normal(0.3, 70, seed=2)
    drift = InputReference.of({"size": before}).drift({"size": now})["size"]
    steps = [one for one in (*before, *now) if isinstance(one, float)]
    shares = [(np.mean([b <= at for b in before]), np.mean([n <= at for n in now])) for at in steps]  # type: ignore[operator]
    assert drift.ks == pytest.approx(max(abs(a - b) for a, b in shares))


def test_few_values_have_a_bin_each() -> None:
    """A whole number that is always 8 has moved when it is always 16, or never there."""
    reference = InputReference.of({"frames": [8.0] * 200})
    same, other, none = (
        reference.drift({"frames": [value] * 200})["frames"].psi for value in (8.0, 16.0, None)
    )
    assert same == pytest.approx(0, abs=1e-9)
    assert min(other, none) > 5


def test_nothing_there_is_no_number() -> None:
    """NaN, infinities and None are missing: more of them is drift, and none of it a fault."""
    reference = InputReference.of({"size": [*normal(0, 200), math.nan, None, math.inf]})
    whole = reference.drift({"size": normal(0, 200, seed=1)})["size"]
    holes = reference.drift({"size": [*normal(0, 100, seed=1), *[math.nan] * 100]})["size"]
    nothing = reference.drift({"size": [None] * 100})["size"]
    assert whole.psi < 0.2 < holes.psi < nothing.psi
    assert nothing.ks is None


def test_a_text_counts_by_its_length_and_by_itself_where_there_are_few() -> None:
    """Prompts that are all different have lengths only."""
    few = features({"prompt": ["a kite", "a dog"] * 50})
    assert set(InputReference.of(few).columns) == {"prompt", "prompt.characters"}
    many = features({"prompt": [f"a kite {one}" for one in range(200)]})
    assert set(InputReference.of(many).columns) == {"prompt.characters"}


def test_a_reference_is_read_back_as_it_was() -> None:
    """Of many numbers a thousand are kept, the same ones each time."""
    columns: dict[str, list[Value]] = {"size": normal(0, 5000), "kind": [None, "a"] * 2500}
    reference = InputReference.of(columns)
    assert InputReference.from_json(reference.as_json()) == reference == InputReference.of(columns)
    assert len(reference.columns["size"].numbers) == 1000
    assert reference.columns["kind"].missing == 2500


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"format": 2, "rows": 1, "columns": {}}',
        '{"format": 1, "rows": "x", "columns": {}}',
        '{"format": 1, "rows": 1, "columns": {"a": 3}}',
        '{"format": 1, "rows": 1, "columns": {"a": {"numbers": [NaN], "counts": {}}}}',
        "[" * 100_000,
    ],
)
def test_rubbish_is_no_reference(text: str) -> None:
    """It is one error of ours, whatever it is."""
    with pytest.raises(RecordError, match="no reference"):
        InputReference.from_json(text)


@pytest.mark.parametrize("columns", [{}, {"size": []}, {"size": [None, None]}])
def test_nothing_is_no_reference(columns: dict[str, list[Value]]) -> None:
    """Rows without a value to compare are refused."""
    with pytest.raises(RecordError, match="give rows"):
        InputReference.of(columns)


def test_so_many_columns_are_compared() -> None:
    """A table of a thousand columns costs no more than one of 64, or one more."""
    wide = {str(place): [1.0] for place in range(1000)}
    assert len(features(wide)) == MOST_COLUMNS


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just(10**400), st.binary()
)


@given(st.dictionaries(st.text(max_size=3), st.lists(VALUES, max_size=30)))
def test_whatever_is_asked_can_be_compared(columns: dict[str, list[object]]) -> None:
    """No values make it fail; compared with itself nothing moved."""
    held = features(columns)
    if not any(held.values()):
        return
    reference = InputReference.of(held)
    assert all(one.psi == pytest.approx(0, abs=1e-9) for one in reference.drift(held).values())
    assert InputReference.from_json(reference.as_json()) == reference
