"""Video clips: pixels from whatever a model produced, files in, files out.

Inside the package a clip is always one uint8 array of shape (T, H, W, 3), RGB, or gives such
pictures one by one. `to_frames` brings anything else to it, `read_clip` and `open_frames` decode a
file to it, and every writer takes it. `make_playable` makes of any file one that browsers play.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np

from opusclip_mlops.animation import write_contact_sheet, write_gif, write_webp
from opusclip_mlops.clip_files import Codec, write_whole
from opusclip_mlops.decoding import (
    Clip,
    Frames,
    OpenFrames,
    Said,
    open_frames,
    read_clip,
    read_said,
)
from opusclip_mlops.encoding import (
    MAX_BYTES,
    Reel,
    Texts,
    encode_mp4,
    reel_of,
    write_mp4,
    write_reel,
)
from opusclip_mlops.errors import VideoError
from opusclip_mlops.inspecting import SOUNDS, Inspected, inspect, problems, repairs
from opusclip_mlops.pixels import to_frames
from opusclip_mlops.repackaging import repackage

__all__ = [
    "MAX_BYTES",
    "Clip",
    "Codec",
    "Inspected",
    "OpenFrames",
    "Said",
    "Texts",
    "encode_mp4",
    "file_pictures",
    "inspect",
    "make_playable",
    "open_frames",
    "problems",
    "read_clip",
    "read_said",
    "reel_of",
    "repairs",
    "to_frames",
    "video_files",
    "write_contact_sheet",
    "write_gif",
    "write_mp4",
    "write_reel",
    "write_webp",
]

_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".m4v"})
_TICKS_PER_S = 90_000


def video_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The video files directly in a folder, by suffix, sorted by name.

    Raises:
        VideoError: the folder does not exist.
    """
    root = Path(folder)
    if not root.is_dir():
        raise VideoError(f"{root} is not a folder: pass one that holds video files")
    return sorted(p for p in root.iterdir() if p.suffix.lower() in _SUFFIXES and p.is_file())


def make_playable(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    texts: Texts,
    codec: Codec = "h264",
    max_bytes: int = MAX_BYTES,
) -> str:
    """Make of any video file one that every browser plays; returns what was changed, or "".

    A file that is right already is copied byte for byte. Where only its container or its texts
    differ, the pictures are copied as they are into a new one. Else they are encoded anew: upright,
    of even size, transparent parts on black, each shown as long as before, and without sound, which
    a copy keeps where browsers play it. What was changed is kept as the remark too.

    Args:
        source: a file of any usual kind.
        path: where to write; missing folders are made.
        texts: what the new file says of itself; a file whose title or comment is another is not
            right already. What else it said is kept in an exact copy only.
        codec: "h264" for an mp4, "vp9" for a webm.
        max_bytes: how large the new file may be. Quality, then size, then frames are given up.

    Raises:
        VideoError: it is no video, it cannot be made to fit, or `path` not be written.
    """
    source, path = Path(source), Path(path)
    found = inspect(source)
    wrong = problems(found, codec=codec, max_bytes=max_bytes)
    if not wrong:
        try:
            return _copy(source, path, found, codec, texts, max_bytes)
        except VideoError as error:
            if isinstance(error.__cause__, OSError):
                raise
            wrong = ("its pictures cannot be copied",)
    remark = f"re-encoded: {', '.join(wrong)}"
    remark += "; without its sound" if found.sounds else ""
    noted = _noted(texts, remark)
    lost = write_reel(_reel_in(source, found), path, texts=noted, codec=codec, max_bytes=max_bytes)
    return "; ".join(part for part in (remark, lost) if part)


def _copy(
    source: Path, path: Path, found: Inspected, codec: Codec, texts: Texts, max_bytes: int
) -> str:
    """Copy without encoding.

    Raises:
        VideoError: that makes no file that is right, or none at all.
    """
    mended = repairs(found, codec=codec)
    said = (found.title, found.comment, "")
    if not mended and said == (texts.title, texts.comment, texts.remark):
        write_whole(path, lambda temporary: shutil.copyfile(source, temporary))
        return ""
    remark = f"repackaged: {', '.join(mended)}" if mended else ""

    def write(temporary: Path) -> None:
        metadata = _noted(texts, remark).metadata()
        repackage(source, temporary, codec=codec, metadata=metadata, audio=SOUNDS[codec])
        made = inspect(temporary)
        left = problems(made, codec=codec, max_bytes=max_bytes) + repairs(made, codec=codec)
        longer_s = abs(made.seconds - found.seconds)
        if left or made.count != found.count or longer_s > 1 / found.fps + found.last_seconds:
            raise VideoError(f"{source} cannot be copied: {', '.join(left)}")

    write_whole(path, write)
    return remark


def _noted(texts: Texts, remark: str) -> Texts:
    return replace(texts, remark="; ".join(part for part in (texts.remark, remark) if part))


def _reel_in(source: Path, found: Inspected) -> Reel:
    turned = found.rotation % 180 != 0
    rate = Fraction(found.fps).limit_denominator(1001)
    tick = 1 / rate if found.steady else Fraction(1, _TICKS_PER_S)
    return Reel(
        shown=lambda: _shown(source, tick, steady=found.steady),
        count=found.count,
        last=1 if found.steady else max(1, round(found.last_seconds / tick)),
        tick=tick,
        rate=rate,
        width=found.height if turned else found.width,
        height=found.width if turned else found.height,
        aspect=1 / found.aspect if turned else found.aspect,
    )


@contextmanager
def _shown(source: Path, tick: Fraction, *, steady: bool) -> Iterator[Iterable[tuple[int, Frames]]]:
    with open_frames(source) as frames:
        yield enumerate(frames) if steady else _at_their_times(frames, tick)


def _at_their_times(frames: OpenFrames, tick: Fraction) -> Iterator[tuple[int, Frames]]:
    start = None
    for time, pixels in frames.timed():
        start = time if start is None else start
        yield round((time - start) / tick), pixels


class FilePictures:
    """A video file's pictures by number, as uint8 (H, W, 3); made by `file_pictures`.

    Attributes:
        shape: (T, H, W, 3).
        dtype: uint8.
    """

    def __init__(self, path: Path, count: int, stack: ExitStack) -> None:
        self.dtype = np.dtype(np.uint8)
        self._path, self._stack, self._next = path, stack, 0
        opened = self._restart()
        self.shape = (count, opened.height, opened.width, 3)

    def _restart(self) -> OpenFrames:
        self._stack.close()
        opened = self._stack.enter_context(open_frames(self._path))
        self._frames, self._next = iter(opened), 0
        return opened

    def __getitem__(self, index: int) -> Frames:
        """Picture `index`; the last one that decodes where the file is damaged before it."""
        if index < self._next - 1:
            self._restart()
        for pixels in islice(self._frames, index + 1 - self._next):
            self._last, self._next = pixels, self._next + 1
        return self._last


@contextmanager
def file_pictures(path: str | os.PathLike[str]) -> Iterator[tuple[FilePictures, float]]:
    """A video file's pictures by number and its frames per second; asked for in their order,
    each is decoded once, and only one is held.

    Raises:
        VideoError: no such file, not a video, or no frame that decodes.
    """
    found = inspect(path)
    with ExitStack() as stack:
        yield FilePictures(Path(path), found.count, stack), found.fps
