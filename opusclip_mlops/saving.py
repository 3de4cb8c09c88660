"""The calls of a tracker that save checkpoints, and say which are kept."""

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from opusclip_mlops import records
from opusclip_mlops.checkpoints import checkpoint_name
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.efficiency import timed_as
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.joining import is_started_anew
from opusclip_mlops.joint_notices import Done
from opusclip_mlops.joint_saves import JointSaves
from opusclip_mlops.keeping import (
    CheckpointKeeper,
    Planned,
    Saved,
    check_network,
    scheduler_and_epoch,
)
from opusclip_mlops.loading import LoadedCheckpoint
from opusclip_mlops.loop_parts import CHECKPOINT
from opusclip_mlops.metadata import EVALUATED_ON, TRAINED_ON
from opusclip_mlops.noticeboard import has_process_group, private_store
from opusclip_mlops.passports import passports_of
from opusclip_mlops.ranks import Place, world_size_in
from opusclip_mlops.retention import Retention
from opusclip_mlops.session import Session
from opusclip_mlops.sharded_state import is_sharded
from opusclip_mlops.staged_training import Training
from opusclip_mlops.tensors import class_of

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
        if is_started_anew(config):
            # The ranks of this job have a run already, which MLflow may not know yet.
            return config
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
    config: TrackingConfig
    _joint_saves: JointSaves | None = None
    _has_left_out = False
    _not_saved: frozenset[str] = frozenset()
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

        Where several ranks train on one run, every rank calls it. It returns once what is to be
        written was copied; the files are written meanwhile, and there is a checkpoint when all of
        them and its metadata are there. DistributedDataParallel is taken off: rank 0 writes; the
        others send it their random generators, wait for nobody, and get the plain name. Of a model
        that `fully_shard` or a tensor-parallel plan has shared out each rank writes what it holds:
        all call it, in the same order, and get the same name. `load_checkpoint` reads either with
        any number of processes. What went wrong in the background is told on stderr, and the
        checkpoint before stays the last.

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
            CheckpointError: it cannot be written, as on a full disk; another rank could not, or
                did not come.
        """
        check_network(model)
        saves = self._saves_with(model)
        with saves.call(model) if saves else nullcontext():
            scheduler, counted = scheduler_and_epoch(scheduler, epoch)
            is_sure = counted is not None, step is not None
            at = max(0, self._current_step(step))
            training = Training(model, optimizer, scheduler, counted or 0, at, is_sure)
            name, at = self._save(
                training,
                saves,
                metrics=records.to_values(metrics) if metrics else {},
                monitor=monitor,
                mode=mode,
                passports=passports_of(metrics or {}),
                allow_unlike=allow_unlike,
                run_id=self._session.known_run_id(),
                config=dict(config or {}),
                model={"class": class_of(model), "config": dict(model_config or {})},
                dataset_digest=self._dataset_digest,
                evaluation_digest=self._evaluation_digest,
                world_size=self._world_size,
                created_ms=max(records.now_ms(), self._since_ms),
            )
        self._saved = None if name in self._not_saved else (at, name)
        return name

    def _save(self, training: Training, saves: JointSaves | None, **facts: Any) -> tuple[str, int]:
        """Save with the others, or alone; the checkpoint's name and its step."""
        facts |= {"epoch": training.epoch, "step": training.step}
        if saves is not None:
            begun = saves.save(training, partial(self._keeper.planned, **facts))
            return begun.name, begun.step
        if not self._session.is_owner:
            return self._leave_out(training), training.step
        what = training.model, training.optimizer, training.scheduler
        saved = self._keeper.save(*what, **facts)
        self._log_saved(saved)
        return saved.name, training.step

    def _saves_with(self, model: "torch.nn.Module") -> JointSaves | None:
        """What saves together with other processes; None where one has all, and saves alone."""
        if self._joint_saves is None:
            place, store = self._session.place, None
            is_alone = place is None or place.world_size == 1
            if is_alone and is_sharded(model):
                place, store = Place(rank=0, local_rank=0, world_size=1), private_store()
            elif is_alone or not has_process_group():
                return None
            assert place is not None
            self._joint_saves = JointSaves(
                self._session.folder, place, is_owner=self._session.is_owner, store=store,
                committed=self._log_planned, shared=self._log_share, failed=self._forget,
            )  # fmt: skip
        return self._joint_saves

    def _forget(self, name: str) -> None:
        """What is logged from now on was not made by a checkpoint that never was."""
        self._not_saved |= {name}
        if self._saved is not None and self._saved[1] == name:
            self._saved = None

    def _log_planned(self, planned: Planned) -> Done:
        saved = self._keeper.saved(planned)
        self._log_saved(saved)
        return Done(saved.record, saved.dropped)

    def _log_share(self, done: Done) -> None:
        """Have sent, or removed, what this machine has of a checkpoint of another's."""
        self._append(done.record)
        for name in done.dropped:
            self._append(records.CheckpointDropped(name))

    def _log_saved(self, saved: Saved) -> None:
        for record in saved.records:
            self._append(record)
        self._keeper.remember(saved)

    def _leave_out(self, training: Training) -> str:
        if not self._has_left_out:
            self._has_left_out = True
            print(
                "opusclip: without a process group of torch.distributed only the owner's "
                "checkpoints are kept: this one is another rank's", file=sys.stderr, flush=True,
            )  # fmt: skip
        return checkpoint_name(training.epoch, training.step)

    def _settle_saves(self, *, wait_s: float) -> bool:
        """Wait for the checkpoint that is being written; False at the deadline."""
        return self._joint_saves is None or self._joint_saves.settle(wait_s=wait_s)

    def _end_saves(self, status: str) -> None:
        """Wait for the checkpoint that is being written, and tell what was not saved."""
        if self._joint_saves is None:
            return
        for line in self._joint_saves.close(has_failed=status != "FINISHED"):
            print(f"opusclip: {line}", file=sys.stderr, flush=True)

    @property
    def _world_size(self) -> int:
        place = self._session.place
        return place.world_size if place else world_size_in(os.environ)

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
