"""What a video file is, and what keeps it from being played by every browser as it is."""

from __future__ import annotations

import os
import struct
from array import array
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.video.frame import VideoFrame

from opusclip_mlops.clip_files import FPS_LIMITS, MOST_SIDE, amount
from opusclip_mlops.decoding import (
    check_file,
    codec_name,
    decoded,
    ffmpeg_errors,
    is_see_through,
    opened,
    rate_in,
)
from opusclip_mlops.errors import VideoError

CODECS = ("h264", "vp9")
SOUNDS = {"h264": frozenset({"aac", "mp3"}), "vp9": frozenset({"opus", "vorbis"})}
"""The codecs of sound that browsers play beside each codec."""

_CONTAINERS = {"h264": "mp4", "vp9": "webm"}
_COPIED = {"h264": ("mp4", "mov", "matroska", "webm"), "vp9": ("mp4", "matroska", "webm")}
_PLAYED = ("yuv420p", "yuva420p")
_UNSTEADY = 0.1  # how far a frame may be from its time, as a share of how long it is shown
_USUAL_FPS = 25
_MOST_BOXES = 10_000
_SEEN_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """What a video file is.

    Attributes:
        container: "mp4", "mov", "webm", "matroska", "avi", "gif" or FFmpeg's name.
        codec: of the pictures, such as "h264".
        pix_fmt: FFmpeg's name of the pixel format, such as "yuv420p".
        width: as stored, in pixels; what is turned by 90 degrees is shown so wide in height.
        height: as stored, in pixels.
        aspect: width of a pixel by its height.
        rotation: by which a player turns the pictures, in degrees.
        has_alpha: whether the first picture is transparent anywhere.
        faststart: whether the index stands before the pictures, and playing begins at once.
        whole: whether all pictures are there that the file says it has.
        count: how many there are.
        fps: frames per second, on average.
        seconds: how long it plays.
        last_seconds: how long its last frame is shown.
        steady: whether all frames are shown equally long, but for rounding.
        sounds: the codecs of its sound tracks.
        others: how many more tracks it has: subtitles, data, further pictures.
        size_bytes: of the file.
        title: "" without one.
        comment: "" without one.
    """

    container: str
    codec: str
    pix_fmt: str
    width: int
    height: int
    aspect: Fraction
    rotation: int
    has_alpha: bool
    faststart: bool
    whole: bool
    count: int
    fps: float
    seconds: float
    last_seconds: float
    steady: bool
    sounds: tuple[str, ...]
    others: int
    size_bytes: int
    title: str
    comment: str


def inspect(path: str | os.PathLike[str]) -> Inspected:
    """Look at a video file: its index is read whole, and one frame decoded.

    Raises:
        VideoError: no such file, not a video, or no frame that decodes.
    """
    path = Path(path)
    check_file(path)
    with ffmpeg_errors(f"{path} cannot be read as video"):
        with opened(path) as container:
            timing = _timing(container, path)
        with opened(path) as container:
            return _inspected(container, path, timing)


def problems(found: Inspected, *, codec: str = "h264", max_bytes: int) -> tuple[str, ...]:
    """Why a file's pictures must be encoded anew, such as "hevc"; empty when they need not be.

    Args:
        found: what the file is.
        codec: the codec that is wanted, "h264" or "vp9".
        max_bytes: how large a file may be.
    """
    size = f"{found.width}x{found.height}"
    checks = (
        (found.codec != codec, found.codec),
        (found.codec == codec and found.pix_fmt not in _PLAYED, found.pix_fmt),
        (found.codec == codec and found.container not in _COPIED[codec], found.container),
        (found.has_alpha, "alpha flattened on black"),
        (found.rotation != 0, f"turned by {found.rotation} degrees"),
        (bool(found.width % 2 or found.height % 2), f"odd size {size}"),
        (max(found.width, found.height) > MOST_SIDE, f"size {size}"),
        (found.size_bytes > max_bytes, f"larger than {amount(max_bytes)}"),
        (not found.whole, "cut short"),
    )
    return tuple(problem for holds, problem in checks if holds)


def repairs(found: Inspected, *, codec: str = "h264") -> tuple[str, ...]:
    """Why a file must be written anew around the same pictures, such as "index at the end"."""
    unheard = [one for one in found.sounds if one not in SOUNDS[codec]]
    checks = (
        (found.container != _CONTAINERS[codec], found.container),
        (not found.faststart, "index at the end"),
        (bool(unheard), f"without its sound in {', '.join(unheard)}"),
        (found.others > 0 or len(found.sounds) > 1, "further tracks left out"),
    )
    return tuple(repair for holds, repair in checks if holds)


