"""Part `delivery`: how fast a backlog reaches each sink, beside the raw client of that sink.

Imports, process starts and the making of the run are left out on both sides: the clock runs from
the first batch (ours) or the first row (the peer) to everything being durable. Ours is over when
the sink's position is acknowledged behind the last record; then the points are counted at their
destination. Rounds alternate, so that a slow minute of the machine meets both.

Then the real shipper delivers one backlog to all three at once: all are open when it appears. A
sink's rate is taken while at least one other is at work too: from its own first batch to its end,
or to the end of the last other one.
"""

import itertools
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.backlog import SCALARS, SINKS, make_backlog, make_run, scalars_in, write_points
from benchmarks.figures import Figure
from benchmarks.processes import Worker, end_tree
from opusclip_mlops import wandb_log
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.launch import start_shipper

PART = "delivery"
PEERS = {
    "mlflow": "MlflowClient.log_batch",
    "tensorboard": "RecordWriter from memory",
    "wandb": "wandb offline",
}
SHARES = {"mlflow": 0.9, "tensorboard": 0.5, "wandb": 0.8}
SHARE_AT_ONCE = 0.4
COUNTS = {"mlflow": 10_000, "tensorboard": 100_000, "wandb": 15_000}
QUICK_COUNTS = {"mlflow": 2_000, "tensorboard": 20_000, "wandb": 3_000}
AT_ONCE_COUNT, QUICK_AT_ONCE_COUNT = 20_000, 4_000
ROUNDS = 2
POLL_S = 0.01
DEADLINE_S = 300.0


@dataclass(frozen=True)
class Sample:
    """How many records a sink had acknowledged at a time (seconds, monotonic)."""

    at_s: float
    records: int


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Measure each sink alone and its peer, then all at once."""
    alone: dict[str, float] = {}
    found = []
    for sink in SINKS:
        count = (QUICK_COUNTS if quick else COUNTS)[sink]
        ours, theirs = _rates(folder, sink, count=count, rounds=1 if quick else ROUNDS)
        alone[sink] = ours
        found.append(
            Figure(part=PART, what=f"{sink} alone", ours=ours, unit="scalars/s",
                   peer=PEERS[sink], theirs=theirs, at_least=SHARES[sink])
        )  # fmt: skip
    count = QUICK_AT_ONCE_COUNT if quick else AT_ONCE_COUNT
    for sink, rate in _at_once(folder / "at-once", count=count).items():
        found.append(
            Figure(part=PART, what=f"{sink}, all at once", ours=rate, unit="scalars/s",
                   peer=f"{sink} alone", theirs=alone[sink], at_least=SHARE_AT_ONCE)
        )  # fmt: skip
    return found


def _rates(folder: Path, sink: str, *, count: int, rounds: int) -> tuple[float, float]:
    """Scalars a second of ours and of the raw client."""
    ours, theirs = [], []
    for number in range(rounds):
        if number % 2:
            ours.append(_our_rate(folder / f"ours-{sink}-{number}", sink, count))
        theirs.append(_raw_rate(folder / f"raw-{sink}-{number}", sink, count))
        if not number % 2:
            ours.append(_our_rate(folder / f"ours-{sink}-{number}", sink, count))
    return statistics.mean(ours), statistics.mean(theirs)


def _raw_rate(folder: Path, sink: str, count: int) -> float:
    with Worker("delivering.py", "raw", sink, str(folder), str(count), folder=folder) as worker:
        taken_s = float(worker.ask()["taken_s"])
    return SCALARS * count / taken_s


def _our_rate(folder: Path, sink: str, count: int) -> float:
    run = make_backlog(folder, [sink], count=count)
    with Worker("delivering.py", "ours", sink, str(run.path), folder=folder) as worker:
        worker.send()
        samples = watch(run, [sink])[sink]
        worker.answer()
    check_all_arrived(run, folder, count)
    return rate(samples, until_s=samples[-1].at_s)


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


def _at_once(folder: Path, *, count: int) -> dict[str, float]:
    run = make_run(folder, SINKS)
    # Held: a shipper that is done would remove what is looked at here.
    held = run.hold()
    shipper = start_shipper(run)
    try:
        _wait_until_open(run)
        write_points(run, count=count)
        samples = watch(run, SINKS)
    finally:
        end_tree(shipper.pid)
        shipper.wait()
        os.close(held)
    check_all_arrived(run, folder, count)
    ends_s = {sink: samples[sink][-1].at_s for sink in SINKS}
    others_s = {sink: max(ends_s[one] for one in SINKS if one != sink) for sink in SINKS}
    return {sink: rate(samples[sink], until_s=others_s[sink]) for sink in SINKS}


def _wait_until_open(run: RunFolder) -> None:
    """Wait until every sink has taken the run's start."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not all(run.progress(sink).records for sink in SINKS):
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"a sink did not open: see {run.path}/shipper.log")
        time.sleep(POLL_S)


def check_all_arrived(run: RunFolder, folder: Path, count: int) -> None:
    """Count what stands at the destination of each sink, so that speed is not bought by loss."""
    name = folder.name
    counted = {
        "mlflow": lambda: scalars_in(folder / "mlflow.db"),
        "tensorboard": lambda: SCALARS * scalar_events_in(folder / "runs"),
        "wandb": lambda: SCALARS * rows_in(wandb_log.logs_of(folder, name)),
    }
    for sink in run.manifest().sinks:
        found = counted[sink]()
        if found != SCALARS * count:
            raise RuntimeError(f"{sink} holds {found} of {SCALARS * count} scalars")


def rows_in(logs: Iterable[Path]) -> int:
    """How many rows W&B's logs hold."""
    return sum(len(wandb_log.rows(log)) for log in logs)


def scalar_events_in(folder: Path) -> int:
    """How many events of ten scalars the event files below a folder hold."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    events = (
        Event.FromString(raw)
        for path in folder.rglob("events.out.tfevents.*")
        for raw in RawEventFileLoader(str(path)).Load()
    )
    return sum(len(one.summary.value) == SCALARS for one in events)
