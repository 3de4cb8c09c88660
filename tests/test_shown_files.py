"""Facts about `opusclip_mlops.shown_files`: what is shown becomes whole, private files."""

import io
import math
import tracemalloc
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from opusclip_mlops.errors import RecordError
from opusclip_mlops.shown_files import (
    MOST_VECTORS,
    embedding_of,
    keep,
    numbers_of,
    picture_png,
    sprite_png,
    vectors_of,
)

matplotlib.use("agg")
RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    assert image.format == "PNG"
    return image


def pixels(content: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(opened(content))


def test_a_figure_is_drawn_as_it_is_now() -> None:
    """With its own size and resolution; one that pyplot has closed too."""
    figure, axes = plt.subplots(figsize=(3, 2), dpi=50)
    axes.plot([0, 1], [1, 0])
    first = picture_png(figure)
    assert opened(first).size == (150, 100)
    axes.set_facecolor("red")
    plt.close(figure)
    second = picture_png(figure)
    assert (pixels(second)[..., :3] == (255, 0, 0)).all(axis=-1).mean() > 0.3
    assert (pixels(first)[..., :3] == (255, 0, 0)).all(axis=-1).mean() == 0


def test_no_window_is_needed_for_a_figure() -> None:
    """A figure made without pyplot is drawn too, by any thread."""
    figure = Figure(figsize=(1, 1), dpi=64)
    figure.subplots().plot([0, 1])
    assert opened(picture_png(figure)).size == (64, 64)


@pytest.mark.parametrize(
    "picture",
    [
        RED,
        RED.astype(np.float32) / 255,
        RED.astype(np.float64) / 255 + 1e-4,
        torch.tensor(RED),
        torch.tensor(RED / 255, dtype=torch.bfloat16, requires_grad=True),
        np.asfortranarray(RED),
        RED[::-1, ::-1],
        Image.fromarray(RED),
        Image.fromarray(RED).convert("P"),
        Image.fromarray(RED).convert("CMYK"),
        Image.fromarray(RED).convert("YCbCr"),
    ],
)
def test_pictures_and_arrays_are_the_same_picture(picture: Any) -> None:
    """Bytes, floats 0..1, tensors, any order in memory, any mode of eight bits."""
    found = pixels(picture_png(picture)).astype(int)
    assert found.shape == RED.shape
    assert np.abs(found - RED).max() <= 2


def test_grey_and_transparency_are_kept() -> None:
    """(H, W) is grey, (H, W, 4) has an alpha."""
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert (pixels(picture_png(grey)) == grey).all()
    clear = np.dstack([RED, np.full((4, 6), 7, np.uint8)])
    for picture in (clear, Image.fromarray(clear), clear / 255):
        assert (pixels(picture_png(picture)) == clear).all()
    assert (pixels(picture_png(Image.fromarray(grey))) == grey).all()


def test_a_picture_is_copied() -> None:
    """What is changed after the call does not change what was logged."""
    array = RED.copy()
    content = picture_png(array)
    array[:] = 0
    assert (pixels(content) == RED).all()


def closed_picture(path: Path) -> Image.Image:
    Image.fromarray(RED).save(path)
    picture = Image.open(path)
    picture.close()
    return picture


def test_a_picture_that_was_closed_or_cut_is_refused(tmp_path: Path) -> None:
    """Its pixels are read when they are asked for, and are not there."""
    with pytest.raises(RecordError, match=r"the picture cannot be read.*closed"):
        picture_png(closed_picture(tmp_path / "closed.png"))
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(RecordError, match="the picture cannot be read"):
        picture_png(Image.open(path))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (None, "cannot be made from NoneType: pass a matplotlib figure"),
        ("path.png", "cannot be made from str"),
        ([[0, 1]], "cannot be made from list"),
        (plt, "module is no figure"),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\): put its channels last"),
        (np.zeros((8, 8, 2), np.uint8), r"\(8, 8, 2\)"),
        (np.zeros(8), r"\(8,\)"),
        (np.zeros((0, 8)), r"\(0, 8\)"),
        (np.zeros((8, 8), np.int64), "int64: bring it to uint8"),
        (np.zeros((8, 8), bool), "bool: bring it to uint8"),
        (np.full((8, 8), 1.5), r"holds 1.5 to 1.5: bring its floats to 0..1"),
        (np.full((8, 8), np.nan), "holds nan to nan"),
        (np.array([[{}]]), "must be numbers, not object"),
        (np.ndarray, "cannot be made from class ndarray"),
        (Figure, "a class Figure is no figure"),
        (torch.zeros(2, 2, device="meta"), "cannot be read as numbers"),
        (torch.zeros(2, 2).to_sparse(), "cannot be read as numbers"),
        (torch.zeros(2, 2, dtype=torch.complex64), "must be numbers, not complex64"),
        (Image.new("F", (2, 2)), "mode F: bring it to 8 bits"),
        (Image.new("I;16", (2, 2)), "mode I;16"),
        (np.broadcast_to(np.uint8(0), (8193, 8192)), "8192 x 8193 pixels: at least 1, at most"),
        (Figure(figsize=(100, 100), dpi=100), "the figure has 10000 x 10000 pixels"),
    ],
)
def test_what_is_no_picture_is_refused(picture: Any, message: str) -> None:
    """The message says what it is and what to do."""
    with pytest.raises(RecordError, match=message) as caught:
        picture_png(picture)
    assert "\n" not in str(caught.value)


