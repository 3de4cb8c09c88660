"""Runs with long histories, written past MLflow, which would take ten times as long."""

import contextlib
import sqlite3
import uuid
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient

STARTED_MS = 1_700_000_000_000
STEP_MS = 10
_COLUMNS = "(key, value, timestamp, step, run_uuid, is_nan) VALUES (?, ?, ?, ?, ?, 0)"


def names(count: int) -> list[str]:
    """So many keys."""
    return [f"train/layer {number}/norm" for number in range(count)]


def make_run(database: Path, experiment: str, *, keys: int, points: int) -> str:
    """A run that is over, with so many points of so many keys; each step has one of each."""
    client = MlflowClient(f"sqlite:///{database}")
    run_id: str = client.create_run(experiment, start_time=STARTED_MS).info.run_id
    client.log_param(run_id, "keys", str(keys))
    add_steps(database, [run_id], range(points // keys), keys=names(keys))
    client.set_terminated(run_id)
    return run_id


def add_steps(
    database: Path, run_ids: Sequence[str], steps: range, *, keys: Sequence[str], at_ms: int = 0
) -> None:
    """A point of each key at each step, ten milliseconds apart, or all of them at one time."""
    rows = (
        (key, 0.1 + step / (number + 3), at_ms or STARTED_MS + STEP_MS * step, step, run_id)
        for run_id in run_ids
        for step in steps
        for number, key in enumerate(keys)
    )
    last = _latest(run_ids, steps[-1], keys, at_ms)
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        connection.executemany(f"INSERT INTO metrics {_COLUMNS}", rows)
        connection.executemany(f"INSERT OR REPLACE INTO latest_metrics {_COLUMNS}", last)


def _latest(
    run_ids: Sequence[str], step: int, keys: Sequence[str], at_ms: int
) -> list[tuple[str, float, int, int, str]]:
    """What MLflow's table of latest values says after a step."""
    time_ms = at_ms or STARTED_MS + STEP_MS * step
    return [
        (key, 0.1 + step / (number + 3), time_ms, step, run_id)
        for run_id in run_ids
        for number, key in enumerate(keys)
    ]


def copy_run(database: Path, run_id: str, times: int) -> list[str]:
    """So many runs like this one, points and all; returns their ids."""
    ids = [uuid.uuid4().hex for _ in range(times)]
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        for table in ("runs", "metrics", "latest_metrics"):
            every = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            others = ", ".join(name for name in every if name != "run_uuid")
            connection.executemany(
                f"INSERT INTO {table} (run_uuid, {others})"
                f" SELECT ?, {others} FROM {table} WHERE run_uuid = ?",
                [(new_id, run_id) for new_id in ids],
            )
    return ids
