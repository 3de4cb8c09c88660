"""How close pictures are to what each of them should look like: PSNR, SSIM, MS-SSIM.

All three are over RGB bytes, so that files and tensors give the same numbers, and keep one value a
frame, so that a score comes with its interval.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torchmetrics
from torch import Tensor
from torch.nn.functional import pad
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from torchmetrics.utilities import dim_zero_cat

from opusclip_mlops.errors import VideoError
from opusclip_mlops.intervals import Floats, over_frames
from opusclip_mlops.metrics.networks import (
    ValueRange,
    colour_range,
    in_parts,
    measuring,
    pictures_in,
    to_bytes,
)
from opusclip_mlops.passports import Interval, Passport, Score, Setting

VERSION = "1"

_PEAK = 255.0
_WINDOW = 11  # side in pixels of the Gaussian window, sigma 1.5
_REACH = _WINDOW // 2
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
_TILE_PIXELS = 8000  # four fields of them stay in a core's own cache
_PART_PIXELS = 400_000  # of torchmetrics' MS-SSIM at once, which takes about 1 kB a pixel


class FrameMetric(torchmetrics.Metric):
    """What the metrics share: pairs of pictures go in, one value a pair is kept."""

    is_differentiable = False
    full_state_update = False
    higher_is_better = True
    metric: str
    least_side = 1
    """The side in pixels below which pictures are refused."""
    values: list[Tensor]

    def __init__(self, *, value_range: ValueRange | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.value_range = value_range
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, pictures: Any, targets: Any) -> None:
        """Compare pictures with what each of them should look like.

        Args:
            pictures: (N,H,W,3) or (N,3,H,W), arrays or tensors.
            targets: The same, of the same size.

        Raises:
            VideoError: Another shape, type or range; unequal sizes; pictures that are too small.
        """
        first = pictures_in(pictures, value_range=self.value_range)
        second = pictures_in(targets, value_range=self.value_range, of="targets")
        self._check_pair(tuple(first.shape), tuple(second.shape))
        with measuring(self.device):
            self.values.append(self._compared(first, second))

    def _compared(self, first: Tensor, second: Tensor) -> Tensor:
        """One value a pair (N,), of pictures (N,3,H,W) as they were given."""
        pair = (to_bytes(one, self.value_range).to(self.device) for one in (first, second))
        return self._measured(*pair)

    def _check_pair(self, first: tuple[int, ...], second: tuple[int, ...]) -> None:
        if first != second:
            raise VideoError(
                f"the pictures are {first} and their targets {second} (N,3,H,W): "
                "bring both to one number and size"
            )
        if min(first[-2:]) < self.least_side:
            raise VideoError(
                f"pictures of {first[-1]}x{first[-2]} are too small for {self.metric}: "
                f"pass at least {self.least_side}x{self.least_side} pixels"
            )

    @abstractmethod
    def _measured(self, first: Tensor, second: Tensor) -> Tensor:
        """One value a pair (N,), of uint8 (N,3,H,W) on the metric's device."""

    def compute(self) -> Tensor:
        """The value over all pairs.

        Raises:
            VideoError: There were none.
        """
        values = self._all()
        mean = np.atleast_1d(np.float64(values.mean().item()))
        return torch.as_tensor(self._of_mean(mean)[0], device=values.device)

    def _all(self) -> Tensor:
        if not len(self.values):
            raise VideoError(f"{self.metric} over no pictures: update it first")
        return dim_zero_cat(self.values)

    def _of_mean(self, mean: Floats) -> Floats:
        """The metric of what its values are on average."""
        return mean

    def _settings(self) -> dict[str, Setting]:
        return {}

    def _network(self) -> dict[str, Any]:
        """Name and digest of the network, for passports; empty without one."""
        return {}

    def _interval(self, values: Floats) -> Interval | None:
        return over_frames(values, transform=self._of_mean)

    def score(
        self, *, sampling: str = "every frame", resize: str = "none", reference: str = ""
    ) -> Score:
        """The value with its passport and interval; across ranks, every rank must call it.

        Args:
            sampling: Which frames the caller took.
            resize: How the caller brought them to a size.
            reference: Digest of the targets, where they are always the same.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            values = self._all().cpu().numpy()
            passport = Passport(
                metric=self.metric,
                version=VERSION,
                count=len(values),
                unit="frames",
                sampling=sampling,
                resize=resize,
                colour_range=colour_range(self.value_range),
                reference=reference,
                settings=self._settings(),
                interval=self._interval(values),
                **self._network(),
            )
            return Score(float(self._of_mean(values.mean(keepdims=True))[0]), passport)


class PSNR(FrameMetric):
    """Peak signal-to-noise ratio of pictures, in dB.

    10·log10(255² / MSE), with the MSE taken over every pixel, channel and frame at once, as in
    the `average` of FFmpeg's psnr filter (not the mean of the frames' PSNR, which one perfect
    frame would make infinite). 0 or more, larger is closer; identical pictures: inf.

    Args:
        value_range: What black and white are. None: pictures are uint8. Otherwise floats.
        options: Of `torchmetrics.Metric`.
    """

    metric = "psnr"

    def _measured(self, first: Tensor, second: Tensor) -> Tensor:
        pairs = zip(first, second, strict=True)
        sums = [
            (one.float() - other.float()).square_().sum(dtype=torch.float64) for one, other in pairs
        ]
        return torch.stack(sums) / math.prod(first.shape[1:])

    def _of_mean(self, mean: Floats) -> Floats:
        return decibels(mean)


class SSIM(FrameMetric):
    """Structural similarity of pictures.

    Wang et al., "Image quality assessment: from error visibility to structural similarity"
    (2004), with an 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, edges mirrored; the
    mean over channels and frames, equal to torchmetrics' within 1e-5. -1..1, larger is closer;
    identical pictures: 1.

    Args:
        value_range: What black and white are. None: pictures are uint8. Otherwise floats.
        options: Of `torchmetrics.Metric`.
    """

    metric = "ssim"
    least_side = _WINDOW

    def _measured(self, first: Tensor, second: Tensor) -> Tensor:
        pairs = zip(first, second, strict=True)
        return torch.stack([_similarity(one, other) for one, other in pairs])

    def _settings(self) -> dict[str, Setting]:
        return {"window": f"Gaussian {_WINDOW}x{_WINDOW}, sigma {_SIGMA}", "k1": _K1, "k2": _K2}


class MSSSIM(FrameMetric):
    """Structural similarity of pictures at five sizes, each half of the one before.

    Wang et al., "Multiscale structural similarity for image quality assessment" (2003), with its
    weights; below 0 counts as 0. The value is torchmetrics'. 0..1, larger is closer; identical
    pictures: 1.

    Args:
        value_range: What black and white are. None: pictures are uint8. Otherwise floats.
        options: Of `torchmetrics.Metric`.
    """

    metric = "ms_ssim"
    least_side = 16 * _WINDOW  # the smallest of the five sizes still holds a window

    def _measured(self, first: Tensor, second: Tensor) -> Tensor:
        length = max(1, _PART_PIXELS // math.prod(first.shape[-2:]))
        pairs = zip(in_parts(first, length), in_parts(second, length), strict=True)
        return torch.cat([_multiscale(one, other) for one, other in pairs])

    def _settings(self) -> dict[str, Setting]:
        return {"sizes": 5, "window": f"Gaussian {_WINDOW}x{_WINDOW}, sigma {_SIGMA}"}


def decibels(mean_squares: Floats) -> Floats:
    """PSNR of mean squared errors; inf where there is no error."""
    with np.errstate(divide="ignore"):
        found: Floats = 10.0 * np.log10(_PEAK**2 / mean_squares)
    return found


def mean_squares(decibels: Floats) -> Floats:
    """The mean squared errors of which these are the PSNR."""
    found: Floats = _PEAK**2 / 10.0 ** (np.asarray(decibels) / 10.0)
    return found


def _multiscale(first: Tensor, second: Tensor) -> Tensor:
    pair = first.float(), second.float()
    # TF32 has too few digits for a difference of squares.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        values: Any = multiscale_structural_similarity_index_measure(
            *pair, data_range=_PEAK, reduction="none", normalize="relu"
        )
    found: Tensor = values.reshape(-1).double()
    return found


def _similarity(first: Tensor, second: Tensor) -> Tensor:
    """SSIM of a pair (3,H,W), the mean over channels and pixels."""
    edges = (_REACH,) * 4
    pair = (pad(one.float()[None], edges, mode="reflect")[0] for one in (first, second))
    planes = zip(*pair, strict=True)
    sums = [tile.sum(dtype=torch.float64) for x, y in planes for tile in _tiles(x, y)]
    mean: Tensor = torch.stack(sums).sum() / first.numel()
    return mean


def _tiles(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """SSIM at each pixel of a padded plane, some rows at a time: torch's own is 4 times slower."""
    inner = x.shape[0] - 2 * _REACH
    rows = max(1, _TILE_PIXELS // x.shape[1]) if x.device.type == "cpu" else inner
    for start in range(0, inner, rows):
        part = slice(start, min(start + rows, inner) + 2 * _REACH)
        yield _similarities(x[part], y[part])


def _similarities(x: Tensor, y: Tensor) -> Tensor:
    """SSIM at each pixel (H,W) of a tile that reaches further by half a window on all sides."""
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    mean_x, mean_y, squares, product = _blurred(torch.stack((x, y, x * x + y * y, x * y)))
    means = mean_x * mean_y
    squared_means = mean_x * mean_x + mean_y * mean_y
    above = (2 * means + c1) * (2 * (product - means) + c2)
    found: Tensor = above / ((squared_means + c1) * (squares - squared_means + c2))
    return found


def _blurred(fields: Tensor) -> Tensor:
    """The mean in the window around each pixel, where it fits."""
    for axis in (-2, -1):
        length = fields.shape[axis] - 2 * _REACH
        blurred = fields.narrow(axis, _REACH, length) * _TAPS[_REACH]
        for tap in range(_REACH):
            mirrored = 2 * _REACH - tap
            both = fields.narrow(axis, tap, length) + fields.narrow(axis, mirrored, length)
            blurred.add_(both, alpha=_TAPS[tap])
        fields = blurred
    return fields


def _gaussian() -> list[float]:
    taps = [math.exp(-((n - _REACH) ** 2) / (2 * _SIGMA**2)) for n in range(_WINDOW)]
    return [tap / sum(taps) for tap in taps]


_TAPS = _gaussian()
