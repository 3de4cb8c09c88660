"""Video files read: whole, frame by frame, or only what they say of themselves.

A file may come from anywhere. Only formats that hold their own pictures are opened: a playlist
that passes for a video would make FFmpeg read other files, or ask a network.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.codec.context import ThreadType
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream

from opusclip_mlops.errors import VideoError

Frames = npt.NDArray[np.uint8]

MOST_PIXELS = 1 << 26
"""Pictures of more pixels, 8192 x 8192, are not decoded: a few bytes can ask for all memory."""
EXACT = 0x40000 | 0x80000 | 0x2000 | 0x4000
"""SWS_ACCURATE_RND | BITEXACT | FULL_CHR_H_INT | FULL_CHR_H_INP, which PyAV does not name.

Without them swscale rounds down: pixels come out about 1.5 levels too dark.
"""
_ALPHA_DECODERS = {"vp9": "libvpx-vp9"}
_REMARK = "opusclip: "
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,webp,asf,flv,f4v,ivf,h264,hevc,m4v,"
    "mpeg,mpegts,mpegvideo,mxf,nut,ogg,yuv4mpegpipe,wav,mp3,flac,aac"
)


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
    """What a video file says of itself.

    Attributes:
        fps: frames per second.
        caption: its title, "" without one.
        comment: its comment, "" without one; JSON of the clip's provenance in files made here.
        remark: what was changed or looked wrong when it was made here, such as
            "re-encoded: hevc"; "" without one.
    """

    fps: float
    caption: str
    comment: str = ""
    remark: str = ""


@dataclass(frozen=True, eq=False)
class OpenFrames:
    """A video file that is open: iterating decodes it once, a frame at a time.

    Attributes:
        fps: frames per second, the average where they vary.
        width: of a picture turned upright, in pixels.
        height: of a picture turned upright, in pixels.
    """

    fps: float
    width: int
    height: int
    _path: Path
    _decoded: Iterator[VideoFrame]

    def __iter__(self) -> Iterator[Frames]:
        """The next frames as uint8 (H, W, 3), RGB, up to the end or the first damage.

        Raises:
            VideoError: pictures change their size midway.
        """
        return (pixels for _, pixels in self.timed())

    def timed(self) -> Iterator[tuple[Fraction, Frames]]:
        """The next frames with the seconds at which they are shown; raises as iterating does."""
        for index, frame in enumerate(self._decoded):
            pixels = _picture(frame, None)
            if pixels.shape != (self.height, self.width, 3):
                raise _changing(self._path, (self.height, self.width), pixels.shape[:2])
            yield _time(frame, Fraction(index) / Fraction(self.fps)), pixels


@contextmanager
def open_frames(path: str | os.PathLike[str]) -> Iterator[OpenFrames]:
    """Open a video file to decode it frame by frame, so that a long one needs no more memory.

    `with open_frames(path) as frames: for picture in frames: …`

    Raises:
        VideoError: no such file, not a video, no frame that decodes; also later, from the loop.
    """
    path = Path(path)
    check_file(path)
    with ffmpeg_errors(f"{path} cannot be read as video"), opened(path) as container:
        frames = decoded(container)
        first = next(frames, None)
        if first is None:
            raise _no_frame(path, 0)
        fps = _stated(rate_in(container), path)
        height, width = _picture(first, None).shape[:2]
        yield OpenFrames(fps, width, height, path, chain([first], frames))


def read_clip(
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    start_frame: int = 0,
    max_frames: int | None = None,
) -> Clip:
    """Decode a video file, frame by frame.

    Args:
        path: a file of any usual kind: mp4, mov, mkv, webm, avi, gif, ts and others.
        size: side in pixels of the square that each frame is cropped to, from its centre, and
            resized to. None keeps the size of the file.
        start_frame: how many frames to skip, 0 or more.
        max_frames: how many frames to return at most, 1 or more. None: all.

    Returns:
        The clip at the file's average frame rate, turned upright as the file asks; what is
        transparent is on black. A file that is damaged midway gives the frames before the damage.

    Raises:
        VideoError: no such file, not a video, no frame that decodes, or an option out of range.
    """
    path = Path(path)
    check_file(path)
    _check_options(size=(size, 1), start_frame=(start_frame, 0), max_frames=(max_frames, 1))
    stop = None if max_frames is None else start_frame + max_frames
    with ffmpeg_errors(f"{path} cannot be read as video"), opened(path) as container:
        frames = [_picture(frame, size) for frame in islice(decoded(container), start_frame, stop)]
        rate = rate_in(container)
    if not frames:
        raise _no_frame(path, start_frame)
    for frame in frames:
        if frame.shape != frames[0].shape:
            raise _changing(path, frames[0].shape[:2], frame.shape[:2])
    return Clip(np.stack(frames), _stated(rate, path))


def read_said(path: str | os.PathLike[str]) -> Said:
    """Read a video file's frame rate, title and comment; no frame is decoded.

    Raises:
        VideoError: not a video, or it states no frame rate.
    """
    path = Path(path)
    check_file(path)
    with ffmpeg_errors(f"{path} cannot be read as video"), opened(path) as container:
        return said_by(container, path)


def said_by(container: InputContainer, path: Path) -> Said:
    """What an open file says of itself.

    Raises:
        VideoError: it states no frame rate.
    """
    fps = _stated(rate_in(container), path)
    texts = {key.lower(): text for key, text in container.metadata.items()}
    remark = texts.get("description", "")
    return Said(
        fps,
        texts.get("title", ""),
        texts.get("comment", ""),
        remark.removeprefix(_REMARK) if remark.startswith(_REMARK) else "",
    )


def texts_for(*, title: str, comment: str, remark: str) -> dict[str, str]:
    """The metadata from which `read_said` reads these texts back."""
    texts = {"title": title, "comment": comment, "description": remark and f"{_REMARK}{remark}"}
    return {key: text for key, text in texts.items() if text}


def rate_in(container: InputContainer) -> Fraction | None:
    """Frames per second that an open file states, None where it states none."""
    stream = container.streams.video[0]
    return stream.average_rate or stream.guessed_rate


def _stated(rate: Fraction | None, path: Path) -> float:
    if not rate:
        raise VideoError(f"{path} states no frame rate: convert it to mp4 first")
    return float(rate)


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """An open video file; use it within `ffmpeg_errors`.

    Raises:
        VideoError: it holds no video, or pictures of more than `MOST_PIXELS`.
    """
    # "file:" keeps a name such as "a:b.mp4" from being taken for a network address.
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    with _open(path, options) as container:
        if not container.streams.video:
            raise VideoError(f"{path} holds no video stream: pass a video file")
        _check_pixels(container.streams.video[0], path)
        yield container


def _open(path: Path, options: dict[str, str]) -> InputContainer:
    try:
        return av.open(f"file:{path}", metadata_errors="ignore", options=options)
    except av.error.FFmpegError as error:
        if error.errno != errno.EINVAL:
            raise
        raise VideoError(f"{path} is no kind of video that is opened: convert it to mp4") from error


def _check_pixels(stream: VideoStream, path: Path) -> None:
    if not codec_name(stream):
        raise VideoError(f"{path} holds pictures of an unknown kind: convert it to mp4 first")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MOST_PIXELS:
        raise VideoError(
            f"{path} has pictures of {width}x{height}, more than can be decoded: shrink it first"
        )
    # Also where they grow midway, or are larger than the file says.
    stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}


def codec_name(stream: VideoStream | AudioStream) -> str:
    """The codec of a track, such as "h264"; "" where there is no decoder for it."""
    context: Any = stream.codec_context
    return str(context.codec.canonical_name) if context else ""


def check_file(path: Path) -> None:
    """Raises:
    VideoError: there is no such file.
    """
    if not path.is_file():
        raise VideoError(f"{path} does not exist or is not a file: check the path")


def _check_options(**options: tuple[int | None, int]) -> None:
    for name, (value, least) in options.items():
        if value is not None and value < least:
            raise VideoError(f"{name} is {value}: pass {least} or more")


def _no_frame(path: Path, start_frame: int) -> VideoError:
    return VideoError(
        f"{path} has no frame from number {start_frame} on: it is shorter, cut off or damaged"
    )


def _changing(path: Path, first: tuple[int, ...], other: tuple[int, ...]) -> VideoError:
    sizes = " and ".join(f"{width}x{height}" for height, width in (first, other))
    return VideoError(
        f"the frames of {path} differ in shape, {sizes}: bring them to one size first"
    )


def decoded(container: InputContainer) -> Iterator[VideoFrame]:
    """The frames of the first video stream, up to the first damage."""
    stream = container.streams.video[0]
    with suppress(av.error.InvalidDataError):
        if stream.metadata.get("alpha_mode") == "1":
            yield from _decoded_with_alpha(container, stream)
        else:
            stream.thread_type = ThreadType.AUTO
            yield from container.decode(stream)


def _decoded_with_alpha(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """FFmpeg's own decoder of VP9 leaves out what is transparent."""
    name = codec_name(stream)
    decoder: Any = av.CodecContext.create({"vp9": "libvpx-vp9"}.get(name, name), "r")
    for packet in container.demux(stream):
        for frame in decoder.decode(packet):
            if isinstance(frame, VideoFrame):
                yield frame


