"""What is shown as it is, pictures, figures, vectors, as files of their own in a run's folder."""

import math
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opusclip_mlops.errors import RecordError, RecordTypeError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from opusclip_mlops.pixels import Array

SPRITE_SIDE = 8192
"""The largest side, in pixels, of a picture and of a sheet of them that browsers can show."""

MOST_VECTORS, MOST_VECTORS_BYTES = 100_000, 512 * 2**20
"""How many vectors TensorBoard's projector can hold, and how many bytes of them are kept."""

Pieces = Sequence[bytes | memoryview]
"""What a file holds, piece by piece."""

_MOST_LABELS = 1000  # of one vector
_SLACK = 1e-3  # how far outside 0..1 a float may lie, as rounding leaves it
_FASTEST = 1  # of PNG's levels: the training thread waits
_PICTURE = "pass a matplotlib figure, a PIL picture, or an array (H, W), (H, W, 3) or (H, W, 4)"


def keep(media: Path, contents: Mapping[str, bytes | Pieces]) -> dict[str, str]:
    """Write files whole, all or none; returns their names in `media`, by the names given.

    Raises:
        OSError: the disk could not take one of them.
    """
    names = {name: f"{uuid.uuid4().hex}{''.join(Path(name).suffixes)}" for name in contents}
    with ExitStack() as undo:
        for name, content in contents.items():
            path = media / names[name]
            undo.callback(path.unlink, missing_ok=True)
            _write_new(path, [content] if isinstance(content, bytes) else content)
        undo.pop_all()
    return names


def _write_new(path: Path, pieces: Pieces) -> None:
    """Write a private file, which stands under its name once it is whole."""
    unfinished = path.with_name(f".{path.name}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.writelines(pieces)
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def numbers_of(value: Any, what: str) -> "Array":
    """Numbers as a NumPy array, from an array, a tensor on any device, or lists.

    Raises:
        RecordError: they are no numbers, or lists of unlike lengths.
    """
    import numpy as np

    from opusclip_mlops.pixels import as_array, is_tensor

    try:
        array = as_array(value) if is_tensor(value) else np.asarray(value)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120]
        raise RecordError(f"{what} cannot be read as numbers: {reason}") from None
    if array.dtype.kind not in "biuf":
        raise RecordError(f"{what} must be numbers, not {array.dtype} ({type(value).__name__})")
    return array


def picture_png(picture: Any) -> bytes:
    """A figure, picture or array as a PNG.

    Args:
        picture: a matplotlib figure, drawn now; a PIL picture of 8 bits a colour; an array or
            tensor (H, W), (H, W, 3) or (H, W, 4), uint8 or floats 0..1; or a plotly figure.

    Raises:
        RecordError: it is none of these, holds other values, or has more than 8192 x 8192 pixels.
    """
    if hasattr(picture, "savefig"):
        return _figure_png(picture)
    if hasattr(picture, "to_image") and hasattr(picture, "to_html"):
        return _plotly_png(picture)
    return _png(_opened(picture, "the picture"))


def _figure_png(figure: Any) -> bytes:
    if isinstance(figure, type) or not hasattr(figure, "get_size_inches"):
        raise RecordTypeError(f"a {_called(figure)} is no figure: pass plt.gcf()")
    width, height = (side * figure.dpi for side in figure.get_size_inches())
    _check_pixels(math.ceil(width), math.ceil(height), "the figure")
    content = BytesIO()
    options = {"compress_level": _FASTEST}
    figure.savefig(content, format="png", dpi=figure.dpi, pil_kwargs=options)
    return content.getvalue()


def _called(given: Any) -> str:
    return f"class {given.__name__}" if isinstance(given, type) else type(given).__name__


def _plotly_png(figure: Any) -> bytes:
    try:
        return bytes(figure.to_image(format="png"))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise RecordError(
            f"the plotly figure cannot be drawn: {reason}: plotly draws pictures with kaleido"
        ) from None


def _png(image: "Image.Image") -> bytes:
    content = BytesIO()
    image.save(content, format="PNG", compress_level=_FASTEST)
    return content.getvalue()


