"""A metric over a run as a curve: its points that count, the last and best of them, its mean.

NaN and infinite points are in no curve, and neither is what training went back behind; both are
counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from opusclip_mlops.generations import Line
from opusclip_mlops.points import Points
from opusclip_mlops.records import SYSTEM_PREFIX

By = Literal["step", "time"]
"""What curves are laid over: the training step, or the seconds since the run began."""

Floats = npt.NDArray[np.float64]
_MOST = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """A value, and where it stands: at a step and a time in Unix milliseconds."""

    value: float
    step: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far a value is from another.

    Attributes:
        absolute: The value less the other, None beyond 64-bit floats.
        relative: That in parts of the other's amount, None where the other is 0.
    """

    absolute: float | None
    relative: float | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Curve:
    """The finite points of one metric, by step and then time.

    Attributes:
        rows: One element a point: step, timestamp_ms (int64) and value (float64).
        not_finite: How many NaN or infinite points are left out.
        superseded: How many are left out that training went back behind.
        ends_finite: Whether the last of all its points is a number, and not left out as none.
    """

    rows: npt.NDArray[np.void]
    not_finite: int = 0
    superseded: int = 0
    ends_finite: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def first(self) -> At | None:
        """The point of the lowest step, None of an empty curve."""
        return self._at(0) if len(self) else None

    @property
    def last(self) -> At | None:
        """The point of the highest step, of several there the one logged last."""
        return self._at(-1) if len(self) else None

    @property
    def lowest(self) -> At | None:
        """The least value, where it came first."""
        return self._at(int(np.argmin(self.rows["value"]))) if len(self) else None

    @property
    def highest(self) -> At | None:
        """The greatest value, where it came first."""
        return self._at(int(np.argmax(self.rows["value"]))) if len(self) else None

    def _at(self, place: int) -> At:
        row = self.rows[place]
        return At(
            value=float(row["value"]), step=int(row["step"]), timestamp_ms=int(row["timestamp_ms"])
        )


@dataclass(frozen=True, eq=False)
class Path:
    """A curve as it is drawn: positions that only rise, and the value at each."""

    x: Floats
    y: Floats


def curves_of(
    points: Points, *, wanted: Callable[[str], bool], line: Line | None = None
) -> dict[str, Curve]:
    """The curves of a run, by key.

    Args:
        points: All of the run.
        wanted: Whether the curve of a key is asked for.
        line: What counts of the generations of the run; None for all.
    """
    is_wanted = np.array([wanted(key) for key in points.keys], dtype=np.bool_)
    rows = points.rows[is_wanted[points.rows["key"]]] if len(points) else points.rows
    rows = rows[np.lexsort((rows["value"], rows["timestamp_ms"], rows["step"], rows["key"]))]
    counts = counting(rows, points.keys, line)
    ends = np.searchsorted(rows["key"], np.arange(len(points.keys) + 1))
    return {
        key: _curve(rows[ends[at] : ends[at + 1]], counts[ends[at] : ends[at + 1]])
        for at, key in enumerate(points.keys)
        if ends[at] < ends[at + 1]
    }


def _curve(rows: npt.NDArray[np.void], counts: npt.NDArray[np.bool_]) -> Curve:
    finite = np.isfinite(rows["value"])
    ends_finite = finite[counts]
    return Curve(
        rows=rows[counts & finite][["step", "timestamp_ms", "value"]],
        not_finite=int(np.count_nonzero(counts & ~finite)),
        superseded=int(np.count_nonzero(~counts)),
        ends_finite=bool(ends_finite[-1]) if len(ends_finite) else True,
    )


def counting(
    rows: npt.NDArray[np.void], keys: Sequence[str], line: Line | None
) -> npt.NDArray[np.bool_]:
    """Which rows of points, with these keys, a line holds: `Line.holds` for all at once."""
    if line is None or not line.generations:
        return np.ones(len(rows), dtype=np.bool_)
    of_machine = np.array([key.startswith(SYSTEM_PREFIX) for key in keys], dtype=np.bool_)
    held: npt.NDArray[np.bool_] = _held(rows, line)[1] | of_machine[rows["key"]]
    return held


