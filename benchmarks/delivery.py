"""Part `delivery`: how fast a backlog reaches each sink, beside the raw client of that sink.

Ours and the raw client each have a process of their own and take turns: one writes a chunk of log
calls while the other is stopped. The clock runs from the first batch (ours) or row (the peer) to
everything being durable; ours is over when the sink's position is acknowledged behind the last
record. Told is the median of the turns, and at the end the points are counted at the destination.

Then the real shipper delivers one run to all three. Each round a chunk is delivered by one sink
after the other, the others stopped, and the next chunk by all at once. A sink's rate at once is
taken while at least one other is at work too: from its own first batch to its end, or to the end
of the last other one.
"""

import itertools
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.arrivals import check_all_arrived
from benchmarks.backlog import SCALARS, SINKS, make_run, shipping, write_points
from benchmarks.figures import Figure
from benchmarks.processes import Worker, resume_trees, running, sink_processes, stop_trees
from opusclip_mlops.folder import RunFolder

PART = "delivery"
PEERS = {
    "mlflow": "MlflowClient.log_batch",
    "tensorboard": "RecordWriter from memory",
    "wandb": "wandb offline",
}
SHARES = {"mlflow": 0.9, "tensorboard": 0.5, "wandb": 0.8}
SHARE_AT_ONCE = 0.4
COUNTS = {"mlflow": 2_000, "tensorboard": 30_000, "wandb": 6_000}
AT_ONCE_COUNT = 4_000
ROUNDS = 3
POLL_S = 0.01
DEADLINE_S = 300.0

Rates = dict[str, list[float]]
"""Scalars a second, one for each turn."""


@dataclass(frozen=True)
class Sample:
    """How many records a sink had acknowledged at a time (seconds, monotonic)."""

    at_s: float
    records: int


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Measure each sink beside its peer, then all at once beside each alone."""
    rounds = 1 if quick else ROUNDS
    found = []
    for sink in SINKS:
        ours, theirs = _beside_raw(folder / sink, sink, rounds=rounds)
        found.append(_figure(f"{sink} alone", ours, PEERS[sink], theirs, SHARES[sink]))
    at_once, alone = _shipped(folder / "shipped", rounds=rounds)
    for sink in SINKS:
        peer = f"{sink} alone, shipped"
        found.append(
            _figure(f"{sink}, all at once", at_once[sink], peer, alone[sink], SHARE_AT_ONCE)
        )
    return found


def _figure(
    what: str, ours: Sequence[float], peer: str, theirs: Sequence[float], share: float
) -> Figure:
    return Figure(
        part=PART,
        what=what,
        ours=statistics.median(ours),
        unit="scalars/s",
        peer=peer,
        theirs=statistics.median(theirs),
        at_least=share,
    )


class _Ours:
    """One of our sinks in a process of its own, which delivers what is written to a run."""

    def __init__(self, stack: ExitStack, folder: Path, sink: str) -> None:
        self._folder, self._sink = folder, sink
        self._run = make_run(folder, [sink])
        self._written = 0
        self._worker = stack.enter_context(
            Worker("delivering.py", "ours", sink, str(self._run.path), folder=folder)
        )
        self._worker.send()
        _wait_until_open(self._run, [sink])
        self._worker.pause()

    def rate_of(self, count: int) -> float:
        """Scalars a second of delivering so many log calls."""
        write_points(self._run, range(self._written, self._written + count))
        self._written += count
        with running(self._worker):
            samples = watch(self._run, [self._sink])[self._sink]
        return rate(samples, until_s=samples[-1].at_s)

    def check(self) -> None:
        """Raise unless everything has arrived."""
        check_all_arrived(self._run, self._folder, self._written)


class _Raw:
    """The raw client of a sink in a process of its own."""

    def __init__(self, stack: ExitStack, folder: Path, sink: str) -> None:
        self._worker = stack.enter_context(
            Worker("delivering.py", "raw", sink, str(folder), folder=folder)
        )
        self._worker.pause()

    def rate_of(self, count: int) -> float:
        """Scalars a second of writing so many log calls."""
        with running(self._worker):
            return SCALARS * count / float(self._worker.ask(count=count)["taken_s"])


def _beside_raw(folder: Path, sink: str, *, rounds: int) -> tuple[list[float], list[float]]:
    """The rates of ours and of the raw client, who take turns in being first."""
    rates: Rates = {"ours": [], "raw": []}
    with ExitStack() as stack:
        ours = _Ours(stack, folder / "ours", sink)
        sides: dict[str, _Ours | _Raw] = {"ours": ours, "raw": _Raw(stack, folder / "raw", sink)}
        for number in range(rounds):
            for name in sorted(sides, reverse=bool(number % 2)):
                rates[name].append(sides[name].rate_of(COUNTS[sink]))
        ours.check()
    return rates["ours"], rates["raw"]


def _shipped(folder: Path, *, rounds: int) -> tuple[Rates, Rates]:
    """The sinks' rates all at once, and of each alone, under the real shipper."""
    run = make_run(folder, SINKS)
    at_once: Rates = {sink: [] for sink in SINKS}
    alone: Rates = {sink: [] for sink in SINKS}
    with shipping(run) as supervisor:
        _wait_until_open(run, SINKS)
        for number in range(rounds):
            _by_turns(run, supervisor, 2 * number, alone)
            _together(run, supervisor, 2 * number + 1, at_once)
    check_all_arrived(run, folder, AT_ONCE_COUNT * 2 * rounds)
    return at_once, alone


