"""What a checkpoint holds, read for a model, its optimizer and scheduler, and put into them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opusclip_mlops import sharded_state, tensors
from opusclip_mlops.checkpoints import STATE, WEIGHTS
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.joint_loads import JointLoad
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.noticeboard import agreed, process_group_place
from opusclip_mlops.rank_generators import GENERATORS, read_generators
from opusclip_mlops.ranks import rank_in
from opusclip_mlops.shards import Slices

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


@dataclass(frozen=True, slots=True)
class Content:
    """What was read of a checkpoint, as far as it was asked for.

    Attributes:
        weights: By name; None where no model was given.
        optimizer: As `load_state_dict` takes it; None where no optimizer was given.
        state: The training state as it is stored; None where nothing of it was asked for.
        has_generators: Whether the generators in it are those of this process.
    """

    weights: dict[str, Any] | None
    optimizer: Any
    state: dict[str, Any] | None
    has_generators: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """What a checkpoint's content is to be put into."""

    model: torch.nn.Module | None
    optimizer: Optimizer | None
    scheduler: LRScheduler | None
    restore_rng: bool | None

    @property
    def for_rng(self) -> bool:
        """Whether the random generators are to be put back."""
        if self.restore_rng is None:
            return self.optimizer is not None or self.scheduler is not None
        return self.restore_rng

    @property
    def for_state(self) -> bool:
        """Whether anything of the training state is asked for."""
        return self.optimizer is not None or self.scheduler is not None or self.for_rng

    @property
    def is_shared(self) -> bool:
        """Whether the model is shared out over processes."""
        return self.model is not None and sharded_state.is_sharded(self.model)

    @contextlib.contextmanager
    def together(self) -> Iterator[JointLoad | None]:
        """Read in all processes of a model that is shared out, or fail in all of them.

        Gives this process's part in it; None where it reads for itself.
        """
        place = process_group_place() if self.is_shared else None
        if place is None or place[1] == 1:
            yield None
            return
        with agreed(*place, what="load_checkpoint") as board:
            yield JointLoad(board, *place)

    def read(self, folder: Path, metadata: CheckpointMetadata) -> Content:
        """The weights and the training state, as far as they are asked for; nothing is changed.

        Raises:
            CheckpointError: they cannot be read, or do not fit.
        """
        state = tensors.read_state(folder / STATE) if self.for_state else None
        has_generators = True
        if state is not None and GENERATORS in metadata.files:
            own = read_generators(folder / GENERATORS, rank=_own_rank())
            state, has_generators = {**state, "rng": own or state["rng"]}, own is not None
        optimizer = self._optimizer_state(folder, metadata, state)
        for what, target in self._targets():
            stored = optimizer if target is self.optimizer else (state or {}).get(what)
            tensors.check_state(target, stored, what=what)
        return Content(self._weights(folder, metadata), optimizer, state, has_generators)

    def _weights(self, folder: Path, metadata: CheckpointMetadata) -> dict[str, Any] | None:
        if self.model is None:
            return None
        if not metadata.is_sharded and not self.is_shared:
            return tensors.fitting(folder / WEIGHTS, self.model)
        files = metadata.shards("weights") if metadata.is_sharded else [WEIGHTS]
        return sharded_state.weights_for(Slices(folder / one for one in files), self.model)

    def _optimizer_state(
        self, folder: Path, metadata: CheckpointMetadata, state: dict[str, Any] | None
    ) -> Any:
        stored = state["optimizer"] if state else None
        if self.optimizer is None or stored is None:
            return None
        if not metadata.is_sharded:
            return sharded_state.shared_out(stored, self.optimizer) if self.is_shared else stored
        if self.model is None:
            raise CheckpointError(
                f"{folder.name} was saved by its shares: give the model with its optimizer"
            )
        slices = Slices(folder / one for one in metadata.shards("optimizer"))
        return sharded_state.optimizer_for(slices, stored, self.model, self.optimizer)

    def _targets(self) -> Iterator[tuple[str, Optimizer | LRScheduler]]:
        if self.optimizer is not None:
            yield "optimizer", self.optimizer
        if self.scheduler is not None:
            yield "scheduler", self.scheduler

    def put_in_place(self, content: Content) -> None:
        """What may not fit goes first: then the model is left as it was."""
        state = content.state
        for what, target in self._targets():
            stored = content.optimizer if target is self.optimizer else (state or {}).get(what)
            tensors.put_back(target, stored, what=what)
        if self.for_rng and state is not None and content.has_generators:
            tensors.restore_rng(state["rng"])
        if self.model is None or content.weights is None:
            return
        if self.is_shared:
            sharded_state.put_weights(self.model, content.weights)
        else:
            tensors.unwrapped(self.model).load_state_dict(content.weights, strict=True)


def _own_rank() -> int:
    place = process_group_place()
    return place[0] if place else rank_in(os.environ) or 0
