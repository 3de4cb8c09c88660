"""Two groups of runs, each with some seeds: do the settings differ, or only the seeds?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from opusclip_mlops.errors import RecordError
from opusclip_mlops.intervals import LEVEL, SEED
from opusclip_mlops.redaction import one_line
from opusclip_mlops.significance.effects import cliffs_delta, hedges_g
from opusclip_mlops.significance.ranks import rank_sum
from opusclip_mlops.significance.results import (
    ALPHA,
    Estimate,
    Floats,
    HypothesisTest,
    Reduced,
    as_json,
    checked,
    checked_seed,
    is_constant,
    mean_of,
    number,
    times_power,
)

LEAST_RUNS = 3
"""Of fewer a group, no p is given: with two, not even ranks can ever say that groups differ."""

LEAST_RESAMPLED = 6
"""Of fewer a group there is no bootstrap interval: it would be far too narrow."""

MOST_RESAMPLED = 1000
"""Of more there is none either: it would take long, and say what Welch's does."""

RESAMPLES = 10_000
_MOST_SHARE = 0.999  # of the draws, so that some lie outside
_MOST_DRAWN = 2_000_000  # values at once: 16 MB
_NAME_CHARACTERS = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupComparison:
    """What was found of two groups; differences are A minus B.

    Attributes:
        names: What the groups are called.
        n_a: How many values A has.
        n_b: How many B has.
        mean_a: Of A, infinite where a value is.
        mean_b: Of B.
        difference: Of the means, with Welch's interval; None where they are not finite.
        resampled: The same with the bootstrap's interval; None outside 6 to 1000 values a
            group.
        tests: Those that could be made; the first decides, and was chosen before looking.
        effects: Hedges' g and Cliff's delta, those that are defined.
        notes: What could not be said, and why; a sentence each.
    """

    names: tuple[str, str]
    n_a: int
    n_b: int
    mean_a: float
    mean_b: float
    difference: Estimate | None = None
    resampled: Estimate | None = None
    tests: tuple[HypothesisTest, ...] = ()
    effects: tuple[Estimate, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def p(self) -> float | None:
        """Of the test that decides; None where the values are too few for any."""
        return self.tests[0].p if self.tests else None

    @property
    def differs(self) -> bool | None:
        """Whether a difference is shown, at 5 %; None where nothing can be said.

        False does not mean that there is none.
        """
        return None if self.p is None else self.p <= ALPHA

    @property
    def sentence(self) -> str:
        """All of it in a line."""
        a, b = self.names
        counts = f"n = {self.n_a} and {self.n_b}"
        means = f"{a} {number(self.mean_a)}, {b} {number(self.mean_b)} ({counts})"
        if self.differs is None:
            return f"{means}: too few values to say whether they differ; {'; '.join(self.notes)}"
        verdict = "they differ" if self.differs else "that they differ is not shown"
        found = [self.difference, *self.tests, *self.effects]
        said = [one.sentence for one in found if one is not None]
        return "; ".join([f"{means}: {verdict}", *said, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """It as JSON values, with p, `differs` and the sentence."""
        return {
            **as_json(self),
            "p": self.p,
            "differs": self.differs,
            "sentence": self.sentence,
        }


def compare_groups(
    a: Sequence[float] | Floats,
    b: Sequence[float] | Floats,
    *,
    names: tuple[str, str] = ("A", "B"),
    seed: int = SEED,
) -> GroupComparison:
    """Say whether the values of two groups differ, such as a metric's at the end of runs by seed.

    Welch's t test decides (Welch, "The generalization of 'Student's' problem …", 1947): it asks for
    means and no equal spread. Beside it stand Mann and Whitney's rank test, exact for up to 60
    values, with ties too; a bootstrap interval of the difference (BCa: Efron, "Better bootstrap
    confidence intervals", 1987; made wider for few values as Hesterberg does, 2015); Hedges' g and
    Cliff's delta with their intervals. Where a value is infinite, or no value of a group differs
    from the others but by rounding, what rests on means is left out, the rank test decides, and a
    note says so.

    Args:
        a: One value a run; of fewer than 3 nothing is tested.
        b: Those of the other group; runs do not belong together by pairs.
        names: What the groups are called in sentences.
        seed: Of the bootstrap's draws.

    Raises:
        RecordError: An empty group, a NaN, or no numbers; other than two names, or no seed.
    """
    names, seed = _two_names(names), checked_seed(seed)
    first, second = _groups(a, b, names)
    said: dict[str, Any] = {"names": names, "n_a": len(first), "n_b": len(second)}
    said |= {"mean_a": mean_of(first), "mean_b": mean_of(second)}
    if min(len(first), len(second)) < LEAST_RUNS:
        said["notes"] = (f"give each group {LEAST_RUNS} or more",)
        return GroupComparison(**said, difference=_plain_difference(first, second))
    return GroupComparison(**said, **_found(first, second, seed))


def _found(a: Floats, b: Floats, seed: int) -> dict[str, Any]:
    """Tests, effects and differences of groups that are large enough, or why they are not there."""
    ranks, delta = rank_sum(a, b), cliffs_delta(a, b)
    if why := _without_means(a, b):
        found = {"tests": (ranks,), "effects": (delta,), "notes": (why,)}
        return {"difference": _plain_difference(a, b), **found}
    near = Reduced.of(a, b)
    first, second = near.groups
    difference, welch = _welch(first, second)
    resampled = _resampled(first, second, seed)
    return {
        "difference": times_power(difference, near.power),
        "resampled": times_power(resampled, near.power) if resampled else None,
        "tests": (welch, ranks),
        "effects": (hedges_g(first, second), delta),
    }


def _two_names(names: Any) -> tuple[str, str]:
    found = tuple(names) if isinstance(names, Sequence) and not isinstance(names, str) else ()
    if len(found) != 2 or not all(isinstance(one, str) for one in found):
        raise RecordError(f"names must be two texts, one a group, not {names!r:.60}")
    first, second = (one_line(one, at_most=_NAME_CHARACTERS) for one in found)
    return first, second


def _groups(a: Any, b: Any, names: tuple[str, str]) -> tuple[Floats, Floats]:
    """Both groups; where rounding alone tells all of their values apart, without that."""
    first, second = checked(a, names[0]), checked(b, names[1])
    for found, name in ((first, names[0]), (second, names[1])):
        if not len(found):
            raise RecordError(f"{name} has no values: give one a run")
    if np.isfinite([*first, *second]).all() and is_constant(np.concatenate([first, second])):
        return np.full_like(first, first[0]), np.full_like(second, first[0])
    return first, second


def _without_means(a: Floats, b: Floats) -> str:
    """Why means cannot be tested, "" where they can."""
    if not np.isfinite([*a, *b]).all():
        return "a value is infinite, so ranks decide and nothing is said of means"
    pairs = zip((a, b), Reduced.of(a, b).groups, strict=True)
    if not any(not is_constant(one) and _has_spread(near) for one, near in pairs):
        return "no group has a spread beyond rounding, so ranks decide and nothing is said of means"
    return ""


def _has_spread(values: Floats) -> bool:
    return not is_constant(values) and bool(values.var() > 0)


def _plain_difference(a: Floats, b: Floats) -> Estimate | None:
    if not np.isfinite([*a, *b]).all():
        return None
    near = Reduced.of(a, b)
    first, second = near.groups
    plain = Estimate(name="difference of means", value=float(first.mean() - second.mean()))
    return times_power(plain, near.power)


def _welch(a: Floats, b: Floats) -> tuple[Estimate, HypothesisTest]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a group without spread, which the test allows
        found = stats.ttest_ind(a, b, equal_var=False)
    interval = found.confidence_interval(LEVEL)
    test = HypothesisTest(
        name="Welch",
        statistic=f"t({number(float(found.df))})",
        value=float(found.statistic),
        p=float(found.pvalue),
    )
    difference = Estimate(
        name="difference of means",
        value=float(a.mean() - b.mean()),
        low=float(interval.low),
        high=float(interval.high),
        method="Welch's t",
    )
    return difference, test


def _resampled(a: Floats, b: Floats, seed: int) -> Estimate | None:
    fewer, more = sorted((len(a), len(b)))
    if fewer < LEAST_RESAMPLED or more > MOST_RESAMPLED or not (_has_spread(a) and _has_spread(b)):
        return None
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # an end that is not defined is NaN
        found = stats.bootstrap(
            (a, b),
            lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=_MOST_DRAWN // more,
            confidence_level=_widened(a, b),
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    if not np.isfinite(found).all():
        return None
    return Estimate(
        name="difference of means",
        value=float(a.mean() - b.mean()),
        low=float(found.low),
        high=float(found.high),
        method=f"BCa bootstrap, {RESAMPLES} draws, seed {seed}",
    )


def _widened(a: Floats, b: Floats) -> float:
    """The level at which draws from few values hold what Welch's t asks for."""
    squares = np.array([one.var() / len(one) for one in (a, b)])  # those of the draws
    unbiased = squares * [len(one) / (len(one) - 1) for one in (a, b)]
    parts = unbiased**2 / [len(one) - 1 for one in (a, b)]
    degrees = unbiased.sum() ** 2 / parts.sum()
    wide = stats.t.ppf((1 + LEVEL) / 2, degrees) * math.sqrt(unbiased.sum() / squares.sum())
    return min(float(2 * stats.norm.cdf(wide) - 1), _MOST_SHARE)