class PlotlyFigure:
    """Draws as plotly's figures do: by kaleido, where it is installed."""

    def __init__(self, drawn: bytes | Exception) -> None:
        self._drawn = drawn

    def to_html(self) -> str:
        return "<div></div>"

    def to_image(self, *, format: str) -> bytes:
        assert format == "png"
        if isinstance(self._drawn, Exception):
            raise self._drawn
        return self._drawn


def test_a_plotly_figure_is_drawn_where_kaleido_is() -> None:
    """Without it the message names it."""
    content = picture_png(RED)
    assert picture_png(PlotlyFigure(content)) == content
    fault = ValueError("Image export needs\nthe kaleido package")
    with pytest.raises(RecordError, match=r"plotly figure cannot be drawn: Image.*kaleido"):
        picture_png(PlotlyFigure(fault))


def test_vectors_are_a_copy_in_float32() -> None:
    """Whatever type and order in memory they had."""
    given = np.arange(6.0).reshape(2, 3)
    for matrix in (given, np.asfortranarray(given), given.astype(int), given.tolist(),
                   torch.tensor(given, dtype=torch.bfloat16, requires_grad=True)):  # fmt: skip
        found = vectors_of(matrix)
        assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
        assert (found == given).all()
    same = given.astype(np.float32)
    found = vectors_of(same)
    same[:] = 9
    assert (found == given).all()


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[1.0, 2.0], [np.nan, 1.0]], "row 1 of the embedding holds NaN"),
        ([[1e300, 2.0]], "row 0 of the embedding holds NaN or infinite"),
        ([1.0, 2.0], r"shape \(2,\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        (np.zeros((3, 0)), r"shape \(3, 0\)"),
        ([[1.0], [1.0, 2.0]], "cannot be read as numbers"),
        ([["a"]], "must be numbers"),
        (np.zeros((1, 1), complex), "must be numbers, not complex128"),
        (np.broadcast_to(0.0, (MOST_VECTORS + 1, 2)), "100,001 vectors.*pass every 2th row"),
        (np.broadcast_to(0.0, (50_000, 4096)), "781 MiB: at most .* 512 MiB .* every 2th row"),
    ],
)
def test_what_are_no_vectors_is_refused(matrix: Any, message: str) -> None:
    """Before anything is copied; the row is named."""
    with pytest.raises(RecordError, match=message):
        vectors_of(matrix)


def test_an_embedding_is_read_back_without_pickle() -> None:
    """Vectors, labels by column and the size of a picture."""
    vectors = np.arange(8.0).reshape(4, 2)
    labels = [("kite", 1), ("dog", 2), ("cat", 3), ("fox", 4)]
    found = embedding_of(vectors, labels, [RED] * 4, ["what", "seed"])
    assert found.content == {
        "count": 4, "dimensions": 2, "columns": ["what", "seed"], "sprite": [4, 6],
        "labels": [["kite", "1"], ["dog", "2"], ["cat", "3"], ["fox", "4"]],
    }  # fmt: skip
    array = np.load(io.BytesIO(b"".join(found.files["vectors.npy"])), allow_pickle=False)
    assert (array == vectors).all()
    plain = embedding_of(vectors, ["a", "b", "c", "d"])
    assert (plain.content["columns"], plain.content["sprite"]) == (["label"], None)
    assert list(plain.files) == ["vectors.npy"]
    assert embedding_of(vectors).content["labels"] == []