def _opened(picture: Any, what: str) -> "Image.Image":
    """A picture or array as a PIL picture that PNG can hold: grey, RGB or RGBA, 8 bits each."""
    from PIL import Image

    from opusclip_mlops.pixels import is_tensor

    if isinstance(picture, Image.Image):
        return _plain(picture, what)
    if isinstance(picture, type) or not (is_tensor(picture) or hasattr(picture, "__array__")):
        raise RecordTypeError(f"{what} cannot be made from {_called(picture)}: {_PICTURE}")
    array = numbers_of(picture, what)
    if array.ndim not in (2, 3) or 0 in array.shape or array.shape[2:] not in ((), (3,), (4,)):
        channels_first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        advice = "put its channels last" if channels_first else _PICTURE
        raise RecordError(f"{what} has the shape {array.shape}: {advice}")
    _check_pixels(array.shape[1], array.shape[0], what)
    return Image.fromarray(_bytes(array, what))


def _plain(image: "Image.Image", what: str) -> "Image.Image":
    """A picture that was opened before, in a mode of PNG's."""
    _check_pixels(*image.size, what)
    if image.mode[0] in "IF":
        raise RecordError(f"{what} has the mode {image.mode}: bring it to 8 bits a colour")
    has_alpha = image.mode in ("LA", "PA", "RGBa", "La", "RGBA") or "transparency" in image.info
    mode = "RGBA" if has_alpha else "L" if image.mode in ("1", "L") else "RGB"
    try:
        return image.convert(mode)
    except (OSError, SyntaxError, ValueError) as error:
        raise RecordError(f"{what} cannot be read: {error}: was it closed?") from None


def _bytes(array: "Array", what: str) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Colours as bytes; floats are 0..1."""
    import numpy as np

    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind != "f":
        raise RecordError(f"{what} holds {array.dtype}: bring it to uint8, or to floats 0..1")
    low, high = float(array.min()), float(array.max())
    if not (low >= -_SLACK and high <= 1 + _SLACK):  # NaN is neither
        raise RecordError(f"{what} holds {low:g} to {high:g}: bring its floats to 0..1")
    wide = np.multiply(array, 255.0, dtype=np.float64)
    return np.ascontiguousarray(np.rint(wide.clip(0.0, 255.0)).astype(np.uint8))


def _check_pixels(width: int, height: int, what: str) -> None:
    if not 0 < width * height <= SPRITE_SIDE**2:
        most = f"{SPRITE_SIDE} x {SPRITE_SIDE}"
        raise RecordError(f"{what} has {width} x {height} pixels: at least 1, at most {most}")


@dataclass(frozen=True, eq=False)
class Embedding:
    """Vectors as they are kept: what is said of them, and their files by name."""

    content: dict[str, Any]
    files: dict[str, Pieces]


def embedding_of(
    matrix: Any,
    labels: Sequence[Any] | None = None,
    images: Sequence[Any] | None = None,
    columns: Sequence[str] | None = None,
) -> Embedding:
    """Vectors (n, d) with a label and a picture for each, as `log_embedding` takes them.

    Raises:
        RecordError: one of them is not usable.
    """
    vectors = vectors_of(matrix)
    count, dimensions = vectors.shape
    names, texts = _labels_of(labels, columns, count)
    content = {"count": count, "dimensions": dimensions, "columns": names, "labels": texts}
    files: dict[str, Pieces] = {"vectors.npy": _npy(vectors)}
    if images is None:
        return Embedding({**content, "sprite": None}, files)
    sheet, size = sprite_png(_listed(images, "images", count), count)
    return Embedding({**content, "sprite": size}, {**files, "sprite.png": [sheet]})


def vectors_of(matrix: Any) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Vectors as float32 (n, d), a copy.

    Raises:
        RecordError: another shape, NaN or infinite numbers (the row is named), or more than
            100,000 vectors or 512 MiB.
    """
    import numpy as np

    array = numbers_of(matrix, "the embedding")
    if array.ndim != 2 or 0 in array.shape:
        raise RecordError(f"the embedding has the shape {array.shape}: pass (n, d), n vectors of d")
    _check_vectors(*array.shape)
    with np.errstate(over="ignore"):
        vectors = np.array(array, np.float32, order="C")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise RecordError(f"row {row} of the embedding holds NaN or infinite numbers: leave it out")
    return vectors


