"""What every writer of clips checks, and how a file appears: whole or not at all."""

import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol

import av
import numpy as np
import numpy.typing as npt
from av.container import OutputContainer

from opusclip_mlops.errors import VideoError

Codec = Literal["h264", "vp9"]

FPS_LIMITS = (0.01, 1000.0)
MOST_SIDE = 8192
"""Of what is written, in pixels: browsers play no larger pictures."""


_FILES: Mapping[Codec, tuple[str, Mapping[str, str]]] = {
    "h264": ("mp4", {"movflags": "+faststart"}),
    "vp9": ("webm", {"cues_to_front": "1", "fflags": "+bitexact"}),
}


class Pictures(Protocol):
    """A clip's pictures, each made when it is asked for; an array of them is one too."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W, 3)."""

    @property
    def dtype(self) -> Any:
        """uint8."""

    def __getitem__(self, index: int, /) -> npt.NDArray[np.uint8]:
        """Picture `index`, uint8 (H, W, 3), RGB."""


def check_pictures(frames: Pictures) -> None:
    """Raises:
    VideoError: these are no RGB bytes of shape (T, H, W, 3).
    """
    kind = getattr(frames, "dtype", type(frames).__name__)
    shape: tuple[int, ...] = getattr(frames, "shape", ())
    if kind != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise VideoError(
            f"frames must be uint8 of shape (T,H,W,3), not {kind} {shape}: pass to_frames(video)"
        )


def check_least(name: str, value: int, least: int = 1) -> None:
    """Raises:
    VideoError: an option is below its least value.
    """
    if value < least:
        raise VideoError(f"{name} is {value}: pass {least} or more")


def rate_of(fps: float) -> Fraction:
    """Frames per second as the fraction that files keep: 29.97… becomes 30000/1001.

    Raises:
        VideoError: outside 0.01 to 1000.
    """
    low, high = FPS_LIMITS
    if not low <= fps <= high:
        raise VideoError(f"fps is {fps}: pass frames per second from {low:g} to {high:g}")
    return Fraction(fps).limit_denominator(1001)


def amount(size_bytes: float) -> str:
    """A size in words, such as "32 MiB"."""
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.3g} {unit}"
    return f"{size_bytes} bytes"


def created(path: Path, codec: Codec) -> OutputContainer:
    """An open file of the kind that a codec comes in, its index before the pictures."""
    kind, options = _FILES[codec]
    return av.open(f"file:{path}", "w", format=kind, options=dict(options))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, and put it there once it is whole.

    Raises:
        VideoError: it can't be written; its `__cause__` is the OSError.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise VideoError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
