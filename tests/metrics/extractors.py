"""Extractors of a few numbers, for tests of what is done with them."""

import torch
from torch import Tensor


class Projection:
    """Eight fixed random mixtures of a coarse picture."""

    weights_sha256 = "ab" * 32

    def __init__(self, name: str = "projection-8", *, features: int = 8, cell: int = 4) -> None:
        self.name = name
        self.calls = 0
        self._cell = cell
        generator = torch.Generator().manual_seed(1)
        self._mixture = torch.randn(3 * cell * cell, features, generator=generator)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Features (N, 8) of (N,H,W,3) or (N,T,H,W,3)."""
        self.calls += 1
        frames = pictures.float().reshape(len(pictures), -1, *pictures.shape[-3:])
        flat = frames.mean(1).movedim(-1, 1)
        coarse = torch.nn.functional.adaptive_avg_pool2d(flat, self._cell) / 255
        return coarse.flatten(1) @ self._mixture


class Fixed:
    """Gives back what it was made with."""

    weights_sha256 = "cd" * 32

    def __init__(self, features: Tensor, name: str = "fixed") -> None:
        self.name = name
        self.features = features

    def __call__(self, pictures: Tensor) -> Tensor:
        """What it was made with, whatever the pictures are."""
        return self.features[: len(pictures)] if len(self.features) else self.features


def frames(count: int, *, seed: int = 0, bright: int = 0, size: int = 12) -> Tensor:
    """Noise (count, size, size, 3), the brighter the higher `bright`."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 200, (count, size, size, 3), generator=generator)
    return (noise + bright).clamp(max=255).byte()
