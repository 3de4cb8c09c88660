from pathlib import Path

import pytest

from opusclip_mlops.slots import read_slot, write_slot


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """The last content stands there, shorter or longer than those before."""
    for content in (b"first", b"x" * 5000, b"", b"short"):
        write_slot(tmp_path / "slot", content)
        assert read_slot(tmp_path / "slot") == content


def test_a_shorter_content_takes_no_new_blocks(tmp_path: Path) -> None:
    """It is written over the old one, which a full disk allows."""
    write_slot(tmp_path / "slot", b"x" * 10_000)
    before = (tmp_path / "slot").stat().st_size
    write_slot(tmp_path / "slot", b"y" * 9_000)
    assert (tmp_path / "slot").stat().st_size == before


@pytest.mark.parametrize("at", [0, 4, 8, 20])
def test_a_torn_content_is_none(tmp_path: Path, at: int) -> None:
    """A byte that is wrong anywhere is found."""
    write_slot(tmp_path / "slot", b"some content here")
    content = bytearray((tmp_path / "slot").read_bytes())
    content[at] ^= 0xFF
    (tmp_path / "slot").write_bytes(content)
    assert read_slot(tmp_path / "slot") is None


def test_no_file_and_a_cut_one_are_none(tmp_path: Path) -> None:
    """So are a header without its content and an empty file."""
    assert read_slot(tmp_path / "none") is None
    write_slot(tmp_path / "slot", b"some content here")
    for length in (0, 3, 8, 12):
        (tmp_path / "cut").write_bytes((tmp_path / "slot").read_bytes()[:length])
        assert read_slot(tmp_path / "cut") is None