def _by_turns(run: RunFolder, supervisor: int, chunk: int, rates: Rates) -> None:
    stop_trees(sink_processes(supervisor).values())
    _write_chunk(run, chunk)
    for sink in SINKS:
        samples = _watch_only(run, supervisor, [sink])[sink]
        rates[sink].append(rate(samples, until_s=samples[-1].at_s))


def _together(run: RunFolder, supervisor: int, chunk: int, rates: Rates) -> None:
    _write_chunk(run, chunk)
    every = _watch_only(run, supervisor, SINKS)
    for sink in SINKS:
        others_s = max(every[one][-1].at_s for one in SINKS if one != sink)
        rates[sink].append(rate(every[sink], until_s=others_s))


def _write_chunk(run: RunFolder, number: int) -> None:
    write_points(run, range(number * AT_ONCE_COUNT, (number + 1) * AT_ONCE_COUNT))


def _watch_only(run: RunFolder, supervisor: int, sinks: Sequence[str]) -> dict[str, list[Sample]]:
    """Let some sinks run until they have everything, and stop them again."""
    trees = sink_processes(supervisor)
    resume_trees(trees[sink] for sink in sinks)
    try:
        return watch(run, sinks)
    finally:
        stop_trees(trees[sink] for sink in sinks)


def _wait_until_open(run: RunFolder, sinks: Iterable[str]) -> None:
    """Wait until the sinks have taken the run's start."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not all(run.progress(sink).records for sink in sinks):
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"a sink did not open: see the logs in {run.path}")
        time.sleep(POLL_S)


def watch(run: RunFolder, sinks: Sequence[str]) -> dict[str, list[Sample]]:
    """How far each sink is, from its first batch until it has everything."""
    samples: dict[str, list[Sample]] = {sink: [] for sink in sinks}
    goal, deadline_s = run.size_bytes(), time.monotonic() + DEADLINE_S
    before = {sink: run.progress(sink).records for sink in sinks}
    at_work = list(sinks)
    while at_work:
        for sink in list(at_work):
            now_s, progress = time.monotonic(), run.progress(sink)
            if progress.given or progress.records > before[sink]:
                samples[sink].append(Sample(now_s, progress.records))
            if all(progress.position.get(name, 0) >= size for name, size in goal.items()):
                at_work.remove(sink)
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"{at_work} did not take everything: see {run.path}")
        time.sleep(POLL_S)
    return samples


def rate(samples: Sequence[Sample], *, until_s: float) -> float:
    """Scalars a second, from the first sample until then.

    Records are acknowledged by the batch: between two acknowledgements they count as evenly spread.
    """
    steps = [
        one
        for at, one in enumerate(samples)
        if at in (0, len(samples) - 1) or one.records != samples[at - 1].records
    ]
    end_s = min(until_s, steps[-1].at_s)
    done = interpolated(steps, end_s) - steps[0].records
    gone_s = end_s - steps[0].at_s
    # The others were done before this one began: then all of its time counts.
    return SCALARS * done / gone_s if gone_s > 0 else rate(samples, until_s=steps[-1].at_s)


def interpolated(steps: Sequence[Sample], at_s: float) -> float:
    """How many records were done at a time between the first and the last of the samples."""
    for before, after in itertools.pairwise(steps):
        if at_s <= after.at_s:
            part = (at_s - before.at_s) / (after.at_s - before.at_s)
            return before.records + part * (after.records - before.records)
    return float(steps[-1].records)
