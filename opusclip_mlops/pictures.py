"""Pictures that were logged as they are, turned into what every mirror takes."""

import os
from pathlib import Path

from PIL import Image

from opusclip_mlops.errors import VideoError


def write_png(source: Path, path: Path) -> None:
    """Write a picture of any kind as a PNG.

    Raises:
        VideoError: it can't be read.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with Image.open(source) as image:
            image.save(temporary, format="PNG")
        os.replace(temporary, path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(f"picture {source.name} cannot be read: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)
