"""Embeddings as TensorBoard's projector reads them: files beside a run's event files.

    projector/<key>-step_<step>-<ms>-<digest>/   an embedding: tensors.tsv, metadata.tsv, sprite.png
    projector_config.pbtxt                       names all of them

A folder is put there whole, under a name of its own for each content; the configuration is made
anew from the folders that are there. So a process may be killed at any moment.
"""

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig

from opusclip_mlops import insight_views
from opusclip_mlops.folder import write_whole
from opusclip_mlops.insight_views import Embedding
from opusclip_mlops.line_names import key_of
from opusclip_mlops.mirror_names import Names
from opusclip_mlops.records import Insight

CONFIG = "projector_config.pbtxt"
"""The file that TensorBoard looks for in a run's folder."""

MOST_NUMBERS = 5_000_000
"""How many numbers of an embedding are shown: TensorBoard reads all of them at once, as text."""

_FOLDER, _UNFINISHED = "projector", ".new-"
_TENSORS, _METADATA, _SPRITE, _ABOUT = "tensors.tsv", "metadata.tsv", "sprite.png", "about.json"
_PLAIN_CHARACTERS, _MARK_DIGITS = 60, 12
# TensorBoard drops a line, or the cells at its ends, that are only white space.
_NO_LABEL = "-"


class _About(msgspec.Struct, frozen=True):
    """Which embedding a folder holds; `picture_px` is the height and width of one picture."""

    key: str
    step: int
    timestamp_ms: int
    shape: tuple[int, int]
    picture_px: tuple[int, int]


def write(target: Path, record: Insight, media: Path) -> str:
    """Put an embedding beside the event files in `target`; returns the name of its folder.

    Raises:
        RecordError: its files can't be read.
        OSError: it can't be written now.
    """
    with insight_views.understood(record):
        embedding = insight_views.embedding_of(record, media)
        name = _name(record, embedding)
    folder = target / _FOLDER / name
    about = _about(folder)
    if about is not None and about.key != record.key:
        _write_about(folder, msgspec.structs.replace(about, key=record.key))
    if about is None:
        shutil.rmtree(folder, ignore_errors=True)
        unfinished = folder.with_name(f"{_UNFINISHED}{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _fill(unfinished, record, insight_views.first_of(embedding, numbers=MOST_NUMBERS))
        unfinished.rename(folder)
    _write_config(target)
    return name


def rename(target: Path, names: Names) -> None:
    """Give all embeddings beside the event files the names of now."""
    is_changed = False
    for about, folder in _standing(target):
        name = names.again(about.key, step=about.step, timestamp_ms=about.timestamp_ms)
        if name != about.key:
            _write_about(folder, msgspec.structs.replace(about, key=name))
            is_changed = True
    if is_changed:
        _write_config(target)


def heal(target: Path) -> None:
    """Remove what is not whole, such as what a process was killed in, and name all that is.

    Only for who has the right to write here.
    """
    if (target / _FOLDER).is_dir():
        for path in target.glob(f".{CONFIG}.*"):
            path.unlink(missing_ok=True)
        keep_only(target, {folder.name for _, folder in _standing(target)})


def keep_only(target: Path, names: set[str]) -> None:
    """Remove all embeddings but those of these names; what is no folder is none."""
    if (target / _FOLDER).is_dir():
        for path in (target / _FOLDER).iterdir():
            if path.name not in names and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
        _write_config(target)


def embeddings_in(target: Path) -> Counter[tuple[str, int, int]]:
    """How many embeddings stand whole beside the event files, by key, step and milliseconds."""
    return Counter((one.key, one.step, one.timestamp_ms) for one, _ in _standing(target))


def _name(record: Insight, embedding: Embedding) -> str:
    # Where training goes back an embedding gets another name, and keeps its folder.
    key = key_of(record.key)
    content = hashlib.sha256(msgspec.json.encode([key, record.content], order="sorted"))
    content.update(np.ascontiguousarray(embedding.vectors).data)
    if embedding.sprite is not None:
        content.update(embedding.sprite.read_bytes())
    plain = re.sub(r"[^A-Za-z0-9_\-]+", "-", key)[:_PLAIN_CHARACTERS]
    mark = content.hexdigest()[:_MARK_DIGITS]
    return f"{plain}-step_{record.step:08d}-{record.timestamp_ms}-{mark}"


def _fill(folder: Path, record: Insight, embedding: Embedding) -> None:
    with (folder / _TENSORS).open("w") as file:
        for row in embedding.vectors:
            file.write("\t".join([f"{value:.9g}" for value in row.tolist()]) + "\n")
    if embedding.labels:
        lines = "".join(f"{line}\n" for line in _metadata(embedding))
        (folder / _METADATA).write_text(lines, encoding="utf-8")
    if embedding.sprite is not None:
        shutil.copyfile(embedding.sprite, folder / _SPRITE)
    count, dimensions = embedding.vectors.shape
    about = _About(
        record.key, record.step, record.timestamp_ms, (count, dimensions), embedding.picture_px
    )
    _write_about(folder, about)


def _write_about(folder: Path, about: _About) -> None:
    write_whole(folder / _ABOUT, msgspec.json.encode(about))


def _metadata(embedding: Embedding) -> Iterator[str]:
    """The lines of metadata.tsv; labels of one column have no heading."""
    if len(embedding.columns) > 1:
        yield _line(embedding.columns)
    yield from map(_line, embedding.labels)


def _line(cells: Sequence[str]) -> str:
    return "\t".join(" ".join(cell.split()) or _NO_LABEL for cell in cells)


def _standing(target: Path) -> list[tuple[_About, Path]]:
    """The embeddings that are whole, with their folders, in the order of their steps."""
    folders = (path.parent for path in (target / _FOLDER).glob(f"[!.]*/{_ABOUT}"))
    found = [(about, folder) for folder in folders if (about := _about(folder))]
    return sorted(found, key=lambda one: (one[0].key, one[0].step, one[0].timestamp_ms, one[1]))


def _about(folder: Path) -> _About | None:
    """What a folder says of itself, None where it is not whole."""
    try:
        return msgspec.json.decode((folder / _ABOUT).read_bytes(), type=_About)
    except (OSError, msgspec.DecodeError):
        return None


def _write_config(target: Path) -> None:
    standing = _standing(target)
    if not standing:
        (target / CONFIG).unlink(missing_ok=True)
        return
    names = Counter((about.key, about.step) for about, _ in standing)
    config = ProjectorConfig()
    for about, folder in standing:
        mark = f" ({folder.name[-_MARK_DIGITS:]})" if names[about.key, about.step] > 1 else ""
        config.embeddings.append(_info(f"{about.key} step {about.step}{mark}", about, folder))
    temporary = target / f".{CONFIG}.{os.getpid()}"
    # As text a message is what TensorBoard parses.
    temporary.write_text(str(config), encoding="utf-8")
    temporary.replace(target / CONFIG)


def _info(name: str, about: _About, folder: Path) -> EmbeddingInfo:
    place = f"{_FOLDER}/{folder.name}"
    info = EmbeddingInfo(
        tensor_name=name, tensor_shape=about.shape, tensor_path=f"{place}/{_TENSORS}"
    )
    if (folder / _METADATA).exists():
        info.metadata_path = f"{place}/{_METADATA}"
    if (folder / _SPRITE).exists():
        height_px, width_px = about.picture_px
        info.sprite.image_path = f"{place}/{_SPRITE}"
        info.sprite.single_image_dim.extend([width_px, height_px])
    return info
