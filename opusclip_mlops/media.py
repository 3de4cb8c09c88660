"""Clips on their way: staged by the training process as they are, encoded later by the shipper."""

import contextlib
import itertools
import os
import shutil
import tokenize
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opusclip_mlops.errors import VideoError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.records import Image, Video

if TYPE_CHECKING:
    from opusclip_mlops.video import Said

_POSTER_SIDE = 320
_MADE = ".as"
_counter = itertools.count()


def stage(folder: RunFolder, video: Any, *, value_range: tuple[float, float]) -> str:
    """Keep a clip in the run's folder; returns its file name there.

    An array or tensor is kept as uint8 frames (T, H, W, 3), a path as a copy of the file.

    Raises:
        VideoError: not a clip, or no such file.
    """
    if isinstance(video, str | os.PathLike):
        return _stage_file(folder, Path(video))
    import numpy as np

    from opusclip_mlops.video import to_frames

    frames = to_frames(video, value_range=value_range)
    name = f"{os.getpid()}-{next(_counter):06d}-{uuid.uuid4().hex[:8]}.npy"
    with _whole(folder.media / name) as temporary, temporary.open("wb") as file:
        np.save(file, frames, allow_pickle=False)
    return name


def _stage_file(folder: RunFolder, path: Path) -> str:
    if not path.is_file():
        raise VideoError(f"no such video file: {path}")
    name = f"{os.getpid()}-{next(_counter):06d}-{uuid.uuid4().hex[:8]}{path.suffix.lower()}"
    with _whole(folder.media / name) as temporary:
        try:
            shutil.copyfile(path, temporary)
        except PermissionError as error:
            raise VideoError(f"video file {path} cannot be read: {error.strerror}") from None
    return name


def rendition(folder: RunFolder, record: Video, kind: str) -> Path:
    """A staged clip as `mp4`, `webp` (animated), `png` (contact sheet) or `gif`; made once.

    Raises:
        VideoError: the staged clip can't be read or encoded.
        OSError: it can't be written now, such as on a full disk.
    """
    import opusclip_mlops.video as codec

    staged = folder.media / Path(record.file).name
    made = staged.parent / f"{_stem(staged.name)}{_MADE}.{kind}"
    if made.exists():
        return made
    frames, fps = _frames(staged, record.fps)
    writers: dict[str, Callable[[Path], None]] = {
        "mp4": lambda path: codec.write_mp4(frames, path, fps=fps, title=record.caption),
        "webp": lambda path: codec.write_webp(_enlarged(frames), path, fps=fps),
        "png": lambda path: codec.write_contact_sheet(_enlarged(frames), path),
        "gif": lambda path: codec.write_gif(frames, path, fps=fps),
    }
    try:
        writers[kind](made)
    except VideoError as error:
        # No fault of the clip: it is to be tried again, not refused for good.
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise
    return made


def picture(folder: RunFolder, record: Image) -> Path:
    """A staged picture as a PNG: as it is where it is one, else made once.

    Raises:
        VideoError: it can't be read.
    """
    from opusclip_mlops import pictures

    staged = folder.media / Path(record.file).name
    made = staged.with_name(f"{staged.stem}.as.png")
    if not made.exists():
        pictures.write_png(staged, made)
    return made


def _enlarged(frames: Any) -> Any:
    """Small frames, a whole number of times larger: the image grid shows a picture as it is."""
    factor = max(1, _POSTER_SIDE // max(frames.shape[1:3]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def delivered_name(mark: str) -> str:
    """What a clip that comes back from MLflow is called in a run's folder: it is an mp4 already."""
    return f"{mark}{_MADE}.mp4"


def said_in(path: Path) -> "Said":
    """What a clip's file says of it besides its pictures.

    Raises:
        VideoError: it can't be read as video.
    """
    from opusclip_mlops.video import read_said

    return read_said(path)


def _stem(name: str) -> str:
    whole, made, _ = name.rpartition(f"{_MADE}.")
    return whole if made else Path(name).stem


def artifact_name(record: Video) -> str:
    """A name for the clip that is the same each time it is delivered, and no other clip's."""
    return f"step_{record.step:08d}-{Path(record.file).stem[-8:]}"


def _frames(staged: Path, fps: float) -> tuple[Any, float]:
    from opusclip_mlops.video import read_clip

    if staged.suffix != ".npy":
        clip = read_clip(staged)
        return clip.frames, clip.fps
    import numpy as np

    try:
        with staged.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False), fps
    except (EOFError, MemoryError, OSError, TypeError, ValueError, tokenize.TokenError) as error:
        reason = " ".join(str(error).split())
        raise VideoError(f"staged clip {staged.name} cannot be read: {reason}") from None


@contextlib.contextmanager
def _whole(path: Path) -> Any:
    temporary = path.with_name(f".{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
