"""Slices of tensors in files: any part is found again, and one that is not there is missed."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.shards import Slice, Slices, write_slices

WHOLE = torch.arange(7 * 5, dtype=torch.float32).reshape(7, 5)


def rows(begin: int, end: int) -> Slice:
    """Some rows of the whole."""
    return Slice((7, 5), (begin, 0), WHOLE[begin:end].clone())


def written(folder: Path, *parts: Slice) -> list[Path]:
    """A file for each part."""
    paths = [folder / f"{number}.safetensors" for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        write_slices(path, {"x": part})
    return paths


@given(cut=st.integers(1, 6), box=st.tuples(*(st.integers(0, n) for n in (7, 7, 5, 5))))
def test_any_part_is_read_from_any_slices(
    tmp_path_factory: pytest.TempPathFactory, cut: int, box: tuple[int, int, int, int]
) -> None:
    """Whatever rows the writers had, and whatever rows and columns are asked for."""
    slices = Slices(written(tmp_path_factory.mktemp("slices"), rows(0, cut), rows(cut, 7)))
    top, bottom, left, right = *sorted(box[:2]), *sorted(box[2:])
    found = slices.read("x", (top, left), (bottom - top, right - left))
    assert torch.equal(found, WHOLE[top:bottom, left:right])
    assert found.dtype == WHOLE.dtype
    assert torch.equal(slices.whole("x"), WHOLE)


def test_a_whole_file_is_one_slice(tmp_path: Path) -> None:
    """What one process has saved is read by its parts, tied tensors and numbers of no dimension."""
    tensors = {"x": WHOLE, "n": torch.tensor(3)}
    save_file(tensors, tmp_path / "w.safetensors", metadata={"aliases": '{"y": "x"}'})
    slices = Slices([tmp_path / "w.safetensors"])
    assert slices.shapes == {"x": (7, 5), "y": (7, 5), "n": ()}
    assert torch.equal(slices.read("y", (2, 1), (3, 2)), WHOLE[2:5, 1:3])
    assert int(slices.whole("n")) == 3


def test_slices_that_are_no_whole_are_refused(tmp_path: Path) -> None:
    """A part that is missing, or two of different tensors, is said with the tensor's name."""
    with pytest.raises(CheckpointError, match=r"x of .* is not whole: 20 of 35 values"):
        Slices(written(tmp_path, rows(0, 4)))
    with pytest.raises(CheckpointError, match=r"x of .* is not whole"):
        Slices(written(tmp_path, rows(0, 4), Slice((8, 5), (4, 0), WHOLE[4:7].clone())))


def columns(begin: int, end: int, left: int, right: int) -> Slice:
    """Some rows of some columns."""
    return Slice((7, 5), (begin, left), WHOLE[begin:end, left:right].clone())


@pytest.mark.parametrize(
    "parts",
    [
        (rows(0, 4), rows(1, 4)),
        (rows(2, 5), rows(0, 4)),
        (columns(0, 7, 0, 3), columns(0, 7, 1, 3)),
        (columns(0, 4, 0, 5), columns(3, 7, 0, 3), columns(4, 7, 3, 4)),
    ],
)
def test_values_that_are_there_twice_stand_for_no_others(
    tmp_path: Path, parts: tuple[Slice, ...]
) -> None:
    """As many values as the tensor has, and a gap beside an overlap: nothing is made up for it."""
    with pytest.raises(CheckpointError, match=r"x of .* is not whole: .* there twice"):
        Slices(written(tmp_path, *parts))


def test_parts_of_rows_and_columns_are_a_whole(tmp_path: Path) -> None:
    """In any order, an empty one among them."""
    parts = (columns(4, 7, 2, 5), columns(0, 4, 0, 2), rows(7, 7), columns(4, 7, 0, 2))
    slices = Slices(written(tmp_path, *parts, columns(0, 4, 2, 5)))
    assert torch.equal(slices.whole("x"), WHOLE)


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        '{"x": 3}',
        '{"x": {"shape": [7, 5], "offsets": [6, 0]}}',
        '{"x": {"shape": [7, 5], "offsets": [-1, 0]}}',
        '{"x": {"shape": [7], "offsets": [0]}}',
    ],
)
def test_a_header_that_cannot_be_is_refused(tmp_path: Path, header: str) -> None:
    """No part outside its tensor, no other number of dimensions, no other JSON."""
    path = tmp_path / "bad.safetensors"
    save_file({"x": WHOLE[:3].clone()}, path, metadata={"slices": header})
    with pytest.raises(CheckpointError, match=r"cannot read .*bad.safetensors"):
        Slices([path])


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    """Bytes that are no safetensors are named by their file."""
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"\x00" * 40)
    with pytest.raises(CheckpointError, match=r"cannot read .*bad.safetensors"):
        Slices([path])
