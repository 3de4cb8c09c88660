"""Trains a model of clips and tracks it: what `mlflow run .` starts.

clips -> epochs of train, validate, sample, checkpoint -> the best checkpoint is registered
"""

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import click
import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from opusclip_mlops import registry
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.errors import ConfigError, DeliveryError
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.panels import Panel
from opusclip_mlops.projects import options, serving, summary
from opusclip_mlops.projects.data import DEFAULT, MAX_FRAMES, MAX_SIZE, ClipDataset, load_dataset
from opusclip_mlops.projects.models import KINDS, ClipModel, ModelConfig, build_model
from opusclip_mlops.registry import RegisteredVersion
from opusclip_mlops.samples import Origin
from opusclip_mlops.scoring import calculate_video_metrics
from opusclip_mlops.tracker import ExperimentTracker
from opusclip_mlops.video import to_frames

_MAX_GRADIENT_NORM = 1.0
_ARRIVAL_WAIT_S = 600.0
_PANEL_PROMPTS = 4
_PROMPT_CHARACTERS = 1000


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


@dataclass(frozen=True)
class Scores:
    """How good a model is on the held-out frames.

    Attributes:
        loss: The training objective.
        psnr: Of `predict`, in dB, over all held-out frames at once.
        ssim: Of `predict`, -1..1.
        baseline_psnr: In dB, of the mean training frame shown in place of every held-out one.
    """

    loss: float
    psnr: float
    ssim: float
    baseline_psnr: float

    def named(self, prefix: str) -> dict[str, float]:
        """The scores as metrics: `val/psnr` and so on."""
        return {f"{prefix}/{name}": value for name, value in asdict(self).items()}


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

    With a tracker the parts of each step are timed.
    """

    def __init__(
        self, settings: Settings, dataset: ClipDataset, tracker: ExperimentTracker | None = None
    ) -> None:
        self.settings, self.dataset, self.step = settings, dataset, 0
        self._tracker = tracker
        self.shape = ModelConfig(kind=settings.model, frames=settings.frames, size=settings.size)
        self.model = build_model(self.shape).to(settings.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, settings.epochs * dataset.steps_per_epoch
        )
        self.windows = torch.Generator().manual_seed(settings.seed)

    def do_step(self) -> dict[str, float]:
        """Learn from one batch; the loss, its parts and the learning rate as metrics.

        Raises:
            ConfigError: the loss is no finite number any more.
        """
        with self._timed("data"):
            clips, captions = self.dataset.train_batch(self.windows, self.settings.batch_size)
        with self._timed("forward"):
            loss, parts = self.model.loss(clips.to(self.settings.device), captions)
        self.step += 1
        self._check(loss.item())
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

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            rate = self.settings.learning_rate
            raise ConfigError(
                f"learning_rate is {rate:g}: the loss is {loss} at step {self.step}; "
                "give a lower one"
            )


def train(settings: Settings, tracker: ExperimentTracker) -> list[Epoch]:
    """Train a model, and log what is needed to judge it and to train it again.

    Raises:
        DataError: the data hold too little to train on.
        VideoError: a film that cannot be read.
        ConfigError: the training diverged.
    """
    torch.manual_seed(settings.seed)
    dataset = load_dataset(settings.data, frames=settings.frames, size=settings.size)
    log_dataset(dataset, tracker, context="training")
    training = Training(settings, dataset, tracker)
    look_into(training, tracker)
    # MLflow's image grid opens at step 0: what the untrained model makes.
    log_samples(training.model, dataset, tracker, seed=settings.seed)
    epochs = []
    for number in range(1, settings.epochs + 1):
        epochs.append(run_epoch(number, training, tracker))
        click.echo(summary.epoch_line(epochs[-1], of=settings.epochs))
    return epochs


def look_into(training: Training, tracker: ExperimentTracker) -> None:
    """Log what the model is made of, and have it watched while it is trained."""
    model, settings = training.model, training.settings
    if settings.watch:
        # Windows of its own, so that the training's are the same with and without.
        clips, captions = training.dataset.train_batch(torch.Generator().manual_seed(0), 1)
        tracker.log_graph(model, (clips.to(settings.device), captions), call=model.loss)
        tracker.watch(model, settings.watch)


def run_epoch(number: int, training: Training, tracker: ExperimentTracker) -> Epoch:
    """Train for an epoch, then log scores, a sample and a checkpoint."""
    started_s = time.perf_counter()
    losses = []
    for _ in range(training.dataset.steps_per_epoch):
        metrics = training.do_step()
        tracker.log_metrics(metrics, training.step)
        losses.append(metrics["train/loss"])
    with tracker.profile_operation("validate", "evaluation"):
        scores = validate(training.model, training.dataset, batch_size=training.settings.batch_size)
    tracker.log_metrics(scores.named("val"), training.step)
    tracker.log_performance_metrics()
    checkpoint = save_checkpoint(number, training, scores, tracker)
    # Behind the checkpoint of its step: by that it is known what made it.
    with tracker.profile_operation("samples"):
        log_samples(training.model, training.dataset, tracker, seed=training.settings.seed)
    seconds = time.perf_counter() - started_s
    return Epoch(number, checkpoint, float(np.mean(losses)), scores, seconds)


@torch.no_grad()
def validate(model: ClipModel, dataset: ClipDataset, *, batch_size: int) -> Scores:
    """Score a model on the held-out frames, none of which it was trained on."""
    windows, captions = zip(*dataset.held_out_windows(), strict=True)
    device = next(model.parameters()).device
    losses, predicted = [], []
    model.eval()
    for start in range(0, len(windows), batch_size):
        clips = torch.stack(windows[start : start + batch_size]).to(device)
        said = captions[start : start + batch_size]
        losses += [model.loss(clips, said)[0].item()] * len(clips)
        predicted.append(model.predict(clips, said).clamp(0, 1).flatten(0, 1).cpu())
    model.train()
    target = torch.cat(windows)
    scores = calculate_video_metrics(torch.cat(predicted), target)
    baseline = calculate_video_metrics(dataset.mean_train_frame().expand_as(target), target)
    return Scores(float(np.mean(losses)), **scores, baseline_psnr=baseline["psnr"])


def log_samples(
    model: ClipModel,
    dataset: ClipDataset,
    tracker: ExperimentTracker,
    *,
    seed: int,
    checkpoint: CheckpointMetadata | None = None,
) -> None:
    """Log what a model makes of the captions: a panel, and one clip beside a held-out one.

    Args:
        model: What makes them.
        dataset: Where captions and the held-out clip are from.
        tracker: Logs them.
        seed: Of what is generated.
        checkpoint: What the model was loaded from; otherwise that which was saved at this step.
    """
    panel = panel_of(dataset, seed=seed)
    clips = [
        model.generate(one.prompt, seed=one.seed, frames=dataset.frames) for one in panel.cells
    ]
    tracker.log_panel(panel, clips, fps=dataset.fps, checkpoint=checkpoint)
    log_pair(model, dataset, tracker, seed=seed, checkpoint=checkpoint)


def panel_of(dataset: ClipDataset, *, seed: int) -> Panel:
    """The same panel for every model of a dataset: its first captions."""
    captions = dict.fromkeys(one[:_PROMPT_CHARACTERS] for one in dataset.captions())
    return Panel(
        name="captions",
        prompts=tuple(captions)[:_PANEL_PROMPTS],
        seeds=(seed,),
        sampler={"frames": dataset.frames, "size": dataset.clips[0].train.shape[-1]},
    )


def log_pair(
    model: ClipModel,
    dataset: ClipDataset,
    tracker: ExperimentTracker,
    *,
    seed: int,
    checkpoint: CheckpointMetadata | None,
) -> None:
    """Log a generated clip beside a held-out one of the same caption: generated | target."""
    window, caption = dataset.held_out_windows()[0]
    generated = model.generate(caption, seed=seed, frames=len(window))
    pair = np.concatenate([generated, to_frames(window)], axis=2)
    held_out = dataset.clips[0].pieces()[1]
    shown = replace(held_out, end_s=held_out.start_s + len(window) / dataset.fps)
    origin = Origin(
        prompt=caption,
        seed=seed,
        sampler={"frames": len(window)},
        checkpoint=checkpoint.name if checkpoint else "",
        weights_sha256=checkpoint.weights_sha256 if checkpoint else "",
        sources=(shown,),
    )
    tracker.log_video(
        pair, "samples/generated_vs_target", fps=dataset.fps, caption=caption, origin=origin
    )


def save_checkpoint(
    number: int, training: Training, scores: Scores, tracker: ExperimentTracker
) -> str:
    """Save a checkpoint that training can go on from and serving can load."""
    settings = {**asdict(training.settings), "device": str(training.settings.device)}
    return tracker.save_checkpoint(
        training.model,
        training.optimizer,
        training.schedule,
        epoch=number,
        step=training.step,
        metrics=scores.named("val"),
        config={**settings, "fps": training.dataset.fps},
        model_config=training.shape.to_dict(),
        monitor="val/psnr",
        mode="max",
    )


def log_dataset(dataset: ClipDataset, tracker: ExperimentTracker, *, context: str) -> None:
    """Log a dataset as an input of the run, with the films that it is made of."""
    profile: dict[str, Any] = {
        "clips": len(dataset.clips),
        "train_frames": dataset.train_frame_count,
        "held_out_frames": dataset.held_out_frame_count,
        "fps": dataset.fps,
    }
    sources = [Path(one).resolve() for one in dataset.sources]
    source = sources[0] if len(sources) == 1 else sources[0].parent
    tracker.log_dataset(
        name=dataset.name,
        digest=dataset.digest,
        source=str(source),
        profile=profile,
        context=context,
        sources=dataset.pieces(context=context),
    )


def register(name: str, tracker: ExperimentTracker) -> RegisteredVersion:
    """Make the run's best checkpoint the next version of a registered model.

    Raises:
        DeliveryError: the checkpoint has not arrived in MLflow.
        RegistryError: MLflow refused or did not answer.
    """
    wait_s = max(_ARRIVAL_WAIT_S, tracker.config.drain_timeout_s)
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
    with ExperimentTracker(config) as tracker:
        # As text: `mlflow run` has logged the same texts, and a parameter keeps its first value.
        tracker.log_params({"experiment": experiment, **given})
        settings = Settings.read(given)
        epochs = train(settings, tracker)
        name = settings.register_as
        version = register(name, tracker) if name else None
        run_id = tracker.run_id if tracker.flush(sink="mlflow") else None
    click.echo(
        summary.closing(epochs, version, run_id=run_id, local_id=tracker.local_id, config=config)
    )


if __name__ == "__main__":
    options.start(command)
