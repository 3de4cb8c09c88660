"""What a Chrome trace of torch.profiler says: its operators, their time, and the memory in use."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

COLUMNS = [
    "operator", "calls", "self_cpu_us", "self_cpu_share", "total_cpu_us", "self_gpu_us",
    "self_gpu_share",
]  # fmt: skip
STEP = "ProfilerStep#"
"""Begins the name of the span of a step."""

Event = dict[str, Any]

_MOST_OPERATORS = 20
_NAME = re.compile(rb'(?<="name": ")[^\n]*(?=",?\n)')
_OUTSIDE = "(outside operators)"
_ON_CPU = {"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"}
_ON_GPU = {"kernel", "gpu_memcpy", "gpu_memset"}


@dataclass(slots=True)
class _Spent:
    """How often an operator ran, and its time in microseconds."""

    calls: int = 0
    self_cpu_us: float = 0.0
    total_cpu_us: float = 0.0
    self_gpu_us: float = 0.0


def decoded(document: bytes) -> dict[str, Any]:
    """A trace as torch.profiler wrote it; it writes names as they are, quotes too.

    Raises:
        msgspec.DecodeError: it is no JSON for another reason than a name.
    """
    try:
        return msgspec.json.decode(document, type=dict[str, Any])
    except msgspec.DecodeError:
        return msgspec.json.decode(_NAME.sub(_escaped, document), type=dict[str, Any])


def _escaped(name: re.Match[bytes]) -> bytes:
    return msgspec.json.encode(name[0].decode(errors="replace"))[1:-1]


def top_operators(events: Iterable[Event]) -> tuple[list[list[Any]], dict[str, float]]:
    """The operators that took longest by themselves, and the time of all, by "cpu" and "gpu".

    The time by itself is that of no operator inside; a kernel's is its who began it. What lies in a
    step but in no operator is "(outside operators)".

    Args:
        events: Of one trace; each has `ph`, and where that is X also `cat`, `name`, `pid`, `tid`,
            `ts` and `dur`, in microseconds.

    Returns:
        At most 20 rows in the order of `COLUMNS`, the slowest first, on the GPU where there is one;
        shares are 0..1.
    """
    spans = [one for one in events if one["ph"] == "X"]
    spent = _spent(spans)
    cpu_us = sum(one.self_cpu_us for one in spent.values())
    gpu_us = sum(one.self_gpu_us for one in spent.values())
    slowest = sorted(spent, key=lambda name: _slowness(spent[name]), reverse=True)
    rows = [_row(name, spent[name], cpu_us, gpu_us) for name in slowest[:_MOST_OPERATORS]]
    return rows, {"cpu": round(cpu_us, 3), "gpu": round(gpu_us, 3)}


def _spent(spans: list[Event]) -> dict[str, _Spent]:
    found: dict[str, _Spent] = defaultdict(_Spent)
    by_thread: dict[tuple[Any, Any], list[Event]] = defaultdict(list)
    names: dict[Any, str] = {}
    for one in spans:
        if one.get("cat") in _ON_CPU:
            by_thread[one["pid"], one["tid"]].append(one)
            if one["cat"] == "cpu_op":
                names[one.get("args", {}).get("External id")] = one["name"]
    for row in by_thread.values():
        _add_nested(row, found)
    for one in spans:
        if one.get("cat") in _ON_GPU:
            name = names.get(one.get("args", {}).get("External id"), _OUTSIDE)
            found[name].self_gpu_us += one["dur"]
    return found


def _add_nested(spans: list[Event], found: dict[str, _Spent]) -> None:
    """Add the spans of one thread, which lie one in the other or side by side."""
    open_spans: list[tuple[float, _Spent]] = []
    for one in sorted(spans, key=lambda one: (one["ts"], -one["dur"])):
        while open_spans and open_spans[-1][0] <= one["ts"]:
            open_spans.pop()
        spent = found[_OUTSIDE if one["name"].startswith(STEP) else one["name"]]
        outer = open_spans[-1][1] if open_spans else None
        open_spans.append((one["ts"] + one["dur"], spent))
        if outer is spent:
            continue  # an operator that hands on to itself is one call
        if outer is not None:
            outer.self_cpu_us -= one["dur"]
        spent.calls += 1
        spent.self_cpu_us += one["dur"]
        spent.total_cpu_us += one["dur"]


def _slowness(one: _Spent) -> tuple[float, float]:
    return one.self_gpu_us, one.self_cpu_us


def _row(name: str, one: _Spent, cpu_us: float, gpu_us: float) -> list[Any]:
    return [
        name, one.calls,
        round(one.self_cpu_us, 3), _share(one.self_cpu_us, cpu_us), round(one.total_cpu_us, 3),
        round(one.self_gpu_us, 3), _share(one.self_gpu_us, gpu_us),
    ]  # fmt: skip


def _share(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole > 0 else 0.0


def memory_counters(events: Iterable[Event]) -> Iterator[Event]:
    """The memory in use, as counters that viewers draw as a line for each device."""
    for one in events:
        if one.get("name") == "[memory]":
            said = one["args"]
            device = "cpu" if said["Device Type"] == 0 else f"device {said['Device Id']}"
            place = {"pid": one["pid"], "ts": one["ts"]}
            in_use = {"bytes": said["Total Allocated"]}
            yield {"ph": "C", "name": f"allocated memory ({device})", **place, "args": in_use}
