"""Which film is meant, and which of those that runs have logged it is."""

from pathlib import Path

import pytest

from opusclip_mlops.errors import DataError
from opusclip_mlops.films import Film, UnknownSourceError

A, B = "a" * 64, "aaaaaaaa" + "b" * 56
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_file_is_its_content_and_its_paths(tmp_path: Path) -> None:
    """As it was given, whole, and where a link leads."""
    path = tmp_path / "kite.mp4"
    path.write_bytes(b"")
    Path("link.mp4").symlink_to(path)
    film = Film.of("link.mp4")
    assert (film.digits, film.is_file) == (EMPTY, True)
    assert film.uris == {"link.mp4", str(tmp_path / "link.mp4"), str(path)}
    assert film.is_meant("/elsewhere.mp4", EMPTY)
    assert film.is_meant(str(path), "")
    assert not film.is_meant(str(path), A)


def test_a_file_may_be_called_like_a_hash() -> None:
    """What is here goes first."""
    Path("deadbeef").write_bytes(b"")
    assert Film.of("deadbeef").digits == EMPTY


def test_the_beginning_of_a_hash_stands_for_one_film() -> None:
    """Of two it is refused, with both; the path of one that looks like a hash is a path."""
    logged = [("/a.mp4", A), ("/b.mp4", B), ("deadbeef", "")]
    assert Film.of(A[:9]).found_in(logged).uris == {A[:9], "/a.mp4"}
    with pytest.raises(UnknownSourceError, match=f"2 films: give one of {A}, {B}"):
        Film.of(A[:8]).found_in(logged)
    found = Film.of("deadbeef").found_in(logged)
    assert found.is_meant("deadbeef", "")
    assert not found.is_meant("/a.mp4", "deadbeef" + "0" * 56)


@pytest.mark.parametrize("source", ["", "  ", "\n"])
def test_nothing_is_no_film(source: str) -> None:
    """The error says what may be given."""
    with pytest.raises(UnknownSourceError, match="give a file, a SHA-256 or a uri"):
        Film.of(source)


@pytest.mark.parametrize("source", ["x" * 5000, "a\0b", "a\nb", "\x1b[2J"])
def test_what_nobody_names_is_told_in_one_short_line(source: str) -> None:
    """Whatever was typed."""
    with pytest.raises(UnknownSourceError) as caught:
        Film.of(source).found_in([("/a.mp4", A)])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_film_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there, but it is none of the user's."""
    path = tmp_path / "kite.mp4"
    path.write_bytes(b"")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match="Permission denied"):
        Film.of(str(path))
