"""Journals full of records that nobody has delivered yet, and the stores to deliver them to."""

import contextlib
import logging
import os
import shutil
import socket
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from benchmarks.callers import KEYS
from opusclip_mlops.folder import CONTROL, Identity, Manifest, RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.records import Metrics, Record, RunEnded, RunStarted

STARTED_MS = 1_700_000_000_000
SCALARS = len(KEYS)
SINKS = ("mlflow", "tensorboard", "wandb")


def points(count: int) -> Iterator[Metrics]:
    """Log calls of ten values each, ten milliseconds apart."""
    for step in range(count):
        values = {key: 0.1 + step / (n + 3) for n, key in enumerate(KEYS)}
        yield Metrics(STARTED_MS + 10 * step, step, values)


def make_backlog(folder: Path, sinks: Sequence[str], *, count: int) -> RunFolder:
    """A run's folder full of records, as a tracker leaves it whose shipper never ran."""
    run = make_run(folder, sinks)
    write_points(run, count=count)
    return run


def make_run(folder: Path, sinks: Sequence[str]) -> RunFolder:
    """A run's folder in which a session has begun."""
    folder.mkdir(parents=True, exist_ok=True)
    run = RunFolder(folder / "journal" / folder.name)
    run.create(
        Manifest(
            local_id=folder.name,
            cwd=str(folder),
            sinks=list(sinks),
            experiment_name="backlog",
            run_name="run",
            start_time_ms=STARTED_MS,
            tracking_uri=new_store(folder),
            project_name="backlog",
            wandb_mode="offline",
            system_metrics=False,
        )
    )
    run.write_identity(Identity(mirror_id=folder.name, experiment_name="backlog", run_name="run"))
    start = RunStarted(
        session="s1",
        host=socket.gethostname(),
        pid=os.getpid(),
        process_started_s=psutil.Process().create_time(),
        start_time_ms=STARTED_MS,
    )
    _append(run, [start], journal="s1" + CONTROL)
    return run


def write_points(run: RunFolder, *, count: int) -> None:
    """Log points, and declare the run's end."""
    _append(run, points(count), journal="s1")
    end = RunEnded("s1", "FINISHED", STARTED_MS + 10 * count)
    _append(run, [end], journal="s1" + CONTROL)


def _append(run: RunFolder, records: Iterable[Record], *, journal: str) -> None:
    log = Journal(run.path, journal)
    for record in records:
        log.append(record)
    log.close()


def new_store(folder: Path) -> str:
    """The URI of an SQLite store that holds MLflow's tables and no run."""
    empty = folder.parent / "empty.db"
    if not empty.exists():
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        MlflowClient(f"sqlite:///{empty}").search_experiments()
    shutil.copyfile(empty, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


def scalars_in(database: Path) -> int:
    """How many points of the benchmark's own keys an MLflow store holds."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT count(*) FROM metrics WHERE key LIKE 'train/%'")
        return int(found.fetchone()[0])
