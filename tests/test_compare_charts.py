"""Facts about `opusclip_mlops.compare_charts`: the curves of runs beside each other."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from opusclip_mlops import compare_charts
from opusclip_mlops.compare_charts import charts_of, ordered
from tests.compared import NASTY, SECRET, beside, curve, went_back


def data_of(text: str) -> list[dict[str, Any]]:
    """What the page's script is given of each chart."""
    held = re.findall(r'<script type="application/json">(.*?)</script>', text)
    return [json.loads(one) for one in held]


def titles(text: str) -> list[str]:
    return re.findall(r'<div data-key="([^"]*)">', text)


def test_each_metric_is_a_chart_of_all_runs_by_step_and_by_time() -> None:
    """The one that was asked for is shown; a run keeps its colour where A has no such metric."""
    runs = {
        "first": {"a/loss": curve([3, 2, 1])},
        "second": {"a/loss": curve([5, 4], start=4, every_ms=9000), "b": curve([1])},
    }
    text = charts_of(beside(runs))
    by_step, by_time, alone, _ = data_of(text)
    assert titles(text) == ["a/loss", "b"]
    assert text.index('data-axis="step"') < text.index('data-axis="time" hidden')
    assert [one["x"] for one in by_step["lines"]] == [[0, 1, 2], [4, 5]]
    assert [one["x"] for one in by_time["lines"]] == [[0, 1, 2], [0, 9]]
    assert [one["label"] for one in by_step["lines"]] == ["A first", "B second"]
    assert [one["colour"] for one in alone["lines"]] == [1]
    assert 'data-axis="step" hidden' in charts_of(beside(runs, by="time"))


@pytest.mark.parametrize(
    ("every_ms", "unit", "apart"),
    [
        (1000, "seconds", 1),
        (120_000, "minutes", 2),
        (7_200_000, "hours", 2),
        (86_400_000, "days", 1),
    ],
)
def test_time_has_a_unit_that_fits(every_ms: int, unit: str, apart: int) -> None:
    """Since each run began."""
    runs = {"first": {"m": curve([1, 2, 3], every_ms=every_ms)}, "second": {"m": curve([1])}}
    text = charts_of(beside(runs))
    assert f"{unit} since the run began" in text
    assert data_of(text)[1]["lines"][0]["x"] == [0, apart, 2 * apart]


def test_the_unit_of_time_fits_what_was_before_the_run_began() -> None:
    """A run that took up another's points has them before its own beginning."""
    first = curve([1, 2], every_ms=3 * 86_400_000)
    found = beside({"first": {"m": first}, "second": {"m": curve([1])}})
    run = found.runs["A"]
    run.info._start_time += 3 * 86_400_000
    text = charts_of(found)
    assert "days since the run began" in text
    assert [one["unit"] for one in data_of(text)] == ["", "days"]
    assert data_of(text)[1]["lines"][0]["x"] == [-3, 0]


def test_what_training_went_back_behind_is_faded() -> None:
    """It stands beneath the curve that counts, in its colour."""
    whole = curve([9, 8, 7, 6, 3, 2])
    rows = whole.rows.copy()
    rows["step"] = [0, 1, 2, 3, 2, 3]
    again = replace(whole, rows=rows)
    tags = {"second": went_back(after_step=1, at_s=4)}
    runs = {"first": {"m": curve([1, 2])}, "second": {"m": again}}
    lines = data_of(charts_of(beside(runs, tags=tags, branch="all")))[0]["lines"]
    assert [(one["x"], one["y"], one["colour"]) for one in lines] == [
        ([0, 1], [1, 2], 0), ([0, 1, 2, 3], [9, 8, 3, 2], 1), ([2, 3], [7, 6], 1)
    ]  # fmt: skip
    assert lines[2]["label"] == "B second (left behind)"


def test_values_that_were_measured_unlike_have_charts_of_their_own() -> None:
    """With the reason beneath."""
    found = beside({"first": {"fid": curve([1])}, "second": {"fid": curve([2])}})
    [row] = found.comparison.metrics
    rows = tuple(replace(row, runs=(one,)) for one in row.runs)
    apart = (rows[0], replace(rows[1], apart=("count: 16 and 32",)))
    found = replace(found, comparison=replace(found.comparison, metrics=apart))
    text = charts_of(found)
    assert titles(text) == ["fid", "fid"]
    assert "fid of B was measured otherwise: count: 16 and 32" in text
    assert ordered(apart) == list(apart)


def test_long_curves_are_thinned_and_say_so() -> None:
    """A spike of one point is still there."""
    values = [0.0] * 100_000
    values[70_001] = 5.0
    text = charts_of(beside({"first": {"m": curve(values)}, "second": {"m": curve([1.0])}}))
    line = data_of(text)[0]["lines"][0]
    assert line["y"][line["x"].index(70_001)] == 5
    assert len(line["x"]) <= 1000
    assert " of 100,001 points shown, every low and high kept" in text


def test_more_charts_than_a_page_can_hold_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """First those of one run alone; it is said how many."""
    curves = {f"m{at}": curve([1, 2]) for at in range(5)}
    found = beside({"first": {"alone": curve([1]), **curves}, "second": curves})
    monkeypatch.setattr(compare_charts, "MOST_CHARTS", 5)
    text = charts_of(found)
    assert titles(text) == ["m0", "m1", "m2", "m3", "m4"]
    assert "1 of 6 charts are left out: --metric chooses which are drawn" in text
    monkeypatch.setattr(compare_charts, "MOST_BYTES", 10_000)
    assert "of 6 charts are left out" in charts_of(found)
    assert len(charts_of(found)) < 11_000


def test_keys_and_names_are_texts_whatever_they_say() -> None:
    """Also in what the script is given."""
    text = charts_of(beside({NASTY: {NASTY: curve([1])}, "second": {NASTY: curve([1])}}))
    assert "<img" not in text
    assert data_of(text)[0]["lines"][0]["label"] == f"A {NASTY[:39]}…"


def test_keys_are_on_one_line_without_credentials() -> None:
    """In the title, what is read aloud, and what a chart is found by; long ones stay whole."""
    long = "m/" + "x" * 240
    some = {SECRET: curve([1]), long: curve([1])}
    text = charts_of(beside({"first": some, "second": some}))
    assert "geheim123" not in text
    assert "202e" not in text.encode("unicode_escape").decode() + text.encode("ascii").decode()
    assert titles(text) == [long, "x password: *** evil"]
    assert f"<figcaption>{long}</figcaption>" in text
