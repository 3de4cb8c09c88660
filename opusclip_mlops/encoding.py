"""Pictures into a file that browsers play, no larger than asked: H.264 in mp4, VP9 in webm."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation

from opusclip_mlops.clip_files import (
    MOST_SIDE,
    Codec,
    Pictures,
    amount,
    check_least,
    check_pictures,
    created,
    rate_of,
    write_whole,
)
from opusclip_mlops.decoding import EXACT, ffmpeg_errors, texts_for
from opusclip_mlops.errors import VideoError

Frames = npt.NDArray[np.uint8]

MAX_BYTES = 32 << 20
"""How large a clip's file may be unless another size is asked for: 32 MiB."""
MOST_COMMENT_BYTES = 64 << 10

_LEAST_SIDE = 64  # pictures are not shrunk below it to fit a size
_MOST_CRF_STEP = 12
_BT709 = 1
_LIMITED_RANGE = 1


@dataclass(frozen=True)
class _Kind:
    """How a codec is written.

    Attributes:
        encoder: FFmpeg's name of it.
        crf: its quality at best and at worst.
        halving: the step of crf that halves a file.
        options: all else that the encoder is told.
    """

    encoder: str
    crf: tuple[int, int]
    halving: float
    options: Mapping[str, str]


_KINDS: Mapping[Codec, _Kind] = {
    # mbtree of x264 reads memory that was never written: the same frames give other bytes.
    "h264": _Kind(
        "libx264", (18, 38), 6.0,
        {"preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"},
    ),
    "vp9": _Kind(
        "libvpx-vp9", (26, 56), 10.0,
        {"deadline": "realtime", "cpu-used": "8", "threads": "1"},
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What is kept in a clip's file beside its pictures, for players and `read_said`.

    Attributes:
        title: the clip's caption.
        comment: JSON of where the clip comes from, at most 64 KiB of UTF-8.
        remark: what was changed, or looked wrong.

    Raises:
        VideoError: a comment that is too long, or text that no file can hold.
    """

    title: str = ""
    comment: str = ""
    remark: str = ""

    def __post_init__(self) -> None:
        try:
            size_bytes = len(self.comment.encode())
            self.title.encode()
        except UnicodeEncodeError:
            raise VideoError("title or comment holds half a character: pass whole text") from None
        if size_bytes > MOST_COMMENT_BYTES:
            raise VideoError(f"comment has {size_bytes} bytes: keep it to {MOST_COMMENT_BYTES}")
        if "\0" in self.title + self.comment:
            raise VideoError("title or comment holds a NUL character: leave it out")

    def metadata(self) -> dict[str, str]:
        """As `read_said` finds it."""
        return texts_for(title=self.title, comment=self.comment, remark=self.remark)


@dataclass(frozen=True, eq=False, kw_only=True)
class Reel:
    """Pictures with their times, that can be gone through more than once.

    Attributes:
        shown: opens them: pairs of a time in ticks, rising from 0, and an uint8 (H, W, 3) picture.
        count: how many there are.
        last: how long the last one is shown, in ticks.
        tick: seconds.
        rate: frames per second, on average.
        width: of each, in pixels.
        height: of each, in pixels.
        aspect: width of a pixel by its height.
    """

    shown: Callable[[], AbstractContextManager[Iterable[tuple[int, Frames]]]]
    count: int
    last: int
    tick: Fraction
    rate: Fraction
    width: int
    height: int
    aspect: Fraction = Fraction(1)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width with square pixels, as webm has no others."""
        return self.height, max(1, round(self.width * self.aspect))


def reel_of(frames: Pictures, *, fps: float) -> Reel:
    """Pictures shown at equal times.

    Raises:
        VideoError: these are no pictures, or the fps is not 0.01 to 1000.
    """
    check_pictures(frames)
    count, height, width = frames.shape[:3]
    rate = rate_of(fps)
    return Reel(
        shown=lambda: nullcontext((index, frames[index]) for index in range(count)),
        count=count, last=1, tick=1 / rate, rate=rate, width=width, height=height,
    )  # fmt: skip


def write_mp4(
    frames: Pictures,
    path: str | os.PathLike[str],
    *,
    fps: float,
    title: str = "",
    comment: str = "",
) -> None:
    """Write a clip as an mp4 that every browser plays: H.264, yuv420p, index first.

    The same frames, fps and texts give the same bytes. An odd width or height grows by one pixel,
    a copy of its edge. The file appears whole or not at all.

    Args:
        frames: uint8 (T, H, W, 3), from `to_frames`.
        path: where to write; missing folders are made.
        fps: frames per second, 0.01 to 1000, fractions too.
        title: kept in the file, for players and `read_said`.
        comment: JSON text of the clip's provenance, kept likewise, at most 64 KiB.

    Raises:
        VideoError: the frames, the fps or a text cannot be encoded, or the path not written.
    """
    write_reel(reel_of(frames, fps=fps), path, texts=Texts(title=title, comment=comment))


def encode_mp4(frames: Pictures, *, fps: float) -> bytes:
    """The bytes that `write_mp4` writes, for an answer over HTTP."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        write_mp4(frames, path, fps=fps)
        return path.read_bytes()


def write_reel(
    reel: Reel,
    path: str | os.PathLike[str],
    *,
    texts: Texts,
    codec: Codec = "h264",
    max_bytes: int | None = None,
) -> str:
    """Write pictures as a file that browsers play; returns what was lost to make it fit, or "".

    A file above `max_bytes` is made again with less quality, then with smaller pictures, then with
    fewer of them. What was lost is added to the remark in `texts`.

    Raises:
        VideoError: they cannot be encoded, or be made to fit, or the path not be written.
    """
    check_least("max_bytes", MAX_BYTES if max_bytes is None else max_bytes)
    lost = ""

    def write(temporary: Path) -> None:
        nonlocal lost
        lost = _write_fitting(reel, temporary, texts, codec, max_bytes or math.inf)

    write_whole(Path(path), write)
    return lost


@dataclass(frozen=True, kw_only=True)
class _Quality:
    """How much is kept: x264's or VP9's `crf`, the longest side, every n-th picture."""

    crf: int
    side: int
    every: int = 1


def _write_fitting(reel: Reel, path: Path, texts: Texts, codec: Codec, most_bytes: float) -> str:
    best = _Quality(crf=_KINDS[codec].crf[0], side=min(max(reel.sides), MOST_SIDE))
    quality = best
    while True:
        lost = _lost(reel, best, quality, most_bytes)
        remark = "; ".join(part for part in (texts.remark, lost) if part)
        size_bytes = _encode(reel, path, replace(texts, remark=remark), codec, quality, most_bytes)
        if size_bytes <= most_bytes:
            return lost
        quality = _lower(reel, quality, _KINDS[codec], size_bytes / most_bytes)


def _lower(reel: Reel, quality: _Quality, kind: _Kind, over: float) -> _Quality:
    """What is given up next, when a file is `over` times too large."""
    if quality.crf < kind.crf[1]:
        step = min(_MOST_CRF_STEP, 1 + math.ceil(kind.halving * math.log2(over)))
        return replace(quality, crf=min(kind.crf[1], quality.crf + step))
    if quality.side > _LEAST_SIDE:
        share = max(0.25, min(0.85, 0.9 / math.sqrt(over)))
        return replace(quality, side=max(_LEAST_SIDE, int(quality.side * share)))
    if quality.every >= reel.count:
        raise VideoError(f"one frame of the clip is {over:.2g} times max_bytes: allow more")
    every = min(reel.count, quality.every * max(2, math.ceil(over)))
    return replace(quality, every=every)


def _lost(reel: Reel, best: _Quality, quality: _Quality, most_bytes: float) -> str:
    lost = []
    if quality.crf != best.crf:
        lost.append(f"quality crf {quality.crf}")
    if quality.side < max(reel.sides):
        lost.append("{1}x{0}".format(*_size(reel, quality)))
    if quality.every > 1:
        lost.append(f"{float(reel.rate / quality.every):.3g} fps")
    if quality == best:
        return f"made smaller: {', '.join(lost)}" if lost else ""
    return f"made to fit {amount(most_bytes)}: {', '.join(lost)}"


def _size(reel: Reel, quality: _Quality) -> tuple[int, int]:
    """Height and width of what is encoded: even."""
    share = min(1.0, quality.side / max(reel.sides))
    if share == 1:
        height, width = (side + side % 2 for side in reel.sides)
    else:
        height, width = (max(2, 2 * round(side * share / 2)) for side in reel.sides)
    return height, width


def _encode(
    reel: Reel, path: Path, texts: Texts, codec: Codec, quality: _Quality, most_bytes: float
) -> float:
    """Returns how large the file is, or would become where that is much too large."""
    what = f"frames of {reel.width}x{reel.height} cannot be encoded in {path.parent}"
    with ffmpeg_errors(what), created(path, codec) as container:
        container.metadata.update(texts.metadata())
        stream = _stream(container, reel, _KINDS[codec], quality)
        written_bytes: float = 0
        with reel.shown() as shown:
            kept = _kept(shown, quality.every, reel.last)
            for index, (pts, ticks, pixels) in enumerate(kept, 1):
                frame = _yuv(pixels, _size(reel, quality))
                frame.pts, frame.duration, frame.time_base = pts, ticks, reel.tick
                packets = stream.encode(frame)
                container.mux(packets)
                written_bytes += sum(packet.size for packet in packets)
                if written_bytes > 2 * most_bytes:
                    return float(written_bytes * reel.count / (index * quality.every))
        container.mux(stream.encode())
    return path.stat().st_size


def _stream(container: OutputContainer, reel: Reel, kind: _Kind, quality: _Quality) -> Any:
    options = {**kind.options, "crf": str(quality.crf)}
    if reel.tick * reel.rate != 1:
        options["bf"] = "0"  # an mp4 keeps how long the last frame is shown in this order only
    stream: Any = container.add_stream(
        kind.encoder, rate=reel.rate / quality.every, options=options
    )
    stream.height, stream.width = _size(reel, quality)
    stream.pix_fmt = "yuv420p"
    stream.bit_rate = 0
    stream.codec_context.time_base = reel.tick
    stream.codec_context.flags |= Flags.frame_duration
    stream.color_primaries = stream.color_trc = stream.colorspace = _BT709
    stream.color_range = _LIMITED_RANGE
    return stream


def _kept(
    shown: Iterable[tuple[int, Frames]], every: int, last: int
) -> Iterator[tuple[int, int, Frames]]:
    """Every n-th picture with its time, and how long it is shown, in ticks."""
    kept: tuple[int, Frames] | None = None
    at = -1
    for index, (pts, pixels) in enumerate(shown):
        at = max(pts, at + 1)
        if index % every == 0:
            if kept:
                yield kept[0], at - kept[0], kept[1]
            kept = at, pixels
    if kept:
        yield kept[0], at + last - kept[0], kept[1]


def _yuv(pixels: Frames, size: tuple[int, int]) -> VideoFrame:
    height, width = pixels.shape[:2]
    added = [wanted - side for wanted, side in zip(size, (height, width), strict=True)]
    if max(added) <= 1 and min(added) >= 0:
        pixels = np.pad(pixels, ((0, added[0]), (0, added[1]), (0, 0)), mode="edge")
    resampling = Interpolation.AREA if size[0] < pixels.shape[0] else Interpolation.BICUBIC
    return VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
        height=size[0],
        width=size[1],
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range="MPEG",
        interpolation=int(resampling) | EXACT,
    )
