"""Journals full of records that nobody has delivered yet, and the stores to deliver them to."""

import logging
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.callers import KEYS
from benchmarks.processes import end_tree
from opusclip_mlops.folder import CONTROL, Identity, Manifest, RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.launch import start_shipper
from opusclip_mlops.records import Metrics, Record, RunStarted
from opusclip_mlops.sessions import process_started_s

STARTED_MS = 1_700_000_000_000
SCALARS = len(KEYS)
SINKS = ("mlflow", "tensorboard", "wandb")


def point(step: int) -> Metrics:
    """A log call of ten values; steps are ten milliseconds apart."""
    values = {key: 0.1 + step / (n + 3) for n, key in enumerate(KEYS)}
    return Metrics(STARTED_MS + 10 * step, step, values)


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
        process_started_s=process_started_s(os.getpid()),
        start_time_ms=STARTED_MS,
    )
    _append(run, [start], journal="s1" + CONTROL)
    return run


def write_points(run: RunFolder, steps: Iterable[int]) -> None:
    """Log a call of ten values at each of the steps."""
    _append(run, map(point, steps), journal="s1")


def _append(run: RunFolder, records: Iterable[Record], *, journal: str) -> None:
    log = Journal(run.path, journal)
    for record in records:
        log.append(record)
    log.close()


@contextmanager
def shipping(run: RunFolder) -> Iterator[int]:
    """The real shipper at work on a run; gives the supervisor's pid."""
    # Held: a shipper that is done would remove what is looked at here.
    held = run.hold()
    shipper = start_shipper(run)
    try:
        yield shipper.pid
    finally:
        end_tree(shipper.pid)
        shipper.wait()
        os.close(held)


def new_store(folder: Path) -> str:
    """The URI of an SQLite store that holds MLflow's tables and no run."""
    empty = folder.parent / "empty.db"
    if not empty.exists():
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        MlflowClient(f"sqlite:///{empty}").search_experiments()
    shutil.copyfile(empty, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"
