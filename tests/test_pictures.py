"""Facts about `opusclip_mlops.pictures`: a picture as MLflow and every mirror takes it."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opusclip_mlops import pictures
from opusclip_mlops.errors import VideoError


def picture(width: int = 600, height: int = 40, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind)
    return out.getvalue()


def test_a_png_stays_as_it_is(tmp_path: Path) -> None:
    """Byte for byte: what MLflow and a mirror have is what was logged."""
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    pictures.write_png(tmp_path / "a.png", tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()


def test_another_kind_of_picture_becomes_a_png(tmp_path: Path) -> None:
    """A WebP without loss has the same pixels afterwards."""
    (tmp_path / "a.webp").write_bytes(encoded(picture(), "WEBP"))
    pictures.write_png(tmp_path / "a.webp", tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as made, Image.open(tmp_path / "a.webp") as given:
        assert made.format == "PNG"
        assert np.array_equal(np.asarray(made), np.asarray(given))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "LA", "I;16"])
def test_a_small_picture_has_256_pixels_a_side_at_most(tmp_path: Path, mode: str) -> None:
    """Its shape is kept, of whatever mode it is; it is made once."""
    image = picture(mode="L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 200)
    (tmp_path / "a.png").write_bytes(encoded(image))
    path = pictures.small_webp(tmp_path / "a.png")
    with Image.open(path) as small:
        assert small.format == "WEBP"
        assert small.size == (256, 17)
    made_ns = path.stat().st_mtime_ns
    assert pictures.small_webp(tmp_path / "a.png").stat().st_mtime_ns == made_ns


def test_a_small_picture_is_not_made_larger(tmp_path: Path) -> None:
    """Eight pixels stay eight."""
    (tmp_path / "a.png").write_bytes(encoded(picture(8, 8)))
    with Image.open(pictures.small_webp(tmp_path / "a.png")) as small:
        assert small.size == (8, 8)


@pytest.mark.parametrize("name", ["cut", "text", "empty", "gone", "a folder"])
def test_what_is_no_picture_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    """Cut, foreign, empty or gone: a `VideoError`, and nothing is left behind."""
    path = tmp_path / "a.png"
    contents = {"cut": encoded(picture())[:900], "text": b"no picture", "empty": b""}
    if name in contents:
        path.write_bytes(contents[name])
    elif name == "a folder":
        path.mkdir()
    for make in (pictures.small_webp, lambda one: pictures.write_png(one, tmp_path / "b.png")):
        with pytest.raises(VideoError, match=r"picture a\.png cannot be read"):
            make(path)
    assert {one.name for one in tmp_path.iterdir()} <= {"a.png", "home"}


def test_a_full_disk_is_no_fault_of_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, and not refused for good."""
    (tmp_path / "a.png").write_bytes(encoded(picture(8, 8)))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    for make in (pictures.small_webp, lambda one: pictures.write_png(one, tmp_path / "b.png")):
        with pytest.raises(OSError, match="No space left"):
            make(tmp_path / "a.png")
