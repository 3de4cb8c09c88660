"""Part `watching_models`: what it costs a training to have its model watched.

Processes train the same model of ten million parameters on one thread, each with the tracker and
all its sinks: unwatched, watched at the default interval, and unwatched again as a control. Further
ones have the client of W&B watch it (`wandb.watch`, all, offline), or give all gradients and
weights to TensorBoard's writer (`add_histogram`), at the same interval, in the first rounds only. A
turn is as many steps as the interval, so that each has one look in it; turns alternate in pieces,
and who waits is stopped with all its processes. Told is the median of the pairs' ratios with the
interval that holds 95 % of bootstrap resamples, the same in the training thread's processor time,
and what passes inside the tracker's own hook, measured in the same steps. A look is the longest
step of a turn, less its median one.
"""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, interval_of, paired_ratios
from benchmarks.processes import Worker, running

PART = "watching_models"
EVERY, QUICK_EVERY = 500, 40
ROUNDS, QUICK_ROUNDS, PEER_ROUNDS = 4, 1, 2
PIECES = 10
MOST_PERCENT = 1.0
PEERS = ("wandb.watch", "add_histogram")
KINDS = ("unwatched", "watched", "control", *PEERS)

Turns = dict[str, list[dict[str, Any]]]


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Measure all of them, turn by turn."""
    every = QUICK_EVERY if quick else EVERY
    with ExitStack() as stack:
        workers = {name: _paused(stack, folder / name, name, every) for name in KINDS}
        turns: Turns = {name: [] for name in KINDS}
        for number in range(QUICK_ROUNDS if quick else ROUNDS):
            for name, turn in _turns(workers, number, every).items():
                turns[name].append(turn)
    return figures_of(turns, every, None if quick else MOST_PERCENT)


def _turns(workers: Mapping[str, Worker], number: int, every: int) -> dict[str, Any]:
    """A turn of each, in pieces that alternate: the machine is then about the same to all."""
    names = KINDS if number < PEER_ROUNDS else KINDS[: -len(PEERS)]
    turns: dict[str, Any] = {name: {"taken_ns": [], "cpu_ns": [], "own_ns": []} for name in names}
    for piece in range(PIECES):
        for name in names if piece % 2 else names[::-1]:
            with running(workers[name]) as worker:
                answer = worker.ask(steps=every // PIECES)
            for part, found in turns[name].items():
                found += answer[part]
    return turns


def _paused(stack: ExitStack, folder: Path, name: str, every: int) -> Worker:
    worker = Worker("watched_training.py", name, str(folder), str(every), folder=folder)
    stack.enter_context(worker)
    # The first step of all is looked at; so each turn's look is in its midst.
    worker.ask(steps=every // 2)
    worker.pause()
    return worker


def figures_of(turns: Turns, every: int, at_most: float | None) -> list[Figure]:
    """What the turns of all kinds came to; slow-downs are to be `at_most` so many percent."""
    step_ns = {name: [statistics.mean(one["taken_ns"]) for one in turns[name]] for name in turns}
    cpu_ns = {name: [statistics.mean(one["cpu_ns"]) for one in turns[name]] for name in turns}
    named = f"every {every} steps of {statistics.median(step_ns['unwatched']) / 1e6:.0f} ms"
    own = [sum(one["own_ns"]) / sum(one["taken_ns"]) for one in turns["watched"]]
    return [
        _compared(f"{named}: slow-down", step_ns, "watched", at_most=at_most),
        _compared(f"{named}: control, none watched", step_ns, "control"),
        _compared(f"{named}: slow-down in processor time", cpu_ns, "watched"),
        _compared(f"{named}: control in processor time", cpu_ns, "control"),
        _percent(f"{named}: inside the hook", [100 * one for one in own], at_most=at_most),
        *(_looks(turns, peer) for peer in PEERS),
    ]


def _looks(turns: Turns, peer: str) -> Figure:
    ours, theirs = (statistics.median(map(_look_ms, turns[name])) for name in ("watched", peer))
    return Figure(part=PART, what="a look", ours=ours, unit="ms", peer=peer, theirs=theirs)


def _look_ms(turn: Mapping[str, Sequence[int]]) -> float:
    taken_ns = turn["taken_ns"]
    return (max(taken_ns) - statistics.median(taken_ns)) / 1e6


def _compared(
    what: str, found: Mapping[str, Sequence[float]], name: str, *, at_most: float | None = None
) -> Figure:
    ratios = paired_ratios(found[name], found["unwatched"])
    return _percent(what, [100 * (ratio - 1) for ratio in ratios], at_most=at_most)


def _percent(what: str, percents: Sequence[float], *, at_most: float | None = None) -> Figure:
    """The median, judged by its interval."""
    return Figure(
        part=PART,
        what=what,
        ours=statistics.median(percents),
        unit="%",
        at_most=at_most,
        interval=interval_of(percents),
    )
