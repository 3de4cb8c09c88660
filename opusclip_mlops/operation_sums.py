"""What the uses of one operation come to: counts, times, quantiles and memory, in little room."""

import os
import sys
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What the uses of one operation took in an interval.

    `count`, `total_ms` and the quantiles are of the uses that ended in it. `self_ms` is the time in
    it that no timed operation inside took, `share` the part of the interval's time by the clock:
    both count also what was not over yet. Memory is that of the interval's first use.
    """

    category: str
    name: str
    count: int
    total_ms: float
    self_ms: float
    share: float
    p50_ms: float | None = None
    p95_ms: float | None = None
    max_ms: float | None = None
    rss_change_megabytes: float | None = None
    gpu_change_megabytes: float | None = None

    def as_metrics(self) -> dict[str, float]:
        """By key: `profiling/<category>/<name>/count` and so on."""
        about = f"profiling/{self.category}/{self.name}"
        values = ((one, getattr(self, one)) for one in _FIGURES)
        return {f"{about}/{one}": float(value) for one, value in values if value is not None}


_FIGURES = tuple(one for one in Taken.__dataclass_fields__ if one not in ("category", "name"))


class Sums:
    """What the uses of one operation come to."""

    __slots__ = (
        "buckets", "busy_ns", "changes", "count", "least_ns", "most_ns", "own_ns", "total_ns",
    )  # fmt: skip

    def __init__(self) -> None:
        self.count = self.total_ns = self.own_ns = self.busy_ns = self.most_ns = 0
        self.least_ns = sys.maxsize
        self.buckets: dict[int, int] = {}
        self.changes: tuple[float, float | None] | None = None

    def add(self, uses: Sequence[tuple[int, int, int]]) -> None:
        """Count uses: the whole time of each, the part not counted yet, and what was inside."""
        if not uses:
            return
        times_ns, parts_ns, inner_ns = zip(*uses, strict=True)
        self.count += len(uses)
        self.total_ns += sum(times_ns)
        self.busy_ns += sum(parts_ns) or 1
        if any(inner_ns):
            # Tasks side by side take more than what they are in.
            self.own_ns += sum([max(0, part - inner) for _, part, inner in uses])
        else:
            self.own_ns += sum(parts_ns)
        self._count(sorted(times_ns))

    def _count(self, times_ns: Sequence[int]) -> None:
        """Count sorted times in their buckets: a bucket at a time, for they are few."""
        self.least_ns = min(self.least_ns, times_ns[0])
        self.most_ns = max(self.most_ns, times_ns[-1])
        at = 0
        while at < len(times_ns):
            bucket = bucket_of(times_ns[at])
            until = bisect_left(times_ns, start_of(bucket + 1), at)
            self.buckets[bucket] = self.buckets.get(bucket, 0) + until - at
            at = until

    def credit(self, part_ns: int, inner_ns: int) -> None:
        """Count a part of a use, and what of it other operations took."""
        # Zero would say that there was no use; tasks side by side take more than what they are in.
        self.busy_ns += part_ns or 1
        self.own_ns += part_ns - inner_ns if part_ns > inner_ns else 0

    def note_memory(self, before: tuple[int, int | None], after: tuple[int, int | None]) -> None:
        """Keep how memory changed in a use, from `memory_bytes` before and after it."""
        on_gpu = None
        if before[1] is not None and after[1] is not None:
            on_gpu = (after[1] - before[1]) / 1e6
        self.changes = (after[0] - before[0]) / 1e6, on_gpu

    def taken(self, category: str, name: str, seconds: float) -> Taken:
        """All of it, for an interval of so many seconds."""
        rss_change, gpu_change = self.changes or (None, None)
        return Taken(
            category=category,
            name=name,
            count=self.count,
            total_ms=self.total_ns / 1e6,
            self_ms=self.own_ns / 1e6,
            share=self.busy_ns / 1e9 / seconds,
            p50_ms=self._quantile_ms(0.50),
            p95_ms=self._quantile_ms(0.95),
            max_ms=self.most_ns / 1e6 if self.count else None,
            rss_change_megabytes=rss_change,
            gpu_change_megabytes=gpu_change,
        )

    def _quantile_ms(self, quantile: float) -> float | None:
        """The smallest time that this part of all uses do not exceed, to its bucket's middle."""
        rank, seen = quantile * self.count, 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                middle_ns = (start_of(bucket) + start_of(bucket + 1) - 1) / 2
                return min(max(middle_ns, self.least_ns), self.most_ns) / 1e6
        return None


def bucket_of(elapsed_ns: int) -> int:
    """The bucket of a time: 32 of equal width between a power of two and the next.

    With `s = max(0, bits - 6)` it is `32 s + (elapsed_ns >> s)`. A bucket is at most 1/32 of its
    lower end wide, so its middle is within 1.6 % of every time in it; below 64 ns it is exact.
    """
    shift = elapsed_ns.bit_length() - 6
    return elapsed_ns if shift <= 0 else (shift << 5) + (elapsed_ns >> shift)


def start_of(bucket: int) -> int:
    """Where a bucket begins, in nanoseconds; it ends where the next one does."""
    shift = max(0, (bucket >> 5) - 1)
    return (bucket - (shift << 5)) << shift


def memory_bytes() -> tuple[int, int | None]:
    """Memory that is resident, and what torch has allocated on the GPU where it uses one."""
    try:
        with open("/proc/self/statm", "rb") as file:
            resident = int(file.read().split()[1]) * _PAGE_BYTES
    except OSError:
        resident = 0
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return resident, None
    return resident, int(torch.cuda.memory_allocated())
