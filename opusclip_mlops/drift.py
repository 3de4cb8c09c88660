"""How far the inputs of now are from those of before, column by column.

    psi      population stability index, sum over bins of (a - e) · ln(a / e), where e is a bin's
             share in the reference and a its share now: 0 or more, 0 where nothing moved. By the
             rule of Siddiqi, "Credit Risk Scorecards" (2006): below 0.1 is none, from 0.25 on is
             much. Of n rows and m rows alike it is about (bins - 1) · (1/n + 1/m), not 0.
    ks       two-sample Kolmogorov-Smirnov statistic, the largest distance between the two
             distribution functions, 0..1; numbers only
    p_value  how likely such a distance is where nothing moved, 0..1 (asymptotic); numbers only

Numbers of more than 20 different values have ten bins, the deciles of the reference; other values
have a bin each, and one more for all that the reference does not know. What is missing, NaN or
infinite has a bin of its own. Half a row is added to each bin, so that an empty one is no infinity.
A text counts by its length (`prompt.characters`), and by itself where there are few different ones.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from opusclip_mlops.errors import RecordError

Value: TypeAlias = float | str | None
Columns: TypeAlias = dict[str, list[Value]]

REFERENCE_FILE = Path("monitoring", "inputs.json")
"""Where in a registered model's folder its reference is."""

MOST_COLUMNS = 64
FEW_VALUES = 20
"""As many different values have a bin each."""

_BINS = 10
_MOST_NUMBERS = 1000
_LONGEST_WORD = 64
_FORMAT = 1
_SEED = 0
_LARGEST = 1e300  # whole numbers beyond have no float


@dataclass(frozen=True, slots=True)
class Drift:
    """How far a column is from its reference; units and ranges as the module says."""

    psi: float
    ks: float | None = None
    p_value: float | None = None


@dataclass(frozen=True, slots=True)
class ReferenceColumn:
    """What a column held: numbers, or how often each of a few values, and how often nothing."""

    numbers: tuple[float, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    missing: int = 0

    def drift(self, values: Sequence[Value]) -> Drift:
        """How far values, at least one, are from it."""
        if not self.numbers:
            return Drift(psi(*self._word_counts(values)))
        numbers = [one for one in values if isinstance(one, float) and math.isfinite(one)]
        index = psi(*self._number_counts(numbers, len(values) - len(numbers)))
        if not numbers:
            return Drift(index)
        from scipy.stats import ks_2samp

        found = ks_2samp(self.numbers, numbers, method="asymp")
        return Drift(index, float(found.statistic), float(found.pvalue))

    def _word_counts(self, values: Sequence[Value]) -> tuple[list[int], list[int]]:
        now = Counter(map(_word, values))
        known = [now.pop(word, 0) for word in self.counts]
        missing = now.pop("", 0)
        return [*self.counts.values(), 0, self.missing], [*known, sum(now.values()), missing]

    def _number_counts(self, numbers: list[float], missing: int) -> tuple[list[int], list[int]]:
        edges = np.unique(np.quantile(self.numbers, np.linspace(0, 1, _BINS + 1)[1:-1]))
        before, now = (_binned(one, edges) for one in (self.numbers, numbers))
        return [*before, self.missing], [*now, missing]


@dataclass(frozen=True, slots=True)
class InputReference:
    """What the rows of many requests looked like; no text is in it but values that come often."""

    rows: int
    columns: Mapping[str, ReferenceColumn]

    @classmethod
    def of(cls, held: Mapping[str, Sequence[Value]]) -> InputReference:
        """The reference that columns of equal length are, as `features` gives them.

        Raises:
            RecordError: No rows, or no column of numbers, texts or truth values.
        """
        rows = max((len(values) for values in held.values()), default=0)
        found = {name: _reference_column(values) for name, values in held.items()}
        usable = {name: one for name, one in found.items() if one is not None}
        if not rows or not usable:
            raise RecordError("no reference for inputs: give rows of numbers, texts or truths")
        return cls(rows, usable)

    @classmethod
    def from_json(cls, text: str) -> InputReference:
        """Read what `as_json` wrote.

        Raises:
            RecordError: It is something else.
        """
        try:
            content = json.loads(text)
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']}")
            columns = {str(name): _read_column(one) for name, one in content["columns"].items()}
            return cls(int(content["rows"]), columns)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RecordError(f"no reference for inputs: {type(error).__name__}") from None

    def as_json(self) -> str:
        """It as text."""
        columns = {
            name: {"numbers": one.numbers, "counts": one.counts, "missing": one.missing}
            for name, one in self.columns.items()
        }
        return json.dumps({"format": _FORMAT, "rows": self.rows, "columns": columns})

    def drift(self, window: Mapping[str, Sequence[Value]]) -> dict[str, Drift]:
        """How far each column is that the window has too."""
        there = {name: one for name, one in self.columns.items() if window.get(name)}
        return {name: one.drift(window[name]) for name, one in there.items()}


def psi(before: Sequence[int], now: Sequence[int]) -> float:
    """The population stability index of two counts over the same bins."""
    pairs = np.array([pair for pair in zip(before, now, strict=True) if any(pair)], float).T + 0.5
    expected, actual = pairs / pairs.sum(axis=1, keepdims=True)
    return float(((actual - expected) * np.log(actual / expected)).sum())


def features(columns: Mapping[str, Sequence[Any]]) -> Columns:
    """What of some rows is compared: numbers, words, and the lengths of texts."""
    found: Columns = {}
    for name, values in columns.items():
        plain = [_plain(one) for one in values]
        if any(one is not None for one in plain):
            found[str(name)] = plain
        if any(isinstance(one, str) for one in values):
            lengths = [float(len(one)) if isinstance(one, str) else None for one in values]
            found[f"{name}.characters"] = list(lengths)
        if len(found) >= MOST_COLUMNS:
            break
    return found


def _plain(value: Any) -> Value:
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, str):
        return value[:_LONGEST_WORD]
    if isinstance(value, int | float | np.integer | np.floating):
        return float(value) if -_LARGEST < value < _LARGEST else None
    return None


def _word(value: Value) -> str:
    """A value by which equal ones are known; "" for one that is missing."""
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    return value or ""


def _reference_column(values: Sequence[Value]) -> ReferenceColumn | None:
    words = Counter(map(_word, values))
    missing = words.pop("", 0)
    if words and len(words) <= FEW_VALUES:
        return ReferenceColumn(counts=dict(sorted(words.items())), missing=missing)
    numbers = [one for one in values if isinstance(one, float) and math.isfinite(one)]
    if len(numbers) + missing < len(values) or not numbers:
        return None
    return ReferenceColumn(numbers=_some(numbers), missing=missing)


def _some(numbers: list[float]) -> tuple[float, ...]:
    if len(numbers) > _MOST_NUMBERS:
        chosen = np.random.default_rng(_SEED).choice(numbers, _MOST_NUMBERS, replace=False)
        numbers = [float(one) for one in chosen]
    return tuple(sorted(numbers))


def _read_column(content: Any) -> ReferenceColumn:
    numbers = tuple(float(one) for one in content["numbers"])
    if not all(map(math.isfinite, numbers)) or len(numbers) > _MOST_NUMBERS:
        raise ValueError("numbers")
    counts = {str(word): int(count) for word, count in content["counts"].items()}
    return ReferenceColumn(numbers, counts, int(content["missing"]))


def _binned(numbers: Iterable[float], edges: npt.NDArray[np.float64]) -> list[int]:
    places = np.searchsorted(edges, list(numbers), side="right")
    return [int(one) for one in np.bincount(places, minlength=len(edges) + 1)]
