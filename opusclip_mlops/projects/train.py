"""Trains a model of clips and tracks it: what `mlflow run .` starts.

clips -> epochs of train, validate, sample, checkpoint -> the best checkpoint is registered
"""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Self

import click
import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from opusclip_mlops import registry
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.errors import ConfigError, DeliveryError
from opusclip_mlops.loading import LoadedCheckpoint, load_checkpoint
from opusclip_mlops.metadata import BestValue
from opusclip_mlops.projects import options, serving, summary
from opusclip_mlops.projects.data import DEFAULT, MAX_FRAMES, MAX_SIZE, ClipDataset, load_dataset
from opusclip_mlops.projects.distributed import ARRIVAL_WAIT_S, Ranks, bring_in
from opusclip_mlops.projects.judging import Scores, log_dataset, log_samples, validate
from opusclip_mlops.projects.models import KINDS, ModelConfig, build_model
from opusclip_mlops.ranks import place_in
from opusclip_mlops.registry import RegisteredVersion
from opusclip_mlops.resuming import last_verified
from opusclip_mlops.tracker import ExperimentTracker

_MAX_GRADIENT_NORM = 1.0
_MONITOR, _MODE = "val/psnr", "max"
_EXIT_CODE_OF_SIGTERM = 128 + signal.SIGTERM


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a training run is asked for, checked."""

    data: str
    model: str
    epochs: int
    batch_size: int
    learning_rate: float
    frames: int
    size: int
    seed: int
    watch: int
    device: torch.device
    register_as: str | None

    @classmethod
    def read(cls, given: Mapping[str, str]) -> Self:
        """Check the texts of a command line.

        Raises:
            ConfigError: a value is malformed or out of range.
        """
        return cls(
            data=given["data"],
            model=options.choice("model", given["model"], KINDS),
            epochs=options.whole("epochs", given["epochs"], 1, 10_000),
            batch_size=options.whole("batch_size", given["batch_size"], 1, 1024),
            learning_rate=options.number("learning_rate", given["learning_rate"], above=0, most=1),
            frames=options.whole("frames", given["frames"], 2, MAX_FRAMES),
            size=options.whole("size", given["size"], 16, MAX_SIZE),
            seed=options.whole("seed", given["seed"], 0, options.MAX_SEED),
            watch=options.whole("watch", given["watch"], 0, 10**9),
            device=options.device(given["device"]),
            register_as=options.model_name("register_as", given["register_as"]),
        )


def shared_out(settings: Settings, ranks: Ranks) -> Settings:
    """What is asked of one rank of many.

    Raises:
        ConfigError: the batch cannot be shared out equally, or this rank has no device.
    """
    ranks.check_batch_size(settings.batch_size)
    return replace(settings, device=ranks.device(settings.device))


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to."""

    number: int
    checkpoint: str
    train_loss: float
    scores: Scores
    seconds: float


