"""Facts about effect sizes: their formulas, and whether their intervals hold the truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from opusclip_mlops.significance.effects import cliffs_delta, hedges_g, hedges_g_paired
from opusclip_mlops.significance.results import Estimate

A = np.array([1.0, 2.0, 4.0, 7.0])
B = np.array([0.0, 2.0, 2.5])
FEW = st.lists(st.integers(-3, 3).map(float), min_size=2, max_size=6)


def holds(found: Estimate, truth: float) -> bool:
    """Whether the interval holds it."""
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high


def test_hedges_g_is_that_of_its_formula() -> None:
    """The difference by the pooled spread, times the factor that takes the bias away."""
    pooled = math.sqrt((3 * A.var(ddof=1) + 2 * B.var(ddof=1)) / 5)
    factor = math.gamma(2.5) / (math.sqrt(2.5) * math.gamma(2.0))
    assert hedges_g(A, B).value == pytest.approx(factor * (A.mean() - B.mean()) / pooled)
    assert factor == pytest.approx(1 - 3 / (4 * 5 - 1), abs=0.003)  # as tables have it


def test_its_interval_is_that_of_the_noncentral_t() -> None:
    """With the ends as the true effect the value found lies at 2.5 % and 97.5 %."""
    found = hedges_g(A, B)
    unit = math.sqrt(1 / 4 + 1 / 3)
    t = stats.ttest_ind(A, B).statistic
    assert found.low is not None
    assert found.high is not None
    assert stats.nct.cdf(t, 5, found.low / unit) == pytest.approx(0.975, abs=2e-3)
    assert stats.nct.cdf(t, 5, found.high / unit) == pytest.approx(0.025, abs=2e-3)


def test_nineteen_of_twenty_intervals_hold_the_effect() -> None:
    """Of groups of five that are apart by one spread; g itself is right on average."""
    rng = np.random.default_rng(0)
    pairs = zip(rng.normal(1, 1, (400, 5)), rng.normal(0, 1, (400, 5)), strict=True)
    found = [hedges_g(a, b) for a, b in pairs]
    assert np.mean([holds(one, 1.0) for one in found]) == pytest.approx(0.95, abs=0.033)
    assert np.mean([one.value for one in found]) == pytest.approx(1.0, abs=0.12)


def test_an_enormous_effect_still_has_an_interval() -> None:
    """Groups ten thousand spreads apart, where libraries' noncentral t gives up."""
    found = hedges_g(1e4 + A, A)
    assert holds(found, found.value)
    assert 0 < found.low < found.high < math.inf  # type: ignore[operator]


def test_pairs_are_measured_by_the_spread_of_their_differences() -> None:
    """G of pairs, and that its interval leaves 0 out exactly when Student's test rejects."""
    differences = np.array([0.5, 1.5, 0.7, 0.9, -0.2, 1.1])
    factor = math.gamma(2.5) / (math.sqrt(2.5) * math.gamma(2.0))
    found = hedges_g_paired(differences)
    assert found.value == pytest.approx(factor * differences.mean() / differences.std(ddof=1))
    rng = np.random.default_rng(1)
    for row in rng.normal(0.6, 1, (60, 6)):
        rejects = stats.ttest_1samp(row, 0).pvalue < 0.05
        assert holds(hedges_g_paired(row), 0) is not bool(rejects)


def test_cliffs_delta_counts_pairs() -> None:
    """Wins minus losses of all pairs of one of A and one of B; an infinite value wins."""
    wins = sum(a > b for a in A for b in B) - sum(a < b for a in A for b in B)
    assert cliffs_delta(A, B).value == pytest.approx(wins / 12)
    diverged = cliffs_delta(np.array([math.inf, 1, 2]), np.array([0.0, 3, 4]))
    assert diverged.value == pytest.approx((3 + 1 - 2 + 1 - 2) / 9)
    assert cliffs_delta(A, A).value == 0


@given(FEW, FEW)
def test_its_variance_is_that_of_the_formula(a: list[float], b: list[float]) -> None:
    """Made of counts, as the matrix of all pairs gives it: Feng and Cliff's estimate."""
    wins = np.sign(np.subtract.outer(a, b))
    (m, n), delta = wins.shape, wins.mean()
    rows, columns = wins.mean(axis=1) - delta, wins.mean(axis=0) - delta
    total = n**2 * (rows**2).sum() + m**2 * (columns**2).sum() - ((wins - delta) ** 2).sum()
    variance = max(total / (m * n * (m - 1) * (n - 1)), (1 - delta**2) / (m * n - 1))
    t = stats.t.ppf(0.975, m + n - 2)
    root = t * math.sqrt(variance * ((1 - delta**2) ** 2 + t**2 * variance))
    found = cliffs_delta(np.array(a), np.array(b))
    assert found.value == pytest.approx(delta)
    if abs(delta) < 1:
        ends = [(delta - delta**3 + s * root) / (1 - delta**2 + t**2 * variance) for s in (-1, 1)]
        assert (found.low, found.high) == pytest.approx((max(-1, ends[0]), min(1, ends[1])))


def test_its_intervals_hold_the_truth_and_stay_within_one() -> None:
    """Of eight against eight; P(A > B) of normal values a spread apart is Φ(1/√2)."""
    rng = np.random.default_rng(2)
    truth = 2 * stats.norm.cdf(1 / math.sqrt(2)) - 1
    pairs = zip(rng.normal(1, 1, (600, 8)), rng.normal(0, 1, (600, 8)), strict=True)
    found = [cliffs_delta(a, b) for a, b in pairs]
    assert np.mean([holds(one, truth) for one in found]) == pytest.approx(0.95, abs=0.03)
    assert all(-1 <= one.low <= one.high <= 1 for one in found)  # type: ignore[operator]


@pytest.mark.parametrize("sign", [1, -1])
def test_groups_that_do_not_overlap_have_an_interval_too(sign: int) -> None:
    """It reaches to the end, and is wide for few values."""
    few = cliffs_delta(sign * (A + 100), sign * A)
    many = cliffs_delta(sign * (np.arange(30.0) + 100), sign * np.arange(30.0))
    assert few.value == many.value == sign
    assert sign in (few.low, few.high)
    assert few.high - few.low > 0.8 > 0.3 > many.high - many.low  # type: ignore[operator]
