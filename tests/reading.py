"""Reads a run's points back from the three places, each with its own reader."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import (
    IMAGES,
    SCALARS,
    TENSORS,
    EventAccumulator,
)

from opusclip_mlops import wandb_log


@dataclass(frozen=True, order=True)
class Point:
    """One value of one key; `value` as text so that NaN equals NaN."""

    key: str
    step: int
    timestamp_ms: int
    value: str


def points_of_mlflow(client: MlflowClient, run_id: str) -> list[Point]:
    """All points of a run in MLflow, as 64-bit floats."""
    keys = client.get_run(run_id).data.metrics
    return sorted(
        Point(m.key, m.step, m.timestamp, repr(float(m.value)))
        for key in keys
        for m in client.get_metric_history(run_id, key)
    )


def of_training(points: list[Point]) -> list[Point]:
    """Without what the machine was measured to use, and the loop to take."""
    measured = ("system/", "performance/", "profiling/")
    return [point for point in points if not point.key.startswith(measured)]


def event_reader(folder: Path) -> EventAccumulator:
    """TensorBoard's own reader, keeping every point."""
    reader = EventAccumulator(str(folder), size_guidance={SCALARS: 0, IMAGES: 0, TENSORS: 0})
    return reader.Reload()


def points_of_tensorboard(folder: Path) -> list[Point]:
    """All scalars under a folder of event files; the values are 32-bit floats."""
    reader = event_reader(folder)
    return sorted(
        Point(key, event.step, round(event.wall_time * 1000), repr(float(event.value)))
        for key in reader.Tags()["scalars"]
        for event in reader.Scalars(key)
    )


def rows_of_wandb(wandb_dir: Path, run_id: str) -> list[dict[str, Any]]:
    """All rows of a run in W&B's logs, over all its parts."""
    return [row for path in wandb_log.logs_of(wandb_dir, run_id) for row in wandb_log.rows(path)]


def points_of_wandb(wandb_dir: Path, run_id: str) -> list[Point]:
    """All numbers of a run in W&B's logs."""
    return sorted(
        Point(key, row["global_step"], round(row["_timestamp"] * 1000), repr(float(value)))
        for row in rows_of_wandb(wandb_dir, run_id)
        for key, value in row.items()
        if key != "global_step" and not key.startswith("_") and isinstance(value, int | float)
    )
