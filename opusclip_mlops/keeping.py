"""The checkpoints of a run as it saves them: their metadata, and which is the best."""

import itertools
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from opusclip_mlops import checkpoints, provenance
from opusclip_mlops.errors import RecordError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.metadata import CheckpointMetadata

if TYPE_CHECKING:
    import torch

WATCHED = ("val/loss", "val_loss")
"""The metrics the best checkpoint is chosen by where none is named: the lower the better."""


class CheckpointKeeper:
    """Writes checkpoints into a run's folder and remembers the best value of each metric."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._best: dict[str, float] = {}
        self._last: str | None = None

    def save(
        self,
        network: "torch.nn.Module",
        optimizer: "torch.optim.Optimizer | None",
        scheduler: "torch.optim.lr_scheduler.LRScheduler | None",
        /,
        *,
        epoch: int,
        step: int,
        metrics: Mapping[str, float],
        **facts: Any,
    ) -> str:
        """Write a checkpoint; returns its name. `facts` are further fields of its metadata."""
        name = self._free_name(checkpoints.checkpoint_name(epoch, step))
        about = CheckpointMetadata(
            name=name,
            step=step,
            epoch=epoch,
            metrics=metrics,
            git_commit=provenance.git_commit(Path.cwd()),
            git_dirty=provenance.git_dirty(Path.cwd()),
            libraries=provenance.library_versions(),
            parent=self._last,
            **facts,
        )
        folder = self._folder.checkpoints / name
        checkpoints.write_checkpoint(folder, network, optimizer, scheduler, metadata=about)
        self._last = name
        return name

    def _free_name(self, name: str) -> str:
        """The name, with a number behind it where a checkpoint of this name is there already."""
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        return next(one for one in names if not (self._folder.checkpoints / one).exists())

    def beats(
        self, values: Mapping[str, float], *, monitor: str | None, mode: str
    ) -> dict[str, float]:
        """The best value of the watched metric if it is these; empty where they beat nothing.

        NaN beats nothing. It counts once it is given to `remember`.

        Raises:
            RecordError: `monitor` is not among the metrics, or the mode is not `min` or `max`.
        """
        if mode not in ("min", "max"):
            raise RecordError(f"mode must be 'min' or 'max', not {mode!r}")
        watched = monitor or next((key for key in WATCHED if key in values), None)
        if watched is None:
            return {}
        if watched not in values:
            raise RecordError(f"monitor {watched!r} is not among the metrics: {', '.join(values)}")
        value = values[watched] if mode == "min" else -values[watched]
        if value != value or value >= self._best.get(watched, float("inf")):
            return {}
        return {watched: value}

    def remember(self, best: Mapping[str, float]) -> None:
        """Take what `beats` gave for the best, now that its checkpoint is there."""
        self._best.update(best)


def scheduler_and_epoch(
    given: object, epoch: int | None
) -> tuple["torch.optim.lr_scheduler.LRScheduler | None", int | None]:
    """What `save_checkpoint`'s third argument is: the scheduler, or the epoch.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(given, numbers.Integral) and not isinstance(given, bool):
        return None, int(given) if epoch is None else epoch
    if given is not None and not hasattr(given, "state_dict"):
        raise TypeError(f"the third argument is a scheduler or an epoch, not {given!r:.60}")
    return cast("torch.optim.lr_scheduler.LRScheduler | None", given), epoch
