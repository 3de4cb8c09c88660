"""Part `scaling_ranks`: how many ranks one shipper keeps up with.

One process logs for all ranks, each into a journal of its own in one run's folder, ten values a
call. The real shipper delivers to an SQLite store. Told is how old the newest point of the last
rank is that MLflow has, or of all ranks merged, and what the shipper takes of the processor and of
memory. Where it does not keep up that age grows: `grew` says by how much from the second quarter of
the time to the last.
"""

import contextlib
import os
import sqlite3
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.backlog import STARTED_MS, new_store
from benchmarks.figures import Figure, percentile
from benchmarks.processes import Worker, end_tree
from benchmarks.scaling_load import Load, together_mb, watched
from opusclip_mlops.folder import Identity, Manifest, RunFolder
from opusclip_mlops.launch import start_shipper

PART = "scaling_ranks"
WAIT_S, QUICK_WAIT_S = 8.0, 3.0
LOOK_EVERY_S, DEADLINE_S = 0.1, 240.0
_KEYS = {"": "{}/train/loss", "mean": "train/loss", "stats": "train/loss/max"}
PLAIN = (
    (1, 1), (1, 100), (4, 100), (8, 10), (8, 100), (16, 100), (32, 100), (64, 1), (64, 10),
    (64, 100),
)  # fmt: skip
MERGED = ((8, 10), (64, 1), (64, 10))


@dataclass
class _Seen:
    """How old what had arrived was, look by look, and what the shipper took."""

    ages_s: list[float]
    load: Load
    memory_mb: float


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Log for more and more ranks."""
    found = [_measured(folder, ranks, hz, "", quick) for ranks, hz in PLAIN]
    for reduce in ("mean", "stats"):
        found += [_measured(folder, ranks, hz, reduce, quick) for ranks, hz in MERGED]
    return found


def _measured(folder: Path, ranks: int, hz: int, reduce: str, quick: bool) -> Figure:
    wait_s = QUICK_WAIT_S if quick else WAIT_S
    run = _run(folder / f"{ranks}-{hz}-{reduce or 'plain'}", ranks, reduce)
    with Worker("scaling_writer.py", str(run.path), str(ranks), folder=folder) as worker:
        seen = _watch(run, worker, ranks, hz, reduce, wait_s)
    half = seen.ages_s[len(seen.ages_s) // 2 :]
    size = max(1, len(seen.ages_s) // 4)
    grew_s = statistics.median(seen.ages_s[-size:]) - statistics.median(
        seen.ages_s[size : 2 * size]
    )
    how = f", {reduce}" if reduce else ""
    return Figure(
        part=PART,
        what=f"{ranks} ranks x {hz} calls/s{how}: age of what arrives, median",
        ours=percentile(half, 50),
        unit="s",
        note=f"most {max(half):.1f} s, grew {grew_s:.2f} s; shipper {seen.load.cores():.2f} cores, "
        f"{seen.memory_mb:.0f} MB; others took {seen.load.others_cores:.1f} cores",
    )


def _run(folder: Path, ranks: int, reduce: str) -> RunFolder:
    folder.mkdir()
    run = RunFolder(folder / "journal" / folder.name)
    run.create(
        Manifest(
            local_id=folder.name,
            cwd=str(folder),
            sinks=["mlflow", *(["ranks"] if reduce else [])],
            experiment_name="ranks",
            start_time_ms=STARTED_MS,
            tracking_uri=new_store(folder),
            system_metrics=False,
            ranks=ranks if reduce else 1,
        )
    )
    run.write_identity(Identity(mirror_id=folder.name, experiment_name="ranks"))
    return run


def _watch(
    run: RunFolder, worker: Worker, ranks: int, hz: int, reduce: str, wait_s: float
) -> _Seen:
    held, shipper = run.hold(), start_shipper(run)
    try:
        _wait_until_open(run)
        with watched([psutil.Process(shipper.pid)]) as load:
            worker.send(hz=hz, wait_s=wait_s, reduce=reduce)
            ages_s = _ages(
                run, worker.answer()["began_s"], hz, wait_s, _KEYS[reduce].format(ranks - 1)
            )
            memory_mb = together_mb(psutil.Process(shipper.pid))
        worker.answer()
        return _Seen(ages_s, load, memory_mb)
    finally:
        end_tree(shipper.pid)
        shipper.wait()
        os.close(held)


def _ages(run: RunFolder, began_s: float, hz: int, wait_s: float, key: str) -> list[float]:
    """How old the newest point is that MLflow has, look by look."""
    found = []
    database = Path(run.manifest().cwd) / "mlflow.db"
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        while (elapsed_s := time.time() - began_s) < wait_s:
            asked = "SELECT coalesce(max(step), -1) FROM latest_metrics WHERE key = ?"
            steps = 1 + connection.execute(asked, (key,)).fetchone()[0]
            found.append(max(0.0, elapsed_s - steps / hz))
            time.sleep(LOOK_EVERY_S)
    return found


def _wait_until_open(run: RunFolder) -> None:
    """Wait until the sinks have taken the ranks' starts."""
    deadline_s = time.monotonic() + DEADLINE_S
    sinks = run.manifest().sinks
    while not all(run.progress(one).has_all(run.size_bytes()) for one in sinks):
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"a sink did not open: see the logs in {run.path}")
        time.sleep(LOOK_EVERY_S)
