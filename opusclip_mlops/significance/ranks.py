"""Rank tests that are exact with ties too.

Ranks are taken as they are, ties by their mean rank. The distribution of their sum where nothing
differs is counted out, one value after the other: the shift algorithm of Streitberg and Röhmel,
"Exact distributions for permutation and rank tests" (1986). Doubled, mean ranks are whole numbers.
For more values than `MOST_EXACT` it is SciPy's normal approximation, corrected for ties.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from opusclip_mlops.significance.results import Floats, HypothesisTest

MOST_EXACT = 60
"""The most values whose ranks' distribution is counted out."""

Zeros = Literal["wilcox", "pratt"]
"""What becomes of pairs without a difference: see `signed_rank`."""

_Ranks = npt.NDArray[np.int64]


def rank_sum(a: Floats, b: Floats) -> HypothesisTest:
    """The test of Mann and Whitney ("On a test …", 1947); U counts the pairs that A wins.

    Of values that are equal U counts a half. Values may be infinite, not NaN.
    """
    u = float((stats.rankdata(np.concatenate([a, b]))[: len(a)]).sum() - len(a) * (len(a) + 1) / 2)
    if len(a) + len(b) > MOST_EXACT:
        p = float(stats.mannwhitneyu(a, b, method="asymptotic").pvalue)
        return HypothesisTest(name="Mann-Whitney", statistic="U", value=u, p=min(1.0, p))
    ranks = _doubled_ranks(np.concatenate([a, b]))
    ways = _sums_of(ranks, len(a))[len(a)]
    p = _two_sided(ways, int(ranks[: len(a)].sum()))
    return HypothesisTest(name="exact Mann-Whitney", statistic="U", value=u, p=p)


def signed_rank(differences: Floats, *, zeros: Zeros = "wilcox") -> HypothesisTest:
    """The test of Wilcoxon ("Individual comparisons by ranking methods", 1945).

    Args:
        differences: One a pair; may be infinite, not NaN.
        zeros: "wilcox" leaves pairs without a difference out before ranks are given, "pratt"
            after (Pratt, "Remarks on zeros and ties in the Wilcoxon signed rank procedures", 1959):
            then many of them make small differences weigh more.

    Returns:
        W is the sum of the ranks of differences above 0. Where no pair differs p is 1.
    """
    ranked = differences if zeros == "pratt" else differences[differences != 0]
    ranks = _doubled_ranks(np.abs(ranked)) if len(ranked) else np.zeros(0, np.int64)
    w = int(ranks[ranked > 0].sum())
    counted = ranks[ranked != 0]
    if len(counted) > MOST_EXACT:
        found = stats.wilcoxon(differences, zero_method=zeros, method="asymptotic")
        return HypothesisTest(name="Wilcoxon", statistic="W", value=w / 2, p=float(found.pvalue))
    p = _two_sided(_sums(counted), w)
    return HypothesisTest(name="exact Wilcoxon", statistic="W", value=w / 2, p=p)


def _doubled_ranks(values: Floats) -> _Ranks:
    found: _Ranks = np.rint(2 * stats.rankdata(values)).astype(np.int64)
    return found


def _sums_of(ranks: _Ranks, most: int) -> Floats:
    """How many choices of k ranks have sum s, at [k, s] for k up to `most`."""
    ways = np.zeros((most + 1, int(ranks.sum()) + 1))
    ways[0, 0] = 1
    for rank in ranks:
        ways[1:, rank:] += ways[:-1, :-rank].copy()
    return ways


def _sums(ranks: _Ranks) -> Floats:
    """How many choices of any number of ranks have sum s, at [s]."""
    ways = np.zeros(int(ranks.sum()) + 1)
    ways[0] = 1
    for rank in ranks:
        ways[rank:] += ways[:-rank].copy()
    return ways


def _two_sided(ways: Floats, found: int) -> float:
    """Twice the smaller tail, the value found in both."""
    below, above = ways[: found + 1].sum(), ways[found:].sum()
    return float(min(1.0, 2 * min(below, above) / ways.sum()))
