"""The parts both models are made of."""

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from opusclip_mlops.projects.shares import WHOLE, Share

_WORDS = 1024
_FORGOTTEN, _WORDLESS = 0.3, 0.15


class CaptionEncoder(nn.Module):
    """Turns captions into vectors (B, width): the mean of learned vectors, one a word.

    A word says nothing until it was trained on, and training forgets words at random: so a prompt
    of unknown words, or of none, still shows what the model knows.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(_WORDS, width, mode="mean")
        nn.init.zeros_(self.words.weight)

    def forward(self, captions: Sequence[str], share: Share = WHOLE) -> Tensor:
        """Encode a share of a batch's captions; any text will do, an empty one included."""
        device = self.words.weight.device
        # All are forgotten from: how many numbers that draws depends on their words.
        remembered = [self._remembered(caption) for caption in captions]
        tokens = [_tokens(caption) for caption in remembered[share.rows(len(remembered))]]
        starts = np.cumsum([0, *(len(one) for one in tokens[:-1])])
        flat = torch.tensor([token for one in tokens for token in one], device=device)
        encoded: Tensor = self.words(flat, torch.from_numpy(starts).to(device))
        return encoded

    def _remembered(self, caption: str) -> str:
        if not self.training:
            return caption
        forgotten = 1.0 if torch.rand(()) < _WORDLESS else _FORGOTTEN
        return " ".join(word for word in caption.split() if torch.rand(()) >= forgotten)


def _tokens(caption: str) -> list[int]:
    words = caption.lower().split() or [""]
    return [zlib.crc32(word.encode()) % _WORDS for word in words]


class Convolve(nn.Module):
    """Normalises, then looks at `time` frames and 3 by 3 places around each."""

    def __init__(self, before: int, after: int, *, time: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, before)
        self.convolve = nn.Conv3d(before, after, (time, 3, 3), padding=(time // 2, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, before, T, H, W) as (B, after, T, H, W)."""
        convolved: Tensor = self.convolve(functional.silu(self.norm(frames)))
        return convolved


class Block(nn.Module):
    """Attention over a frame's patches, over each patch's past, and a perceptron."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.within = nn.ModuleList([nn.Linear(width, 3 * width), nn.Linear(width, width)])
        self.across = nn.ModuleList([nn.Linear(width, 3 * width), nn.Linear(width, width)])
        self.think = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, P, width), the same shape back."""
        hidden = hidden + self._attend(self.norms[0](hidden), self.within, causal=False)
        past = self._attend(self.norms[1](hidden).transpose(1, 2), self.across, causal=True)
        hidden = hidden + past.transpose(1, 2)
        thought: Tensor = hidden + self.think(self.norms[2](hidden))
        return thought

    def _attend(self, hidden: Tensor, layers: nn.ModuleList, *, causal: bool) -> Tensor:
        # With one dimension more, PyTorch would take its slow attention.
        asked: Tensor = layers[0](hidden.flatten(0, 1))
        parts = asked.reshape(*asked.shape[:-1], 3, self.heads, -1)
        query, key, value = (part.transpose(-3, -2) for part in parts.unbind(-3))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        attended: Tensor = layers[1](mixed.transpose(-3, -2).flatten(-2))
        return attended.reshape(*hidden.shape[:2], *attended.shape[1:])


def time_features(frames: int, width: int, *, of: int = 0) -> Tensor:
    """Sines and cosines (frames, width) of the time in a clip, 0 at its begin and 1 at its end.

    Without `of` the frames are spread over the whole clip, with it they are the first of so many.
    """
    times = torch.arange(frames) / max(1, (of or frames) - 1)
    waves = torch.arange(width // 2)
    angles = times[:, None] * math.pi * (1 + waves[None]) / 2
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def drawn(mean: Tensor, log_variance: Tensor, share: Share = WHOLE) -> Tensor:
    """A random draw of a diagonal Gaussian that gradients pass through."""
    return mean + share.randn_like(mean) * (0.5 * log_variance).exp()


def divergence(
    mean: Tensor,
    log_variance: Tensor,
    prior_mean: Tensor | None = None,
    prior: Tensor | None = None,
) -> Tensor:
    """Kullback-Leibler divergence of two diagonal Gaussians in nats a value, the mean over all.

    The second is the standard normal unless given by its mean and log variance.
    """
    prior_mean = torch.zeros_like(mean) if prior_mean is None else prior_mean
    prior = torch.zeros_like(mean) if prior is None else prior
    squared = (mean - prior_mean).square() + log_variance.exp()
    return 0.5 * (prior - log_variance + squared / prior.exp() - 1).mean()
