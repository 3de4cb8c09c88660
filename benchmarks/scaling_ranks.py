"""Part `scaling_ranks`: how many points a second of how many ranks one shipper keeps up with.

One process logs for all ranks, each into a journal of its own in one run's folder, ten values a
call. The real shipper delivers to an SQLite store. Told are the points a second that were logged
and that arrived while it was watched, how old the newest point of the rank that was furthest behind
was, and what the shipper took of the processor and of memory. What is watched begins once the
shipper has had time to swing in. Where nothing arrived no age is told.
"""

import contextlib
import os
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.backlog import STARTED_MS, new_store
from benchmarks.callers import KEYS
from benchmarks.figures import Figure
from benchmarks.processes import Worker, end_tree
from benchmarks.scaling_load import Load, together_mb, watched
from opusclip_mlops.folder import Identity, Manifest, RunFolder
from opusclip_mlops.launch import start_shipper

PART = "scaling_ranks"
SWING_IN_S, WAIT_S, QUICK_WAIT_S = 3.0, 9.0, 3.0
LOOK_EVERY_S, DEADLINE_S = 0.1, 120.0
RANKS = {3200: (1, 64), 6400: (1, 8, 64), 9600: (1, 8, 64), 12800: (1, 64)}
OFFERED, MERGED = tuple(RANKS), (6400, 12800, 25600)
_NAMES = {"": "%/train/loss", "mean": "train/loss", "stats": "train/loss/max"}
_STEPS = "SELECT step FROM latest_metrics WHERE key LIKE ?"


@dataclass(frozen=True)
class Case:
    """Ranks that log together so many values a second; merged, or beside a machine at work."""

    ranks: int
    offered: int
    reduce: str = ""
    is_busy: bool = False

    @property
    def hz(self) -> float:
        """Calls a second of each rank."""
        return self.offered / len(KEYS) / self.ranks

    @property
    def name(self) -> str:
        """How its figures are called."""
        how = f", {self.reduce}" if self.reduce else ""
        return f"{self.ranks} ranks, {self.offered} points/s{how}" + ", busy" * self.is_busy


CASES = (
    Case(64, 640),
    *(Case(ranks, offered) for offered in OFFERED for ranks in RANKS[offered]),
    *(Case(64, offered, "mean") for offered in MERGED),
    Case(64, OFFERED[1], "stats"),
    *(Case(ranks, offered, is_busy=True) for ranks, offered in ((1, 1000), (64, OFFERED[1]))),
)
QUICK_CASES = (Case(8, 800), Case(8, 800, "mean"), Case(8, 800, is_busy=True))


