"""Facts about groups of runs: what is said, what is not, and how often it is wrong."""

import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from opusclip_mlops.errors import RecordError
from opusclip_mlops.significance import compare_groups

ROUNDS = 2000
MANY = st.lists(
    st.sampled_from([0.0, 1.0, 1.5, 2.0, -3.0, 1e-300, 1e140, math.inf, -math.inf]),
    min_size=3,
    max_size=9,
)
A = [0.31, 0.29, 0.33, 0.30, 0.32]
B = [0.36, 0.35, 0.39, 0.34, 0.37]


def near(share: float, nominal: float, rounds: int = ROUNDS) -> bool:
    """Whether a share of so many rounds is what chance makes of the nominal one."""
    return abs(share - nominal) <= 3 * math.sqrt(nominal * (1 - nominal) / rounds)


def test_it_is_scipys_welch_with_all_that_belongs_to_it() -> None:
    """n, test, statistic, p, the difference with its interval, two effects; and in one line."""
    found = compare_groups(A, B, names=("new", "old"))
    scipys = stats.ttest_ind(A, B, equal_var=False)
    welch, ranks = found.tests
    assert (found.n_a, found.n_b, found.differs) == (5, 5, True)
    assert (welch.value, welch.p) == (scipys.statistic, scipys.pvalue)
    assert found.p == welch.p
    assert ranks.p == stats.mannwhitneyu(A, B, method="exact").pvalue
    assert found.difference is not None
    interval = scipys.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == (interval.low, interval.high)
    assert [one.name for one in found.effects] == ["Hedges' g", "Cliff's delta"]
    assert found.sentence.startswith(
        "new 0.31, old 0.362 (n = 5 and 5): they differ; difference of means -0.052 (95% interval "
    )
    assert "; Welch t(" in found.sentence
    assert "; exact Mann-Whitney U = 0, p = 0.0079; Hedges' g -" in found.sentence


def test_that_nothing_is_shown_is_not_that_nothing_is_there() -> None:
    """The words for p above 0.05."""
    found = compare_groups([1, 2, 3, 4], [2, 3, 1, 5])
    assert found.differs is False
    assert ": that they differ is not shown; " in found.sentence


@pytest.mark.parametrize(("a", "b"), [([1.0, 2.0], A), (A, [1.0]), ([3.0], [1.0])])
def test_of_too_few_it_says_so_instead_of_a_p(a: list[float], b: list[float]) -> None:
    """The difference stands there, without an interval; nobody reads a p out of two runs."""
    found = compare_groups(a, b)
    assert (found.p, found.differs, found.tests, found.effects) == (None, None, (), ())
    assert found.difference is not None
    assert found.difference.value == pytest.approx(np.mean(a) - np.mean(b))
    assert found.difference.low is None
    assert found.sentence.endswith(
        ": too few values to say whether they differ; give each group 3 or more"
    )


def test_equal_constant_groups_do_not_differ() -> None:
    """No division by a spread of zero: p is 1, by ranks."""
    found = compare_groups([2.0] * 4, [2.0] * 3)
    assert (found.p, found.differs) == (1.0, False)
    assert [one.name for one in found.tests] == ["exact Mann-Whitney"]
    assert found.effects[0].value == 0
    assert "no group has a spread beyond rounding, so ranks decide" in found.sentence


def test_constant_groups_that_are_apart_are_no_proof_in_themselves() -> None:
    """Student's t would be infinite and p 0; ranks of three say 0.1."""
    found = compare_groups([1.0] * 3, [2.0] * 3)
    assert found.p == pytest.approx(0.1)
    assert compare_groups([1.0] * 5, [2.0] * 5).differs is True


def test_one_constant_group_is_no_obstacle() -> None:
    """Welch's test needs the spread of one; the bootstrap needs both."""
    found = compare_groups([1.0] * 7, [1.1, 1.3, 0.9, 1.2, 1.4, 1.0, 1.3])
    assert found.tests[0].name == "Welch"
    assert found.resampled is None


def test_one_infinite_value_leaves_the_ranks() -> None:
    """A run that diverged is the worst; of means nothing is said, and JSON stays JSON."""
    found = compare_groups([math.inf, 5.0, 6.0, 7.0], [1.0, 2.0, 3.0, 4.0])
    assert found.p == pytest.approx(2 / 70)
    assert (found.differs, found.difference, found.mean_a) == (True, None, math.inf)
    assert found.effects[0].value == 1
    assert "a value is infinite, so ranks decide" in found.sentence
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (content["mean_a"], content["p"]) == ("inf", found.p)
    both = compare_groups([math.inf, -math.inf, 1.0], A)
    assert math.isnan(both.mean_a)


@pytest.mark.parametrize("shift", [0.0, 1e6, 1e15])
@pytest.mark.parametrize("factor", [1.0, 2.0**-700, 2.0**900])
def test_neither_size_nor_a_shift_moves_what_is_found(shift: float, factor: float) -> None:
    """Of whole numbers, which stay exact: the same tests and effects, and the difference as large.

    In particular no value is called infinite that is not, and no group without spread.
    """
    a, b = [float(n) for n in (1, 2, 3, 5, 9, 11)], [float(n) for n in (6, 8, 12, 13, 17, 19)]
    plain = compare_groups(a, b)
    moved = compare_groups(*([factor * (one + shift) for one in group] for group in (a, b)))
    assert moved.notes == ()
    for one, other in zip(plain.tests + plain.effects, moved.tests + moved.effects, strict=True):
        assert one.value == pytest.approx(other.value)
    assert (moved.p, moved.differs) == (pytest.approx(plain.p), plain.differs)
    for one, other in ((plain.difference, moved.difference), (plain.resampled, moved.resampled)):
        assert one is not None
        assert other is not None
        found = [other.value / factor, other.low / factor, other.high / factor]  # type: ignore[operator]
        assert found == pytest.approx([one.value, one.low, one.high])
    assert moved.mean_a / factor == pytest.approx(plain.mean_a + shift, rel=1e-15)


