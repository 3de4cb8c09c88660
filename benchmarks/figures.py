"""What was measured beside what was promised: ratios, bounds, intervals, the table."""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One thing measured: ours, a peer's where there is one, and what was promised.

    A bound is one of the ratio ours / theirs where there is a peer, else one of `ours` itself.
    """

    part: str
    what: str
    ours: float
    unit: str
    peer: str = ""
    theirs: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    interval: tuple[float, float] | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours by theirs, where there is a peer."""
        return None if self.theirs is None else self.ours / self.theirs

    @property
    def verdict(self) -> str:
        """`kept`, `MISSED`, `open` where the interval lies on both sides, or empty without promise.

        A promise is judged by the whole interval where there is one.
        """
        if self.at_most is None and self.at_least is None:
            return ""
        judged = self.interval or (self.ours if self.ratio is None else self.ratio,)
        kept = {self._holds(value) for value in judged}
        return "open" if len(kept) > 1 else "kept" if kept.pop() else "MISSED"

    def _holds(self, value: float) -> bool:
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)

    @property
    def bound(self) -> str:
        """The promise as it stands in the table."""
        limits = (("<=", self.at_most), (">=", self.at_least))
        return " ".join(f"{sign} {number(limit)}" for sign, limit in limits if limit is not None)

    def as_json(self) -> dict[str, Any]:
        """All fields, with the ratio and the verdict."""
        return {**asdict(self), "ratio": self.ratio, "verdict": self.verdict}


def number(value: float | None) -> str:
    """A number with three digits that count, thousands set apart."""
    if value is None:
        return ""
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of all values do not exceed."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours by theirs, pair by pair."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def interval_of(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = statistics.median,
    *,
    percent: float = 95,
    seed: int = 0,
) -> tuple[float, float]:
    """The bootstrap interval of a statistic: `percent` of the resampled ones lie in it."""
    draw = random.Random(seed)
    found = [statistic(draw.choices(values, k=len(values))) for _ in range(RESAMPLES)]
    outside = (100 - percent) / 2
    return percentile(found, outside), percentile(found, 100 - outside)


def quarters(values: Sequence[float]) -> tuple[float, float]:
    """The medians of the first and of the last quarter."""
    size = max(1, len(values) // 4)
    return statistics.median(values[:size]), statistics.median(values[-size:])


def show(figures: Sequence[Figure], console: Console | None = None) -> None:
    """Print the table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("part", "measured", "ours", "unit", "peer", "theirs", "ratio", "promised", ""):
        table.add_column(name, justify="right" if name in _NUMBERS else "left")
    for one in figures:
        table.add_row(*_cells(one))
    (console or Console(width=150)).print(table)


_NUMBERS = ("ours", "theirs", "ratio", "promised")


def _cells(one: Figure) -> tuple[str, ...]:
    around = " [{} … {}]".format(*map(number, one.interval)) if one.interval else ""
    told = one.what + (f" ({one.note})" if one.note else "") + around
    return (
        one.part, told, number(one.ours), one.unit, one.peer,
        number(one.theirs), number(one.ratio), one.bound, one.verdict,
    )  # fmt: skip
