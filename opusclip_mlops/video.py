"""Video clips: pixels from whatever a model produced, files in, files out.

Inside the package a clip is always one uint8 array of shape (T, H, W, 3), RGB. `to_frames`
brings anything else to it, `read_clip` decodes a file to it, and every writer takes it.
"""

import math
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.codec.context import ThreadType
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation
from PIL import Image

from opusclip_mlops.errors import VideoError
from opusclip_mlops.pixels import Frames, stack_frames, to_frames

__all__ = [
    "Clip",
    "Said",
    "encode_mp4",
    "read_clip",
    "read_said",
    "to_frames",
    "video_files",
    "write_contact_sheet",
    "write_gif",
    "write_mp4",
    "write_webp",
]

_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".m4v"})
_FPS_LIMITS = (0.01, 1000.0)
_LEAST_DURATION_MS = 20  # browsers slow down an animation whose frames are shorter
_MOST_DURATION_MS = 655_350  # 16 bits of 1/100 s in a GIF
_SHEET_FRAMES = 9
# SWS_ACCURATE_RND | BITEXACT | FULL_CHR_H_INT | FULL_CHR_H_INP, which PyAV 15 does not name.
# Without them swscale rounds down: pixels come out about 1.5 levels too dark.
_EXACT = 0x40000 | 0x80000 | 0x2000 | 0x4000
_X264 = {"preset": "veryfast", "crf": "18", "threads": "1"}
_BT709 = 1
_LIMITED_RANGE = 1


@dataclass(frozen=True, eq=False)
class Clip:
    """A decoded clip.

    Attributes:
        frames: uint8 (T, H, W, 3), RGB.
        fps: frames per second, above 0.
    """

    frames: Frames
    fps: float

    @property
    def seconds(self) -> float:
        """How long the clip plays."""
        return len(self.frames) / self.fps


@dataclass(frozen=True)
class Said:
    """What a video file says of itself: frames per second, and its title, empty without one."""

    fps: float
    caption: str


