"""Part `profiling`: what one use of `profile_operation` costs, adding up and logging included.

Every way of timing runs in a process of its own, on nothing: a block that is empty. They take turns
while the others are stopped, each round begun by another one; told is the median over the turns, in
processor time, for there is nothing else to wait for than a core. An interval is a second here, a
tenth of the default.
"""

import contextlib
import statistics
from collections.abc import Mapping
from pathlib import Path

from benchmarks.figures import Figure, interval_of, paired_ratios
from benchmarks.processes import Worker, running

PART = "profiling"
WAYS = ("ours", "reused", "off", "floor", "record_function")
USES, QUICK_USES = 100_000, 10_000
ROUNDS, QUICK_ROUNDS = 12, 3
WARM_UP_USES = 5_000
MOST_US = 2.0


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Measure all ways."""
    with contextlib.ExitStack() as stack:
        workers = {way: _paused(stack, way, folder / way) for way in WAYS}
        taken_us: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(QUICK_ROUNDS if quick else ROUNDS):
            at = number % len(WAYS)
            for way in WAYS[at:] + WAYS[:at]:
                with running(workers[way]) as worker:
                    answer = worker.ask(uses=QUICK_USES if quick else USES)
                taken_us[way].append(answer["use_ns"] / 1000)
    return _figures(taken_us)


def _paused(stack: contextlib.ExitStack, way: str, folder: Path) -> Worker:
    worker = stack.enter_context(Worker("timing_uses.py", way, str(folder), folder=folder))
    worker.ask(uses=WARM_UP_USES)
    worker.pause()
    return worker


def _figures(taken_us: Mapping[str, list[float]]) -> list[Figure]:
    return [
        _figure("a use, named each time", taken_us["ours"], at_most=MOST_US),
        *(
            _compared("a use, named each time", taken_us["ours"], peer, taken_us[peer])
            for peer in ("floor", "record_function")
        ),
        _figure("a use of one object", taken_us["reused"], at_most=MOST_US),
        _figure("a use, switched off", taken_us["off"]),
        _compared("a use, switched off", taken_us["off"], "floor", taken_us["floor"]),
    ]


def _figure(what: str, taken_us: list[float], *, at_most: float | None = None) -> Figure:
    return Figure(
        part=PART,
        what=what,
        ours=statistics.median(taken_us),
        unit="µs",
        at_most=at_most,
        interval=interval_of(taken_us),
    )


def _compared(what: str, ours_us: list[float], peer: str, theirs_us: list[float]) -> Figure:
    return Figure(
        part=PART,
        what=what,
        ours=statistics.median(ours_us),
        unit="µs",
        peer=peer,
        theirs=statistics.median(theirs_us),
        interval=interval_of(paired_ratios(ours_us, theirs_us)),
    )
