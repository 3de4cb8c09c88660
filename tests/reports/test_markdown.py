"""Facts about `opusclip_mlops.reports.markdown`, judged by a reader of Markdown."""

from dataclasses import replace

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from opusclip_mlops.comparing import Comparison
from opusclip_mlops.contrasts import SECTIONS
from opusclip_mlops.metric_rows import Measured, MetricRow
from opusclip_mlops.reports import markdown

NASTY = (
    "<script>alert(1)</script>",
    "a | b",
    "`code`",
    "[a link](https://evil.example)",
    "![a picture](x)",
    "# heading",
    "- item",
    "+ item",
    "1. item",
    "***",
    "*bold* _it_ ~~no~~",
    "two\nlines\n\n## more",
    "a\\|b",
    "a\\\\|b",
    "&lt;b&gt; &#124;",
    "$x$",
    "> quoted",
    "<https://evil.example>",
    "\u202eturned",
)


def tokens(text: str) -> list[Token]:
    """What a reader with tables makes of a text, flat."""
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return [one for block in blocks for one in (block, *(block.children or ()))]


def said(text: str) -> str:
    """The words that are left to be read."""
    return "".join(one.content for one in tokens(text) if one.type in ("text", "text_special"))


@pytest.mark.parametrize("nasty", NASTY)
def test_a_text_of_a_run_is_read_and_does_nothing(nasty: str) -> None:
    """In a list, in a table and by itself it is words alone, and the same words."""
    plain = " ".join(nasty.split()).replace("\u202e", "")
    for before, kinds in (("- ", "list"), ("", "paragraph")):
        found = tokens(before + markdown.text(nasty))
        allowed = {
            "bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close",
            "paragraph_open", "paragraph_close", "inline", "text", "text_special",
        }  # fmt: skip
        assert {one.type for one in found} <= allowed, kinds
        assert len([one for one in found if one.type == "list_item_open"]) == len(before) // 2
        assert said(before + markdown.text(nasty)) == plain


@pytest.mark.parametrize("nasty", NASTY)
def test_a_cell_stays_in_its_place(nasty: str) -> None:
    """Whatever it says, a row has as many cells as there are headings."""
    lines = markdown.table(("a", "b"), [(markdown.text(nasty), "second")])
    found = tokens("\n".join(lines))
    cells = [found[at + 1].content for at, one in enumerate(found) if one.type == "td_open"]
    assert len(cells) == 2
    assert cells[1] == "second"


def test_nobody_is_called_and_no_address_is_linked() -> None:
    """What GitHub would link or notify by itself is broken up, invisibly."""
    text = markdown.text("@everyone see www.evil.example or https://evil.example, me@evil.example")
    assert "@" not in text
    assert "www." not in text
    assert "://" not in text
    assert said(text).replace("\u200b", "").startswith("@everyone see www.evil.example or https://")


def test_credentials_are_left_out() -> None:
    """As everywhere."""
    assert "hunter2" not in markdown.text("postgresql://me:hunter2@host/db")


def test_of_many_runs_few_metrics_are_told() -> None:
    """The whole table is in the page; how many are left to it is said."""
    measured = [
        Measured(label=label, points=1, not_finite=0, superseded=0, ends_finite=True)
        for label in ("A", "B")
    ]
    rows = [MetricRow(key=f"m{n}", better="", runs=tuple(measured)) for n in range(40)]
    empty = dict.fromkeys(SECTIONS, ())
    found = Comparison(runs={}, differences=empty, by="step", metrics=tuple(rows), panels=())
    text = markdown.of_several("kites", [], found, [], [])
    assert text.count("| A |") == 12
    assert "28 more metrics are in the report." in text
    many = replace(found, metrics=tuple(replace(row, runs=(*measured * 20,)) for row in rows))
    assert markdown.of_several("kites", [], many, [], []).count("| A |") == 20


def test_a_table_without_rows_is_nothing() -> None:
    """Not a heading alone."""
    assert markdown.table(("a",), []) == []