def video_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The video files directly in a folder, by suffix, sorted by name.

    Raises:
        VideoError: the folder does not exist.
    """
    root = Path(folder)
    if not root.is_dir():
        raise VideoError(f"{root} is not a folder: pass one that holds video files")
    return sorted(p for p in root.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())


def read_clip(
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    start_frame: int = 0,
    max_frames: int | None = None,
) -> Clip:
    """Decode a video file, frame by frame.

    Args:
        path: a file in any format FFmpeg reads.
        size: side in pixels of the square that each frame is cropped to, from its centre, and
            resized to. None keeps the size of the file.
        start_frame: how many frames to skip, 0 or more.
        max_frames: how many frames to return at most, 1 or more. None: all.

    Returns:
        The clip at the file's average frame rate, turned upright as the file asks. A file that
        is damaged midway gives the frames before the damage.

    Raises:
        VideoError: no such file, not a video, no frame that decodes, or an option out of range.
    """
    path = Path(path)
    _check_reading(path, size=(size, 1), start_frame=(start_frame, 0), max_frames=(max_frames, 1))
    stop = None if max_frames is None else start_frame + max_frames
    with _ffmpeg_errors(f"{path} cannot be read as video"), _opened(path) as container:
        frames = [_picture(frame, size) for frame in islice(_decoded(container), start_frame, stop)]
        rate = _rate_in(container)
    if not frames:
        raise VideoError(
            f"{path} has no frame from number {start_frame} on: it is shorter, cut off or damaged"
        )
    return Clip(stack_frames(frames, str(path)), _stated(rate, path))


def read_said(path: str | os.PathLike[str]) -> Said:
    """Read a video file's frame rate and title; no frame is decoded.

    Raises:
        VideoError: not a video, or it states no frame rate.
    """
    path = Path(path)
    _check_reading(path)
    with _ffmpeg_errors(f"{path} cannot be read as video"), _opened(path) as container:
        return Said(_stated(_rate_in(container), path), container.metadata.get("title", ""))


def _rate_in(container: InputContainer) -> Fraction | None:
    stream = container.streams.video[0]
    return stream.average_rate or stream.guessed_rate


def _stated(rate: Fraction | None, path: Path) -> float:
    if not rate:
        raise VideoError(f"{path} states no frame rate: convert it to mp4 first")
    return float(rate)


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    # "file:" keeps a name such as "a:b.mp4" from being taken for a network address.
    with av.open(f"file:{path}", metadata_errors="ignore") as container:
        if not container.streams.video:
            raise VideoError(f"{path} holds no video stream: pass a video file")
        yield container


def _check_reading(path: Path, **options: tuple[int | None, int]) -> None:
    if not path.is_file():
        raise VideoError(f"{path} does not exist or is not a file: check the path")
    for name, (value, least) in options.items():
        _check_least(name, value, least)


def _check_least(name: str, value: int | None, least: int = 1) -> None:
    if value is not None and value < least:
        raise VideoError(f"{name} is {value}: pass {least} or more")


def _decoded(container: InputContainer) -> Iterator[VideoFrame]:
    """The frames of the first video stream, up to the first damage."""
    stream = container.streams.video[0]
    stream.thread_type = ThreadType.AUTO
    with suppress(av.error.InvalidDataError):
        yield from container.decode(stream)


def _picture(frame: VideoFrame, size: int | None) -> Frames:
    """One frame as RGB; a square one is scaled while it is converted, then cropped."""
    scale = 1.0 if size is None else size / min(frame.width, frame.height)
    resampling = Interpolation.AREA if scale < 1 else Interpolation.BICUBIC
    pixels = frame.to_ndarray(
        format="rgb24",
        width=round(frame.width * scale),
        height=round(frame.height * scale),
        interpolation=int(resampling) | _EXACT,
    )
    upright = np.rot90(pixels, round(frame.rotation / 90)).astype(np.uint8, copy=False)
    top, left = ((side - (size or side)) // 2 for side in upright.shape[:2])
    return np.ascontiguousarray(upright[top : top + size, left : left + size] if size else upright)


@contextmanager
def _ffmpeg_errors(what: str) -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as error:
        raise VideoError(f"{what}: {error.strerror}") from error


def _checked(frames: Frames) -> Frames:
    """The one check of every writer."""
    kind = getattr(frames, "dtype", type(frames).__name__)
    shape: tuple[int, ...] = getattr(frames, "shape", ())
    if kind != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise VideoError(
            f"frames must be uint8 of shape (T,H,W,3), not {kind} {shape}: pass to_frames(video)"
        )
    return frames


def _rate(fps: float) -> Fraction:
    low, high = _FPS_LIMITS
    if not low <= fps <= high:
        raise VideoError(f"fps is {fps}: pass frames per second from {low:g} to {high:g}")
    return Fraction(fps).limit_denominator(1001)  # 29.97… becomes 30000/1001


def write_mp4(frames: Frames, path: str | os.PathLike[str], *, fps: float, title: str = "") -> None:
    """Write a clip as an mp4 that every browser plays: H.264, yuv420p, index first.

    The same frames, fps and title give the same bytes. An odd width or height grows by one pixel,
    a copy of its edge. The file appears whole or not at all.

    Args:
        frames: uint8 (T, H, W, 3), from `to_frames`.
        path: where to write; missing folders are made.
        fps: frames per second, 0.01 to 1000, fractions too.
        title: kept in the file, for players and `read_said`.

    Raises:
        VideoError: the frames or the fps cannot be encoded, or the path not written.
    """
    _checked(frames)
    rate = _rate(fps)
    _write_atomically(Path(path), lambda temporary: _encode(frames, temporary, rate, title))


def encode_mp4(frames: Frames, *, fps: float) -> bytes:
    """The bytes that `write_mp4` writes, for an answer over HTTP."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        write_mp4(frames, path, fps=fps)
        return path.read_bytes()


def _encode(frames: Frames, path: Path, rate: Fraction, title: str) -> None:
    options = {"movflags": "+faststart"}
    with (
        _ffmpeg_errors(f"frames of shape {frames.shape} cannot be encoded in {path.parent}"),
        av.open(f"file:{path}", "w", format="mp4", options=options) as container,
    ):
        if title:
            container.metadata["title"] = title
        stream = container.add_stream("libx264", rate=rate, options=dict(_X264))
        stream.height, stream.width = (side + side % 2 for side in frames.shape[1:3])
        stream.pix_fmt = "yuv420p"
        stream.color_primaries = stream.color_trc = stream.colorspace = _BT709
        stream.color_range = _LIMITED_RANGE
        for index, pixels in enumerate(frames):
            container.mux(stream.encode(_yuv(pixels, index, rate)))
        container.mux(stream.encode())


