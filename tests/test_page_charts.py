"""Facts about `opusclip_mlops.page_charts`: charts and tables as HTML."""

import json
import math
import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from opusclip_mlops.downsampling import thinned
from opusclip_mlops.page_charts import Series, chart, facts, notes_of, number_text, table

NASTY = '</script><img src=x onerror="alert(1)">&'


def series(*y: float, label: str = "A", **options: Any) -> Series:
    return Series(label=label, x=list(range(len(y))), y=list(y), of=len(y), **options)


def parsed(text: str) -> ET.Element:
    """The figure as elements; it is XML as well, so nothing in it is left open."""
    return ET.fromstring(text)


def numbers(text: str) -> dict[str, Any]:
    return dict(json.loads(parsed(text).findtext("script") or ""))


def heights(path: ET.Element) -> list[float]:
    return [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path.get("d") or "")]


def test_a_line_is_drawn_between_its_lowest_and_highest_value() -> None:
    """The highest is at the top of the drawing, the lowest at its bottom."""
    figure = parsed(chart("loss", [series(1, 3, 2)], x_label="step"))
    [path] = figure.findall(".//path")
    assert heights(path) == [220.0, 10.0, 115.0]
    assert figure.findtext("figcaption") == "loss"
    ticks = [one.text for one in figure.findall(".//text")]
    assert {"1", "2", "3", "step"} <= set(ticks)


def test_a_spike_of_one_point_in_a_hundred_thousand_is_drawn() -> None:
    """The path reaches the top at one point, and it is told that the curve was thinned."""
    y = np.zeros(100_000)
    y[54_321] = 1.0
    few = thinned(np.arange(100_000), y)
    line = Series(label="A", x=few.x.tolist(), y=few.y.tolist(), of=few.of)
    text = chart("loss", [line], x_label="step")
    [path] = parsed(text).findall(".//path")
    assert heights(path).count(10.0) == 1
    assert " of 100,000 points shown, every low and high kept" in text


def test_numbers_under_the_pointer_are_those_of_the_curve() -> None:
    """Steps exactly, values with seven digits."""
    x = [0, 1, 2**53 - 1]
    line = Series(label="A", x=x, y=[0.123456789, 1e-9, -3.0], of=3)
    [held] = numbers(chart("loss", [line], x_label="step"))["lines"]
    assert (held["x"], held["y"]) == (x, [0.1234568, 1e-9, -3])


def test_texts_are_texts_whatever_they_say() -> None:
    """Titles, labels, notes and what x is; also in the data of the script."""
    text = chart(NASTY, [series(1, 2, label=NASTY)], x_label=NASTY, notes=[NASTY])
    assert "<img" not in text
    assert text.count("</script>") == 1
    assert [line["label"] for line in numbers(text)["lines"]] == [NASTY]
    for made in (table([NASTY], [[NASTY]]), facts({NASTY: NASTY}), notes_of([NASTY])):
        assert "<img" not in made
        assert "&lt;img" in made


def test_what_counts_no_more_has_the_colour_of_its_run_and_lies_beneath() -> None:
    """It is faded, and its label stands in the legend once."""
    lines = [series(1, 2, label="B", colour=1), series(2, 3, label="B", colour=1, is_faded=True)]
    figure = parsed(chart("loss", lines, x_label="step"))
    assert [one.get("class") for one in figure.findall(".//path")] == ["line c1 faded", "line c1"]
    legend = [one.text for one in figure.findall("./ul[@class='keys']/li")]
    assert legend == ["B", "faded: training went back behind it"]


def test_the_eleventh_label_has_the_colour_of_the_first() -> None:
    """Colours go round where none is asked for."""
    figure = parsed(chart("m", [series(1, 2, label=str(at)) for at in range(11)], x_label="step"))
    colours = [one.get("class") for one in figure.findall(".//path")]
    assert colours == [*(f"line c{at}" for at in range(10)), "line c0"]


def test_a_point_alone_is_a_dot_and_no_point_is_no_line() -> None:
    """Neither is an error."""
    figure = parsed(chart("m", [series(5), series(label="B")], x_label="step"))
    [path] = figure.findall(".//path")
    assert (path.get("d") or "").endswith("h0.01")
    assert [one.text for one in figure.findall("./ul[@class='keys']/li")] == ["A", "B"]
    assert parsed(chart("m", [], x_label="step")).findall(".//path") == []


def test_logarithms_are_drawn_of_values_above_0_only() -> None:
    """Else the chart is as ever, and says so."""
    figure = parsed(chart("m", [series(1, 10, 1000)], x_label="step", log_y=True))
    assert heights(figure.findall(".//path")[0]) == [220.0, 150.0, 10.0]
    text = chart("m", [series(0, 10)], x_label="step", log_y=True)
    assert "not drawn by logarithms: not all values are above 0" in text
    assert numbers(text)["log"] is False


@example([0.0, 5e-324], False)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.booleans())
def test_any_finite_values_are_drawn_inside(values: list[float], is_log: bool) -> None:
    """However large, small or alike they are."""
    text = chart("m", [series(*values)], x_label="step", log_y=is_log)
    [path] = parsed(text).findall(".//path")
    assert all(math.isfinite(y) and 9.9 <= y <= 220.1 for y in heights(path))
    assert len(parsed(text).findall(".//line")) <= 30


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1_500_000.0, "1,500,000"), (0.1 + 0.2, "0.3"), (2e-7, "2e-07"), (1e15, "1e+15")],
)
def test_numbers_at_an_axis_are_short(value: float, text: str) -> None:
    """With commas; by powers of ten where they are very large or small."""
    assert number_text(value) == text


def test_steps_have_no_numbers_between_them() -> None:
    """Values have."""
    figure = parsed(chart("m", [series(0, 0.2, 1)], x_label="step"))
    ticks = [one.text for one in figure.findall(".//text[@class='x']")]
    assert ticks == ["0", "1", "2", "step"]
    assert "0.2" in [one.text for one in figure.findall(".//text[@class='y']")]


def test_facts_and_notes_of_nothing_are_nothing() -> None:
    """And what is said twice is said once."""
    assert facts({"a": ""}) == notes_of(["", ""]) == ""
    assert notes_of(["a", "a"]).count("<li>") == 1
