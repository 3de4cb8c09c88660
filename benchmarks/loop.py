"""Part `loop`: how much slower a training loop is with the tracker than without.

Three processes train the same small model on one thread, 9 ms of compute a step: one bare, one with
the tracker and everything on, and one bare again as a control. They take turns of two seconds in
the order bare, tracked, control, control, tracked, bare; who waits is stopped with all its
processes, so the tracked one's sinks work in its own turns, beside its steps. A pair is two turns
of one half; told is the median of the pairs' ratios of mean time a step, with the interval that
holds 95 % of bootstrap resamples. The control shows what the machine itself does to such a ratio:
where its interval is wider than the promise, the pairs cannot decide, and the time spent inside the
tracker's own calls, measured in the same steps, tells more.
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
    mean_ns = {name: [statistics.mean(one["taken_ns"]) for one in turns[name]] for name in turns}
    cpu_ns = {name: [one["cpu_ns"] for one in turns[name]] for name in turns}
    tracked = turns["tracked"]
    own = [sum(one["own_ns"]) / (sum(one["taken_ns"]) - sum(one["own_ns"])) for one in tracked]
    named = f"{variant}, {statistics.median(mean_ns['bare']) / 1e6:.1f} ms a step"
    return [
        _slow_down(f"{named}: slow-down", paired_ratios(mean_ns["tracked"], mean_ns["bare"]),
                   at_most=MOST_PERCENT),
        _slow_down(f"{named}: control, bare against bare",
                   paired_ratios(mean_ns["control"], mean_ns["bare"])),
        _slow_down(f"{named}: slow-down in processor time",
                   paired_ratios(cpu_ns["tracked"], cpu_ns["bare"])),
        _slow_down(f"{named}: control in processor time",
                   paired_ratios(cpu_ns["control"], cpu_ns["bare"])),
        _slow_down(f"{named}: inside the tracker's calls", [1 + one for one in own],
                   at_most=MOST_PERCENT),
        Figure(part=PART, what=f"{named}: tracker's calls, a typical step", unit="µs",
               ours=statistics.median(chain(*(one["own_ns"] for one in tracked))) / 1000),
        Figure(part=PART, what=f"{named}: the shipper's use of a core", unit="%",
               ours=statistics.mean(one["others_percent"] for one in tracked)),
    ]  # fmt: skip


def _slow_down(what: str, ratios: Sequence[float], *, at_most: float | None = None) -> Figure:
    percents = [100 * (ratio - 1) for ratio in ratios]
    return Figure(
        part=PART,
        what=what,
        ours=statistics.median(percents),
        unit="%",
        at_most=at_most,
        interval=interval_of(percents),
    )
