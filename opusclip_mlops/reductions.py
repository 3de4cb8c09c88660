"""How the values of many ranks become one: the words for it, and what each comes to."""

import math
from collections.abc import Iterable, Sequence

from opusclip_mlops.errors import RecordError
from opusclip_mlops.records import SYSTEM_PREFIX
from opusclip_mlops.values import MAX_KEY_CHARACTERS

STATS, EACH = "stats", "each"
REDUCTIONS = ("mean", "min", "max", "sum", STATS, EACH)
"""What `log_metrics` knows as `reduce`."""

SLOWEST_RANK = "slowest_rank"
RATES = ("_per_s", "_per_sec", "_per_second", "fps")
"""Ends the keys of what is the better the higher it is: the slowest rank is that of the lowest."""
_TURN = f"{STATS}@"


def check_reduction(reduce: str, keys: Iterable[str], *, rank: int) -> None:
    """Accept a known reduction of keys that stay legal with what it adds to them.

    Raises:
        RecordError: another word, or a key that becomes too long.
    """
    if reduce not in REDUCTIONS:
        raise RecordError(f"reduce must be one of {', '.join(REDUCTIONS)}, not {reduce!r:.60}")
    added = {STATS: f"/{SLOWEST_RANK}", EACH: key_of_rank("", rank)}.get(reduce, "")
    longest = max(keys, key=len, default="")
    if added and len(longest) + len(added) > MAX_KEY_CHARACTERS:
        most = MAX_KEY_CHARACTERS - len(added)
        raise RecordError(
            f"key {longest!r:.60} is too long for reduce={reduce!r}: at most {most} characters"
        )


def turn(number: int) -> str:
    """`stats` of what ranks measure in the same interval of a clock, whatever their steps are."""
    return f"{_TURN}{number}"


def turn_of(reduce: str) -> int | None:
    """The interval's number, None where values are paired by their step."""
    if not reduce.startswith(_TURN):
        return None
    number = reduce.removeprefix(_TURN)
    return int(number) if number.isdecimal() and number.isascii() and len(number) < 19 else None


def key_of_rank(key: str, rank: int) -> str:
    """The key of one rank's own values; those of a machine are named after it already."""
    return key if key.startswith(SYSTEM_PREFIX) else f"rank-{rank}/{key}"


def reduced(
    key: str, values: Sequence[float], reduce: str, *, ranks: Sequence[int]
) -> dict[str, float]:
    """One value by key, or with `stats` five; a NaN among the values is never hidden.

    Args:
        key: The values' own.
        values: At least one.
        reduce: mean, min, max, sum or stats.
        ranks: Whose they are, in the same order.
    """
    if reduce.startswith(STATS):
        found = _stats(values, ranks, is_rate=key.endswith(RATES))
        return {f"{key}/{name}": value for name, value in found.items()}
    if reduce in ("sum", "mean"):
        return {key: _sum(values) if reduce == "sum" else _mean(values)}
    return {key: _extreme(values, reduce)}


def _sum(values: Sequence[float]) -> float:
    """The exact sum, rounded once: the same in whatever order the ranks come."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.copysign(math.inf, math.fsum(value / 2**64 for value in values))
    except ValueError:  # infinities of both signs
        return math.nan


def _mean(values: Sequence[float]) -> float:
    total = _sum(values)
    if math.isinf(total) and all(map(math.isfinite, values)):
        return math.fsum(value / len(values) for value in values)
    return total / len(values)


def _extreme(values: Sequence[float], reduce: str) -> float:
    if any(map(math.isnan, values)):
        return math.nan
    return min(values) if reduce == "min" else max(values)


def _stats(values: Sequence[float], ranks: Sequence[int], *, is_rate: bool) -> dict[str, float]:
    bad = [rank for rank, value in zip(ranks, values, strict=True) if math.isnan(value)]
    if bad:
        return dict.fromkeys(("min", "p50", "p95", "max"), math.nan) | {SLOWEST_RANK: float(bad[0])}
    ordered = sorted(values)
    slowest = ordered[0] if is_rate else ordered[-1]
    return {
        "min": ordered[0],
        "p50": _quantile(ordered, 0.5),
        "p95": _quantile(ordered, 0.95),
        "max": ordered[-1],
        SLOWEST_RANK: float(ranks[values.index(slowest)]),
    }


def _quantile(ordered: Sequence[float], q: float) -> float:
    """Linear between the two nearest, as Hyndman and Fan's definition 7 (1996) and NumPy's own."""
    at = q * (len(ordered) - 1)
    low, share = ordered[math.floor(at)], at - math.floor(at)
    high = ordered[math.ceil(at)]
    return low if low == high else low * (1 - share) + high * share
