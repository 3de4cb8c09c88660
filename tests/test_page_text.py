"""Facts about `opusclip_mlops.page_text`: what pages say and hold."""

import html
import json

import pytest

from opusclip_mlops.page_text import as_json, escaped, in_ascii, moment_text, part_of_page

NASTY = "</script><img src=\"x\" alt='&'>走る 🏃"


def test_a_text_is_no_markup_and_ascii() -> None:
    """A browser reads what it was, also half a sign of two."""
    assert html.unescape(escaped(NASTY)) == NASTY
    assert not set("<>\"'") & set(escaped(NASTY))
    assert escaped(f"{NASTY}\udc80").isascii()


def test_markup_stays_markup() -> None:
    """Only its other characters are told by their numbers."""
    assert in_ascii("<b>é</b>") == "<b>&#233;</b>"
    assert in_ascii("<b>&amp;</b>") == "<b>&amp;</b>"


def test_nothing_in_json_ends_its_script() -> None:
    """It is ASCII, and reads back as what it was; what is no number is refused."""
    text = as_json({NASTY: [1, NASTY, "\u2028"]})
    assert json.loads(text) == {NASTY: [1, NASTY, "\u2028"]}
    assert not set("<>&") & set(text)
    assert text.isascii()
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json(float("nan"))


@pytest.mark.parametrize(
    ("timestamp_ms", "text"),
    [(0, "1970-01-01 00:00 UTC"), (1_700_000_000_000, "2023-11-14 22:13 UTC"), (10**20, "")],
)
def test_a_moment_is_told_in_utc(timestamp_ms: int, text: str) -> None:
    """To the minute; of a time that no calendar holds nothing."""
    assert moment_text(timestamp_ms) == text


@pytest.mark.parametrize("name", ["report.css", "report.js"])
def test_what_every_page_of_charts_holds_is_ascii(name: str) -> None:
    """As its texts are."""
    assert part_of_page(name).isascii()
