"""How good a model is on frames it has never seen, and what it makes, for people to look at."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.panels import Panel
from opusclip_mlops.projects.data import ClipDataset
from opusclip_mlops.projects.models import ClipModel
from opusclip_mlops.samples import Origin
from opusclip_mlops.scoring import calculate_video_metrics
from opusclip_mlops.tracker import ExperimentTracker
from opusclip_mlops.video import to_frames

_PANEL_PROMPTS = 4
_PROMPT_CHARACTERS = 1000


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
