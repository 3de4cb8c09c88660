"""Runs in MLflow, logged by us or by its own client, and what is read back of them."""

import math
from pathlib import Path

import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops import checkpoints, media
from opusclip_mlops.contents import Contents, Part, fetch
from opusclip_mlops.delivery import deliver
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.records import Checkpoint, Record, Video
from tests.journeys import append, end, store

T0_MS = 1_700_000_000_123


def client() -> MlflowClient:
    return MlflowClient(store(Path.cwd()))


def ramp(seed: int = 0) -> np.ndarray:
    return (np.arange(8 * 32 * 48 * 3).reshape(8, 32, 48, 3) + seed).astype(np.uint8)


def clip(folder: RunFolder, key: str, step: int, caption: str = "", fps: float = 8.0) -> Video:
    file = media.stage(folder, ramp(step), value_range=(0, 1))
    return Video(T0_MS + abs(step), step, key, file, fps, caption)


def delivered(folder: RunFolder, *records: Record) -> Run:
    """The run, once MLflow has all of these and its end."""
    append(folder, records)
    end(folder)
    deliver(folder, "mlflow")
    identity = folder.identity()
    assert identity is not None
    return client().get_run(identity.run_id)


def complete(run: Run, contents: Contents, folder: Path) -> list[Record]:
    """All records, with what is to be fetched."""
    folder.mkdir(exist_ok=True)
    return [fetch(client(), run.info.run_id, part, folder) for part in contents.parts]


def of_kind(contents: Contents, kind: type) -> list[Part]:
    return [part for part in contents.parts if isinstance(part.record, kind)]


def new_run(**tags: str) -> Run:
    """A run made by MLflow's own client."""
    found = client().get_experiment_by_name("films")
    experiment = found.experiment_id if found else client().create_experiment("films")
    plain = {key.replace("__", "."): value for key, value in tags.items()}
    return client().create_run(experiment, tags=plain, run_name="theirs")


def again(run: Run) -> Run:
    return client().get_run(run.info.run_id)


def ended(run: Run) -> Run:
    client().set_terminated(run.info.run_id)
    return again(run)


def saved(folder: RunFolder, step: int, *, best: bool = False, epoch: int = 1) -> Checkpoint:
    """A checkpoint in the run's folder."""
    name = checkpoints.checkpoint_name(epoch, step)
    metrics = {"val/loss": 1 / step, "odd": math.nan}
    about = checkpoints.CheckpointMetadata(name=name, epoch=epoch, step=step, metrics=metrics)
    checkpoints.write_checkpoint(folder.checkpoints / name, torch.nn.Linear(2, 1), metadata=about)
    return Checkpoint(T0_MS, step, epoch, name, metrics, best)
