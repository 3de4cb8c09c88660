"""Facts about `opusclip_mlops.page_media`: clips inside a page, as many as it holds."""

import base64
import re
from pathlib import Path

import pytest

from opusclip_mlops.page_media import Embedder, hole

NASTY = '"><script>alert(1)</script>'


def test_a_clip_is_in_the_page_byte_for_byte(tmp_path: Path) -> None:
    """Of a file or of bytes; a clip plays, a picture is shown."""
    (tmp_path / "a.mp4").write_bytes(b"\x00film")
    embedder = Embedder()
    film = embedder.clip(tmp_path / "a.mp4", content_type="video/mp4", caption="psnr 31")
    picture = embedder.clip(b"\x01", content_type="image/png", caption="")
    [held] = re.findall(r'<video [^>]*src="data:video/mp4;base64,([^"]+)"', film)
    assert base64.b64decode(held) == b"\x00film"
    assert "<figcaption>psnr 31</figcaption>" in film
    assert 'src="data:image/png;base64,AQ=="' in picture
    assert (embedder.taken_bytes, embedder.left_out, embedder.note()) == (6, 0, "")


def test_what_has_no_room_is_named_with_its_size_and_command() -> None:
    """A smaller one that comes later is taken."""
    embedder = Embedder(most_bytes=2048)
    shown = embedder.clip(
        bytes(3072), content_type="video/webm", caption="at 5", command="opusclip wall x"
    )
    assert "left out, 3.0 KiB: the page holds 2.0 KiB of clips." in shown
    assert "<code>opusclip wall x</code> shows it" in shown
    assert "data:" not in shown
    assert "data:" in embedder.clip(bytes(2048), content_type="image/gif", caption="")
    assert not embedder.has_room(1)
    assert embedder.note() == "one clip is left out: the page holds 2.0 KiB of clips at most"
    embedder.left(7, caption="")
    assert embedder.note().startswith("2 clips are left out")


def test_what_is_left_out_is_counted_from_a_place_on() -> None:
    """A page of several parts says of each what that part lacks; an unknown size is not told."""
    embedder = Embedder(most_bytes=2048)
    embedder.left(7, caption="")
    before = embedder.left_out
    assert embedder.note(since=before) == ""
    assert "left out: the page holds 2.0 KiB" in embedder.left(0, caption="")
    assert embedder.note(since=before).startswith("one clip is left out")
    assert embedder.note().startswith("2 clips are left out")


def test_other_alphabets_make_no_wide_characters_of_a_clip() -> None:
    """One such character would make every byte of a clip's text four."""
    made = Embedder().clip(b"1", content_type="video/mp4", caption="走る", command="走る")
    assert made.isascii()
    assert "<figcaption>&#36208;&#12427;</figcaption>" in made


def test_texts_are_texts_whatever_they_say() -> None:
    """Captions, commands and why a place is empty."""
    embedder = Embedder(most_bytes=1)
    made = [
        embedder.clip(b"1", content_type="video/mp4", caption=NASTY),
        embedder.clip(b"2", content_type="image/png", caption=NASTY, command=NASTY),
        hole(NASTY),
    ]
    assert all("<script>" not in one and "&lt;script&gt;" in one for one in made)


def test_only_clips_and_pictures_are_shown() -> None:
    """What a server calls a page is none."""
    with pytest.raises(ValueError, match="a page shows no text/html"):
        Embedder().clip(b"", content_type="text/html", caption="")
