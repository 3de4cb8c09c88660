"""Part `freshness`: how old a point is when it can be read, in quiet times.

A process logs once every 0.7 s or so. MLflow's SQLite file is asked by SQL, the event file and
W&B's log are read as they grow, each every 20 ms. The age is that of the moment a reader first sees
the point, since before the log call.
"""

import contextlib
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.backlog import SINKS
from benchmarks.callers import KEYS
from benchmarks.figures import Figure, percentile
from benchmarks.processes import Worker
from opusclip_mlops import wandb_log

PART = "freshness"
CALLS, QUICK_CALLS = 20, 5
EVERY_S, JITTER_S = 0.7, 0.2
POLL_S = 0.02
WORST_S = 2.0
DEADLINE_S = 60.0


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Log, and watch the three places."""
    with Worker("callers.py", "ours", str(folder), folder=folder) as worker:
        readers = _readers(folder)
        _watch(worker, readers, calls=1)
        ages_s = _watch(worker, readers, calls=QUICK_CALLS if quick else CALLS)
    return [
        Figure(part=PART, what=f"{sink}: age of a point, worst of {len(ages)}", ours=max(ages),
               unit="s", at_most=WORST_S, note=f"median {percentile(ages, 50):.2f} s")
        for sink, ages in ages_s.items()
    ]  # fmt: skip


def _watch(
    worker: Worker, readers: dict[str, Callable[[], int]], *, calls: int
) -> dict[str, list[float]]:
    """Ages in seconds of every point at every place."""
    logged_s: dict[int, float] = {}
    seen_s: dict[str, dict[int, float]] = {sink: {} for sink in readers}
    due_s = time.monotonic()
    while not all(len(seen) == calls for seen in seen_s.values()):
        now_s = time.monotonic()
        if len(logged_s) < calls and now_s >= due_s:
            step = worker.ask(untimed=1)["step"] - 1
            logged_s[step] = now_s
            due_s = now_s + EVERY_S + random.uniform(0, JITTER_S)
        for sink, read in readers.items():
            _note(seen_s[sink], logged_s, read())
        if now_s > due_s + DEADLINE_S:
            raise RuntimeError(f"points did not arrive: {seen_s}")
        time.sleep(POLL_S)
    return {
        sink: [seen_s[sink][step] - began_s for step, began_s in logged_s.items()]
        for sink in readers
    }


def _note(seen_s: dict[int, float], logged_s: dict[int, float], last_step: int) -> None:
    now_s = time.monotonic()
    for step in logged_s:
        if step <= last_step and step not in seen_s:
            seen_s[step] = now_s


def _readers(folder: Path) -> dict[str, Callable[[], int]]:
    """For each place: the highest step of the first key that can be read there now."""
    events, rows = _growing(_event_steps(folder)), _growing(_row_steps(folder))
    database = folder / "mlflow.db"
    return dict(zip(SINKS, (lambda: _last_in_sqlite(database), events, rows), strict=True))


def _growing(steps: Iterator[int]) -> Callable[[], int]:
    """The highest step so far; the iterator gives -1 where there is nothing more to read yet."""
    highest = -1

    def read() -> int:
        nonlocal highest
        while (step := next(steps)) >= 0:
            highest = max(highest, step)
        return highest

    return read


def _last_in_sqlite(database: Path) -> int:
    with contextlib.suppress(sqlite3.OperationalError):
        address = f"file:{database}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=1)) as connection:
            found = connection.execute("SELECT max(step) FROM metrics WHERE key = ?", KEYS[:1])
            step = found.fetchone()[0]
            return -1 if step is None else int(step)
    return -1


def _event_steps(folder: Path) -> Iterator[int]:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    while not (files := [*folder.rglob("events.out.tfevents.*")]):
        yield -1
    loader = RawEventFileLoader(str(files[0]))
    while True:
        for event in map(Event.FromString, loader.Load()):
            if any(value.tag == KEYS[0] for value in event.summary.value):
                yield event.step
        yield -1


def _row_steps(folder: Path) -> Iterator[int]:
    while not (logs := [*folder.glob("wandb/*run-*/*.wandb")]):
        yield -1
    reader = wandb_log.LogReader(logs[0])
    while True:
        for record in reader.new_records():
            row = wandb_log.row(record) if record.HasField("history") else {}
            if KEYS[0] in row:
                yield int(row["global_step"])
        yield -1
