"""Points that still lack ranks: whose values are there, and how long they may be waited for."""

from array import array
from collections.abc import Iterator
from typing import Any

import msgspec

from opusclip_mlops.records import RankMetrics

_POINT_BYTES = 300


class Together(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is logged together: by one attempt of so many ranks, merged alike, at one place.

    `at` is a step; of what is merged by turns, a turn's number.
    """

    attempt: int
    world_size: int
    kind: str
    at: int


class Point(msgspec.Struct, array_like=True, gc=False):
    """The values of a key that have come so far; `present` has a bit for each rank that is there.

    `later` is the next value of the same key at the same place, of ranks that log it twice.
    """

    step: int
    timestamp_ms: int
    present: int
    values: Any
    later: "Point | None" = None

    @property
    def ranks(self) -> list[int]:
        """The ranks that are there."""
        return ranks_of(self.present)


class KeptPoint(msgspec.Struct, frozen=True, array_like=True):
    """A point as it is written down."""

    together: Together
    key: str
    step: int
    timestamp_ms: int
    present: bytes
    values: bytes


class OpenPoints:
    """Points by what is logged together, the first begun first."""

    def __init__(self) -> None:
        self.groups: dict[Together, dict[str, Point]] = {}
        self.size_bytes = 0
        self.count = 0

    def put(self, record: RankMetrics, together: Together, key: str) -> Point:
        """Put a rank's value into the first point of the key that lacks it; the point."""
        points = self.groups.setdefault(together, {})
        bit, point = 1 << record.rank, points.get(key)
        if point is None:
            point = points[key] = self._begun(together)
        while point.present & bit:
            if point.later is None:
                point.later = self._begun(together)
            point = point.later
        point.present |= bit
        point.values[record.rank] = record.values[key]
        point.step = max(point.step, record.step)
        point.timestamp_ms = max(point.timestamp_ms, record.timestamp_ms)
        return point

    def first(self, together: Together, key: str) -> Point | None:
        """The point of a key that is to be made next."""
        return self.groups.get(together, {}).get(key)

    def pop(self, together: Together, key: str) -> Point:
        """Take out the point of a key that is made next."""
        points = self.groups[together]
        point = points.pop(key)
        if point.later is not None:
            points[key] = point.later
        elif not points:
            del self.groups[together]
        self.size_bytes -= _size_bytes(together)
        self.count -= 1
        return point

    def _begun(self, together: Together) -> Point:
        self.size_bytes += _size_bytes(together)
        self.count += 1
        return Point(-(2**63), 0, 0, array("d", bytes(8 * together.world_size)))

    def kept(self) -> Iterator[KeptPoint]:
        """All points, in their order."""
        for together, points in self.groups.items():
            for key, first in points.items():
                point: Point | None = first
                while point is not None:
                    yield _kept(together, key, point)
                    point = point.later

    def take_back(self, kept: KeptPoint) -> None:
        """Put in a point that was written down, behind those of its key."""
        point = self._begun(kept.together)
        point.step, point.timestamp_ms = kept.step, kept.timestamp_ms
        point.present = int.from_bytes(kept.present, "little")
        point.values = array("d", kept.values)
        points = self.groups.setdefault(kept.together, {})
        last = points.setdefault(kept.key, point)
        while last.later is not None:
            last = last.later
        if last is not point:
            last.later = point


def ranks_of(bits: int) -> list[int]:
    """The numbers of the bits that are set."""
    return [rank for rank in range(bits.bit_length()) if bits >> rank & 1]


def bits_of(ranks: list[int]) -> int:
    """A bit for each rank."""
    return sum(1 << rank for rank in set(ranks))


def _size_bytes(together: Together) -> int:
    return _POINT_BYTES + 8 * together.world_size


def _kept(together: Together, key: str, point: Point) -> KeptPoint:
    return KeptPoint(
        together,
        key,
        point.step,
        point.timestamp_ms,
        point.present.to_bytes((together.world_size + 7) // 8, "little"),
        point.values.tobytes(),
    )
