"""A run's points as columns: compared, sorted and cut into records by the million.

A point is one value of one key at a step and a time. MLflow holds each point once, so a run's
points are a set; a mirror that holds one twice has one too many.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opusclip_mlops.records import Metrics

MAX_FLOAT64 = 1.7976931348623157e308
"""What MLflow's databases keep of an infinity, with its sign; read back it is infinite again."""

# Below it a time in seconds, as a 64-bit float, gives back its millisecond.
_EXACT_MS = 2**50
_ROW = np.dtype([("key", "<i8"), ("step", "<i8"), ("timestamp_ms", "<i8"), ("value", "<f8")])


@dataclass(frozen=True)
class Point:
    """One value of one key, at a step and a time in Unix milliseconds."""

    key: str
    step: int
    timestamp_ms: int
    value: float


@dataclass(frozen=True, eq=False)
class Points:
    """Points of a run, in no order that means anything.

    Args:
        keys: The names that `rows["key"]` counts from 0; some may have no point.
        rows: One element a point: key, step, timestamp_ms (int64) and value (float64).
    """

    keys: tuple[str, ...]
    rows: npt.NDArray[np.void]

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of_columns(
        cls,
        keys: Sequence[str],
        key: npt.ArrayLike,
        step: npt.ArrayLike,
        timestamp_ms: npt.ArrayLike,
        value: npt.ArrayLike,
    ) -> "Points":
        """Join columns of equal length; infinities and zeros get the one form they have in all."""
        found = np.empty(len(np.asarray(step)), dtype=_ROW)
        found["key"], found["step"], found["timestamp_ms"] = key, step, timestamp_ms
        found["value"] = _plain(np.asarray(value, dtype=np.float64))
        return cls(tuple(keys), found)

    @classmethod
    def of(cls, points: Iterable[Point]) -> "Points":
        """Gather single points."""
        numbers: dict[str, int] = {}
        rows = [
            (numbers.setdefault(p.key, len(numbers)), p.step, p.timestamp_ms, p.value)
            for p in points
        ]
        found = np.array(rows, dtype=_ROW)
        found["value"] = _plain(found["value"])
        return cls(tuple(numbers), found)

    @classmethod
    def joined(cls, parts: Sequence["Points"]) -> "Points":
        """All points of several, one behind the other; what stands in two of them stands twice."""
        keys = tuple(dict.fromkeys(key for part in parts for key in part.keys))
        if not parts:
            return cls.of(())
        return cls(keys, np.concatenate([part._numbered(keys) for part in parts]))

    def narrow(self) -> "Points":
        """The same points as TensorBoard holds them: values are 32-bit floats."""
        rows = self.rows.copy()
        with np.errstate(over="ignore"):
            rows["value"] = _plain(rows["value"].astype(np.float32).astype(np.float64))
        return Points(self.keys, rows)

    def minus(self, other: "Points") -> "Points":
        """The points that `other` lacks; one that stands here more often is left over."""
        return self._kept(self, other)

    def lacking_in(self, other: "Points", *, kept_as: "Points") -> "Points":
        """The points that `other`, which keeps them as `kept_as`, lacks; as they are here.

        Two points that are kept as one and the same are two points there as well.
        """
        return self._kept(kept_as, other)

    def in_seconds(self) -> "Points":
        """The same points as places hold them that count time in seconds, as 64-bit floats."""
        rows = self.rows.copy()
        for at in np.flatnonzero(np.abs(rows["timestamp_ms"]) >= _EXACT_MS):
            rows["timestamp_ms"][at] = round(int(rows["timestamp_ms"][at]) / 1000 * 1000)
        return Points(self.keys, rows)

    def _kept(self, compared: "Points", other: "Points") -> "Points":
        keys = tuple(sorted({*compared.keys, *other.keys}))
        ours, theirs = compared._numbered(keys), other._numbered(keys)
        both = np.concatenate([ours, theirs])
        order = _order(both)
        _, of_point = _distinct(both[order])
        number = np.empty(len(both), dtype=np.int64)
        number[order] = of_point
        mine = number[: len(ours)]
        allowed = np.bincount(number[len(ours) :], minlength=len(both) + 1)
        return Points(self.keys, self.rows[_rank_among_equals(mine) >= allowed[mine]])

    def distinct(self) -> "Points":
        """Each point once."""
        ordered = self.rows[_order(self.rows)]
        first, _ = _distinct(ordered)
        return Points(self.keys, ordered[first])

    def in_time(self) -> "Points":
        """Sorted by time, then step, key and value: the order in which they were logged."""
        return self._sorted("value", "key", "step", "timestamp_ms")

    def in_steps(self) -> "Points":
        """Sorted by step, then time, key and value: the order a chart shows them in."""
        return self._sorted("value", "key", "timestamp_ms", "step")

    def rises(self) -> bool:
        """Whether, in the order they stand in, each key's steps only ever grow."""
        by_key = self.rows[np.argsort(self.rows["key"], kind="stable")]
        same = by_key["key"][1:] == by_key["key"][:-1]
        return not bool(np.any(same & (by_key["step"][1:] <= by_key["step"][:-1])))

    def calls(self) -> Iterator[Metrics]:
        """Cut into records, in the order they stand in: neighbours of one step and time share one.

        No key stands twice in a record.
        """
        values: dict[str, float] = {}
        at = (0, 0)
        # Much faster than a loop over the elements of a NumPy array.
        columns = (self.rows[name].tolist() for name in ("timestamp_ms", "step", "key", "value"))
        names = self.keys
        for timestamp_ms, step, number, value in zip(*columns, strict=True):
            key = names[number]
            if (timestamp_ms, step) != at or key in values:
                if values:
                    yield Metrics(*at, values)
                values, at = {}, (timestamp_ms, step)
            values[key] = value
        if values:
            yield Metrics(*at, values)

    def some(self, count: int) -> list[Point]:
        """The first of them in time, to show."""
        rows = self.in_time().rows[:count]
        return [
            Point(self.keys[key], step, timestamp_ms, value)
            for key, step, timestamp_ms, value in rows.tolist()
        ]

    def _sorted(self, *last_to_first: str) -> "Points":
        names = sorted(range(len(self.keys)), key=lambda at: self.keys[at])
        rank = np.empty(len(names), dtype=np.int64)
        rank[names] = np.arange(len(names))
        columns = {name: self.rows[name] for name in last_to_first}
        columns["key"] = rank[self.rows["key"]]
        # NaN sorts last in NumPy; MLflow counts it below every number.
        columns["value"] = np.where(np.isnan(columns["value"]), -math.inf, columns["value"])
        return Points(self.keys, self.rows[np.lexsort(tuple(columns.values()))])

    def _numbered(self, keys: Sequence[str]) -> npt.NDArray[np.void]:
        place = {key: at for at, key in enumerate(keys)}
        rows = self.rows.copy()
        if len(rows):
            rows["key"] = np.array([place[key] for key in self.keys], dtype=np.int64)[rows["key"]]
        return rows


