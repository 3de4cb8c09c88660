"""What one process writes of a checkpoint, copied, so that training may go on meanwhile."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from opusclip_mlops import checkpoints, sharded_state, tensors
from opusclip_mlops.checkpoints import STATE, WEIGHTS
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.metadata import StoredFile, shard_name
from opusclip_mlops.shards import write_slices

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


@dataclass(frozen=True, eq=False)
class Staged:
    """The files of one process.

    Attributes:
        is_sharded: Whether every process has files of its own; otherwise the owner has all.
        names: Digest of the names and shapes of all tensors: the same in every process.
        writers: What writes each file.
        values: How many values of the model this process writes, where it is shared out.
        all_values: How many it has.
    """

    is_sharded: bool
    names: str = ""
    writers: dict[str, Callable[[Path], object]] = field(default_factory=dict)
    values: int = 0
    all_values: int = 0

    def check_whole(self, values: int) -> None:
        """Check that all processes together write each value once.

        Raises:
            CheckpointError: they write fewer or more.
        """
        if values != self.all_values:
            raise CheckpointError(
                f"the ranks hold {values} values of a model of {self.all_values}: give all "
                "`fully_shard` one mesh of all ranks"
            )

    def write(self, folder: Path) -> dict[str, StoredFile]:
        """Write the files, bring them to the disk and hash them.

        Raises:
            CheckpointError: the disk is full, or takes no change.
        """
        from safetensors import SafetensorError

        try:
            for name, write in self.writers.items():
                write(folder / name)
            return {name: checkpoints.flushed(folder / name) for name in self.writers}
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"checkpoint {folder} cannot be written: {reason}") from error


@dataclass(frozen=True, eq=False)
class Training:
    """What is to be saved, and where it stands.

    Attributes:
        model: The model; wrappers are taken off.
        optimizer: The optimizer, None for none.
        scheduler: The scheduler, None for none.
        epoch: Epochs done.
        step: Steps done.
        is_sure: Which of `epoch` and `step` this process was told.
    """

    model: torch.nn.Module
    optimizer: Optimizer | None
    scheduler: LRScheduler | None
    epoch: int
    step: int
    is_sure: tuple[bool, bool] = (True, True)

    def check_at(self, epoch: int, step: int, *, mine: str) -> None:
        """Check that this process was not told that it stands elsewhere than the owner.

        Raises:
            CheckpointError: it was.
        """
        knows_epoch, knows_step = self.is_sure
        if (knows_epoch and self.epoch != epoch) or (knows_step and self.step != step):
            raise CheckpointError(
                f"save_checkpoint was {mine}, and by the owner at epoch {epoch}, step {step}: "
                "call it on every rank alike"
            )

    def check_names(self) -> None:
        """Check that several processes can save the model.

        Raises:
            CheckpointError: they cannot.
        """
        if hasattr(self.model, "modules"):
            sharded_state.check_names(self.model)

    def staged(self, *, rank: int, world_size: int, is_owner: bool) -> Staged:
        """Copy what this process is to write.

        Raises:
            CheckpointError: a value cannot be stored, or other processes than these share the
                model.
        """
        self.check_names()
        sharded_state.check_names(self.model)
        if sharded_state.is_sharded(self.model):
            return self._share(rank, world_size, is_owner=is_owner)
        names = self.names
        if not is_owner:
            return Staged(is_sharded=False, names=names)
        weights = tensors.copied_weights(self.model)
        writers = {WEIGHTS: weights.write, STATE: self._state(self.optimizer)}
        return Staged(is_sharded=False, names=names, writers=writers)

    @property
    def place(self) -> str | None:
        """Where training stands; None where this process was not told."""
        return f"{self.epoch}-{self.step}" if all(self.is_sure) else None

    @property
    def names(self) -> str:
        """Digest of the names and whole shapes of all tensors."""
        held = tensors.unwrapped(self.model).state_dict()
        shapes = {name: list(getattr(one, "shape", ())) for name, one in held.items()}
        listed = "\n".join(f"{name} {shape}" for name, shape in sorted(shapes.items()))
        return hashlib.sha256(listed.encode()).hexdigest()

    def _share(self, rank: int, world_size: int, *, is_owner: bool) -> Staged:
        if (count := sharded_state.processes_of(self.model)) != world_size:
            more = "launch them together, as by torchrun, and leave `ranks` at its default"
            fewer = "give `fully_shard` a mesh of all, as (replicas, shares)"
            raise CheckpointError(
                f"the model is shared out over {count} processes, and the run is of {world_size}: "
                f"{more if count > world_size else fewer}"
            )
        share = sharded_state.share_of(self.model, self.optimizer, is_first=rank == 0)
        parts = {"weights": share.weights, "optimizer": share.optimizer}
        writers: dict[str, Callable[[Path], object]] = {
            shard_name(what, rank, world_size): functools.partial(write_slices, slices=slices)
            for what, slices in parts.items()
            if what == "weights" or self.optimizer is not None
        }
        if is_owner:
            writers[STATE] = self._state(share.settings)
        held = sum(one.tensor.numel() for one in share.weights.values())
        return Staged(
            is_sharded=True, names=self.names, writers=writers,
            values=held, all_values=share.values,
        )  # fmt: skip

    def _state(self, optimizer: object) -> Callable[[Path], object]:
        file = BytesIO()
        at = {"step": self.step, "epoch": self.epoch}
        tensors.write_state(file, optimizer, self.scheduler, **at)  # type: ignore[arg-type]
        return functools.partial(Path.write_bytes, data=file.getbuffer())
