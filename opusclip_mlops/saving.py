"""The calls of a tracker that save checkpoints, and say which are kept."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opusclip_mlops import records
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.efficiency import timed_as
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.generations import world_size_in
from opusclip_mlops.keeping import CheckpointKeeper, scheduler_and_epoch
from opusclip_mlops.loading import LoadedCheckpoint
from opusclip_mlops.loop_parts import CHECKPOINT
from opusclip_mlops.metadata import EVALUATED_ON, TRAINED_ON
from opusclip_mlops.passports import passports_of
from opusclip_mlops.retention import Retention
from opusclip_mlops.session import Session

if TYPE_CHECKING:
    import torch


def config_of(resumed: LoadedCheckpoint, config: TrackingConfig) -> TrackingConfig:
    """The configuration with which the run of a checkpoint goes on.

    Raises:
        TypeError: it is no loaded checkpoint.
        ConfigError: the checkpoint names no run, or the configuration another one.
        RecordError: its step is beyond 64 bits.
    """
    if not isinstance(resumed, LoadedCheckpoint):
        given = f"{type(resumed).__name__}: give what load_checkpoint() returns"
        raise TypeError(f"resume must be a LoadedCheckpoint, not {given}")
    records.to_step(resumed.metadata.step)
    run_id, name = resumed.metadata.run_id, resumed.metadata.name
    if run_id is None and config.run_id is None:
        raise ConfigError(f"checkpoint {name} names no run to go on with: give run_id")
    if config.run_id is None:
        return replace(config, run_id=run_id)
    if run_id not in (None, config.run_id):
        raise ConfigError(f"run_id is {config.run_id}, but checkpoint {name} is of run {run_id}")
    return config


class CheckpointCalls:
    """What a training loop calls about checkpoints; a part of `ExperimentTracker`."""

    _append: Callable[[records.Record], object]
    _dataset_digest: str | None
    _evaluation_digest: str | None
    _keeper: CheckpointKeeper
    _saved: tuple[int, str] | None
    _session: Session
    _since_ms: int

    if TYPE_CHECKING:

        def _current_step(self, step: int | None) -> int: ...

    @timed_as(CHECKPOINT)
    def save_checkpoint(
        self,
        model: "torch.nn.Module",
        optimizer: "torch.optim.Optimizer | None" = None,
        scheduler: "torch.optim.lr_scheduler.LRScheduler | int | None" = None,
        metrics: Mapping[str, Any] | None = None,
        *,
        epoch: int | None = None,
        step: int | None = None,
        config: Mapping[str, Any] | None = None,
        model_config: Mapping[str, Any] | None = None,
        monitor: str | None = None,
        mode: str = "min",
        allow_unlike: bool = False,
    ) -> str:
        """Save a checkpoint and send it to MLflow; returns its name.

        The name says the epoch and the step; in a run that is gone on with also the moment, so that
        it is no other's.

        Args:
            model: Its weights are written as safetensors.
            optimizer: Its state is kept beside them.
            scheduler: The scheduler, or the epoch: `save_checkpoint(model, optimizer, 3, {…})`.
            metrics: What was measured at this point; a `Score` keeps its passport.
            epoch: Epochs done.
            step: Steps done; the last one logged otherwise.
            config: The training configuration, JSON values.
            model_config: What builds the model again, JSON values.
            monitor: The metric by which the best is chosen; `val/loss` or `val_loss` otherwise.
            mode: `min` or `max`.
            allow_unlike: Rank a value with the best so far though they were not measured alike;
                otherwise it is saved, warned of and not marked best.

        Raises:
            TypeError: a third argument that is neither an epoch nor a scheduler.
            RecordError: `monitor` is not among the metrics, or an unknown mode.
            CheckpointError: it cannot be written, as on a full disk.
        """
        scheduler, epoch = scheduler_and_epoch(scheduler, epoch)
        at = max(0, self._current_step(step))
        saved = self._keeper.save(
            model,
            optimizer,
            scheduler,
            epoch=epoch or 0,
            step=at,
            metrics=records.to_values(metrics) if metrics else {},
            monitor=monitor,
            mode=mode,
            passports=passports_of(metrics or {}),
            allow_unlike=allow_unlike,
            run_id=self._session.known_run_id(),
            config=dict(config or {}),
            model={"class": type(model).__name__, "config": dict(model_config or {})},
            dataset_digest=self._dataset_digest,
            evaluation_digest=self._evaluation_digest,
            world_size=world_size_in(os.environ),
            created_ms=max(records.now_ms(), self._since_ms),
        )
        for record in saved.records:
            self._append(record)
        self._keeper.remember(saved)
        self._saved = at, saved.name
        return saved.name

    def _used_dataset(self, digest: str, context: str) -> None:
        """Keep the digests that the next checkpoints name: the last of each use."""
        use = context.strip().lower()
        if use in TRAINED_ON:
            self._dataset_digest = digest
        elif use in EVALUATED_ON:
            self._evaluation_digest = digest

    def keep_checkpoints(
        self, *, last: int = 1, best: tuple[str, str] | None = None, every: int | None = None
    ) -> None:
        """Keep only the newest `last`, the best, and those at every `every` steps, from now on.

        The others are removed here and in MLflow, but never the marked best, nor what a registered
        version is made of. Without this call every checkpoint is kept.

        Args:
            last: How many of the newest, 1 or more.
            best: The metric that `save_checkpoint` chooses the best by, and `min` or `max`.
            every: Steps, 1 or more.

        Raises:
            RecordError: a number below 1, or an unknown mode.
        """
        self._keeper.retention = Retention(last=last, best=best, every=every)
