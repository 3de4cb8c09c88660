"""The frames that are measured of a video: which ones, at which size, one by one.

A file is decoded as it is read, so that memory does not grow with its length.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from opusclip_mlops.decoding import OpenFrames, open_frames
from opusclip_mlops.errors import VideoError
from opusclip_mlops.pixels import Frames, to_frames
from opusclip_mlops.video import video_files

_ALIKE = 0.01  # share by which frame rates may differ: 29.97 is 30
_BATCH, _BATCH_PIXELS = 16, 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Which frames of a video are taken, and how they are brought to a size.

    Attributes:
        width: In pixels, 0 with height 0 for the size that they have.
        height: In pixels.
        fps: Frames per second that are taken of a file; None for every frame.
        max_frames: How many are taken at most; None for all.

    Raises:
        VideoError: One is out of range.
    """

    width: int = 0
    height: int = 0
    fps: float | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if (self.width, self.height) != (0, 0) and min(self.width, self.height) < 1:
            raise VideoError(f"resize is {self.width}x{self.height}: pass WIDTHxHEIGHT in pixels")
        if self.fps is not None and not 0 < self.fps < 1000:
            raise VideoError(f"fps is {self.fps:g}: pass frames per second, above 0")
        if self.max_frames is not None and self.max_frames < 1:
            raise VideoError(f"max_frames is {self.max_frames}: pass 1 or more")

    @property
    def sampling(self) -> str:
        """Which frames, for a passport."""
        which = "every frame" if self.fps is None else f"{self.fps:g} frames per second"
        return which if self.max_frames is None else f"{which}, the first {self.max_frames}"

    @property
    def resize(self) -> str:
        """How they are brought to a size, for a passport."""
        if not self.width:
            return "none"
        return f"bicubic, antialiased, to {self.width}x{self.height}"


@dataclass(frozen=True, eq=False)
class Source:
    """A video that is open.

    Attributes:
        name: For messages.
        fps: Frames per second as taken, None where that is not known.
        width: Of a picture as taken, in pixels.
        height: As width.
        frames: The frames taken, uint8 (H, W, 3).
    """

    name: str
    fps: float | None
    width: int
    height: int
    frames: Iterator[Frames]


def name_of(video: Any, otherwise: str) -> str:
    """What a video is called in tables and messages: its path, where it has one."""
    return str(video) if isinstance(video, (str, os.PathLike)) else otherwise


def is_folder(video: Any) -> bool:
    """Whether it is the path of a folder."""
    return isinstance(video, (str, os.PathLike)) and Path(video).is_dir()


def listed(videos: Sequence[Any]) -> list[Any]:
    """The videos, with its files in place of a folder, sorted by name.

    Raises:
        VideoError: A folder holds no video.
    """
    found: list[Any] = []
    for one in videos:
        if is_folder(one):
            files = video_files(one)
            if not files:
                raise VideoError(f"{one} holds no video files: pass another folder, or files")
            found += files
        else:
            found.append(one)
    return found


@contextmanager
def opened(
    video: Any, *, taken: Taken, value_range: tuple[float, float], name: str
) -> Iterator[Source]:
    """Open a file by its path, or anything that `to_frames` takes.

    Raises:
        VideoError: It is no video, or has not the frames that were asked for; also from the loop.
    """
    if isinstance(video, (str, os.PathLike)):
        with open_frames(Path(video)) as found:
            frames = _at_rate(found, name, taken.fps)
            fps = min(found.fps, taken.fps or found.fps)
            yield _source(name, frames, found.height, found.width, taken, fps)
        return
    if taken.fps is not None:
        raise VideoError(f"{name} has no frame rate of its own: leave out fps, or pass a file")
    pixels = to_frames(video, value_range=value_range)
    height, width = pixels.shape[1:3]
    yield _source(name, iter(pixels), height, width, taken, None)


def _source(
    name: str, frames: Iterator[Frames], height: int, width: int, taken: Taken, fps: float | None
) -> Source:
    kept = (_resized(frame, taken) for frame in islice(frames, taken.max_frames))
    size = (taken.width or width, taken.height or height)
    return Source(name, fps, *size, kept)


