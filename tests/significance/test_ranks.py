"""Facts about rank tests: SciPy's where it is exact, every rearrangement tried where it is not."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from opusclip_mlops.significance.ranks import MOST_EXACT, rank_sum, signed_rank

FEW = st.lists(st.integers(-3, 3).map(float), min_size=3, max_size=5)


@settings(deadline=None)
@given(FEW, FEW)
def test_with_ties_it_is_what_all_rearrangements_give(a: list[float], b: list[float]) -> None:
    """The share of ways to part the values that give a U as far out, twice the smaller tail."""
    ranks = stats.rankdata([*a, *b])
    found = sum(ranks[: len(a)])
    every = [sum(one) for one in itertools.combinations(ranks, len(a))]
    tails = [sum(one <= found for one in every), sum(one >= found for one in every)]
    expected = min(1.0, 2 * min(tails) / len(every))
    assert rank_sum(np.array(a), np.array(b)).p == pytest.approx(expected)


def test_without_ties_it_is_scipys_exact_test() -> None:
    """U and p of groups of unequal size."""
    rng = np.random.default_rng(0)
    for sizes in ((3, 3), (5, 8), (20, 25)):
        a, b = rng.normal(0, 1, sizes[0]), rng.normal(0.7, 1, sizes[1])
        scipys = stats.mannwhitneyu(a, b, method="exact")
        found = rank_sum(a, b)
        assert (found.name, found.statistic) == ("exact Mann-Whitney", "U")
        assert found.value == scipys.statistic
        assert found.p == pytest.approx(scipys.pvalue)


def test_many_values_are_scipys_approximation() -> None:
    """Corrected for ties."""
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 9, 40).astype(float), rng.integers(1, 10, 35).astype(float)
    scipys = stats.mannwhitneyu(a, b, method="asymptotic")
    found = rank_sum(a, b)
    assert (found.name, found.value, found.p) == ("Mann-Whitney", scipys.statistic, scipys.pvalue)


def test_the_two_ways_agree_where_they_meet() -> None:
    """At the most values that are counted out the approximation is near."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 1, MOST_EXACT // 2), rng.normal(0.5, 1, MOST_EXACT // 2)
    assert rank_sum(a, b).p == pytest.approx(stats.mannwhitneyu(a, b).pvalue, rel=0.2)


def test_equal_values_say_nothing() -> None:
    """P is 1, and U in the middle."""
    same = np.ones(4)
    found = rank_sum(same, same)
    assert (found.value, found.p) == (8.0, 1.0)


def test_infinite_values_have_ranks() -> None:
    """The largest; a run that diverged counts as one that is worse than all others."""
    a, b = np.array([1.0, 2.0, math.inf]), np.array([-math.inf, 0.0, 0.5])
    assert rank_sum(a, b) == rank_sum(np.array([4.0, 5.0, 6.0]), np.array([1.0, 2.0, 3.0]))
    assert rank_sum(a, b).p == pytest.approx(2 / 20)


@settings(deadline=None)
@given(st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=9))
def test_signs_are_all_tried_where_differences_are_tied(differences: list[float]) -> None:
    """The share of ways to give signs to the ranks that give a W as far out; zeros left out."""
    kept = np.array([one for one in differences if one])
    ranks = stats.rankdata(np.abs(kept))
    found = ranks[kept > 0].sum()
    every = [sum(one) for one in itertools.product(*[(0, rank) for rank in ranks])]
    tails = [sum(one <= found for one in every), sum(one >= found for one in every)]
    test = signed_rank(np.array(differences))
    assert test.value == found
    assert test.p == pytest.approx(min(1.0, 2 * min(tails) / len(every)))


def test_signed_ranks_are_scipys() -> None:
    """Exact without ties, and its approximation for many pairs; W counts the positive ranks."""
    rng = np.random.default_rng(3)
    few, many = rng.normal(0.3, 1, 14), rng.normal(0.2, 1, 90)
    exact = stats.wilcoxon(few, method="exact", alternative="two-sided")
    assert signed_rank(few).p == pytest.approx(exact.pvalue)
    assert signed_rank(many).p == stats.wilcoxon(many, method="asymptotic").pvalue
    assert signed_rank(many).name == "Wilcoxon"
    greater = stats.wilcoxon(few, method="exact", alternative="greater")
    assert signed_rank(few).value == greater.statistic


def test_zeros_are_left_out_or_ranked_as_said() -> None:
    """Left out, the least difference has rank 1; ranked first, the zeros hold the low ranks."""
    differences = np.array([0.0, 0.0, 1.0, -2.0, 3.0])
    assert signed_rank(differences).value == 1 + 3
    assert signed_rank(differences, zeros="pratt").value == 3 + 5
    scipys = stats.wilcoxon(
        differences, zero_method="pratt", method=stats.PermutationMethod(n_resamples=np.inf)
    )
    assert signed_rank(differences, zeros="pratt").p == pytest.approx(scipys.pvalue)


@pytest.mark.parametrize("zeros", ["wilcox", "pratt"])
def test_no_differences_say_nothing(zeros: str) -> None:
    """P is 1, not an error."""
    found = signed_rank(np.zeros(5), zeros=zeros)  # type: ignore[arg-type]
    assert (found.value, found.p) == (0.0, 1.0)


def test_exact_tests_keep_their_level() -> None:
    """Of 2,000 pairs of groups that are alike p is 0.05 or less in 5 of 100 at most, about so."""
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 2000, 8))
    rejected = np.mean([rank_sum(x, y).p <= 0.05 for x, y in zip(a, b, strict=True)])
    assert rejected == pytest.approx(0.0499, abs=3 * math.sqrt(0.05 * 0.95 / 2000))
    signs = np.mean([signed_rank(x - y).p <= 0.05 for x, y in zip(a, b, strict=True)])
    attained = 10 / 256  # the largest p of 8 pairs at or below 0.05
    assert signs == pytest.approx(attained, abs=3 * math.sqrt(0.05 * 0.95 / 2000))
