"""What a comparison says: tests, estimates with intervals, and numbers in words."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from opusclip_mlops.errors import RecordError
from opusclip_mlops.intervals import LEVEL

ALPHA = 0.05
"""A test rejects at p of this or less: so often at most where nothing differs."""

Floats = npt.NDArray[np.float64]

ROUNDING = 4 * float(np.finfo(float).eps)
"""What is below this share of the values is a matter of their last digits."""

_INFINITE = 1.797e308  # databases of MLflow keep an infinity as the largest number there is
_ORDINARY_POWER = 100  # the fourth power of 2**100 is still far from the largest number
_NARROW = 1e-3  # of a spread below this share of the values, sums would lose digits
_NUMBERS = "biufO"  # kinds of NumPy's types; Python's large integers are objects


@dataclass(frozen=True, slots=True, kw_only=True)
class HypothesisTest:
    """A test of the hypothesis that nothing differs, two-sided.

    Attributes:
        name: The test, and whether it is exact.
        statistic: What it looked at, by its letter in books.
        value: The statistic's value.
        p: How often a value at least as far out comes where nothing differs, 0..1.
    """

    name: str
    statistic: str
    value: float
    p: float

    @property
    def sentence(self) -> str:
        """It in words."""
        return f"{self.name} {self.statistic} = {number(self.value)}, {p_in_words(self.p)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A quantity and its confidence interval.

    Attributes:
        name: What it is.
        value: The estimate.
        low: The interval's lower end, None where there is no interval.
        high: Its upper end.
        level: The share of such intervals that hold the true value.
        method: How the interval was found.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    level: float = LEVEL
    method: str = ""

    @property
    def sentence(self) -> str:
        """It in words."""
        if self.low is None or self.high is None:
            return f"{self.name} {number(self.value)}"
        between = f"{self.level:.0%} interval {number(self.low)} to {number(self.high)}"
        return f"{self.name} {number(self.value)} ({between})"


def number(value: float) -> str:
    """Four digits of a number."""
    return f"{value:.4g}"


def p_in_words(p: float) -> str:
    """Such as "p = 0.032"."""
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def checked(values: Sequence[float] | Floats, name: str) -> Floats:
    """Values as an array of one dimension; infinite ones may be among them.

    ±1.797e308 is infinite: databases of MLflow keep ±Infinity so.

    Raises:
        RecordError: They are no list of numbers, or one is NaN.
    """
    found = numbers_of(values, name)
    if found.ndim != 1:
        raise RecordError(f"{name} must be a list of numbers, not of shape {found.shape}")
    if np.isnan(found).any():
        where = int(np.isnan(found).argmax()) + 1
        raise RecordError(
            f"value {where} of {len(found)} of {name} is NaN: find out why, or leave it out"
        )
    return np.where(np.abs(found) >= _INFINITE, np.copysign(np.inf, found), found)


def numbers_of(values: Any, name: str) -> Floats:
    """Values as an array of any shape; what is masked is NaN.

    Raises:
        RecordError: They are no numbers.
    """
    try:
        given = np.asarray(values)
        if given.dtype.kind not in _NUMBERS:
            raise TypeError
        found = np.asarray(given, float)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise RecordError(f"{name} must be a list of numbers") from None
    return np.where(np.ma.getmaskarray(values), np.nan, found) if np.ma.isMA(values) else found


def checked_seed(seed: Any) -> int:
    """A seed of random numbers.

    Raises:
        RecordError: It is no whole number of 0 or more.
    """
    try:
        if (found := operator.index(seed)) >= 0:
            return found
    except TypeError:
        pass
    raise RecordError(f"seed is {seed!r:.60}: give a whole number, 0 or more")


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether a value is a number within these limits; NaN is not."""
    return isinstance(value, Real) and bool(low <= float(value) <= high)


def is_constant(values: Floats) -> bool:
    """Whether values do not differ but by rounding."""
    halves = values / 2  # the spread of the largest numbers is none
    return bool(np.ptp(halves) <= ROUNDING * np.abs(halves).max(initial=0.0))


@dataclass(frozen=True, slots=True)
class Reduced:
    """Groups of finite values brought near 1, which moves no test of theirs.

    A value is 2**power · (origin + what is in its group). Values of ordinary size and spread are
    as they were, with a power and an origin of 0.

    Attributes:
        groups: The values, such that their sums and the squares of these are numbers.
        origin: What was taken from each.
        power: Of 2, by which they were divided.
    """

    groups: tuple[Floats, ...]
    origin: float
    power: int

    @classmethod
    def of(cls, *groups: Floats) -> Reduced:
        """Bring groups near 1, all of them alike."""
        power = power_of(*groups)
        scaled = [np.ldexp(one, -power) for one in groups]
        every = np.concatenate(scaled)
        is_narrow = np.ptp(every) <= _NARROW * np.abs(every).max()
        origin = float(every[0]) if is_narrow else 0.0
        return cls(tuple(one - origin for one in scaled), origin, power)


def power_of(*groups: Floats) -> int:
    """The power of 2 of the largest of some finite values, 0 where all are of ordinary size."""
    power = int(np.frexp(max(np.abs(one).max() for one in groups))[1])
    return power if abs(power) > _ORDINARY_POWER else 0


def times_power(estimate: Estimate, power: int) -> Estimate:
    """An estimate of what was divided by 2**power; beyond all numbers it is infinite."""
    if not power:
        return estimate
    ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    with np.errstate(over="ignore"):
        known = {name: one for name, one in ends.items() if one is not None}
        found: dict[str, Any] = {name: float(np.ldexp(one, power)) for name, one in known.items()}
    return replace(estimate, **found)


def mean_of(values: Floats) -> float:
    """The mean: infinite or NaN where values are infinite, and else never."""
    if not np.isfinite(values).all():
        with np.errstate(invalid="ignore"):
            return float(values.mean())
    near = Reduced.of(values)
    return float(np.ldexp(near.origin + near.groups[0].mean(), near.power))


def as_json(result: Any) -> dict[str, Any]:
    """A result's fields as JSON values; numbers that are not finite are "nan", "inf", "-inf"."""
    content: dict[str, Any] = _plain(msgspec.to_builtins(result, builtin_types=(float,)))
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    is_odd = isinstance(value, float) and not math.isfinite(value)
    return str(value) if is_odd else value
