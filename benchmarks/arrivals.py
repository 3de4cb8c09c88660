"""Counts what stands at each destination, so that speed is not bought by loss."""

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from benchmarks.backlog import SCALARS
from opusclip_mlops import wandb_log
from opusclip_mlops.folder import RunFolder


def check_all_arrived(run: RunFolder, folder: Path, count: int) -> None:
    """Raise unless every sink of the run holds so many log calls of ten scalars."""
    counted = {
        "mlflow": lambda: scalars_in(folder / "mlflow.db"),
        "tensorboard": lambda: SCALARS * scalar_events_in(folder / "runs"),
        "wandb": lambda: SCALARS * rows_in(wandb_log.logs_of(folder, folder.name)),
    }
    for sink in run.manifest().sinks:
        found = counted[sink]()
        if found != SCALARS * count:
            raise RuntimeError(f"{sink} holds {found} of {SCALARS * count} scalars")


def scalars_in(database: Path) -> int:
    """How many points of the benchmark's own keys an MLflow store holds."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT count(*) FROM metrics WHERE key LIKE 'train/%'")
        return int(found.fetchone()[0])


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
