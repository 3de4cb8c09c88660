"""How large a difference is, beside the spread of the values or by which of them win."""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy import optimize, special, stats

from opusclip_mlops.intervals import LEVEL
from opusclip_mlops.significance.results import Estimate, Floats

_TAIL = (1 - LEVEL) / 2
_NODES = 2000  # of the integral over the spread: noncentralities to 4 digits


def hedges_g(a: Floats, b: Floats) -> Estimate:
    """The difference of means in units of the groups' common spread, made unbiased for few values.

    g = J · (mean A - mean B) / s, with s² the pooled variance and J = Γ(f/2) / (√(f/2) Γ((f-1)/2)),
    f = n_A + n_B - 2: Hedges, "Distribution theory for Glass's estimator of effect size and related
    estimators" (1981). The interval is that of the noncentral t distribution, exact for normal
    values of equal variance; it is of the effect itself, so that J is not in it.

    Args:
        a: Two or more finite values.
        b: Two or more; in one of the groups they differ.
    """
    degrees = len(a) + len(b) - 2
    spread = math.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / degrees)
    unit = math.sqrt(1 / len(a) + 1 / len(b))
    return _standardized("Hedges' g", float(a.mean() - b.mean()) / spread, unit, degrees)


def hedges_g_paired(differences: Floats) -> Estimate:
    """The mean of differences in units of their own spread, made unbiased for few pairs.

    As `hedges_g`, with f = n - 1. Of two pairs J is 0: nothing would be left of any effect.

    Args:
        differences: Three or more finite values that differ.
    """
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    count = len(differences)
    return _standardized("Hedges' g of pairs", mean / spread, 1 / math.sqrt(count), count - 1)


def _standardized(name: str, effect: float, unit: float, degrees: int) -> Estimate:
    t = effect / unit
    half = degrees / 2
    unbiased = math.exp(special.gammaln(half) - special.gammaln(half - 0.5)) / math.sqrt(half)
    low, high = (_noncentrality(t, degrees, share) * unit for share in (1 - _TAIL, _TAIL))
    return Estimate(
        name=name, value=unbiased * effect, low=low, high=high, method="noncentral t"
    )  # fmt: skip


def _noncentrality(t: float, degrees: int, share: float) -> float:
    """With which so much of the noncentral t distribution lies at or below t.

    P(T ≤ t) is the mean of Φ(t·√(χ²/f) - nc) over χ² of f degrees: that holds up where the
    functions of libraries give up, at t of a hundred and more.
    """
    points = t * _spreads(degrees)

    def beyond(centre: float) -> float:
        return float(special.ndtr(points - centre).mean()) - share

    low, high = float(points.min()) - 10, float(points.max()) + 10
    found: float = optimize.brentq(beyond, low, high, xtol=1e-9 * (1 + abs(t)))
    return found


@functools.lru_cache(maxsize=64)
def _spreads(degrees: int) -> Floats:
    """√(χ²/f) at evenly laid shares of its distribution."""
    shares = (np.arange(_NODES) + 0.5) / _NODES
    found: Floats = np.sqrt(stats.chi2.ppf(shares, degrees) / degrees)
    return found


def cliffs_delta(a: Floats, b: Floats) -> Estimate:
    """How much oftener a value of A exceeds one of B than the other way round, -1..1.

    Cliff, "Dominance statistics: ordinal analyses to answer ordinal questions" (1993). The interval
    is the asymmetric one of Feng and Cliff, "Monte Carlo evaluation of ordinal d with improved
    confidence interval" (2004), with Student's t of n_A + n_B - 2 degrees. Values may be infinite.

    Args:
        a: Two or more values.
        b: Two or more.
    """
    rows, columns = _wins(a, b), -_wins(b, a)
    delta = float(rows.mean())
    t = float(stats.t.ppf(1 - _TAIL, len(a) + len(b) - 2))
    ties = _ties(a, b)
    if abs(delta) < 1:
        low, high = _feng_cliff(rows, columns, ties, t)
    else:
        low, high = _separated(min(len(a), len(b)), delta)
    method = "Feng and Cliff's asymmetric"
    return Estimate(name="Cliff's delta", value=delta, low=low, high=high, method=method)


def _wins(a: Floats, b: Floats) -> Floats:
    """Of each value of A how many of B it exceeds, less those that exceed it, as a share."""
    ordered = np.sort(b)
    below, upto = (np.searchsorted(ordered, a, side) for side in ("left", "right"))
    return (below - (len(b) - upto)) / len(b)


def _ties(a: Floats, b: Floats) -> int:
    """How many pairs of one value of each are equal."""
    ordered = np.sort(b)
    below, upto = (np.searchsorted(ordered, a, side) for side in ("left", "right"))
    return int((upto - below).sum())


def _feng_cliff(rows: Floats, columns: Floats, ties: int, t: float) -> tuple[float, float]:
    m, n, delta = len(rows), len(columns), float(rows.mean())
    apart = m * n - ties - m * n * delta**2
    total = n**2 * float(((rows - delta) ** 2).sum()) + m**2 * float(((columns - delta) ** 2).sum())
    total -= apart
    # The estimate is unbiased, and may come out below what it cannot be below.
    variance = max(total / (m * n * (m - 1) * (n - 1)), (1 - delta**2) / (m * n - 1))
    root = t * math.sqrt(variance) * math.sqrt((1 - delta**2) ** 2 + t**2 * variance)
    middle, scale = delta - delta**3, 1 - delta**2 + t**2 * variance
    return max(-1.0, (middle - root) / scale), min(1.0, (middle + root) / scale)


def _separated(fewer: int, delta: float) -> tuple[float, float]:
    """Where every value of one group exceeds every one of the other: the estimate has no spread.

    (n - z²) / (n + z²) of the smaller n then bounds what may lie behind it.
    """
    z = float(stats.norm.ppf(1 - _TAIL))
    inner = (fewer - z**2) / (fewer + z**2)
    return (inner, 1.0) if delta > 0 else (-1.0, -inner)