def test_the_largest_numbers_have_means_and_an_answer() -> None:
    """Their difference is beyond all numbers, and said to be; no value is called infinite."""
    found = compare_groups([1e308, 1.1e308, 1.2e308], [-1e308, -1.1e308, -1.3e308])
    assert found.notes == ()
    assert (found.mean_a, found.mean_b) == pytest.approx((1.1e308, -1.7e308 / 1.5))
    assert found.differs is True
    assert found.difference is not None
    assert found.difference.value == math.inf
    json.dumps(found.to_dict(), allow_nan=False)


def test_rounding_is_no_difference() -> None:
    """0.1 + 0.2 and 0.3 are no two settings."""
    found = compare_groups([0.3] * 4, [0.1 + 0.2] * 4)
    assert (found.differs, found.p) == (False, 1.0)
    assert "no group has a spread beyond rounding" in found.sentence


@pytest.mark.parametrize("names", [("A",), None, "AB", ("A", 2), ("A", "B", "C")])
def test_groups_have_two_names(names: Any) -> None:
    """In one line."""
    with pytest.raises(RecordError, match=r"names must be two texts, one a group, not "):
        compare_groups(A, B, names=names)
    assert "\n" not in compare_groups(A, B, names=("a\nb", "c")).sentence


def test_ties_are_told_by_exact_ranks() -> None:
    """Whole numbers that are often equal: p is that of all rearrangements."""
    found = compare_groups([1, 1, 2, 2], [2, 3, 3, 3])
    assert found.tests[1].p == pytest.approx(6 / 70)


@settings(max_examples=40, deadline=None)
@given(MANY, MANY)
def test_whatever_the_values_there_is_an_answer(a: list[float], b: list[float]) -> None:
    """A p from 0 to 1, JSON without what JSON has not, and with A and B swapped the same turned."""
    found, turned = compare_groups(a, b), compare_groups(b, a)
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.p is not None
    assert 0 <= found.p <= 1
    assert found.p == pytest.approx(turned.p)
    turned_back = [-one.value for one in turned.effects]
    assert [one.value for one in found.effects] == pytest.approx(turned_back)
    for one in (*found.effects, *([found.resampled] if found.resampled else [])):
        assert one.low <= one.high  # type: ignore[operator]


def test_many_values_take_no_square_of_memory() -> None:
    """A hundred thousand a group: no matrix of all pairs, and no bootstrap."""
    a, b = np.random.default_rng(9).normal(0, 1, (2, 100_000))
    tracemalloc.start()
    found = compare_groups(a, b + 0.1)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.differs, found.resampled) == (True, None)
    assert peak_bytes < 100e6


@pytest.mark.parametrize("bad", [[], [1.0, math.nan, 2.0], [[1.0]], "ab"])
def test_what_is_no_group_is_refused(bad: list[float]) -> None:
    """With the group's name."""
    with pytest.raises(RecordError, match="baseline"):
        compare_groups(A, bad, names=("new", "baseline"))


def test_the_same_seed_gives_the_same_interval() -> None:
    """And another one moves it a little; each says how it was drawn."""
    a, b = np.random.default_rng(0).normal(0, 1, (2, 12))
    first, again, other = (compare_groups(a, b, seed=seed).resampled for seed in (3, 3, 4))
    assert first == again != other
    assert first is not None
    assert first.method == "BCa bootstrap, 10000 draws, seed 3"


def welch_p(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SciPy's p of each row; what is said of the first rows is that."""
    p: np.ndarray = stats.ttest_ind(a, b, axis=1, equal_var=False).pvalue
    said = [compare_groups(x, y).p for x, y in zip(a[:20], b[:20], strict=True)]
    assert said == pytest.approx(p[:20])
    return p


def test_it_is_wrong_as_often_as_it_says() -> None:
    """Of 2,000 pairs of groups from one distribution 5 % differ, of unlike spread and size too."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, (ROUNDS, 8)), rng.normal(0, 1, (ROUNDS, 8))
    assert near(float(np.mean(welch_p(a, b) <= 0.05)), 0.05)
    assert near(float(np.mean(welch_p(a, 4 * b[:, :5]) <= 0.05)), 0.05)


def test_a_difference_of_two_spreads_is_found_in_most_groups_of_five() -> None:
    """In more than 75 of 100, at 5 %."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(2, 1, (ROUNDS, 5)), rng.normal(0, 1, (ROUNDS, 5))
    assert np.mean(welch_p(a, b) <= 0.05) > 0.75


def test_nineteen_of_twenty_bootstrap_intervals_hold_the_difference() -> None:
    """Of eight skewed values a group, where a plain bootstrap holds it in 88 of 100."""
    rng = np.random.default_rng(3)
    held = []
    for a, b in zip(rng.exponential(1, (150, 8)), rng.exponential(1, (150, 8)), strict=True):
        found = compare_groups(a, b).resampled
        assert found is not None
        held.append(found.low <= 0 <= found.high)  # type: ignore[operator]
    assert 0.90 <= np.mean(held) <= 0.99
