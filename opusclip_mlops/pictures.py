"""Pictures that were logged as they are, turned into what MLflow and every mirror takes."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from opusclip_mlops.errors import VideoError

SMALL_SIDE = 256
"""How many pixels the longer side of a small picture has at most, as MLflow's own."""

_FOR_GOOD = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM)


def write_png(source: Path, path: Path) -> None:
    """Write a picture of any kind as a PNG; one that is a PNG stays as it is, byte for byte.

    Raises:
        VideoError: it can't be read.
        OSError: it can't be written now, such as on a full disk.
    """

    def write(image: Image.Image, temporary: Path) -> None:
        if image.format == "PNG":
            image.load()
            shutil.copyfile(source, temporary)
        else:
            image.save(temporary, format="PNG")

    _write(source, path, write)


def small_webp(source: Path) -> Path:
    """A picture as a small WebP beside it; made once.

    Raises:
        VideoError: it can't be read.
        OSError: it can't be written now, such as on a full disk.
    """
    path = source.with_name(f"{source.stem}.small.webp")

    def write(image: Image.Image, temporary: Path) -> None:
        image.thumbnail((SMALL_SIDE, SMALL_SIDE))
        has_alpha = image.has_transparency_data
        image.convert("RGBA" if has_alpha else "RGB").save(temporary, format="WEBP")

    if not path.exists():
        _write(source, path, write)
    return path


def _write(source: Path, path: Path, write: Callable[[Image.Image, Path], None]) -> None:
    """Let `write` make a file of a picture, and put it there once it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with Image.open(source) as image:
            write(image, temporary)
        os.replace(temporary, path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # No fault of the picture: it is to be tried again, not refused for good.
        if isinstance(error, OSError) and error.errno not in _FOR_GOOD:
            raise
        raise VideoError(f"picture {source.name} cannot be read: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)
