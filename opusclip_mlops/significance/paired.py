"""Two models on the same prompts: is one better, and by enough to matter?"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from opusclip_mlops.errors import RecordError
from opusclip_mlops.intervals import SEED, over_clips
from opusclip_mlops.redaction import one_line
from opusclip_mlops.significance.effects import hedges_g_paired
from opusclip_mlops.significance.multiple import holm
from opusclip_mlops.significance.ranks import Zeros, signed_rank
from opusclip_mlops.significance.results import (
    ALPHA,
    ROUNDING,
    Estimate,
    Floats,
    HypothesisTest,
    as_json,
    checked,
    checked_seed,
    is_number,
    mean_of,
    number,
    p_in_words,
    power_of,
    times_power,
)

Better = Literal["higher", "lower"]
"""Which values of a metric are the good ones."""

Verdict = Literal["better", "worse", "equivalent", "undecided"]
Values = Sequence[float] | Mapping[str, float] | Floats
"""One value a prompt: in the same order for both models, or by the prompt's name."""

LEAST_PAIRS = 6
"""Of fewer there is no interval, and no verdict: five pairs cannot reach p of 0.05 by ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """What was found of one metric on the same prompts; differences are A minus B.

    Attributes:
        metric: Its name.
        better: Which values are the good ones.
        n: How many pairs there are.
        n_a_better: In how many A is better.
        n_b_better: In how many B is better; in the others they are equal.
        mean_a: Of A, infinite where a value is.
        mean_b: Of B.
        difference: The mean difference with the interval of a bootstrap over pairs; None where it
            is not finite. Without an interval of fewer than 6 pairs.
        test: Wilcoxon's.
        effect: Hedges' g of the pairs; None of fewer than 3, or where the differences have no
            spread.
        p_adjusted: The test's p, after Holm where several metrics were compared together.
        metrics: How many were compared together.
        minimum_effect: The smallest mean difference that matters, in the metric's unit.
        notes: What could not be said, and why; a sentence each.
    """

    metric: str
    better: Better
    n: int
    n_a_better: int
    n_b_better: int
    mean_a: float
    mean_b: float
    difference: Estimate | None
    test: HypothesisTest
    effect: Estimate | None
    p_adjusted: float
    metrics: int = 1
    minimum_effect: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """What is shown of A beside B.

        "better" or "worse" when the whole interval lies beyond the minimum effect, and p is at most
        0.05; "equivalent" when it lies within the minimum effect on both sides of 0, as two
        one-sided tests at 2.5 % would have it (Schuirmann, 1987); otherwise "undecided".
        """
        found = self.difference
        if found is None or found.low is None or found.high is None:
            return "undecided"
        low, high = found.low, found.high
        if -self.minimum_effect < low and high < self.minimum_effect:
            return "equivalent"
        is_beyond = low > self.minimum_effect or high < -self.minimum_effect
        if self.p_adjusted > ALPHA or not is_beyond:
            return "undecided"
        return "better" if (low > self.minimum_effect) == (self.better == "higher") else "worse"

    @property
    def sentence(self) -> str:
        """All of it in a line."""
        means = f"{self.metric}: A {number(self.mean_a)}, B {number(self.mean_b)}"
        counts = f"n = {self.n} pairs, A is better in {self.n_a_better}, B in {self.n_b_better}"
        said = [one.sentence for one in (self.difference, self.test, self.effect) if one]
        if self.metrics > 1:
            said.insert(2 if self.difference else 1, self._after_holm)
        verdict = f"{_VERDICTS[self.verdict]} ({self._asked})"
        return "; ".join([f"{means} ({counts}): {verdict}", *said, *self.notes])

    @property
    def _asked(self) -> str:
        if not self.minimum_effect:
            return f"{self.better} is better"
        return f"{self.better} is better, {number(self.minimum_effect)} or more matters"

    @property
    def _after_holm(self) -> str:
        return f"after Holm over {self.metrics} metrics {p_in_words(self.p_adjusted)}"

    def to_dict(self) -> dict[str, Any]:
        """It as JSON values, with the verdict and the sentence."""
        return {**as_json(self), "verdict": self.verdict, "sentence": self.sentence}


_VERDICTS: Mapping[Verdict, str] = {
    "better": "A is better",
    "worse": "A is worse",
    "equivalent": "no difference that matters",
    "undecided": "undecided",
}


def compare_paired(
    a: Values,
    b: Values,
    *,
    better: Better,
    minimum_effect: float = 0.0,
    metric: str = "metric",
    zeros: Zeros = "wilcox",
    seed: int = SEED,
) -> PairedComparison:
    """Say whether A is better than B on the same prompts.

    Args:
        a: One value a prompt, of model A.
        b: Of model B, in the same order, or by the same names.
        better: Whether "higher" or "lower" values are the good ones.
        minimum_effect: The smallest mean difference that matters, in the metric's unit, 0 or more;
            choose it before looking. With 0 nothing is ever "equivalent".
        metric: What sentences call it.
        zeros: What Wilcoxon's test does with pairs that do not differ: "wilcox" leaves them out,
            "pratt" keeps their ranks.
        seed: Of the bootstrap's draws.

    Raises:
        RecordError: Values that do not belong together by pairs, a NaN, or a wrong option.
    """
    _check(metric, better, minimum_effect, zeros)
    first, second = _pairs(a, b, metric)
    found = _Differences.of(first, second)
    test = signed_rank(found.values, zeros=zeros)
    above, below = int((found.values > 0).sum()), int((found.values < 0).sum())
    wins = (above, below) if better == "higher" else (below, above)
    return PairedComparison(
        metric=one_line(metric, at_most=250),
        better=better,
        n=len(first),
        n_a_better=wins[0],
        n_b_better=wins[1],
        mean_a=mean_of(first),
        mean_b=mean_of(second),
        difference=found.mean(checked_seed(seed)),
        test=test,
        effect=found.effect(),
        p_adjusted=test.p,
        minimum_effect=float(minimum_effect),
        notes=found.notes(),
    )


def compare_metrics(
    a: Mapping[str, Values],
    b: Mapping[str, Values],
    *,
    better: Mapping[str, Better],
    minimum_effect: Mapping[str, float] | None = None,
    zeros: Zeros = "wilcox",
    seed: int = SEED,
) -> dict[str, PairedComparison]:
    """Compare several metrics of two models on the same prompts, without chance finds.

    Args:
        a: Values of model A by metric, as `compare_paired` takes them.
        b: Of model B, the same metrics.
        better: For each metric "higher" or "lower".
        minimum_effect: The smallest mean difference that matters, for those that have one.
        zeros: As for `compare_paired`.
        seed: Of the bootstrap's draws.

    Returns:
        A comparison for each metric. "better" and "worse" hold for all metrics together: where
        nothing differs, one of them is said in 5 of 100 such comparisons at most (Holm). Each
        "equivalent" holds for its metric alone.

    Raises:
        RecordError: Other metrics in `a`, `b` or `better`, or as `compare_paired`.
    """
    least = {} if minimum_effect is None else minimum_effect
    _check_metrics(a, b, better, least)
    found = [
        compare_paired(
            a[name], b[name], better=better[name], minimum_effect=least.get(name, 0.0),
            metric=name, zeros=zeros, seed=seed,
        )
        for name in a
    ]  # fmt: skip
    adjusted = holm([one.test.p for one in found])
    return {
        name: replace(one, p_adjusted=p, metrics=len(found))
        for name, one, p in zip(a, found, adjusted, strict=True)
    }


def _check_metrics(a: Any, b: Any, better: Any, least: Any) -> None:
    """Raises RecordError where they are no mappings of the same metrics."""
    given = {"a": a, "b": b, "better": better, "minimum_effect": least}
    for what, one in given.items():
        if not isinstance(one, Mapping):
            raise RecordError(f"{what} must be a mapping by metric, not {type(one).__name__}")
    for what, names in (("b", set(b)), ("better", set(better)), ("minimum_effect", {*a, *least})):
        if lacking := sorted(set(a) ^ names, key=str):
            name = one_line(str(lacking[0]))
            raise RecordError(f"metric {name!r} is not both in a and in {what}")


def _check(metric: str, better: str, minimum_effect: float, zeros: str) -> None:
    if not isinstance(metric, str):
        raise RecordError(f"metric must be a text, not {metric!r:.60}")
    for name, given, known in (("better", better, Better), ("zeros", zeros, Zeros)):
        if given not in get_args(known):
            choice = " or ".join(get_args(known))
            raise RecordError(f"{name} of {metric} is {given!r:.60}: give {choice}")
    if not is_number(minimum_effect, 0.0, sys.float_info.max):
        raise RecordError(f"minimum_effect of {metric} is {minimum_effect!r:.60}: give 0 or more")


def _pairs(a: Values, b: Values, metric: str) -> tuple[Floats, Floats]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if odd := sorted(set(a) ^ set(b), key=str):
            who = "B" if odd[0] in a else "A"
            raise RecordError(f"{metric}: {who} has no value of {one_line(str(odd[0]))!r}")
        return _pairs(list(a.values()), [b[name] for name in a], metric)
    if isinstance(a, Mapping) or isinstance(b, Mapping):
        raise RecordError(f"{metric}: give both models' values by name, or both as lists")
    first, second = checked(a, f"{metric} of A"), checked(b, f"{metric} of B")
    if len(first) != len(second) or not len(first):
        counts = f"A has {len(first)} and B {len(second)} values"
        raise RecordError(f"{metric}: {counts}; give one a prompt for both")
    return first, second


@dataclass(frozen=True, slots=True)
class _Differences:
    """A minus B of each pair, in units of 2**power: 0 where only rounding tells two apart.

    `rounding` is how far off such a difference may be.
    """

    values: Floats
    power: int
    rounding: float

    @classmethod
    def of(cls, first: Floats, second: Floats) -> _Differences:
        is_finite = bool(np.isfinite([first, second]).all())
        power = power_of(first, second) if is_finite else 0
        a, b = np.ldexp(first, -power), np.ldexp(second, -power)
        sizes = np.where(np.isfinite(a) & np.isfinite(b), np.maximum(np.abs(a), np.abs(b)), 0.0)
        with np.errstate(invalid="ignore", over="ignore"):
            # Two values that are infinite alike do not differ.
            is_same = (a == b) | (np.abs(a - b) <= ROUNDING * sizes)
            return cls(np.where(is_same, 0.0, a - b), power, ROUNDING * float(sizes.max()))

    def mean(self, seed: int) -> Estimate | None:
        """The mean difference, None where one is infinite."""
        if not self._is_finite:
            return None
        given = self.values
        found = over_clips(list(given), seed=seed) if len(given) >= LEAST_PAIRS else None
        plain = Estimate(
            name="mean difference",
            value=float(given.mean()),
            low=found.low if found else None,
            high=found.high if found else None,
            method="percentile bootstrap over pairs" if found else "",
        )
        return times_power(plain, self.power)

    def effect(self) -> Estimate | None:
        """Hedges' g, None where it is not defined."""
        if len(self.values) < 3 or not self._is_finite or np.ptp(self.values) <= self.rounding:
            return None
        return hedges_g_paired(self.values)

    def notes(self) -> tuple[str, ...]:
        """What could not be said, and why."""
        if not self._is_finite:
            return ("a difference is infinite, so nothing is said of the mean",)
        if len(self.values) < LEAST_PAIRS:
            return (f"fewer than {LEAST_PAIRS} pairs are too few for a verdict",)
        return () if self.values.any() else ("no pair differs at all",)

    @property
    def _is_finite(self) -> bool:
        return bool(np.isfinite(self.values).all())