def _check_vectors(count: int, dimensions: int) -> None:
    size_bytes = 4 * count * dimensions
    if count > MOST_VECTORS or size_bytes > MOST_VECTORS_BYTES:
        share = max(count / MOST_VECTORS, size_bytes / MOST_VECTORS_BYTES)
        raise RecordError(
            f"the embedding has {count:,} vectors, {size_bytes / 2**20:,.0f} MiB: at most"
            f" {MOST_VECTORS:,} and 512 MiB are kept, so pass every {math.ceil(share)}th row"
        )


def _npy(vectors: "Array") -> Pieces:
    """An array, C-contiguous, as an npy file; its numbers are not copied."""
    import numpy as np

    header = BytesIO()
    about = np.lib.format.header_data_from_array_1_0(vectors)
    np.lib.format.write_array_header_1_0(header, about)
    return [header.getvalue(), vectors.data]


def sprite_png(images: Sequence[Any], count: int) -> tuple[bytes, list[int]]:
    """Pictures, one for each vector, row by row in a square grid; and [height, width] of one.

    Each has the size of the first, made smaller where the sheet would pass 8192 pixels a side.

    Raises:
        RecordError: another number of pictures than vectors, or one that is none.
    """
    from PIL import Image

    if len(images) != count:
        raise RecordError(f"there are {len(images)} images for {count} vectors: pass one for each")
    across = math.isqrt(count - 1) + 1
    width, height = _size_of_one(_opened(images[0], "image 0"), across)
    sheet = Image.new("RGBA", (width * across, height * across))
    for index, one in enumerate(images):
        picture = _opened(one, f"image {index}").convert("RGBA").resize((width, height))
        sheet.paste(picture, (index % across * width, index // across * height))
    return _png(sheet), [height, width]


def _size_of_one(first: "Image.Image", across: int) -> tuple[int, int]:
    scale = min(1.0, SPRITE_SIDE / across / max(first.size))
    width, height = (max(1, int(side * scale)) for side in first.size)
    return width, height


def _listed(values: Any, what: str, count: int = _MOST_LABELS) -> list[Any]:
    """Values as a list; of an iterator, which may have no end, one more than there may be."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise RecordTypeError(f"{what} must be a list, not {values!r:.60}")
    try:
        return list(values if isinstance(values, Sized) else islice(values, count + 1))
    except TypeError:
        raise RecordTypeError(f"{what} must be a list, not {values!r:.60}") from None


def _labels_of(
    labels: Sequence[Any] | None, columns: Sequence[str] | None, count: int
) -> tuple[list[str], list[list[str]]]:
    """The columns of labels, and the labels of each vector as texts; both empty without labels.

    Raises:
        RecordError: another number of labels than vectors, or of texts than columns.
    """
    named = [] if columns is None else [str(name) for name in _listed(columns, "columns")]
    if labels is None:
        if named:
            raise RecordError("columns name the labels of an embedding: pass labels too")
        return [], []
    given = _listed(labels, "labels", count)
    rows = [list(one) if isinstance(one, tuple | list) else [one] for one in given]
    if len(rows) != count:
        raise RecordError(f"there are {len(rows)} labels for {count} vectors: pass one for each")
    names = named or (["label"] if len(rows[0]) == 1 else [])
    odd = next((at for at, row in enumerate(rows) if len(row) != len(names)), None)
    if odd is not None:
        advice = f"name them with columns=, one for each of {len(rows[odd])}"
        raise RecordError(f"label {odd} has {len(rows[odd])} texts for {len(names)}: {advice}")
    return names, [[str(text) for text in row] for row in rows]
