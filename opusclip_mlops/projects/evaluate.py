"""Scores a trained model on held-out frames, as a run of its own: `mlflow run . -e evaluate`."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import click
import mlflow
import torch
from mlflow.models import Model

from opusclip_mlops.checkpoints import WEIGHTS, CheckpointMetadata, load_weights, read_metadata
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.errors import CheckpointError, ConfigError, RegistryError
from opusclip_mlops.projects import options
from opusclip_mlops.projects.data import DEFAULT, MAX_FRAMES, MAX_SIZE, ClipDataset, load_dataset
from opusclip_mlops.projects.judging import Scores, log_dataset, log_samples, validate
from opusclip_mlops.projects.models import ClipModel, ModelConfig, build_model
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import asking_faults
from opusclip_mlops.tracker import ExperimentTracker

_BATCH_SIZE = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an evaluation is asked for, checked."""

    data: str
    model_uri: str
    frames: int
    size: int
    seed: int
    device: torch.device

    @classmethod
    def read(cls, given: Mapping[str, str]) -> Self:
        """Check the texts of a command line.

        Raises:
            ConfigError: a value is malformed or out of range.
        """
        return cls(
            data=given["data"],
            model_uri=given["model_uri"],
            frames=options.whole("frames", given["frames"], 2, MAX_FRAMES),
            size=options.whole("size", given["size"], 16, MAX_SIZE),
            seed=options.whole("seed", given["seed"], 0, options.MAX_SEED),
            device=options.device(given["device"]),
        )


def fetch_checkpoint(model_uri: str, into: Path) -> Path:
    """The checkpoint folder of a registered model, of a run, or on this machine.

    Args:
        model_uri: models:/NAME/1, runs:/RUN/checkpoints/NAME or a folder.
        into: Where to put what is fetched.

    Raises:
        RegistryError: no such model or run, or MLflow did not answer.
        CheckpointError: no such folder.
    """
    if ":/" not in model_uri:
        folder = Path(model_uri)
        if not folder.is_dir():
            raise CheckpointError(
                f"model_uri is {model_uri!r}: give models:/NAME/1 or a checkpoint's folder"
            )
        return _checkpoint_in(folder)
    try:
        return _checkpoint_in(
            Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=str(into)))
        )
    except asking_faults() as error:
        raise RegistryError(f"cannot fetch {model_uri}: {one_line(str(error))}") from error


def _checkpoint_in(folder: Path) -> Path:
    registered = folder / "artifacts" / "checkpoint"
    return registered if registered.is_dir() else folder


def load_model(folder: Path, settings: Settings) -> tuple[ClipModel, CheckpointMetadata]:
    """Build the model of a checkpoint with its weights, which are verified.

    Raises:
        CheckpointError: the checkpoint is not whole, or not of a clip model.
        ConfigError: the model was trained on other frames or another size.
    """
    about = read_metadata(folder)
    try:
        config = ModelConfig.from_dict(about.model["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} is no clip model's checkpoint: {error}") from error
    for name in ("frames", "size"):
        asked, trained = getattr(settings, name), getattr(config, name)
        if asked != trained:
            raise ConfigError(f"{name} is {asked}, the model was trained with {trained}: give that")
    model = build_model(config)
    # Not the training state: a registered model has none.
    weights = about.shards("weights") if about.is_sharded else [WEIGHTS]
    metadata = load_weights(folder, model, only=weights)
    return model.to(settings.device), metadata


def evaluate(settings: Settings, tracker: ExperimentTracker) -> str:
    """Score a model on the held-out frames; logs the scores and samples, returns the table.

    Raises:
        OpusclipError: the data or the model cannot be read; the message names which.
    """
    dataset = load_dataset(settings.data, frames=settings.frames, size=settings.size)
    log_dataset(dataset, tracker, context="evaluation")
    with tempfile.TemporaryDirectory(prefix="opusclip-") as temporary:
        folder = fetch_checkpoint(settings.model_uri, Path(temporary))
        model, metadata = load_model(folder, settings)
        tracker.set_tags(origin(folder, metadata))
    torch.manual_seed(settings.seed)
    scores = validate(model, dataset, batch_size=_BATCH_SIZE)
    tracker.log_metrics(scores.named("eval"), metadata.step)
    log_samples(model, dataset, tracker, seed=settings.seed, checkpoint=metadata)
    return table(scores, dataset, metadata, model_uri=settings.model_uri)


def origin(folder: Path, metadata: CheckpointMetadata) -> dict[str, str]:
    """Tags that lead from an evaluation to the checkpoint it scored."""
    tags = {
        "opusclip.evaluated.checkpoint": metadata.name,
        "opusclip.evaluated.run": metadata.run_id or _registered_run(folder),
        "opusclip.evaluated.weights_sha256": metadata.weights_sha256,
    }
    return {name: value for name, value in tags.items() if value}


def _registered_run(folder: Path) -> str | None:
    """The run a registered model is of: a checkpoint written before MLflow answered has none."""
    described = folder.parents[1] / "MLmodel"
    return Model.load(described).run_id if described.is_file() else None


def table(
    scores: Scores, dataset: ClipDataset, metadata: CheckpointMetadata, *, model_uri: str
) -> str:
    """The scores for people, with what they were measured on."""
    same = "trained on" if dataset.digest == metadata.dataset_digest else "not trained on"
    rows = {
        "model": f"{model_uri} ({metadata.model['class']}, {metadata.name})",
        "data": f"{dataset.name}, {dataset.held_out_frame_count} held-out frames, data {same}",
        "psnr": f"{scores.psnr:.2f} dB",
        "baseline": f"{scores.baseline_psnr:.2f} dB (the mean training frame)",
        "ssim": f"{scores.ssim:.3f}",
        "loss": f"{scores.loss:.4f}",
    }
    return "\n".join(f"{name:<12}{value}" for name, value in rows.items())


@click.command()
@click.option("--data", default=DEFAULT, help="A film or a folder of films; default: the sample.")
@click.option(
    "--model-uri",
    default="models:/clip-generator/1",
    help="A registered model, runs:/RUN/checkpoints/NAME, or a checkpoint's folder.",
)
@click.option("--frames", default="16", help="Frames in a window, as in training.")
@click.option("--size", default="64", help="Side in pixels, as in training.")
@click.option("--seed", default="0", help="Of the sample, 0 or more.")
@click.option("--device", default="cpu", help="cpu, cuda, cuda:1 or mps.")
@click.option("--experiment", default="video-clips", help="Where `mlflow run` has not chosen one.")
def command(experiment: str, **given: str) -> None:
    """Score a trained model on held-out frames, and track it."""
    config = TrackingConfig(experiment_name=experiment)
    mlflow.set_tracking_uri(config.tracking_uri or mlflow.get_tracking_uri())
    mlflow.set_registry_uri(config.registry_uri or mlflow.get_registry_uri())
    with ExperimentTracker(config) as tracker:
        tracker.log_params({"experiment": experiment, **given})
        scored = evaluate(Settings.read(given), tracker)
    click.echo(scored)


if __name__ == "__main__":
    options.start(command)