def _plain(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Values in the one form they are compared in: infinite for the largest, no negative zero."""
    plain = np.where(np.abs(values) >= MAX_FLOAT64, np.copysign(math.inf, values), values)
    return np.where(np.isnan(plain), math.nan, plain + 0.0)


def _order(rows: npt.NDArray[np.void]) -> npt.NDArray[np.intp]:
    return np.lexsort((rows["value"].view("<i8"), rows["timestamp_ms"], rows["step"], rows["key"]))


def _distinct(
    ordered: npt.NDArray[np.void],
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Which of the ordered rows are the first of their kind, and the number of each one's kind."""
    first = np.ones(len(ordered), dtype=np.bool_)
    as_bytes = np.ascontiguousarray(ordered).view("<i8").reshape(-1, 4)
    first[1:] = np.any(as_bytes[1:] != as_bytes[:-1], axis=1)
    return first, np.cumsum(first, dtype=np.int64)


def _rank_among_equals(number: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each element, how many equal ones stand before it."""
    order = np.argsort(number, kind="stable")
    ordered = number[order]
    begins = np.r_[True, ordered[1:] != ordered[:-1]] if len(ordered) else np.zeros(0, dtype=bool)
    positions = np.arange(len(ordered))
    rank = np.empty(len(ordered), dtype=np.int64)
    rank[order] = positions - np.maximum.accumulate(np.where(begins, positions, 0))
    return rank
