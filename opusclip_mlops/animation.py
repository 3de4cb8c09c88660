"""Clips as pictures that move or stand still, for grids and viewers that play no video."""

import math
import os
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from opusclip_mlops.clip_files import Pictures, check_least, check_pictures, rate_of, write_whole

_LEAST_DURATION_MS = 20  # browsers slow down an animation whose frames are shorter
_MOST_DURATION_MS = 655_350  # 16 bits of 1/100 s in a GIF
_SHEET_FRAMES = 9


def write_webp(
    frames: Pictures,
    path: str | os.PathLike[str],
    *,
    fps: float,
    max_side: int = 320,
    max_frames: int = 32,
    least_side: int = 1,
) -> None:
    """Write a clip as a looping animated WebP, small enough to be looked at in a grid.

    Frames are dropped evenly down to `max_frames` and pictures shrunk to `max_side` pixels;
    the clip still plays as long as before, to the millisecond. Small pictures are shown a whole
    number of times larger, up to `least_side`. Takes and raises what `write_mp4` does.
    """
    _write_animation(
        frames, path, fps, (least_side, max_side), max_frames,
        tick_ms=1, format="WEBP", quality=80, method=4,
    )  # fmt: skip


def write_gif(
    frames: Pictures,
    path: str | os.PathLike[str],
    *,
    fps: float,
    max_side: int = 256,
    max_frames: int = 64,
) -> None:
    """Write a clip as a looping GIF, for viewers that play nothing else.

    As `write_webp`, with the clip's length kept to 1/100 second. Equal neighbours among the
    frames may be stored as one that lasts longer.
    """
    _write_animation(frames, path, fps, (1, max_side), max_frames, tick_ms=10, format="GIF")


def _write_animation(
    frames: Pictures,
    path: str | os.PathLike[str],
    fps: float,
    sides: tuple[int, int],
    max_frames: int,
    *,
    tick_ms: int,
    **options: Any,
) -> None:
    check_pictures(frames)
    length_ms = 1000 * frames.shape[0] / float(rate_of(fps))
    check_least("max_frames", max_frames)
    indices, durations_ms = _timeline(frames.shape[0], length_ms, max_frames, tick_ms)
    least_side, max_side = sides
    first, *rest = (_image(_enlarged(frames[at], least_side), max_side) for at in indices)
    data = BytesIO()
    first.save(data, save_all=True, append_images=rest, duration=durations_ms, loop=0, **options)
    write_whole(Path(path), lambda temporary: temporary.write_bytes(data.getvalue()))


def _timeline(count: int, length_ms: float, most: int, tick_ms: int) -> tuple[list[int], list[int]]:
    """Which frames to show, and how long each, in whole ticks that add up to the length."""
    kept = max(1, min(count, most, int(length_ms / _LEAST_DURATION_MS)))
    ticks = max(round(length_ms / tick_ms), kept * _LEAST_DURATION_MS // tick_ms)
    edges = [index * ticks // kept for index in range(kept + 1)]
    durations_ms = [(end - start) * tick_ms for start, end in pairwise(edges)]
    indices = [index * count // kept for index in range(kept)]
    return indices, [min(duration_ms, _MOST_DURATION_MS) for duration_ms in durations_ms]


def write_contact_sheet(
    frames: Pictures, path: str | os.PathLike[str], *, max_side: int = 512, least_side: int = 1
) -> None:
    """Write up to nine frames of a clip, first to last, as one PNG that is nearly square.

    Args:
        frames: uint8 (T, H, W, 3), from `to_frames`.
        path: where to write; missing folders are made.
        max_side: longest side of the sheet, in pixels.
        least_side: small frames are shown a whole number of times larger, up to this side.

    Raises:
        VideoError: the frames or max_side are not usable.
    """
    check_pictures(frames)
    count, height, width = frames.shape[:3]
    shown = min(count, _SHEET_FRAMES)
    columns = min(shown, max(1, round(math.sqrt(shown * height / width))))
    rows = shown // columns  # a frame is left out rather than a hole
    picked = np.rint(np.linspace(0, count - 1, rows * columns)).astype(int).tolist()
    tiles = [_enlarged(frames[at], least_side) for at in picked]
    starts = range(0, rows * columns, columns)
    lines = [np.concatenate(tiles[at : at + columns], axis=1) for at in starts]
    image = _image(np.concatenate(lines), max_side)
    write_whole(Path(path), lambda temporary: image.save(temporary, format="PNG"))


def _enlarged(pixels: npt.NDArray[np.uint8], least_side: int) -> npt.NDArray[np.uint8]:
    factor = max(1, least_side // max(pixels.shape[:2]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else pixels


def _image(pixels: npt.NDArray[np.uint8], max_side: int) -> Image.Image:
    check_least("max_side", max_side)
    image = Image.fromarray(pixels)
    image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    return image