def _time(frame: VideoFrame, otherwise: Fraction) -> Fraction:
    if frame.pts is None or not frame.time_base:
        return otherwise
    return frame.pts * frame.time_base


def _picture(frame: VideoFrame, size: int | None) -> Frames:
    """One frame as RGB; a square one is scaled while it is converted, then cropped."""
    scale = 1.0 if size is None else size / min(frame.width, frame.height)
    resampling = Interpolation.AREA if scale < 1 else Interpolation.BICUBIC
    see_through = _may_be_see_through(frame)
    pixels = frame.to_ndarray(
        format="rgba" if see_through else "rgb24",
        width=round(frame.width * scale),
        height=round(frame.height * scale),
        interpolation=int(resampling) | EXACT,
    ).astype(np.uint8, copy=False)
    upright = np.rot90(_on_black(pixels) if see_through else pixels, round(frame.rotation / 90))
    top, left = ((side - (size or side)) // 2 for side in upright.shape[:2])
    return np.ascontiguousarray(upright[top : top + size, left : left + size] if size else upright)


def is_see_through(frame: VideoFrame) -> bool:
    """Whether a frame is transparent anywhere."""
    return _may_be_see_through(frame) and bool(frame.to_ndarray(format="rgba")[..., 3].min() < 255)


def _may_be_see_through(frame: VideoFrame) -> bool:
    return frame.format.name == "pal8" or any(one.is_alpha for one in frame.format.components)


def _on_black(pixels: Frames) -> Frames:
    alpha = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * alpha + 127) // 255).astype(np.uint8)


@contextmanager
def ffmpeg_errors(what: str) -> Iterator[None]:
    """FFmpeg's errors as one line of VideoError that begins with `what`.

    Its `__cause__` is an OSError only where that may pass, such as a full disk.
    """
    try:
        yield
    except av.error.FFmpegError as error:
        # EIO is what the reader of Matroska says of a file that is damaged.
        passing = None if error.errno == errno.EIO else error
        raise VideoError(f"{what}: {error.strerror}") from passing
