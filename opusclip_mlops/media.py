"""Clips on their way: staged by the training process as they are, encoded later by the shipper."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opusclip_mlops import origins
from opusclip_mlops.errors import VideoError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.records import Image, Video
from opusclip_mlops.staging import open_staged, stage

if TYPE_CHECKING:
    from opusclip_mlops.decoding import Said

__all__ = [
    "CLIP_KINDS", "artifact_name", "codec_of", "delivered_name", "picture", "playable", "rendition",
    "said_in", "stage",
]  # fmt: skip

CLIP_KINDS = {"h264": "mp4", "vp9": "webm"}
"""The kind of file a codec comes in."""

_POSTER_SIDE = 320
_MADE = ".as"


def rendition(
    folder: RunFolder,
    record: Video,
    kind: str,
    *,
    comment: str = "",
    max_bytes: int | None = None,
) -> Path:
    """A staged clip as a file of a kind; made once, and what it is made with holds for good.

    Args:
        folder: the run's folder.
        record: the clip.
        kind: `mp4` (H.264) or `webm` (VP9), which browsers play; `webp` (animated), `png` (contact
            sheet) or `gif`.
        comment: JSON of where the clip comes from, kept in an mp4 or webm.
        max_bytes: how large an mp4 or webm may be; 32 MiB by default.

    Raises:
        VideoError: the staged clip can't be read, encoded, or made to fit.
        OSError: it can't be written now, such as on a full disk.
    """
    staged = folder.media / Path(record.file).name
    made = staged.parent / f"{_stem(staged.name)}{_MADE}.{kind}"
    if made.exists():
        return made
    try:
        if kind in CLIP_KINDS.values():
            _make_clip(staged, made, record, comment, max_bytes)
        else:
            _make_pictures(staged, made, record.fps)
    except VideoError as error:
        # No fault of the clip: it is to be tried again, not refused for good.
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise
    return made


def playable(folder: RunFolder, record: Video) -> Path:
    """A staged clip as the file that MLflow and W&B are given, with where it comes from in it.

    Raises:
        VideoError: the staged clip can't be read, encoded, or made to fit.
        OSError: it can't be written now, such as on a full disk.
    """
    known = origins.completed(folder, record.origin)
    return rendition(
        folder,
        record,
        CLIP_KINDS[record.codec],
        comment=json.dumps(known) if known else "",
        max_bytes=record.max_bytes or None,
    )


def codec_of(path: str) -> str:
    """The codec of a clip's file by its name."""
    return next((codec for codec, kind in CLIP_KINDS.items() if path.endswith(f".{kind}")), "h264")


def _make_clip(
    staged: Path, made: Path, record: Video, comment: str, max_bytes: int | None
) -> None:
    import opusclip_mlops.video as codec

    name: Any = next(name for name, kind in CLIP_KINDS.items() if made.suffix == f".{kind}")
    most_bytes = codec.MAX_BYTES if max_bytes is None else max_bytes
    texts = codec.Texts(title=record.caption, comment=comment)
    if staged.suffix != ".npy":
        codec.make_playable(staged, made, texts=texts, codec=name, max_bytes=most_bytes)
        return
    clip = open_staged(staged)
    codec.write_reel(
        codec.reel_of(clip.pictures, fps=record.fps),
        made,
        texts=dataclasses.replace(texts, remark=clip.remark),
        codec=name,
        max_bytes=most_bytes,
    )


def _make_pictures(staged: Path, made: Path, fps: float) -> None:
    import opusclip_mlops.video as codec

    with contextlib.ExitStack() as stack:
        frames: Any
        if staged.suffix == ".npy":
            frames = open_staged(staged).pictures
        else:
            frames, fps = stack.enter_context(codec.file_pictures(staged))
        writers: dict[str, Callable[[], None]] = {
            ".webp": lambda: codec.write_webp(frames, made, fps=fps, least_side=_POSTER_SIDE),
            ".png": lambda: codec.write_contact_sheet(frames, made, least_side=_POSTER_SIDE),
            ".gif": lambda: codec.write_gif(frames, made, fps=fps),
        }
        writers[made.suffix]()


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


def delivered_name(mark: str, kind: str = "mp4") -> str:
    """What a clip that comes back from MLflow is called in a run's folder: it is made already."""
    return f"{mark}{_MADE}.{kind}"


def said_in(path: Path) -> "Said":
    """What a clip's file says of it besides its pictures: frame rate, caption, comment, remark.

    Raises:
        VideoError: it can't be read as video.
    """
    from opusclip_mlops.decoding import read_said

    return read_said(path)


def _stem(name: str) -> str:
    whole, made, _ = name.rpartition(f"{_MADE}.")
    return whole if made else Path(name).stem


def artifact_name(record: Video) -> str:
    """A name for the clip that is the same each time it is delivered, and no other clip's."""
    return f"step_{record.step:08d}-{Path(record.file).stem[-8:]}.{CLIP_KINDS[record.codec]}"
