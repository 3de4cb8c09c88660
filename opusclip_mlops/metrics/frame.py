"""Frame metrics: how close a video is to its target, picture by picture."""

import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from torchmetrics.functional import mean_squared_error
from torchmetrics.functional.image import structural_similarity_index_measure

from opusclip_mlops.errors import VideoError
from opusclip_mlops.video import read_clip, to_frames

_WINDOW = 11  # side in pixels of SSIM's Gaussian window, sigma 1.5
_PEAK = 255.0
_CHUNK_PIXELS = 200_000  # SSIM works on about 1 kB a pixel


def calculate_video_metrics(
    video: Any, target: Any, *, value_range: tuple[float, float] = (0.0, 1.0)
) -> dict[str, float]:
    """Compare a video with the target it should look like.

    Both are brought to RGB bytes first, so that files and tensors give the same numbers.

    psnr: 10·log10(255² / MSE) in dB, with the MSE taken over every pixel, channel and frame of
    the clip at once, as in the `average` of FFmpeg's psnr filter (not the mean of the frames'
    PSNR, which one perfect frame would make infinite). 0 or more, larger is closer; identical
    clips: inf.

    ssim: Wang et al., "Image quality assessment: from error visibility to structural
    similarity" (2004), with an 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, edges
    mirrored; the mean over channels and frames. -1..1, identical: 1.

    Args:
        video: anything `to_frames` takes, or the path of a file.
        target: the same; as many frames, of the same size.
        value_range: what black and white are, where a video is of floats.

    Returns:
        {"psnr": dB, "ssim": -1..1}.

    Raises:
        VideoError: a video that cannot be read, different shapes, or pictures below 11x11.
    """
    pair = _frames(video, value_range), _frames(target, value_range)
    _check_pair(pair[0].shape, pair[1].shape)
    squares, similarities, count = 0.0, 0.0, len(pair[0])
    for chunk, reference in _chunks(*pair):
        squares += len(chunk) * float(mean_squared_error(chunk, reference))
        similarities += len(chunk) * _ssim(chunk, reference)
    return {"psnr": _psnr(squares / count), "ssim": similarities / count}


def _frames(video: Any, value_range: tuple[float, float]) -> torch.Tensor:
    if isinstance(video, (str, os.PathLike)):
        return torch.from_numpy(read_clip(video).frames)
    return torch.tensor(to_frames(video, value_range=value_range))


def _check_pair(video: tuple[int, ...], target: tuple[int, ...]) -> None:
    if video != target:
        raise VideoError(
            f"the video is {tuple(video)} and its target {tuple(target)} (T,H,W,C): "
            "bring both to the same frames and size"
        )
    if min(video[1:3]) < _WINDOW:
        raise VideoError(
            f"pictures of {video[2]}x{video[1]} are too small for SSIM: "
            f"pass at least {_WINDOW}x{_WINDOW} pixels"
        )


def _chunks(
    video: torch.Tensor, target: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A few frames at a time as 0..255 floats (T,C,H,W), so that memory stays bounded."""
    length = max(1, _CHUNK_PIXELS // (video.shape[1] * video.shape[2]))
    for start in range(0, len(video), length):
        yield _floats(video[start : start + length]), _floats(target[start : start + length])


def _floats(frames: torch.Tensor) -> torch.Tensor:
    # float32: torch convolves float64 on the CPU about twenty times slower.
    return frames.permute(0, 3, 1, 2).float().contiguous()


def _ssim(video: torch.Tensor, target: torch.Tensor) -> float:
    value = structural_similarity_index_measure(video, target, data_range=_PEAK)
    return float(value if isinstance(value, torch.Tensor) else value[0])


def _psnr(mean_square: float) -> float:
    return 10.0 * math.log10(_PEAK**2 / mean_square) if mean_square else math.inf
