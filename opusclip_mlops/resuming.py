"""Going on after an end: the last checkpoint of the run that this process goes on with.

torchrun starts all ranks anew when one of them has failed, and a job that was put back into the
queue goes on in the run of the first: the run's last whole checkpoint is where training stands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from mlflow import MlflowClient

from opusclip_mlops import checkpoints
from opusclip_mlops.asking import told_in_one_line
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.errors import CheckpointError, ConfigError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.joining import earlier_run, place_of
from opusclip_mlops.layout import LAST_TAG
from opusclip_mlops.loading import LoadedCheckpoint, kept_here, load_checkpoint
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.noticeboard import agreed, process_group_place

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


class _Last(msgspec.Struct, frozen=True):
    """Which checkpoint is the last: its folder on the disk, or its name in a run of MLflow's."""

    source: str
    name: str


class _Verified(msgspec.Struct, frozen=True):
    """A checkpoint that one rank has verified: where its machine has it, and what it holds."""

    folder: str | None
    metadata: dict[str, object]


def last_checkpoint(
    *,
    model: torch.nn.Module | None = None,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
) -> LoadedCheckpoint | None:
    """Put the last checkpoint of this launch's run in place, see `load_checkpoint`.

    It is that of this machine's disk, if it is whole, or else MLflow's; of ranks on many machines
    it is MLflow's. One rank finds it for all: each calls this, behind
    `torch.distributed.init_process_group`. What is returned is for
    `ExperimentTracker(config, resume=…)`: None begins anew.

    Returns:
        None where the run has no checkpoint yet, or this process was not launched for a run.

    Raises:
        ConfigError: there are other ranks, and no process group.
        RegistryError: MLflow does not answer, or has no such run.
        CheckpointError: the checkpoint is not whole, does not fit what is given, or another rank
            could not find it.
    """
    config = TrackingConfig()
    place = place_of(config)
    is_here = place is None or place.nodes == 1
    with contextlib.ExitStack() as held:
        told = _of_owner(config, lambda: msgspec.json.encode(_last(config, held, on_disk=is_here)))
        if (last := msgspec.json.decode(told, type=_Last | None)) is None:
            return None
        return load_checkpoint(
            last.source,
            which=last.name,
            model=model,
            optimizer=optimizer,
            scheduler=scheduler,
            tracking_uri=config.tracking_uri,
        )


def last_verified(config: TrackingConfig) -> LoadedCheckpoint | None:
    """The last checkpoint, verified by the rank that owns the run, and put into nothing yet.

    A rank whose machine does not have it gets it without a folder: until `flush()` it may be on the
    owner's disk alone.

    Raises:
        ConfigError: there are other ranks, and no process group.
        RegistryError: MLflow does not answer, or has no such run.
        CheckpointError: it is not whole, or another rank could not find it.
    """
    told = _of_owner(config, lambda: msgspec.json.encode(_verified(config)))
    if (found := msgspec.json.decode(told, type=_Verified | None)) is None:
        return None
    folder = Path(found.folder) if found.folder and Path(found.folder).is_dir() else None
    return LoadedCheckpoint(folder=folder, metadata=CheckpointMetadata.from_dict(found.metadata))


def _of_owner(config: TrackingConfig, find: Callable[[], bytes]) -> bytes:
    """What the rank that owns the run finds, in all ranks; where it fails all do."""
    group, place = process_group_place(), place_of(config)
    if group is None and place is not None and place.world_size > 1:
        raise ConfigError(
            f"{place.world_size} ranks have to find the same checkpoint: call "
            "torch.distributed.init_process_group before last_checkpoint"
        )
    if group is None or group[1] == 1:
        return find()
    rank, world_size = group
    owner = config.metric_rank if config.metric_rank < world_size else 0
    with agreed(rank, world_size, what="finding the last checkpoint") as board:
        if rank != owner:
            awaited = f"the last checkpoint, which rank {owner} finds"
            return board.wait("last", awaited=awaited, of=owner)
        found = find()
        board.post("last", found)
        return found


def _verified(config: TrackingConfig) -> _Verified | None:
    with contextlib.ExitStack() as held:
        if (last := _last(config, held, on_disk=True)) is None:
            return None
        found = load_checkpoint(last.source, which=last.name, tracking_uri=config.tracking_uri)
    return _Verified(str(found.folder) if found.folder else None, found.metadata.to_dict())


def _last(config: TrackingConfig, held: contextlib.ExitStack, *, on_disk: bool) -> _Last | None:
    """The last checkpoint of the run that this job goes on with; its folder stays while `held`."""
    earlier = earlier_run(config)
    run_id = (earlier.run_id if earlier else None) or config.run_id
    if on_disk and (earlier or run_id):
        folder = earlier.folder if earlier else RunFolder(Path(config.journal_dir, str(run_id)))
        held.enter_context(kept_here(folder))
        for place in _newest_first(folder):
            if _is_whole(place, run_id):
                return _Last(str(place.absolute()), place.name)
    return _in_mlflow(run_id, config) if run_id else None


def _newest_first(folder: RunFolder) -> list[Path]:
    """The checkpoints that lie in the run's folder, whole or not."""
    written: dict[Path, int] = {}
    for path in folder.checkpoints.glob(f"[!.]*/{checkpoints.METADATA}"):
        with contextlib.suppress(CheckpointError):
            written[path.parent] = checkpoints.read_metadata(path.parent).created_ms
    return sorted(written, key=lambda place: written[place], reverse=True)


def _is_whole(place: Path, run_id: str | None) -> bool:
    """Whether a checkpoint is as it was saved; the end of its process may have torn it."""
    try:
        checkpoints.seal(place, run_id=run_id)
        checkpoints.verify(place)
    except CheckpointError:
        return False
    return True


def _in_mlflow(run_id: str, config: TrackingConfig) -> _Last | None:
    with told_in_one_line(f"cannot find the last checkpoint of run {run_id}"):
        run = MlflowClient(config.tracking_uri).get_run(run_id)
    name = run.data.tags.get(LAST_TAG)
    return _Last(run_id, name) if name else None