class Training:
    """A model, its optimizer and its data, and how many steps they have done.

    With a tracker the parts of each step are timed. Of many ranks each learns from its share of the
    batch, and all go the same step: that of one process that has the whole batch.
    """

    must_end = False
    """Whether a rank was told to end while the last step was done."""

    def __init__(
        self,
        settings: Settings,
        dataset: ClipDataset,
        tracker: ExperimentTracker | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.settings, self.dataset, self.step = settings, dataset, 0
        self.ranks = ranks or Ranks()
        self._tracker = tracker
        self.shape = ModelConfig(kind=settings.model, frames=settings.frames, size=settings.size)
        self.model = build_model(self.shape).to(settings.device)
        self._shared = self.ranks.wrapped(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, settings.epochs * dataset.steps_per_epoch
        )
        self.windows = torch.Generator().manual_seed(settings.seed)

    def go_on_from(self, loaded: LoadedCheckpoint) -> None:
        """Stand where a training stood when it saved a checkpoint, its random numbers included.

        Raises:
            CheckpointError: the checkpoint is of another model.
        """
        about = loaded.metadata
        source = loaded.folder or about.run_id or about.name
        load_checkpoint(
            source,
            which=about.name,
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.schedule,
        )
        for _ in range(about.step - self.step):
            self.dataset.picks(self.windows, self.settings.batch_size)
        self.step = about.step

    def do_step(self) -> dict[str, float]:
        """Learn from one batch; the loss, its parts and the learning rate as metrics.

        Of many ranks each has the loss of its share: the mean is that of the batch.

        Raises:
            ConfigError: the loss is no finite number any more.
        """
        share = self.ranks.share
        with self._timed("data"):
            clips, captions = self.dataset.train_batch(
                self.windows, self.settings.batch_size, share
            )
        with self._timed("forward"):
            loss, parts = self._shared(clips.to(self.settings.device), captions, share)
        self.step += 1
        self._agree(loss.item())
        learning_rate = float(self.schedule.get_last_lr()[0])
        self._learn(loss)
        named = {f"train/{name}": value.item() for name, value in parts.items()}
        return {"train/loss": loss.item(), "train/learning_rate": learning_rate, **named}

    def _learn(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        with self._timed("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(self.model.parameters(), _MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.schedule.step()

    def _timed(self, part: str) -> AbstractContextManager[None]:
        if self._tracker is None:
            return nullcontext()
        return self._tracker.profile_operation(part, "loop")

    def _agree(self, loss: float) -> None:
        """No rank waits in the backward pass for one that has left, or that leaves behind it."""
        is_bad = not math.isfinite(loss)
        has_diverged, self.must_end = self.ranks.any(is_bad, self.ranks.is_told_to_end)
        if has_diverged:
            rate = self.settings.learning_rate
            said = loss if is_bad else "no finite number on another rank"
            raise ConfigError(
                f"learning_rate is {rate:g}: the loss is {said} at step {self.step}; "
                "give a lower one"
            )


@dataclass(frozen=True)
class Course:
    """What a training came to: its best checkpoint, and whether it was told to end on its way."""

    best: BestValue | None
    was_told_to_end: bool


def train(
    settings: Settings,
    tracker: ExperimentTracker,
    ranks: Ranks,
    resume: LoadedCheckpoint | None = None,
) -> Course:
    """Train a model, and log what is needed to judge it and to train it again.

    Raises:
        DataError: the data hold too little to train on.
        VideoError: a film that cannot be read.
        ConfigError: the training diverged.
        CheckpointError: the checkpoint to go on from is of another model.
    """
    torch.manual_seed(settings.seed)
    dataset = load_dataset(settings.data, frames=settings.frames, size=settings.size)
    log_dataset(dataset, tracker, context="training")
    training = Training(settings, dataset, tracker, ranks)
    begin(training, tracker, resume)
    best, done = best_before(resume), resume.metadata.epoch if resume else 0
    for number in range(done + 1, settings.epochs + 1):
        epoch = run_epoch(number, training, tracker)
        if epoch is None:
            save_checkpoint(number - 1, training, None, tracker)
            break
        best = better(best, epoch)
        if ranks.is_owner:
            click.echo(summary.epoch_line(epoch, of=settings.epochs))
    return Course(best, training.must_end)


def best_before(resume: LoadedCheckpoint | None) -> BestValue | None:
    """The best checkpoint of what came before; its passport is that of all scores here."""
    known = resume.metadata.best.get(_MONITOR) if resume else None
    return replace(known, passport="") if known else None


def better(best: BestValue | None, epoch: Epoch) -> BestValue:
    """The best checkpoint so far, of equally good ones the first."""
    value = BestValue(epoch.checkpoint, epoch.scores.psnr, _MODE)
    return value if best is None or best.is_beaten_by(value) else best


def begin(training: Training, tracker: ExperimentTracker, resume: LoadedCheckpoint | None) -> None:
    """Show what the untrained model is, and have it watched; or go on where training stood."""
    settings = training.settings
    if training.ranks.is_owner:
        look_into(training, tracker, is_new=resume is None)
    if resume is not None:
        bring_in(training.ranks, tracker)
        training.go_on_from(resume)
    elif training.ranks.is_owner:
        # MLflow's image grid opens at step 0: what the untrained model makes.
        log_samples(training.model, training.dataset, tracker, seed=settings.seed)
    training.ranks.follow_owner()


def look_into(training: Training, tracker: ExperimentTracker, *, is_new: bool) -> None:
    """Log what a new model is made of, and have it watched while it is trained."""
    model, settings = training.model, training.settings
    if settings.watch and is_new:
        # Windows of its own, so that the training's are the same with and without.
        clips, captions = training.dataset.train_batch(torch.Generator().manual_seed(0), 1)
        tracker.log_graph(model, (clips.to(settings.device), captions), call=model.loss)
    if settings.watch:
        tracker.watch(model, settings.watch)


def run_epoch(number: int, training: Training, tracker: ExperimentTracker) -> Epoch | None:
    """Train for an epoch, then log scores, a sample and a checkpoint; None when told to end."""
    started_s, ranks = time.perf_counter(), training.ranks
    losses = []
    while training.step < number * training.dataset.steps_per_epoch:
        metrics = training.do_step()
        tracker.log_metrics(metrics, training.step, reduce="mean")
        losses.append(metrics["train/loss"])
        if training.must_end:
            return None
    scores = judge(training, tracker)
    tracker.log_performance_metrics()
    checkpoint = save_checkpoint(number, training, scores, tracker)
    if ranks.is_owner:
        # Behind the checkpoint of its step: by that it is known what made it.
        with tracker.profile_operation("samples"):
            log_samples(training.model, training.dataset, tracker, seed=training.settings.seed)
    loss = ranks.mean(float(np.mean(losses)) if losses else math.nan)
    return Epoch(number, checkpoint, loss, scores, time.perf_counter() - started_s)


def judge(training: Training, tracker: ExperimentTracker) -> Scores:
    """Score the model on the held-out frames, and log the scores; the owner does, all know them."""
    ranks, batch_size = training.ranks, training.settings.batch_size
    scores = None
    if ranks.is_owner:
        with tracker.profile_operation("validate", "evaluation"):
            scores = validate(training.model, training.dataset, batch_size=batch_size)
        tracker.log_metrics(scores.named("val"), training.step)
    told = ranks.told_by_owner(json.dumps(asdict(scores)) if scores else "")
    ranks.follow_owner()
    return scores or Scores(**json.loads(told))


def save_checkpoint(
    number: int, training: Training, scores: Scores | None, tracker: ExperimentTracker
) -> str:
    """Save a checkpoint that training can go on from and serving can load; every rank has to."""
    settings = {**asdict(training.settings), "device": str(training.settings.device)}
    return tracker.save_checkpoint(
        training.model,
        training.optimizer,
        training.schedule,
        epoch=number,
        step=training.step,
        metrics=scores.named("val") if scores else None,
        config={**settings, "fps": training.dataset.fps},
        model_config=training.shape.to_dict(),
        monitor=_MONITOR if scores else None,
        mode=_MODE,
    )


def register(name: str, tracker: ExperimentTracker) -> RegisteredVersion:
    """Make the run's best checkpoint the next version of a registered model.

    Raises:
        DeliveryError: the checkpoint has not arrived in MLflow.
        RegistryError: MLflow refused or did not answer.
    """
    wait_s = max(ARRIVAL_WAIT_S, tracker.config.drain_timeout_s)
    if not tracker.flush(sink="mlflow", timeout_s=wait_s):
        raise DeliveryError(
            f"{name} is not registered: not all is in MLflow after {wait_s:g} s; once it is "
            f"(opusclip status): opusclip register RUN --as {name}"
        )
    return registry.register(
        tracker.run_id,
        name=name,
        python_model=serving.MODEL_FILE,
        input_example=serving.INPUT_EXAMPLE,
        signature=serving.SIGNATURE,
        pip_requirements=serving.pip_requirements(),
        tracking_uri=tracker.config.tracking_uri,
        registry_uri=tracker.config.registry_uri,
    )


@click.command()
@click.option("--data", default=DEFAULT, help="A film or a folder of films; default: the sample.")
@click.option("--model", default="video", help="video or transformer.")
@click.option("--epochs", default="10", help="1 to 10000.")
@click.option("--batch-size", default="4", help="Windows in a step, 1 to 1024.")
@click.option("--learning-rate", default="0.002", help="Above 0, at most 1.")
@click.option("--frames", default="16", help="Frames in a window, 2 to 256.")
@click.option("--size", default="64", help="Side in pixels, a multiple of 8 from 16 to 512.")
@click.option("--seed", default="0", help="0 or more; the same seed trains the same model.")
@click.option("--watch", default="500", help="Steps between looks into the model; 0: none.")
@click.option("--device", default="cpu", help="cpu, cuda, cuda:1 or mps.")
@click.option("--experiment", default="video-clips", help="Where `mlflow run` has not chosen one.")
@click.option("--register-as", default="clip-generator", help="A model's name; none: do not.")
def command(experiment: str, **given: str) -> None:
    """Train a model of clips, track it, and register its best checkpoint."""
    config = TrackingConfig(experiment_name=experiment)
    ranks = Ranks(place_in(os.environ), owner=config.metric_rank)
    resume = last_verified(config) if ranks.are_launched else None
    with ExperimentTracker(config, resume=resume) as tracker:
        # As text: `mlflow run` has logged the same texts, and a parameter keeps its first value.
        tracker.log_params({"experiment": experiment, **given})
        with ranks:
            settings = shared_out(Settings.read(given), ranks)
            course = train(settings, tracker, ranks, resume)
        if course.was_told_to_end:
            tracker.close("KILLED", f"SIGTERM: ended behind the checkpoint of step {tracker.step}")
            sys.exit(_EXIT_CODE_OF_SIGTERM)
        if ranks.is_owner:
            name = settings.register_as
            version = register(name, tracker) if name else None
            run_id = tracker.run_id if tracker.flush(sink="mlflow") else None
    if ranks.is_owner:
        said = summary.closing(
            course.best, version, run_id=run_id, local_id=tracker.local_id, config=config
        )
        click.echo(said)


if __name__ == "__main__":
    options.start(command)
