"""Facts about `opusclip_mlops.page_document`: a page that is one file."""

import base64
import hashlib
import html
import os
import re
import stat
import tracemalloc
from pathlib import Path

import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.page_document import (
    Section,
    check_place,
    document,
    parts_of,
    write_document,
)

NASTY = '"><script>alert(1)</script>'


def test_sections_stand_in_their_order_with_links_to_them() -> None:
    """A heading each."""
    every = [Section(id="a", title="First", html="<p>1</p>"), Section(id="b", title="B", html="")]
    text = document("Runs", every, subtitle="of today")
    assert re.findall(r'href="#(\w+)"', text) == re.findall(r'<section id="(\w+)"', text)
    assert "<h1>Runs</h1><p>of today</p>" in text
    assert "<p>1</p>" in text


def test_titles_are_texts_whatever_they_say() -> None:
    """The one script of the page is its own."""
    text = document(NASTY, [Section(id=NASTY, title=NASTY, html="")], subtitle=NASTY)
    assert len(re.findall("<script", text)) == 1
    assert "&lt;script&gt;" in text


def test_its_policy_lets_its_own_style_and_script_in_and_no_network() -> None:
    """By their hashes, which are those of what the page holds."""
    text = document("Runs", [])
    [policy] = re.findall('Content-Security-Policy" content="([^"]+)"', text)
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy
    for name in ("style", "script"):
        [held] = re.findall(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(held.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}';" in policy


def test_a_page_is_written_whole_for_its_user_alone(tmp_path: Path) -> None:
    """It replaces a file, through a link too, and leaves nothing beside it."""
    file, link = tmp_path / "real.html", tmp_path / "link.html"
    file.write_text("before")
    link.symlink_to(file)
    write_document(link, "after \udc80")
    assert file.read_text() == "after ?"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(one.name for one in tmp_path.iterdir()) == ["home", "link.html", "real.html"]


def test_other_alphabets_make_no_page_of_wide_characters(tmp_path: Path) -> None:
    """They are told by their numbers; a long section is in memory about once as it is written."""
    name, long = "走る 🏃", "x" * 8 * 2**20
    every = [
        Section(id="a", title=name, html=f"<p>{name}</p>"),
        Section(id="b", title="", html=long),
    ]
    text = document(name, every, subtitle=name)
    assert text.isascii()
    assert html.unescape(text).count(name) == 6
    assert "<p>&#36208;" in text
    tracemalloc.start()
    try:
        write_document(tmp_path / "page.html", parts_of(name, every, subtitle=name))
        assert tracemalloc.get_traced_memory()[1] < 2 * len(long)
    finally:
        tracemalloc.stop()
    assert (tmp_path / "page.html").read_text() == text


def test_a_page_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no crash of the machine leaves an empty file where a page was."""
    done: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("synced"), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *both: (done.append("replaced"), replace(*both)))
    write_document(tmp_path / "page.html", "text")
    assert done == ["synced", "replaced"]


@pytest.mark.parametrize(
    ("place", "why"),
    [
        (".", "it is there and is no file"),
        ("/dev/null", "it is there and is no file"),
        ("away/page.html", "its folder is not there"),
        ("file/page.html", "its folder is not there"),
        ("a" * 300, "File name too long"),
        ("round/page.html", "Too many levels of symbolic links"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before(place: str, why: str) -> None:
    """One line; nothing is made there."""
    Path("file").write_text("")
    Path("round").symlink_to("round")
    with pytest.raises(ConfigError, match=f"{place} cannot be written: {why}"):
        check_place(Path(place))
    with pytest.raises(ConfigError, match=why):
        write_document(Path(place), "text")
