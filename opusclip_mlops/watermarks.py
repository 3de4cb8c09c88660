"""How far the points of single keys were read, where nothing numbers them in the order they came.

The points of a key have an order: by time, step and value. Most are added at its end. So what was
read of a key is told by its last point and by how many there were; the key is read on from there.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

ROW = np.dtype([("timestamp_ms", "<i8"), ("step", "<i8"), ("value", "<f8")])
Rows = npt.NDArray[np.void]
"""Points of one key, in the order of time, step and value; every NaN is the same one."""

_CALLS_A_ROUND = 64


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """What was read of a key: how many points, and the last of them; `value` is a text for NaN."""

    count: int = 0
    timestamp_ms: int = 0
    step: int = 0
    value: str = ""

    def is_at(self, row: np.void) -> bool:
        """Whether this is the last row that was read."""
        timestamp_ms, step, value = row.tolist()
        return (timestamp_ms, step, repr(value)) == (self.timestamp_ms, self.step, self.value)

    def moved(self, rows: Rows) -> "Mark":
        """The mark behind further rows."""
        return mark_at(rows[-1], self.count + len(rows)) if len(rows) else self


def mark_at(row: np.void, count: int) -> Mark:
    """The mark behind a row, which is the last of so many."""
    timestamp_ms, step, value = row.tolist()
    return Mark(count, timestamp_ms, step, repr(value))


class KeyRows(Protocol):
    """Where the points of single keys are read from."""

    def all(self, run_id: str, keys: Collection[str]) -> dict[str, Rows]:
        """All points of some keys."""

    def since(
        self, run_id: str, changed: Mapping[str, Mark], looked_at: Mapping[str, Mark]
    ) -> dict[str, Rows | None]:
        """The points behind the marks of changed keys; None for a key that has more before it.

        Of the keys that are looked at, only those with something new are answered. What came before
        a mark may go unnoticed in a key that isn't looked at.
        """


@dataclass(frozen=True, eq=False)
class Tail:
    """The last rows of a key up to a mark: by them, what came in between is told apart."""

    end: Mark
    rows: Rows

    def then(self, end: Mark, rows: Rows, at_most: int) -> "Tail":
        """The tail up to a later mark."""
        return tail_of(end, np.concatenate([self.rows, rows[-at_most:]]), at_most)

    @property
    def begin(self) -> Mark:
        """The mark behind the first row, which must not have moved; at 0 where all are here."""
        before = self.end.count - len(self.rows)
        return mark_at(self.rows[0], before + 1) if before else Mark()

    def unknown(self, behind: Rows) -> Rows | None:
        """Which of the rows behind the beginning are new; None when one is missing."""
        known = set(_as_bytes(self.rows[1:] if self.end.count > len(self.rows) else self.rows))
        is_new = np.array([one not in known for one in _as_bytes(behind)], dtype=np.bool_)
        return behind[is_new] if is_new.sum() == len(behind) - len(known) else None


def tail_of(end: Mark, rows: Rows, at_most: int) -> Tail:
    """The last of the rows up to a mark; a copy, so that all of them need not be kept."""
    return Tail(end, rows[-at_most:].copy())


def rows_of(timestamp_ms: npt.ArrayLike, step: npt.ArrayLike, value: npt.ArrayLike) -> Rows:
    """Join columns; NaN in the one form it has in all."""
    values = np.asarray(value, dtype=np.float64)
    rows = np.empty(len(values), dtype=ROW)
    rows["timestamp_ms"], rows["step"] = timestamp_ms, step
    rows["value"] = np.where(np.isnan(values), math.nan, values)
    return rows


def _as_bytes(rows: Rows) -> list[bytes]:
    found: list[bytes] = rows.view(f"V{ROW.itemsize}").tolist()
    return found


def next_in_round(keys: Collection[str], after: str) -> list[str]:
    """The next few of the keys; each has its turn once in 64 calls."""
    count = -(-len(keys) // _CALLS_A_ROUND)
    in_order = sorted(keys)
    return [*(key for key in in_order if key > after), *in_order][:count]
