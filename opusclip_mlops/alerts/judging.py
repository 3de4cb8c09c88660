"""Whether a point breaks a rule: pure functions, each with a memory that is plain JSON.

A verdict is True for broken, False for well, None for neither: between the two an alert stays as it
is, so that a value that trembles about its bound raises one alert and not a hundred.
"""

import functools
import math
import statistics
from dataclasses import dataclass
from typing import Any

from opusclip_mlops.alerts.rules import (
    DiskFilling,
    Divergence,
    GpuIdle,
    NotFinite,
    Plateau,
    Rule,
    Threshold,
    WorseThanProduction,
)

Memory = dict[str, Any]
"""What is remembered of one key under one rule: JSON values."""

_DISK_MARGIN_PERCENT = 2.0
_LEAST_WINDOW = 5
_MINUTE_MS = 60_000


@dataclass(frozen=True)
class Seen:
    """A point, and what the production model's run has under its key."""

    key: str
    value: float
    step: int
    timestamp_ms: int
    production: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a rule is broken, and why."""

    is_broken: bool | None
    why: str = ""


@functools.singledispatch
def judged(rule: Rule, memory: Memory, seen: Seen) -> Verdict:
    """Judge a point, and remember in `memory` what the next one needs."""
    raise TypeError(f"{type(rule).__name__} is judged by no point: {memory} {seen}")


@judged.register
def _(rule: Threshold, memory: Memory, seen: Seen) -> Verdict:
    bound = rule.above if rule.above is not None else rule.below
    assert bound is not None
    back = bound if rule.recover_at is None else rule.recover_at
    side = "above" if rule.above is not None else "below"
    return _counted(memory, seen, bound=bound, back=back, side=side, points=rule.points)


@judged.register
def _(rule: NotFinite, memory: Memory, seen: Seen) -> Verdict:
    is_finite = math.isfinite(seen.value)
    memory["well"] = min(memory.get("well", 0) + 1, rule.recover_points) if is_finite else 0
    if not is_finite:
        return Verdict(True, f"{seen.key} is {seen.value} at step {seen.step}")
    is_well = memory["well"] >= rule.recover_points
    return Verdict(False if is_well else None, _numbers(seen, "is a number again"))


@judged.register
def _(rule: Divergence, memory: Memory, seen: Seen) -> Verdict:
    value = _sign(rule.goal) * seen.value
    window: list[float] = memory.setdefault("window", [])
    if math.isnan(value):
        return Verdict(None)
    if len(window) < _LEAST_WINDOW:
        return _remembered(memory, value, rule.window)
    reference = min(window) if rule.against == "best" else statistics.median(window)
    allowed = (rule.factor - 1) * abs(reference)
    if not allowed:
        # Of nothing there are no multiples.
        return _remembered(memory, value, rule.window)
    if value > reference + allowed:
        shown = f"{_sign(rule.goal) * reference:.6g}"
        what = f"more than {rule.factor:g} times off the {rule.against} {shown}"
        return Verdict(True, _numbers(seen, what))
    _remembered(memory, value, rule.window)
    is_well = value <= reference + allowed / 2
    return Verdict(False if is_well else None, _numbers(seen, "back in its range"))


@judged.register
def _(rule: Plateau, memory: Memory, seen: Seen) -> Verdict:
    value = _sign(rule.goal) * seen.value
    if not math.isfinite(value):
        return Verdict(None)
    best = memory.get("best")
    # Gone on with from an earlier step, the training has its steps before it again.
    memory["at"] = min(memory.get("at", seen.step), seen.step)
    if best is None or value < best - rule.min_delta:
        memory.update(best=value, at=seen.step)
        return Verdict(False, _numbers(seen, "better than before"))
    since = seen.step - memory["at"]
    shown = f"no better than {_sign(rule.goal) * best:.6g} for {since} steps"
    return Verdict(True if since >= rule.steps else None, _numbers(seen, shown))


@judged.register
def _(rule: WorseThanProduction, memory: Memory, seen: Seen) -> Verdict:
    if seen.production is None:
        return Verdict(None)
    is_low_good = rule.goal == "minimize"
    bound = seen.production + (rule.by if is_low_good else -rule.by)
    side = "above" if is_low_good else "below"
    said = f", with {seen.production:.6g} in Production"
    return _counted(memory, seen, bound=bound, back=bound, side=side, points=rule.points, said=said)


@judged.register
def _(rule: GpuIdle, memory: Memory, seen: Seen) -> Verdict:
    if math.isnan(seen.value):
        return Verdict(None)
    if seen.value >= rule.below_percent:
        memory.pop("since_ms", None)
        return Verdict(False, f"{_gpu(seen.key)} is used {seen.value:g} % again")
    since_ms = memory.setdefault("since_ms", seen.timestamp_ms)
    idle_ms = seen.timestamp_ms - since_ms
    is_long = idle_ms >= rule.minutes * _MINUTE_MS
    why = f"{_gpu(seen.key)} is used {seen.value:g} %, below {rule.below_percent:g} % for"
    return Verdict(True if is_long else None, f"{why} {idle_ms / _MINUTE_MS:.3g} min")


@judged.register
def _(rule: DiskFilling, memory: Memory, seen: Seen) -> Verdict:
    back = rule.above_percent - _DISK_MARGIN_PERCENT
    return _counted(memory, seen, bound=rule.above_percent, back=back, side="above", points=1)


def _counted(
    memory: Memory,
    seen: Seen,
    *,
    bound: float,
    back: float,
    side: str,
    points: int,
    said: str = "",
) -> Verdict:
    """Count the points in a row that are beyond a bound, or back behind another one."""
    is_above = side == "above"
    is_beyond = seen.value > bound if is_above else seen.value < bound
    is_back = seen.value <= back if is_above else seen.value >= back
    memory["beyond"] = min(memory.get("beyond", 0) + 1, points) if is_beyond else 0
    memory["well"] = min(memory.get("well", 0) + 1, points) if is_back else 0
    in_a_row = f" for {points} points" if points > 1 else ""
    if memory["beyond"] >= points:
        return Verdict(True, _numbers(seen, f"{side} {bound:.6g}{in_a_row}{said}"))
    is_well = memory["well"] >= points
    return Verdict(False if is_well else None, _numbers(seen, f"no longer {side} {bound:.6g}"))


def _remembered(memory: Memory, value: float, window: int) -> Verdict:
    if math.isfinite(value):
        memory["window"] = [*memory["window"], value][-window:]
    return Verdict(None)


def _numbers(seen: Seen, what: str) -> str:
    return f"{seen.key} is {seen.value:.6g} at step {seen.step}, {what}"


def _gpu(key: str) -> str:
    return key.removeprefix("system/").removesuffix("_utilization_percentage")


def _sign(goal: str) -> int:
    """Lower is better once a value is multiplied by it."""
    return 1 if goal == "minimize" else -1