@pytest.mark.parametrize(
    ("labels", "columns", "message"),
    [
        (["a"], None, "1 labels for 2 vectors"),
        (["a", "b"], ["x", "y"], "label 0 has 1 texts for 2"),
        ([("a", 1), ("b", 2)], None, "label 0 has 2 texts for 0: name them with columns="),
        ([("a", 1), ("b",)], ["x", "y"], "label 1 has 1 texts for 2"),
        (None, ["x"], "pass labels too"),
        ("ab", None, "labels must be a list, not 'ab'"),
        (5, None, "labels must be a list, not 5"),
        (np.array(5), None, r"labels must be a list, not array\(5\)"),
        (count(), None, "3 labels for 2 vectors"),
        (["a", "b"], "label", "columns must be a list, not 'label'"),
        (["a", "b"], 5, "columns must be a list, not 5"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Any, columns: Any, message: str) -> None:
    """Another number of them, or of texts in one."""
    with pytest.raises(RecordError, match=message):
        embedding_of([[1.0], [2.0]], labels, None, columns)


def test_a_sprite_is_a_square_grid_row_by_row() -> None:
    """Five pictures stand in a grid of three by three, as TensorBoard's projector reads it."""
    shades = [np.full((4, 6, 3), shade, np.uint8) for shade in (10, 20, 30, 40, 50)]
    files = embedding_of(np.zeros((5, 1)), images=(one for one in shades)).files
    content, size = sprite_png(shades, 5)
    assert files["sprite.png"] == [content]
    sheet = np.asarray(opened(content).convert("RGB"))
    assert (sheet.shape, size) == ((12, 18, 3), [4, 6])
    assert sheet[::4, ::6, 0].tolist() == [[10, 20, 30], [40, 50, 0], [0, 0, 0]]


def test_pictures_of_a_sprite_are_brought_to_one_size() -> None:
    """That of the first; and small enough for a sheet of 8192 pixels a side."""
    _, size = sprite_png([RED, Image.new("L", (60, 40))], 2)
    assert size == [4, 6]
    wide = np.broadcast_to(np.uint8(9), (10, 8000))
    content, size = sprite_png([wide, wide], 2)
    assert size == [5, 4096]
    assert opened(content).size == (8192, 10)


def test_a_sprite_of_other_than_pictures_is_refused() -> None:
    """The picture is named by its number."""
    with pytest.raises(RecordError, match="there are 1 images for 2 vectors"):
        sprite_png([RED], 2)
    with pytest.raises(RecordError, match="image 1 cannot be made from str"):
        sprite_png([RED, "path.png"], 2)
    for images in (5, "ab", RED.tobytes()):
        with pytest.raises(RecordError, match="images must be a list, not "):
            embedding_of([[1.0], [2.0]], images=images)  # type: ignore[arg-type]


def test_an_open_file_is_no_picture_and_stays_open(tmp_path: Path) -> None:
    """It has a `detach` as a tensor has, which would take its bytes from the caller."""
    path = tmp_path / "picture.png"
    Image.fromarray(RED).save(path)
    with path.open("rb") as file:
        for use in (picture_png, lambda given: numbers_of(given, "the vectors")):
            with pytest.raises(RecordError, match="BufferedReader"):
                use(file)
        assert file.read(4) == b"\x89PNG"


def test_files_are_private_and_whole_under_names_of_their_own(tmp_path: Path) -> None:
    """Nothing else is left in the folder; a name given has no say in where a file lies."""
    names = keep(
        tmp_path, {"vectors.npy": [b"o", memoryview(b"ne")], "../../trace.json.gz": b"two"}
    )
    assert names["vectors.npy"].endswith(".npy")
    assert names["../../trace.json.gz"].endswith(".json.gz")
    assert {(tmp_path / name).read_bytes() for name in names.values()} == {b"one", b"two"}
    found = [one for one in tmp_path.iterdir() if one.is_file()]
    assert sorted(one.name for one in found) == sorted(names.values())
    assert all(one.stat().st_mode & 0o777 == 0o600 for one in found)


def test_all_files_are_kept_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk takes the first and not the second, the first goes too."""
    rename = Path.rename
    full = iter([False, True])

    def rename_until_full(path: Path, target: Path) -> Path:
        if next(full):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_until_full)
    with pytest.raises(OSError, match="No space"):
        keep(tmp_path, {"a.npy": b"a", "b.png": b"b"})
    assert [one for one in tmp_path.iterdir() if one.is_file()] == []


def test_vectors_are_written_without_a_second_copy(tmp_path: Path) -> None:
    """Half a gibibyte of them is in memory once beside what was given, and no more."""
    given = np.ones((4096, 1024), np.float32)
    tracemalloc.start()
    try:
        names = keep(tmp_path, embedding_of(given).files)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert given.nbytes <= peak_bytes < 1.5 * given.nbytes
    assert (np.load(tmp_path / names["vectors.npy"], allow_pickle=False) == given).all()


def test_numbers_are_read_from_arrays_tensors_and_lists() -> None:
    """They keep their type; what is no number is refused by name."""
    assert numbers_of([1, 0], "labels").dtype.kind == "i"
    assert numbers_of(torch.tensor([True]), "labels").dtype == bool
    assert math.isnan(numbers_of([math.nan], "labels")[0])
    for wrong in (["a"], [[1], [1, 2]], None, {"a": 1}, torch.ones(2, device="meta")):
        with pytest.raises(RecordError, match="labels"):
            numbers_of(wrong, "labels")
