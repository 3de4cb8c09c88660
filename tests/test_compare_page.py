"""Facts about `opusclip_mlops.compare_page`: runs beside each other as one page."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from opusclip_mlops import compare_page
from opusclip_mlops.compare_page import sections_of, write_comparison
from opusclip_mlops.comparing import Beside
from opusclip_mlops.contrasts import contrasts
from opusclip_mlops.curves import Curve
from tests.compared import NASTY, SECRET, beside, curve


def parts(found: Beside) -> dict[str, str]:
    return {one.title: one.html for one in sections_of(found)}


def rows(text: str) -> list[list[str]]:
    """The texts in the cells of all tables."""
    return [
        re.findall(r"<t[dh][^>]*>(?:<span[^>]*>)?(.*?)(?:</span>)?</t[dh]>", row)
        for row in re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.DOTALL)
    ]


def two(**curves: Curve) -> dict[str, dict[str, Curve]]:
    """Two runs with these."""
    return {"first": dict(curves), "second": dict(curves)}


def test_runs_stand_first_with_their_colours() -> None:
    """Ids are whole; notes are beneath."""
    text = parts(beside(two(), notes=["files of A were changed"]))["Runs"]
    first, second = rows(text)[1:]
    assert first[:2] == ["A", "first"]
    assert first[3:6] == ["FINISHED", "2023-11-14 22:13 UTC", "90.0 s"]
    assert second[:3] == ["B", "second", (b"second".hex() * 32)[:32]]
    assert 'class="mark c0">A<' in text
    assert 'class="mark c1">B<' in text
    many = parts(beside({f"run {at}": {} for at in range(11)}))["Runs"]
    assert 'class="mark c0 d1">K<' in many
    assert "<li>files of A were changed</li>" in text


def test_what_differs_is_a_table_and_what_is_alike_a_line() -> None:
    """Without credentials, and what a run lacks is a dash."""
    found = beside(two())
    facts = [
        replace(one, params={"lr": lr, "db": f"sql://u:geheim@h/{lr}"}, code={"commit": "abc"})
        for one, lr in zip(found.comparison.runs.values(), ("0.1", "0.2"), strict=True)
    ]
    facts[1] = replace(facts[1], params={"lr": ""}, tags={"team": NASTY})
    comparison = replace(
        found.comparison,
        runs=dict(zip("AB", facts, strict=True)),
        differences=contrasts(facts),
    )
    text = parts(replace(found, comparison=comparison))["Differences"]
    assert rows(text)[:3] == [
        ["params", "A", "B"], ["db", "sql://u:***@h/0.1", "-"], ["lr", "0.1", "&quot;&quot;"]
    ]  # fmt: skip
    assert "<img" not in text
    assert "<li>alike: code</li>" in text


def test_a_metric_is_a_line_a_run_with_its_difference_to_a() -> None:
    """First, last, best and mean; better and worse have their colours."""
    runs = {"first": {"loss": curve([4, 2, 3])}, "second": {"loss": curve([5, 1, 1])}}
    text = parts(beside(runs))["Metrics"]
    assert rows(text.replace("&#160;%", " %"))[1:] == [
        ["loss (lower)", "A", "3", "4", "3", "2", "", "2", "1", "", "2.75", ""],
        ["", "B", "3", "5", "1", "2", "-2 (-66.7 %) better", "1", "1", "-1 (-50 %) better", "2",
         "-0.75 (-27.3 %) better"],
    ]  # fmt: skip
    assert text.count('class="n better"') == 3


def test_a_metric_without_a_better_way_has_lowest_and_highest() -> None:
    """On a line each."""
    text = parts(beside(two(norm=curve([4, 2]))))["Metrics"]
    assert [row[7] for row in rows(text)[1:]] == ["lowest 2", "highest 4"] * 2


def test_a_long_table_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the lines that are left."""
    monkeypatch.setattr(compare_page, "MOST_ROWS", 3)
    text = parts(beside(two(a_loss=curve([1]), b_loss=curve([1]), c_loss=curve([1]))))["Metrics"]
    assert len(rows(text)) == 4
    assert "3 more lines: --metric chooses, --json has all" in text


def test_what_runs_say_is_on_one_line_without_credentials() -> None:
    """Keys, also as what a line is found by, names and notes."""
    found = beside({"a": {SECRET: curve([1])}, SECRET: {SECRET: curve([2])}}, notes=[SECRET])
    text = "".join(parts(found).values())
    assert "geheim123" not in text
    assert text.isascii()
    assert "&#8238;" not in text
    assert 'data-key="x password: *** evil"' in text
    assert "<td>x password: *** evil</td>" in text


def test_runs_without_metrics_or_samples_have_no_such_part() -> None:
    """What they are is always told."""
    assert list(parts(beside(two()))) == ["Runs"]


def test_the_page_is_one_file_named_by_its_runs(tmp_path: Path) -> None:
    """All of it escapes what runs say."""
    runs = {name: {NASTY: curve([1, 2])} for name in (NASTY, "second", "third")}
    file = tmp_path / "page.html"
    size_bytes = write_comparison(file, beside(runs, notes=[NASTY]))
    text = file.read_text()
    assert size_bytes == file.stat().st_size
    assert "B second and 1 more</title>" in text
    assert "<img" not in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
