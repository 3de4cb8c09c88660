"""Facts about `opusclip_mlops.reports.markdown`, judged by a reader of Markdown."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from opusclip_mlops.alerts.events import Event
from opusclip_mlops.bottlenecks import Figures, Spent, report_of
from opusclip_mlops.chain import Problem
from opusclip_mlops.comparing import Comparison
from opusclip_mlops.contrasts import SECTIONS, Facts
from opusclip_mlops.decisions import Decision
from opusclip_mlops.metric_rows import Measured, MetricRow
from opusclip_mlops.reports import markdown
from opusclip_mlops.reports.registry_past import Made, ModelPast
from opusclip_mlops.reports.run_read import RunRead
from opusclip_mlops.reports.unread import Unread
from tests.reports.reported_runs import curve

DATA = SimpleNamespace(tags={})

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
        # What has no width keeps `#1` from being a reference; it is not seen.
        assert said(before + markdown.text(nasty)).replace("\u200b", "") == plain


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


REFERENCES = (
    "#12",
    "a/b#3",
    "GH-12",
    "gh-12",
    "!12",
    "~bug",
    "$12",
    "%3",
    "&4",
    "316e754",
    "A" * 40,
)


@pytest.mark.parametrize("reference", REFERENCES)
def test_nothing_becomes_a_reference(reference: str) -> None:
    """GitHub and GitLab read what is left of entities: a gap of no width breaks it up."""
    found = said(markdown.text(f"see {reference}, and"))
    assert reference not in found
    assert found.replace("\u200b", "") == f"see {reference}, and"


def test_an_id_is_copied_as_it_is() -> None:
    """In code, where nothing is linked; what is no id is text."""
    assert markdown.code("0123456789abcdef" * 2) == f"`{'0123456789abcdef' * 2}`"
    assert "`" not in markdown.code("a`b |")
    assert markdown.text("80.0 % of 10 at 12:30, 3.5e-4") == "80.0 % of 10 at 12:30, 3.5e-4"


def decision(number: int, **fields: Any) -> Decision:
    """A promotion to Production, the later the higher its number."""
    said = {"to_stage": "Production", "timestamp_ms": number * 1000, "number": number, **fields}
    return Decision(kind="promotion", model="kites", version=number, **said)


def test_no_kind_of_finding_crowds_out_another_and_the_newest_stand_first() -> None:
    """Who is in Production, a broken history, a limit and a NaN stand there, whatever else does."""
    said = {"number": 1, "message": "bad", "state": "raised"}
    alerts = [Event(alert=f"a{n}", timestamp_ms=n, **said) for n in range(30)]  # type: ignore[arg-type]
    past = ModelPast(
        model="kites",
        versions=tuple(
            Made(version=n, stage="Production" if n == 1 else "None", created_ms=n)
            for n in range(1, 31)
        ),
        decisions=tuple(decision(n) for n in range(1, 31)),
        problems=(Problem(2, "was changed"),),
    )
    spent = Spent(category="loop", name="data", uses=1, total_s=8.0, self_s=8.0, max_ms=1.0)
    found = RunRead(
        run=cast("Any", SimpleNamespace(info=SimpleNamespace(experiment_id="7"), data=DATA)),
        called="kite", facts=Facts(run_id="r", run_name="kite", status="RUNNING", start_ms=0),
        alerts=tuple(alerts), models=(past,), curves={"loss": curve(1.0, not_finite=1)},
        bottlenecks=report_of(Figures(seconds=10.0, steps=10, spent=(spent,))),
    )  # fmt: skip
    for text in (
        markdown.of_run(found, []),
        markdown.of_several("all", [found, replace(found, called="bird")], None, [], []),
    ):
        lines = [one.partition("kite: ")[2] or one for one in text.splitlines()]
        for wanted in (
            "alert a29 at step 0: bad", "loss: 1 NaN or infinite", "waits for data",
            "kites version 1: Production", "promotion of kites version 30 to Production",
            "is not whole: record 2 was changed", "more decisions, in the report",
        ):  # fmt: skip
            assert any(wanted in one for one in lines), wanted
        decided = [one for one in lines if "promotion of" in one]
        assert "version 30" in decided[0]
        assert len(decided) == 6


def test_of_several_runs_what_was_not_read_is_told() -> None:
    """Of each by its name."""
    unread = (
        Unread(run="", part="comparison", reason="away"),
        Unread(run="k", part="p", reason="r"),
    )
    text = markdown.of_several("kites", [], None, [], [], unread=unread)
    assert "### Not read\n\n- comparison: away\n- k: p: r\n" in text
