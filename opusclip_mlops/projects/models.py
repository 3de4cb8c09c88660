"""Two small models that learn clips from captions, plain enough to read in one sitting.

`VideoGenerationModel` compresses each frame of a clip into a grid of latents, and learns what these
look like for a caption. `TransformerModel` predicts each frame from those before it, in patches.
Clips are float tensors (B, T, 3, H, W) in 0..1, H = W = `size`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from opusclip_mlops.projects.layers import (
    Block,
    CaptionEncoder,
    Convolve,
    divergence,
    drawn,
    time_features,
)
from opusclip_mlops.projects.shares import WHOLE, Share

MAX_FRAMES = 256
KINDS = ("video", "transformer")

_PATCH = 8
_CLIP_LATENT = 8
_CANVAS_GAIN = 8


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What builds a model again: `kind` is `video` or `transformer`, `size` the side in pixels."""

    kind: str = "video"
    frames: int = 16
    size: int = 64
    width: int = 32

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"model must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.size % _PATCH or self.size < 2 * _PATCH:
            raise ValueError(f"size must be a multiple of {_PATCH}, at least 16, not {self.size}")
        if not 2 <= self.frames <= MAX_FRAMES:
            raise ValueError(f"frames must be 2 to {MAX_FRAMES}, not {self.frames}")

    def to_dict(self) -> dict[str, Any]:
        """The fields, for a checkpoint's metadata."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ModelConfig":
        """The configuration a checkpoint's metadata names; other fields are passed over."""
        return cls(**{name: fields[name] for name in cls.__dataclass_fields__ if name in fields})


def build_model(config: ModelConfig) -> "ClipModel":
    """Make an untrained model."""
    return VideoGenerationModel(config) if config.kind == "video" else TransformerModel(config)