def _yuv(pixels: Frames, index: int, rate: Fraction) -> VideoFrame:
    height, width = pixels.shape[:2]
    even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = VideoFrame.from_ndarray(even, format="rgb24").reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range="MPEG",
        interpolation=int(Interpolation.BICUBIC) | _EXACT,
    )
    frame.pts, frame.time_base = index, 1 / rate
    return frame


def write_webp(
    frames: Frames,
    path: str | os.PathLike[str],
    *,
    fps: float,
    max_side: int = 320,
    max_frames: int = 32,
) -> None:
    """Write a clip as a looping animated WebP, small enough to be looked at in a grid.

    Frames are dropped evenly down to `max_frames` and pictures shrunk to `max_side` pixels;
    the clip still plays as long as before, to the millisecond. Takes and raises what
    `write_mp4` does.
    """
    _write_animation(
        frames, path, fps, max_side, max_frames, tick_ms=1, format="WEBP", quality=80, method=4
    )


def write_gif(
    frames: Frames,
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
    _write_animation(frames, path, fps, max_side, max_frames, tick_ms=10, format="GIF")


def _write_animation(
    frames: Frames,
    path: str | os.PathLike[str],
    fps: float,
    max_side: int,
    max_frames: int,
    *,
    tick_ms: int,
    **options: Any,
) -> None:
    length_ms = 1000 * len(_checked(frames)) / float(_rate(fps))
    _check_least("max_frames", max_frames)
    indices, durations_ms = _timeline(len(frames), length_ms, max_frames, tick_ms)
    first, *rest = (_image(frames[index], max_side) for index in indices)
    data = BytesIO()
    first.save(data, save_all=True, append_images=rest, duration=durations_ms, loop=0, **options)
    _write_atomically(Path(path), lambda temporary: temporary.write_bytes(data.getvalue()))


def _timeline(count: int, length_ms: float, most: int, tick_ms: int) -> tuple[list[int], list[int]]:
    """Which frames to show, and how long each, in whole ticks that add up to the length."""
    kept = max(1, min(count, most, int(length_ms / _LEAST_DURATION_MS)))
    ticks = max(round(length_ms / tick_ms), kept * _LEAST_DURATION_MS // tick_ms)
    edges = [index * ticks // kept for index in range(kept + 1)]
    durations_ms = [(end - start) * tick_ms for start, end in pairwise(edges)]
    indices = [index * count // kept for index in range(kept)]
    return indices, [min(duration_ms, _MOST_DURATION_MS) for duration_ms in durations_ms]


def write_contact_sheet(
    frames: Frames, path: str | os.PathLike[str], *, max_side: int = 512
) -> None:
    """Write up to nine frames of a clip, first to last, as one PNG that is nearly square.

    Args:
        frames: uint8 (T, H, W, 3), from `to_frames`.
        path: where to write; missing folders are made.
        max_side: longest side of the sheet, in pixels.

    Raises:
        VideoError: the frames or max_side are not usable.
    """
    count, height, width = _checked(frames).shape[:3]
    shown = min(count, _SHEET_FRAMES)
    columns = min(shown, max(1, round(math.sqrt(shown * height / width))))
    rows = shown // columns  # a frame is left out rather than a hole
    picked = np.rint(np.linspace(0, count - 1, rows * columns)).astype(int)
    sheet = frames[picked].reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    image = _image(sheet.reshape(rows * height, columns * width, 3), max_side)
    _write_atomically(Path(path), lambda temporary: image.save(temporary, format="PNG"))


def _image(pixels: Frames, max_side: int) -> Image.Image:
    _check_least("max_side", max_side)
    image = Image.fromarray(pixels)
    image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    return image


def _write_atomically(path: Path, write: Callable[[Path], object]) -> None:
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