def _held(
    rows: npt.NDArray[np.void], line: Line
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The generation of each row, and whether the line holds it."""
    starts = np.array([one.start_ms for one in line.generations], dtype=np.int64)
    number = np.searchsorted(starts, rows["timestamp_ms"], side="right")
    every = range(len(line.generations) + 1)
    is_in_line = np.array([one in line.reach for one in every], dtype=np.bool_)
    reach = np.array([min(line.reach.get(one, 0), _MOST) for one in every], dtype=np.int64)
    return number, is_in_line[number] & (rows["step"] <= reach[number])


def parted(key: str, curve: Curve, line: Line) -> tuple[Curve, tuple[Curve, ...]]:
    """What counts of a curve, and what does not: a curve for each generation that left some.

    Args:
        key: The metric's; what the machine uses always counts.
        curve: Of all points that were ever logged.
        line: What counts.
    """
    if key.startswith(SYSTEM_PREFIX) or not line.generations:
        return curve, ()
    number, held = _held(curve.rows, line)
    left = sorted(set(number[~held].tolist()))
    others = tuple(Curve(rows=curve.rows[~held & (number == one)]) for one in left)
    return replace(curve, rows=curve.rows[held]), others


def path_of(curve: Curve, *, by: By, start_ms: int = 0) -> Path:
    """A curve over its steps, or over the seconds since the run began.

    Of several points at one place the one logged last counts, of one time that of the highest step.

    Args:
        curve: Whose.
        by: Over what.
        start_ms: When the run began, Unix milliseconds.
    """
    every = drawn_of(curve, by=by, start_ms=start_ms)
    is_last = np.ones(len(every.x), dtype=np.bool_)
    is_last[:-1] = every.x[1:] != every.x[:-1]
    return Path(every.x[is_last], every.y[is_last])


def drawn_of(curve: Curve, *, by: By, start_ms: int = 0) -> Path:
    """The same with every point of the curve, so that positions never fall."""
    rows = curve.rows
    if by == "step":
        return Path(rows["step"].astype(np.float64), rows["value"].astype(np.float64))
    rows = rows[np.lexsort((rows["step"], rows["timestamp_ms"]))]
    x = (rows["timestamp_ms"].astype(np.float64) - start_ms) / 1000
    return Path(x, rows["value"].astype(np.float64))


def common_span(paths: Sequence[Path]) -> tuple[float, float] | None:
    """From where all have begun to where the first of them ends; None where that has no length."""
    if not paths or not all(len(one.x) for one in paths):
        return None
    begin, end = max(float(one.x[0]) for one in paths), min(float(one.x[-1]) for one in paths)
    return (begin, end) if begin < end else None


def mean_over(path: Path, span: tuple[float, float]) -> float | None:
    """The area under a path over a span, divided by the span's length.

    With the points (x_i, y_i) inside the span, and at its ends b and e the values that lie on the
    straight lines between points, by the trapezoid rule:

        1 / (e - b) * sum over i of (x_(i+1) - x_i) * (y_i + y_(i+1)) / 2

    It has the unit of the metric: that of a metric which is c everywhere is c. None where it is
    beyond 64-bit floats.

    Args:
        path: Reaches over the whole span.
        span: Its begin and its end, the begin below the end.
    """
    begin, end = span
    inside = path.x[(path.x > begin) & (path.x < end)]
    x = np.concatenate([[begin], inside, [end]])
    with np.errstate(over="ignore", invalid="ignore"):
        y = np.interp(x, path.x, path.y)
        # The shares add up to 1, so that no sum of theirs is beyond what the values are.
        mean = float(np.sum(np.diff(x) / (end - begin) * (y[1:] / 2 + y[:-1] / 2)))
    return mean if math.isfinite(mean) else None


def difference(value: float, to: float) -> Difference:
    """How far a finite value is from another: value - to, and (value - to) / |to|."""
    absolute = value - to
    relative = absolute / abs(to) if to else math.inf
    return Difference(
        absolute=absolute if math.isfinite(absolute) else None,
        relative=relative if math.isfinite(relative) else None,
    )
