"""Part `cost`: how long a log call of ten floats takes, beside other libraries and the floor.

Every library runs in a process of its own. Rounds are interleaved: each library makes its calls
while the processes of all others are stopped, so that a slow minute of the machine meets all alike.
Ours has all three sinks on, at work on what was logged. The ten million calls run with the shipper
stopped: what is measured there is whether the journal slows down or the trainer grows.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.figures import Figure, percentile
from benchmarks.processes import PEERS_PYTHON, Worker, running

PART = "cost"
PEERS = ("floor", "torch", "tensorboardX", "wandb", "trackio", "mlflow", "mlflow-async")
OWN_VENV = ("tensorboardX", "trackio")
WARM_UP_CALLS = 200
CALLS = {"ours": 10_000, "floor": 10_000, "trackio": 5_000, "mlflow": 100, "mlflow-async": 100}
OTHER_CALLS, QUICK_CALLS = 2_000, 500
ROUNDS, QUICK_ROUNDS = 8, 3
"""Calls a round: many where they are quick, few where each takes milliseconds."""
P50_RATIOS = {"floor": 3.0, "trackio": 1 / 4, "wandb": 1 / 15}
P50_US, P99_US = 5.0, 50.0
LATE_TO_EARLY = 1.2
WINDOW = 100_000
GROWTH_MB = 5.0


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Measure all callers, then ours over millions of calls."""
    with contextlib.ExitStack() as stack:
        workers = {name: _paused(stack, name, folder) for name in ("ours", *PEERS)}
        taken_us = _taken_us(workers, quick=quick)
    total = 300_000 if quick else 10_000_000
    return [*_figures(taken_us), *_endurance(folder, total=total)]


def _paused(stack: contextlib.ExitStack, name: str, folder: Path) -> Worker:
    worker = stack.enter_context(_caller(name, folder))
    worker.ask(untimed=WARM_UP_CALLS)
    worker.pause()
    return worker


def _caller(name: str, folder: Path) -> Worker:
    own = folder / name
    chosen = {"python": PEERS_PYTHON} if name in OWN_VENV else {}
    return Worker("callers.py", name, str(own), folder=own, **chosen)


def _taken_us(workers: Mapping[str, Worker], *, quick: bool) -> dict[str, list[float]]:
    taken_us: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(QUICK_ROUNDS if quick else ROUNDS):
        for name in _turned(list(workers), number):
            calls = CALLS.get(name, OTHER_CALLS)
            with running(workers[name]) as worker:
                answer = worker.ask(calls=min(calls, QUICK_CALLS) if quick else calls)
            taken_us[name] += [ns / 1000 for ns in answer["taken_ns"]]
    return taken_us


def _turned(names: list[str], number: int) -> Iterator[str]:
    """Each round begins with another one."""
    at = number % len(names)
    yield from names[at:] + names[:at]


def _figures(taken_us: Mapping[str, list[float]]) -> list[Figure]:
    ours = taken_us["ours"]
    p50, p99 = percentile(ours, 50), percentile(ours, 99)
    theirs = [(peer, taken_us[peer]) for peer in PEERS]
    return [
        _figure("a log call, p50", p50, at_most=P50_US),
        *(
            _figure(
                "a log call, p50", p50, peer, percentile(taken, 50), at_most=P50_RATIOS.get(peer)
            )
            for peer, taken in theirs
        ),
        _figure("a log call, p99", p99, at_most=P99_US),
        *(_figure("a log call, p99", p99, peer, percentile(taken, 99)) for peer, taken in theirs),
        *(_figure("a log call, longest", max(ours), peer, max(taken)) for peer, taken in theirs),
    ]


def _figure(
    what: str, ours: float, peer: str = "", theirs: float | None = None, *,
    unit: str = "µs", at_most: float | None = None,
) -> Figure:  # fmt: skip
    return Figure(
        part=PART, what=what, ours=ours, unit=unit, peer=peer, theirs=theirs, at_most=at_most
    )


def _endurance(folder: Path, *, total: int) -> list[Figure]:
    """The first and the last calls of very many, and the trainer's memory at both ends."""
    with _caller("ours", folder / "endurance") as worker:
        worker.ask(untimed=WARM_UP_CALLS, alone=True)
        first = worker.ask(calls=WINDOW)
        last = worker.ask(untimed=total - 2 * WINDOW, calls=WINDOW)
    early, late = ([ns / 1000 for ns in one["taken_ns"]] for one in (first, last))
    names = f"calls 1 … {WINDOW:,}"
    what = f"calls to {last['step']:,}"
    growth_mb = (last["rss_bytes"] - first["rss_bytes"]) / 1e6
    return [
        _figure(f"{what}, p50", percentile(late, 50), names, percentile(early, 50),
                at_most=LATE_TO_EARLY),
        _figure(f"{what}, p99", percentile(late, 99), names, percentile(early, 99)),
        _figure(f"{what}: growth of the trainer", growth_mb, unit="MB", at_most=GROWTH_MB),
    ]  # fmt: skip