@dataclass
class _Seen:
    """Look by look how old the newest point of the last rank was, and how many steps had come."""

    looks_s: list[float]
    ages_s: list[float]
    steps: list[int]
    logged_a_second: float
    load: Load
    memory_mb: float

    @property
    def arrived_a_second(self) -> float:
        """Steps of all ranks, from one arrival to another: a batch more or less is no error."""
        came = [n for n in range(1, len(self.steps)) if self.steps[n] > self.steps[n - 1]]
        first, last = (came[0], came[-1]) if len(came) > 1 else (0, -1)
        return (self.steps[last] - self.steps[first]) / (self.looks_s[last] - self.looks_s[first])


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Log for more and more ranks, and faster."""
    return [
        figure
        for number, case in enumerate(QUICK_CASES if quick else CASES)
        for figure in _figures(case, _seen(folder / str(number), case, quick))
    ]


def _seen(folder: Path, case: Case, quick: bool) -> _Seen:
    run = _run(folder, case)
    arguments = (str(run.path), str(case.ranks))
    with (
        _burning(case.is_busy),
        Worker("scaling_writer.py", *arguments, folder=folder) as worker,
        _shipped(run) as shipper,
    ):
        return _watch(run, worker, shipper, case, QUICK_WAIT_S if quick else WAIT_S)


def _figures(case: Case, seen: _Seen) -> Iterator[Figure]:
    arrived = seen.arrived_a_second * len(KEYS)
    values = {
        "arrived": (arrived, "points/s"),
        "logged": (seen.logged_a_second, "points/s"),
        "shipper": (seen.load.cores(), "cores"),
        "memory": (seen.memory_mb, "MB"),
        "others took": (max(0.0, seen.load.others_cores - seen.load.cores(1)), "cores"),
    }
    if arrived:
        values["age, median"] = (statistics.median(seen.ages_s), "s")
        values["age, most"] = (max(seen.ages_s), "s")
    for name, (value, unit) in values.items():
        yield Figure(part=PART, what=f"{case.name}: {name}", ours=value, unit=unit)


def _run(folder: Path, case: Case) -> RunFolder:
    folder.mkdir()
    run = RunFolder(folder / "journal" / folder.name)
    run.create(
        Manifest(
            local_id=folder.name,
            cwd=str(folder),
            sinks=["mlflow", *(["ranks"] if case.reduce else [])],
            experiment_name="ranks",
            start_time_ms=STARTED_MS,
            tracking_uri=new_store(folder),
            system_metrics=False,
            ranks=case.ranks if case.reduce else 1,
        )
    )
    run.write_identity(Identity(mirror_id=folder.name, experiment_name="ranks"))
    return run


@contextlib.contextmanager
def _burning(is_busy: bool) -> Iterator[None]:
    """Keep every core busy, as training may."""
    argv = [sys.executable, "-S", "-c", "while True: pass"]
    burners = [subprocess.Popen(argv) for _ in range((os.cpu_count() or 1) if is_busy else 0)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


@contextlib.contextmanager
def _shipped(run: RunFolder) -> Iterator[psutil.Process]:
    """The real shipper, at work on the run."""
    held, shipper = run.hold(), start_shipper(run)
    try:
        _wait_until_open(run)
        yield psutil.Process(shipper.pid)
    finally:
        end_tree(shipper.pid)
        shipper.wait()
        os.close(held)


def _watch(
    run: RunFolder, worker: Worker, shipper: psutil.Process, case: Case, wait_s: float
) -> _Seen:
    """Log, let the shipper swing in, and look from then on."""
    worker.send(hz=case.hz, wait_s=SWING_IN_S + wait_s, reduce=case.reduce)
    began_s = worker.answer()["began_s"]
    time.sleep(SWING_IN_S)
    seen = _Seen([], [], [], 0.0, Load(), 0.0)
    with _mlflow(run) as database, watched([shipper], worker.processes()) as seen.load:
        while (now_s := time.time()) < began_s + SWING_IN_S + wait_s:
            steps = _steps(database, case)
            seen.looks_s.append(now_s)
            seen.steps.append(sum(steps))
            seen.ages_s.append(max(0.0, now_s - began_s - min(steps) / case.hz))
            time.sleep(LOOK_EVERY_S)
    seen.memory_mb = together_mb(shipper)
    told = worker.answer()
    seen.logged_a_second = told["calls"] * len(KEYS) / told["took_s"]
    return seen


@contextlib.contextmanager
def _mlflow(run: RunFolder) -> Iterator[sqlite3.Connection]:
    path = Path(run.manifest().cwd) / "mlflow.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        yield connection


def _steps(database: sqlite3.Connection, case: Case) -> list[int]:
    """How many steps of each rank MLflow has; merged ranks have the same."""
    found = [1 + row[0] for row in database.execute(_STEPS, (_NAMES[case.reduce],))]
    if case.reduce:
        found *= case.ranks
    return found + [0] * (case.ranks - len(found))


def _wait_until_open(run: RunFolder) -> None:
    """Wait until the sinks have taken the ranks' starts."""
    deadline_s = time.monotonic() + DEADLINE_S
    sinks = run.manifest().sinks
    while not all(run.progress(one).has_all(run.size_bytes()) for one in sinks):
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"a sink did not open: see the logs in {run.path}")
        time.sleep(LOOK_EVERY_S)
