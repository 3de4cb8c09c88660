"""What a comparison says: tests, estimates with intervals, and numbers in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from opusclip_mlops.errors import RecordError
from opusclip_mlops.intervals import LEVEL

ALPHA = 0.05
"""A test rejects at p of this or less: so often at most where nothing differs."""

Floats = npt.NDArray[np.float64]

_LARGEST = 1e150  # squares of larger ones are beyond all numbers
_ROUNDING = 1e-12  # spread below this share of the values is that of their last digits


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

    One beyond 1e150 counts as infinite: databases of MLflow keep ±Infinity as ±1.797e308.

    Raises:
        RecordError: They are no list of numbers, or one is NaN.
    """
    try:
        found = np.asarray(values, float)
    except (TypeError, ValueError):
        raise RecordError(f"{name} must be a list of numbers") from None
    if found.ndim != 1:
        raise RecordError(f"{name} must be a list of numbers, not of shape {found.shape}")
    if np.isnan(found).any():
        where = int(np.isnan(found).argmax()) + 1
        raise RecordError(
            f"value {where} of {len(found)} of {name} is NaN: find out why, or leave it out"
        )
    return np.where(np.abs(found) > _LARGEST, np.copysign(np.inf, found), found)


def is_constant(values: Floats) -> bool:
    """Whether values do not differ but by rounding."""
    spread = _ROUNDING * np.abs(values).max(initial=0.0)
    return bool(np.ptp(values) <= spread or values.var() == 0)


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
