"""Part `loop`: how much slower a training loop is with the tracker than without.

Three processes train the same small model on one thread, 9 ms of compute a step: one bare, one with
the tracker and everything on, and one bare again as a control. They take turns of two seconds in
the order bare, tracked, control, control, tracked, bare; who waits is stopped with all its
processes, so the tracked one's sinks work in its own turns, beside its steps. A pair is two turns
of one half; told is the median of the pairs' ratios of mean time a step, with the interval that
holds 95 % of bootstrap resamples. The control shows what the machine itself does to such a ratio:
where an interval is wider than the promise, the pairs cannot decide (the verdict is `open`), and
the time spent inside the tracker's own calls, measured in the same steps, tells more. Processor
time leaves out what a step waited for a core.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, interval_of, paired_ratios
from benchmarks.processes import Worker, running

PART = "loop"
COMPUTE_S, PERIOD_S = 0.009, 0.010
TURN_S = 2.0
ROUNDS, QUICK_ROUNDS = 6, 2
MOST_PERCENT = 0.5
HALF = ("bare", "tracked", "control")
VARIANTS = {"100 steps/s": PERIOD_S, "flat out": 0.0}
WARM_UP_S, SETTLE_S = 1.0, 0.2
START_UP_S = 12.0
"""Longer than the sinks need to begin: what is asked is what a run costs, not its first seconds."""

Turns = dict[str, list[dict[str, Any]]]


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Measure both variants."""
    repeats = _calibrated(folder / "calibration")
    with ExitStack() as stack:
        workers = {name: _paused(stack, folder / name, name, repeats) for name in HALF}
        found = []
        for variant, period_s in VARIANTS.items():
            turns = _turns(workers, period_s=period_s, rounds=QUICK_ROUNDS if quick else ROUNDS)
            found += _figures(variant, turns)
    return found


def _calibrated(folder: Path) -> int:
    """How many passes make a step of the length that is asked for."""
    with Worker("looping.py", "bare", str(folder), "1", folder=folder) as worker:
        passes = worker.ask(turn_s=WARM_UP_S, period_s=0)["taken_ns"]
        pass_ns = float(statistics.median(passes))
    return max(1, round(COMPUTE_S * 1e9 / pass_ns))


def _paused(stack: ExitStack, folder: Path, name: str, repeats: int) -> Worker:
    kind = "tracked" if name == "tracked" else "bare"
    worker = Worker("looping.py", kind, str(folder), str(repeats), folder=folder)
    stack.enter_context(worker)
    worker.ask(turn_s=START_UP_S if kind == "tracked" else WARM_UP_S, period_s=PERIOD_S)
    worker.pause()
    return worker


def _turns(workers: Mapping[str, Worker], *, period_s: float, rounds: int) -> Turns:
    turns: Turns = {name: [] for name in workers}
    for _ in range(rounds):
        for name in (*HALF, *reversed(HALF)):
            with running(workers[name]) as worker:
                turns[name].append(_turn(worker, period_s))
    return turns


def _turn(worker: Worker, period_s: float) -> dict[str, Any]:
    worker.ask(turn_s=SETTLE_S, period_s=period_s)
    began_s, cpu_s = time.monotonic(), worker.children_cpu_s()
    turn = worker.ask(turn_s=TURN_S, period_s=period_s)
    turn["others_percent"] = 100 * (worker.children_cpu_s() - cpu_s) / (time.monotonic() - began_s)
    return turn


def _figures(variant: str, turns: Turns) -> list[Figure]:
    step_ns = {name: [statistics.mean(one["taken_ns"]) for one in turns[name]] for name in turns}
    cpu_ns = {name: [one["cpu_ns"] / len(one["taken_ns"]) for one in turns[name]] for name in turns}
    named = f"{variant}, {statistics.median(step_ns['bare']) / 1e6:.1f} ms a step"
    return [
        _compared(f"{named}: slow-down", step_ns, "tracked", at_most=MOST_PERCENT),
        _compared(f"{named}: control, bare against bare", step_ns, "control"),
        _compared(f"{named}: slow-down in processor time", cpu_ns, "tracked"),
        _compared(f"{named}: control in processor time", cpu_ns, "control"),
        *_inside(named, turns["tracked"]),
    ]


def _inside(named: str, turns: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """What the tracker's own calls and its shipper took."""
    own_ns = [sum(one["own_ns"]) for one in turns]
    work_ns = [sum(one["taken_ns"]) - own for one, own in zip(turns, own_ns, strict=True)]
    percents = [100 * ratio for ratio in paired_ratios(own_ns, work_ns)]
    typical_us = statistics.median(chain(*(one["own_ns"] for one in turns))) / 1000
    used_percent = statistics.mean(one["others_percent"] for one in turns)
    return [
        _percent(f"{named}: inside the tracker's calls", percents, at_most=MOST_PERCENT),
        _figure(f"{named}: tracker's calls, a typical step", typical_us, "µs"),
        _figure(f"{named}: the shipper's use of a core", used_percent, "%"),
    ]


def _compared(
    what: str, found: Mapping[str, Sequence[float]], name: str, *, at_most: float | None = None
) -> Figure:
    ratios = paired_ratios(found[name], found["bare"])
    return _percent(what, [100 * (ratio - 1) for ratio in ratios], at_most=at_most)


def _percent(what: str, percents: Sequence[float], *, at_most: float | None = None) -> Figure:
    """The median, judged by its interval."""
    around = interval_of(percents)
    return _figure(what, statistics.median(percents), "%", at_most=at_most, interval=around)


def _figure(what: str, ours: float, unit: str, **promise: Any) -> Figure:
    return Figure(part=PART, what=what, ours=ours, unit=unit, **promise)
