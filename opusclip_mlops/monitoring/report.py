"""What the monitoring run is told of an interval: the change of the counts, times, drift, clips."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opusclip_mlops.drift import Drift
from opusclip_mlops.monitoring.counts import Counts, Tally

_NOT_IN_A_KEY = re.compile(r"[^A-Za-z0-9_. -]")
_LONGEST = 100
_QUANTILES = {"p50": 50, "p95": 95, "p99": 99, "max": 100}


@dataclass(frozen=True, slots=True)
class Seen:
    """What was last found out: drift by column, and how clips looked, by metric."""

    drift: Mapping[str, Drift]
    looks: Mapping[str, float]
    reference_rows: int = 0
    window_rows: int = 0
    origin: str = ""


class Reporter:
    """Tells one interval after the other.

    Args:
        counts: What is counted.
        now_s: When the first one begins, by `time.monotonic`.
    """

    def __init__(self, counts: Counts, now_s: float) -> None:
        self._counts = counts
        self._before, self._since_s = counts.tally(), now_s

    def report(self, seen: Seen, now_s: float) -> dict[str, float]:
        """The values since the last one, under `serving/`."""
        before, now = self._before, self._counts.tally()
        elapsed_s = max(now_s - self._since_s, 1e-9)
        self._before, self._since_s = now, now_s
        found = {
            **_traffic(before, now, elapsed_s),
            **self._times(),
            **_errors(before, now),
            **_clips(before, now, seen),
            **_drift(seen),
        }
        return {f"serving/{name}": value for name, value in found.items()}

    def _times(self) -> dict[str, float]:
        request, predict, in_flight, waiting = self._counts.recent()
        return {
            **_quantiles("latency", request),
            **_quantiles("predict", predict),
            "in_flight_max": in_flight,
            "waiting_max": waiting,
        }


def quantile(ordered: Sequence[float], percent: float) -> float:
    """The smallest of ordered values, at least one, that `percent` of them do not exceed."""
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def key_of(column: str) -> str:
    """A column's name as a key may have it."""
    return _NOT_IN_A_KEY.sub("_", column)[:_LONGEST].strip(" .") or "_"


def _traffic(before: Tally, now: Tally, elapsed_s: float) -> dict[str, float]:
    requests = sum(now.requests.values()) - sum(before.requests.values())
    errors = sum(now.errors.values()) - sum(before.errors.values())
    frames = now.frames - before.frames
    busy_s = now.predict_total_s - before.predict_total_s
    spent_s = sum(now.spent_s.values()) - sum(before.spent_s.values())
    found = {
        "requests": requests,
        "requests_per_s": requests / elapsed_s,
        "rows": now.rows - before.rows,
        "errors": errors,
        "frames": frames,
        "frames_per_s": frames / elapsed_s,
        "monitor_percent": 100 * spent_s / elapsed_s,
        "monitor_faults": sum(now.faults.values()) - sum(before.faults.values()),
    }
    if requests:
        found["error_share"] = errors / requests
    if busy_s > 0 and frames:
        found["frames_per_predict_s"] = frames / busy_s
    return found


def _errors(before: Tally, now: Tally) -> dict[str, float]:
    kinds = {kind: now.errors[kind] - before.errors.get(kind, 0) for kind in now.errors}
    return {f"errors/{key_of(kind)}": count for kind, count in kinds.items()}


def _clips(before: Tally, now: Tally, seen: Seen) -> dict[str, float]:
    found: dict[str, float] = {"clips/checked": now.clips_checked - before.clips_checked}
    for flag, count in now.flagged.items():
        found[f"clips/flagged_{flag}"] = count - before.flagged.get(flag, 0)
    if now.clips_checked > before.clips_checked:
        found |= {f"clips/{name}": value for name, value in seen.looks.items()}
    return found


def _drift(seen: Seen) -> dict[str, float]:
    found: dict[str, float] = {}
    for column, drift in seen.drift.items():
        parts = {"psi": drift.psi, "ks": drift.ks, "p_value": drift.p_value}
        told = {name: value for name, value in parts.items() if value is not None}
        found |= {f"inputs/{key_of(column)}/{name}": value for name, value in told.items()}
    if found:
        found["inputs/psi_max"] = max(one.psi for one in seen.drift.values())
    return found


def _quantiles(name: str, ordered: Sequence[float]) -> dict[str, float]:
    """In milliseconds; none where nothing was timed."""
    if not ordered:
        return {}
    return {f"{name}_{one}_ms": 1000 * quantile(ordered, at) for one, at in _QUANTILES.items()}
