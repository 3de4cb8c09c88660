"""Going on from the run's last checkpoint, in a job that an earlier one left off."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mlflow import MlflowClient

from opusclip_mlops.asking import told_in_one_line
from opusclip_mlops.layout import LAST_TAG
from opusclip_mlops.loading import LoadedCheckpoint, load_checkpoint

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


def last_checkpoint(
    *,
    model: torch.nn.Module | None = None,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
) -> LoadedCheckpoint | None:
    """Put the last checkpoint of this launch's run in place, see `load_checkpoint`.

    What is returned is for `ExperimentTracker(config, resume=…)`: None begins anew.

    Returns:
        None where the run has no checkpoint yet, or this process was not launched for a run.

    Raises:
        RegistryError: MLflow does not answer, or has no such run.
        CheckpointError: the checkpoint is not whole, or does not fit what is given.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return None
    with told_in_one_line(f"cannot find the last checkpoint of run {run_id}"):
        run = MlflowClient().get_run(run_id)
    if LAST_TAG not in run.data.tags:
        return None
    return load_checkpoint(
        run_id, which="last", model=model, optimizer=optimizer, scheduler=scheduler
    )