class ClipModel(nn.Module, ABC):
    """What training, evaluation and serving ask of a model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, clip: Tensor, captions: Sequence[str], share: Share = WHOLE
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss`, by the name under which what wraps a model for many processes calls it."""
        return self.loss(clip, captions, share)

    @abstractmethod
    def loss(
        self, clip: Tensor, captions: Sequence[str], share: Share = WHOLE
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss of a batch, and its parts by name.

        Of one that many processes share out `clip` is this process's share, `captions` are of the
        whole batch, and the loss is that of the share: the mean over all shares is the batch's.
        """

    @abstractmethod
    def predict(self, clip: Tensor, captions: Sequence[str]) -> Tensor:
        """What the model says about a real clip that it is shown, same shape, in 0..1."""

    @abstractmethod
    def sample(self, caption: str, frames: int, generator: torch.Generator) -> Tensor:
        """A new clip (T, 3, H, W) in 0..1."""

    @torch.no_grad()
    def generate(
        self, prompt: str, *, seed: int = 0, frames: int | None = None
    ) -> npt.NDArray[np.uint8]:
        """Make a clip for a prompt: uint8 (T, H, W, 3). The same seed makes the same clip.

        Args:
            prompt: What to show.
            seed: 0 to 2**63-1.
            frames: 1 to 256; the trained length otherwise.

        Raises:
            TypeError: the prompt is no text.
            ValueError: frames or seed out of range.
        """
        count = self.config.frames if frames is None else frames
        _check_request(prompt, seed, count)
        was_training = self.training
        self.eval()
        try:
            generator = torch.Generator().manual_seed(seed)
            clip = self.sample(prompt, count, generator).clamp(0, 1)
        finally:
            self.train(was_training)
        return clip.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _check_request(prompt: str, seed: int, frames: int) -> None:
    if not isinstance(prompt, str):
        raise TypeError(f"prompt must be a text, not {type(prompt).__name__}")
    if not 1 <= frames <= MAX_FRAMES:
        raise ValueError(f"frames must be 1 to {MAX_FRAMES}, not {frames}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be 0 to 2**63-1, not {seed}")


class VideoGenerationModel(ClipModel):
    """A captioned variational autoencoder over space and time.

    Each frame becomes a grid of latents, 24 times smaller than its pixels. A clip's own small
    latent says which moment it shows; from it, the caption and the time the prior predicts every
    grid, and the decoder draws them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width, self._latent = config.width, 8
        self._grid = config.size // _PATCH
        self.caption = CaptionEncoder(width)
        self.encoder = nn.Sequential(
            nn.Conv3d(3, width, (1, 4, 4), (1, 4, 4)),
            Convolve(width, width, time=1),
            nn.Conv3d(width, 2 * width, (1, 2, 2), (1, 2, 2)),
            Convolve(2 * width, width, time=3),
        )
        self.to_latent = nn.Conv3d(width, 2 * self._latent, 1)
        self.patch_to_latent = nn.Conv3d(3, self._latent, (1, _PATCH, _PATCH), (1, _PATCH, _PATCH))
        self.latent_to_patch = nn.Conv3d(self._latent, 3 * _PATCH**2, 1)
        self.to_clip_latent = nn.Linear(width * self._grid**2, 2 * _CLIP_LATENT)
        self.canvas = nn.Parameter(torch.zeros(3, config.size, config.size))
        self.prior = nn.Sequential(
            nn.Linear(2 * width + _CLIP_LATENT, 4 * width),
            nn.SiLU(),
            nn.Linear(4 * width, 4 * width),
            nn.SiLU(),
            nn.Linear(4 * width, 2 * self._latent * self._grid**2),
        )
        self.decoder = nn.Sequential(
            nn.Conv3d(self._latent, 2 * width, 1),
            Convolve(2 * width, 2 * width, time=3),
            nn.Upsample(scale_factor=(1, 2, 2)),
            Convolve(2 * width, width, time=1),
            nn.Upsample(scale_factor=(1, 2, 2)),
            Convolve(width, width // 2, time=1),
            nn.Conv3d(width // 2, 12, (1, 3, 3), padding=(0, 1, 1)),
        )

    def loss(
        self, clip: Tensor, captions: Sequence[str], share: Share = WHOLE
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the reconstruction, and how far both latents are from their priors."""
        features = self._features(clip)
        mean, log_variance = self._latents(clip, features)
        latent = drawn(mean, log_variance, share)
        clip_mean, clip_log_variance = self._clip_latent(features)
        moment = drawn(clip_mean, clip_log_variance, share)
        expected = self._expected(moment, captions, clip.shape[1], share)
        parts = {
            "reconstruction": functional.mse_loss(self._decode(latent), clip),
            "latent_distance": divergence(mean, log_variance, *expected),
            "clip_distance": divergence(clip_mean, clip_log_variance),
        }
        total = parts["reconstruction"] + 1e-4 * (
            parts["latent_distance"] + 0.1 * parts["clip_distance"]
        )
        return total, parts

    def predict(self, clip: Tensor, captions: Sequence[str]) -> Tensor:  # noqa: ARG002
        """The clip as it comes back through the latents."""
        mean, _ = self._latents(clip, self._features(clip))
        return self._decode(mean).clamp(0, 1)

    def sample(self, caption: str, frames: int, generator: torch.Generator) -> Tensor:
        """Draw a clip's moment, and decode what the prior expects from there on."""
        moment = torch.randn(1, _CLIP_LATENT, generator=generator).to(self._device)
        mean, _ = self._expected(moment, [caption], frames)
        return self._decode(mean)[0]

    @property
    def _device(self) -> torch.device:
        return self.caption.words.weight.device

    def _features(self, clip: Tensor) -> Tensor:
        features: Tensor = self.encoder(clip.transpose(1, 2))
        return features

    def _latents(self, clip: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance: a plain projection of each patch, and what the features add."""
        mean, log_variance = self.to_latent(features).chunk(2, dim=1)
        return mean + self.patch_to_latent(clip.transpose(1, 2) - 0.5), log_variance - 3

    def _clip_latent(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.to_clip_latent(features.mean(dim=2).flatten(1)).chunk(2, dim=1)
        return mean, log_variance

    def _expected(
        self, moment: Tensor, captions: Sequence[str], frames: int, share: Share = WHOLE
    ) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents (B, C, T, grid, grid) before any frame is seen."""
        times = time_features(frames, self.config.width).to(moment.device)
        known = torch.cat([self.caption(captions, share), moment], dim=1)
        joined = torch.cat([
            known[:, None].expand(-1, frames, -1), times[None].expand(len(known), -1, -1)
        ], dim=2)  # fmt: skip
        grids = self.prior(joined).unflatten(2, (2, self._latent, self._grid, self._grid))
        mean, log_variance = grids.permute(2, 0, 3, 1, 4, 5).unbind(0)
        return mean, log_variance

    def _decode(self, latent: Tensor) -> Tensor:
        patches = functional.pixel_shuffle(self.latent_to_patch(latent).transpose(1, 2), _PATCH)
        details = functional.pixel_shuffle(self.decoder(latent).transpose(1, 2), 2)
        # Multiplied, so that what never moves is learned in the first epochs.
        return (patches + details + _CANVAS_GAIN * self.canvas).sigmoid()


class TransformerModel(ClipModel):
    """Predicts each frame from those before it: each value moves part of the way to an aim.

    Attention runs over the patches of a frame, then over each patch's past. The first frame comes
    from the caption and a small latent that says where the clip begins.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        width = 3 * config.width
        self._grid = config.size // _PATCH
        places, values = self._patch_shape
        self.caption = CaptionEncoder(config.width)
        self.to_clip_latent = nn.Linear(places * values, 2 * _CLIP_LATENT)
        self.first = nn.Linear(config.width + _CLIP_LATENT, places * values)
        self.known = nn.Linear(config.width + _CLIP_LATENT, width)
        self.embed = nn.Linear(values, width)
        self.places = nn.Parameter(0.02 * torch.randn(places, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.aim = nn.Linear(width, values)
        self.pull = nn.Linear(width, values)
        self.canvas = nn.Parameter(torch.zeros(places, values))
        # Before it has learned anything, the next frame is nearly the last one.
        nn.init.constant_(self.pull.bias, -2)

    def loss(
        self, clip: Tensor, captions: Sequence[str], share: Share = WHOLE
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of every predicted frame.

        Half of the past it sees are frames it has predicted itself, so that it learns to come back
        from its own errors: a clip is generated from nothing else.
        """
        patches = self._patches(clip)
        mean, log_variance = self.to_clip_latent(patches[:, 0].flatten(1)).chunk(2, dim=1)
        where = drawn(mean, log_variance, share)
        with torch.no_grad():
            first, following = self._predict(patches[:, :-1], captions, where, share)
            own = torch.cat([first, following[:, :-1]], dim=1).clamp(0, 1)
            is_own = share.rand_like(own[:, :, :1, :1]) < 0.5
        past = torch.where(is_own, own, patches[:, :-1])
        first, following = self._predict(past, captions, where, share)
        parts = {
            "first_frame": functional.mse_loss(first, patches[:, :1]),
            "next_frames": functional.mse_loss(following, patches[:, 1:]),
            "clip_distance": divergence(mean, log_variance),
        }
        total = parts["first_frame"] + parts["next_frames"] + 2e-3 * parts["clip_distance"]
        return total, parts

    def predict(self, clip: Tensor, captions: Sequence[str]) -> Tensor:
        """Each frame as predicted from the real frames before it, the first from the caption."""
        nowhere = torch.zeros(len(clip), _CLIP_LATENT, device=clip.device)
        frames = self._predict(self._patches(clip)[:, :-1], captions, nowhere)
        return self._frames(torch.cat(frames, dim=1)).clamp(0, 1)

    def sample(self, caption: str, frames: int, generator: torch.Generator) -> Tensor:
        """Draw where the clip begins, then predict frame after frame from the last ones."""
        where = torch.randn(1, _CLIP_LATENT, generator=generator).to(self.places.device)
        made = self._first_frame([caption], where)
        while made.shape[1] < frames:
            past = made[:, -(self.config.frames - 1) :]
            _, following = self._predict(past, [caption], where)
            made = torch.cat([made, following[:, -1:].clamp(0, 1)], dim=1)
        return self._frames(made)[0]

    @property
    def _patch_shape(self) -> tuple[int, int]:
        return self._grid**2, 3 * _PATCH**2

    def _predict(
        self, past: Tensor, captions: Sequence[str], where: Tensor, share: Share = WHOLE
    ) -> tuple[Tensor, Tensor]:
        """The first frame (B, 1, P, V), and behind each frame of `past` (B, T, P, V) the next."""
        known = torch.cat([self.caption(captions, share), where], dim=1)
        hidden = self.embed(past - 0.5) + self.places + self.known(known)[:, None, None]
        times = time_features(past.shape[1], hidden.shape[-1], of=self.config.frames)
        hidden = hidden + times.to(hidden.device)[:, None]
        for block in self.blocks:
            hidden = block(hidden)
        hidden = self.norm(hidden)
        aim = (self.aim(hidden) + _CANVAS_GAIN * self.canvas).sigmoid()
        following = past + self.pull(hidden).sigmoid() * (aim - past)
        return self._first_frame(captions, where, share), following

    def _first_frame(self, captions: Sequence[str], where: Tensor, share: Share = WHOLE) -> Tensor:
        known = torch.cat([self.caption(captions, share), where], dim=1)
        values = self.first(known).unflatten(1, (1, self._grid**2, -1))
        first: Tensor = (values + _CANVAS_GAIN * self.canvas).sigmoid()
        return first

    def _patches(self, clip: Tensor) -> Tensor:
        """(B, T, 3, H, W) as patches (B, T, P, V)."""
        cut = functional.unfold(clip.flatten(0, 1), _PATCH, stride=_PATCH)
        return _unflattened(cut.transpose(1, 2), clip)

    def _frames(self, patches: Tensor) -> Tensor:
        """Patches (B, T, P, V) as (B, T, 3, H, W)."""
        size = (self.config.size, self.config.size)
        flat = patches.flatten(0, 1).transpose(1, 2)
        return _unflattened(functional.fold(flat, size, _PATCH, stride=_PATCH), patches)


def _unflattened(flat: Tensor, like: Tensor) -> Tensor:
    """(B * T, …) as (B, T, …), with the B and T of another tensor."""
    return flat.reshape(*like.shape[:2], *flat.shape[1:])
