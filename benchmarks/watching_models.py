"""Part `watching_models`: what it costs a training to have its model watched.

One process trains a model of ten million parameters on one thread, with the tracker and all its
sinks. Its turns are a few steps each and follow each other in rounds, in an order that goes round:
watched, with one look in it, and twice unwatched. A round's look costs what its watched turn took
more than the mean of the other two; one of these less the other is the control. Both are told as
parts of the 500 steps that lie between two looks by default, each of which adds what the hook takes
between looks. So a slow minute of the machine, and how memory lies in one process or another, meet
all turns alike: told is the median of the rounds, with the interval that holds 95 % of bootstrap
resamples, by the clock and in the processor time of the whole process.

Beside it, in processes of their own, the client of W&B watches the model (`wandb.watch`, all,
offline), or TensorBoard's writer is given all gradients and weights (`add_histogram`). A look is
there, as here, the longest step of a turn less its median one.
"""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, interval_of
from benchmarks.processes import Worker, running

PART = "watching_models"
EVERY = 500
STEPS = 24
ROUNDS, QUICK_ROUNDS = 40, 4
PEER_ROUNDS, QUICK_PEER_ROUNDS = 8, 2
MOST_PERCENT = 1.0
PEERS = ("wandb.watch", "add_histogram")
KINDS = ("watched", "unwatched", "control")

Turn = Mapping[str, Sequence[int]]
Round = Mapping[str, Turn]


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Measure ours in rounds, and between them the peers."""
    rounds: list[Round] = []
    looks: dict[str, list[Turn]] = {name: [] for name in PEERS}
    with ExitStack() as stack:
        own = _paused(stack, folder / "tracker", "tracker")
        peers = {name: _paused(stack, folder / name, name) for name in PEERS}
        for number in range(QUICK_ROUNDS if quick else ROUNDS):
            rounds.append(_round(own, number))
            if number < (QUICK_PEER_ROUNDS if quick else PEER_ROUNDS):
                for name in PEERS:
                    looks[name].append(_turn(peers[name]))
    return figures_of(rounds, looks, None if quick else MOST_PERCENT)


def _paused(stack: ExitStack, folder: Path, name: str) -> Worker:
    """A worker that has trained, and looked, before anything is told."""
    worker = stack.enter_context(
        Worker("watched_training.py", name, str(folder), str(STEPS), folder=folder)
    )
    worker.ask(steps=STEPS, watched=name not in PEERS)
    # A peer looks at every so many steps of all: so a look is in the midst of each turn.
    worker.ask(steps=STEPS // 2)
    worker.pause()
    return worker


def _round(worker: Worker, number: int) -> dict[str, dict[str, Any]]:
    at = number % len(KINDS)
    order = KINDS[at:] + KINDS[:at]
    return {name: _turn(worker, watched=name == "watched") for name in order}


def _turn(worker: Worker, **asked: bool) -> dict[str, Any]:
    with running(worker):
        return worker.ask(steps=STEPS, **asked)


def figures_of(
    rounds: Sequence[Round], looks: Mapping[str, Sequence[Turn]], at_most: float | None
) -> list[Figure]:
    """What the rounds, and the peers' turns, came to; ours is to be `at_most` so many percent."""
    step_ms = statistics.median(_mean(one, "taken_ns") for one in rounds) / 1e6
    named = f"every {EVERY} steps of {step_ms:.0f} ms"
    figures = []
    for part, where in (("taken_ns", "by the clock"), ("cpu_ns", "in processor time")):
        ours = [_percent(one, part, _look(one, part) + _between_ns(one)) for one in rounds]
        control = [_percent(one, part, _control(one, part)) for one in rounds]
        figures += [
            _figure(f"{named}: slow-down {where}", ours, "%", at_most=at_most),
            _figure(f"{named}: control {where}", control, "%"),
        ]
    return [
        *figures,
        _figure("a look, and all it brings", [_look(one, "cpu_ns") / 1e6 for one in rounds], "ms"),
        _figure("the hook between looks", [_hook_ns(one) / 1e3 for one in rounds], "µs"),
        _figure("page faults of a look", [_look(one, "faults") for one in rounds], ""),
        *(_compared([one["watched"] for one in rounds], name, looks[name]) for name in looks),
    ]


def _look(one: Round, part: str) -> float:
    """What a watched turn took more than one that was not."""
    return sum(one["watched"][part]) - _mean(one, part) * len(one["watched"][part])


def _control(one: Round, part: str) -> float:
    return sum(one["control"][part]) - sum(one["unwatched"][part])


def _between_ns(one: Round) -> float:
    """What the hook takes at the steps between two looks that the turn had no room for."""
    return _hook_ns(one) * (EVERY - len(one["watched"]["taken_ns"]))


def _hook_ns(one: Round) -> float:
    return statistics.median(one["watched"]["own_ns"])


def _percent(one: Round, part: str, more_ns: float) -> float:
    return 100 * more_ns / (EVERY * _mean(one, part))


def _mean(one: Round, part: str) -> float:
    """What a step that is not watched took, on average."""
    return statistics.mean([*one["unwatched"][part], *one["control"][part]])


def _compared(own: Sequence[Turn], peer: str, turns: Sequence[Turn]) -> Figure:
    ours, theirs = (statistics.median(map(_longest_ms, of)) for of in (own, turns))
    return Figure(part=PART, what="a look", ours=ours, unit="ms", peer=peer, theirs=theirs)


def _longest_ms(turn: Turn) -> float:
    return (max(turn["taken_ns"]) - statistics.median(turn["taken_ns"])) / 1e6


def _figure(
    what: str, values: Sequence[float], unit: str, *, at_most: float | None = None
) -> Figure:
    """The median, judged by its interval."""
    return Figure(
        part=PART,
        what=what,
        ours=statistics.median(values),
        unit=unit,
        at_most=at_most,
        interval=interval_of(values),
    )