@dataclass(frozen=True, kw_only=True)
class _Timing:
    count: int
    length: Fraction
    last: Fraction
    rate: Fraction
    steady: bool
    whole: bool


def _timing(container: InputContainer, path: Path) -> _Timing:
    """Read off the packets: what a file states may be an average, or wrong."""
    stream = container.streams.video[0]
    starts, ends, seen, corrupt = array("q"), array("q"), 0, False
    with suppress(av.error.InvalidDataError):
        for packet in container.demux(stream):
            at = packet.dts if packet.pts is None else packet.pts
            if packet.size and at is not None:
                seen, corrupt = seen + 1, corrupt or packet.is_corrupt
                if not packet.is_discard:
                    starts.append(at)
                    ends.append(at + (packet.duration or 0))
    if not starts:
        raise VideoError(f"{path} has no frame: it is cut off or damaged")
    tick = stream.time_base or Fraction(1, 90_000)
    length = (max(ends) - min(starts)) * tick
    rate, steady = _rate(array("q", sorted(starts)), length, tick, rate_in(container))
    return _Timing(
        count=len(starts),
        length=max(length, 1 / rate),
        last=max(ends) * tick - max(starts) * tick or 1 / rate,
        rate=rate,
        steady=steady,
        whole=not corrupt and seen >= stream.frames,
    )


def _rate(
    starts: array[int], length: Fraction, tick: Fraction, stated: Fraction | None
) -> tuple[Fraction, bool]:
    """Frames per second, and whether all frames keep to them."""
    low, high = (Fraction(limit) for limit in FPS_LIMITS)
    average = len(starts) / length if length > 0 else stated or Fraction(_USUAL_FPS)
    for rate in (stated or average, average):
        fits = low <= rate <= high and abs(length * rate - len(starts)) < 1
        if fits and _is_steady(starts, tick, rate):
            return rate.limit_denominator(1001), True
    return min(max(average, low), high).limit_denominator(1001), False


def _is_steady(starts: array[int], tick: Fraction, rate: Fraction) -> bool:
    per_frame = float(1 / (rate * tick))
    slack = max(1.0, _UNSTEADY * per_frame)
    return all(abs(at - starts[0] - n * per_frame) <= slack for n, at in enumerate(starts))


def _inspected(container: InputContainer, path: Path, timing: _Timing) -> Inspected:
    stream = container.streams.video[0]
    frame = _first_frame(container, path)
    texts = {key.lower(): text for key, text in container.metadata.items()}
    kind, faststart = _container(container, path)
    return Inspected(
        container=kind,
        codec=codec_name(stream),
        pix_fmt=frame.format.name,
        width=frame.width,
        height=frame.height,
        aspect=stream.sample_aspect_ratio or Fraction(1),
        rotation=round(frame.rotation) % 360,
        has_alpha=is_see_through(frame),
        faststart=faststart,
        whole=timing.whole,
        count=timing.count,
        fps=float(timing.rate),
        seconds=float(timing.length),
        last_seconds=float(timing.last),
        steady=timing.steady,
        sounds=tuple(codec_name(one) or "an unknown kind" for one in container.streams.audio),
        others=len(container.streams) - 1 - len(container.streams.audio),
        size_bytes=path.stat().st_size,
        title=texts.get("title", ""),
        comment=texts.get("comment", ""),
    )


def _first_frame(container: InputContainer, path: Path) -> VideoFrame:
    for frame in decoded(container):
        return frame
    raise VideoError(f"{path} has no frame that decodes: it is cut off or damaged")


def _container(container: InputContainer, path: Path) -> tuple[str, bool]:
    """The kind of file, and whether its index stands before the pictures."""
    names = container.format.name.split(",")
    if "mp4" in names:
        return _boxes(path)
    if "webm" in names:
        with path.open("rb") as file:
            start = file.read(_SEEN_BYTES)
        # A recorder that did not know the length has left no index either.
        return "webm" if b"webm" in start else "matroska", container.duration is not None
    return names[0], False


def _boxes(path: Path) -> tuple[str, bool]:
    names: list[bytes] = []
    brand = b""
    with path.open("rb") as file:
        while len(header := file.read(8)) == 8 and len(names) < _MOST_BOXES:
            size, name = struct.unpack(">I4s", header)
            size = struct.unpack(">Q", file.read(8))[0] - 8 if size == 1 else size
            names.append(name)
            if name == b"ftyp":
                brand = file.read(4)
                file.seek(-4, os.SEEK_CUR)
            if size < 8:
                break
            file.seek(size - 8, os.SEEK_CUR)
    kind = "mov" if brand in (b"", b"qt  ") else "mp4"
    first = [name for name in names if name in (b"moov", b"mdat", b"moof")]
    return kind, first[:1] == [b"moov"] and b"moof" not in names