def _at_rate(found: OpenFrames, name: str, fps: float | None) -> Iterator[Frames]:
    """Every frame, or the one that is shown at each 1/fps second."""
    if fps is None:
        return iter(found)
    if fps > found.fps * (1 + _ALIKE):
        raise VideoError(
            f"{name} has {found.fps:g} frames per second: pass fps of {found.fps:g} or less"
        )
    return _shown_at(found, 1 / min(fps, found.fps), lasts_s=1 / found.fps)


def _shown_at(found: OpenFrames, every_s: float, *, lasts_s: float) -> Iterator[Frames]:
    count, began_s, shown = 0, 0.0, None
    slack_s = lasts_s / 4  # Matroska keeps times in whole milliseconds
    for time_s, frame in found.timed():
        began_s = float(time_s) if shown is None else began_s
        now_s = float(time_s) - began_s
        while shown is not None and count * every_s < now_s - slack_s:
            count += 1
            yield shown
        shown, ends_s = frame, now_s + lasts_s
    while shown is not None and count * every_s < ends_s - lasts_s / 2:
        count += 1
        yield shown


def alike(one: float | None, other: float | None) -> bool:
    """Whether two frame rates are the same, or one is not known."""
    return one is None or other is None or abs(one - other) <= _ALIKE * max(one, other)


def _resized(frame: Frames, taken: Taken) -> Frames:
    if not taken.width or frame.shape[:2] == (taken.height, taken.width):
        return frame
    planes = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float()
    size = (taken.height, taken.width)
    found = functional.interpolate(planes, size, mode="bicubic", antialias=True)
    out: Frames = found[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
    return out


class Digest:
    """Names what was measured against: equal for equal pictures in the same order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, frame: Frames) -> None:
        """Take in the next frame."""
        self._hash.update(repr(frame.shape).encode())
        self._hash.update(frame.tobytes())

    @property
    def text(self) -> str:
        """The digest so far, 16 hexadecimal digits."""
        return self._hash.hexdigest()[:16]


def batches(source: Source) -> Iterator[Frames]:
    """The next frames, few enough to be held at once."""
    length = max(1, min(_BATCH, _BATCH_PIXELS // (source.width * source.height)))
    while frames := list(islice(source.frames, length)):
        yield np.stack(frames)


def pairs(
    source: Source, other: Source | None, digest: Digest
) -> Iterator[tuple[Frames, Frames | None]]:
    """The next frames beside those of the reference, as many of each.

    Raises:
        VideoError: The two cannot be compared frame by frame.
    """
    if other is None:
        yield from ((pictures, None) for pictures in batches(source))
        return
    _check_alike(source, other)
    count = 0
    for pictures in batches(source):
        targets = list(islice(other.frames, len(pictures)))
        count += len(targets)
        if len(targets) < len(pictures):
            raise _lengths(other, source, count)
        for target in targets:
            digest.add(target)
        yield pictures, np.stack(targets)
    if next(other.frames, None) is not None:
        raise _lengths(source, other, count)


def _lengths(shorter: Source, longer: Source, count: int) -> VideoError:
    return VideoError(
        f"{shorter.name} has {count} frames and {longer.name} has more: "
        f"take as many of both, such as the first {count} (evaluate --max-frames)"
    )


def _check_alike(source: Source, other: Source) -> None:
    sizes = [(one.width, one.height) for one in (source, other)]
    if sizes[0] != sizes[1]:
        (width, height), (wide, high) = sizes
        raise VideoError(
            f"{source.name} is {width}x{height} and {other.name} {wide}x{high}: "
            f"resize both, such as to {wide}x{high} (evaluate --resize)"
        )
    if not alike(source.fps, other.fps):
        assert source.fps is not None
        assert other.fps is not None
        lower = min(source.fps, other.fps)
        raise VideoError(
            f"{source.name} has {source.fps:g} frames per second and {other.name} {other.fps:g}: "
            f"take as many of both, such as {lower:g} (evaluate --fps)"
        )
