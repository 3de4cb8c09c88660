"""Facts about `opusclip_mlops.page_charts`: charts and tables as HTML."""

import json
import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from opusclip_mlops.downsampling import thinned
from opusclip_mlops.page_charts import Series, chart, facts, notes_of, table, tick_texts

NASTY = '</script><img src=x onerror="alert(1)">&'


def series(*y: float, label: str = "A", **options: Any) -> Series:
    return Series(label=label, x=list(range(len(y))), y=list(y), of=len(y), **options)


def parsed(text: str) -> ET.Element:
    """The figure as elements; it is XML as well, so nothing in it is left open."""
    return ET.fromstring(text)


def numbers(text: str) -> dict[str, Any]:
    return dict(json.loads(parsed(text).findtext("script") or ""))


def places(path: ET.Element) -> list[tuple[float, float]]:
    """The points of a line, in the units of its drawing."""
    points = (path.get("d") or "").removeprefix("M").removesuffix("h0.01").split("L")
    return [(float(x), float(y)) for x, y in (one.split(" ") for one in points)]


def heights(path: ET.Element) -> list[float]:
    return [y for _, y in places(path)]


def ticks(figure: ET.Element, of_axis: str) -> list[str]:
    """The numbers at an axis; behind those at x stands what x is."""
    every = [one.text or "" for one in figure.findall(f".//text[@class='{of_axis}']")]
    return every[:-1] if of_axis == "x" else every


def under_the_pointer(text: str) -> list[list[tuple[float, float]]]:
    """Where the script puts the dots of each line, by the numbers that it is given."""
    held = numbers(text)
    left, top, right, bottom = held["box"]
    return [
        [
            (
                left + (right - left) * share(x, *held["x"]),
                bottom - (bottom - top) * share(y, *held["y"]),
            )
            for x, y in zip(one["x"], one["y"], strict=True)
        ]
        for one in held["lines"]
    ]


def share(value: float, low: float, high: float) -> float:
    return (value / 2 - low / 2) / (high / 2 - low / 2)


def test_a_line_is_drawn_between_its_lowest_and_highest_value() -> None:
    """The highest is at the top of the drawing, the lowest at its bottom."""
    figure = parsed(chart("loss", [series(1, 3, 2)], x_label="step"))
    [path] = figure.findall(".//path")
    assert heights(path) == [220.0, 10.0, 115.0]
    left, *_ = numbers(chart("loss", [series(1, 3, 2)], x_label="step"))["box"]
    assert [x for x, _ in places(path)] == [left, (left + 706) / 2, 706]
    assert figure.findtext("figcaption") == "loss"
    assert {"1", "2", "3", "step"} <= {one.text for one in figure.findall(".//text")}


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


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1.76387e18 + at * 1e9 for at in range(5)], [0.0, 1, 2, 3, 4]),
        ([0, 1, 2, 3, 4], [1_763_870_000.25 + at for at in range(5)]),
        ([0.5 + at for at in range(5)], [1e300 * (1 + at * 1e-9) for at in range(5)]),
        ([0, 1, 2, 3, 4], [1 + at * 2**-50 for at in range(5)]),
    ],
)
def test_numbers_under_the_pointer_lie_on_the_line(x: list[float], y: list[float]) -> None:
    """Also where they are alike in their first digits; what was apart stays apart."""
    text = chart("m", [Series(label="A", x=x, y=y, of=5)], x_label="step")
    [path], [dots] = parsed(text).findall(".//path"), under_the_pointer(text)
    [held] = numbers(text)["lines"]
    assert len(set(held["x"])) == len(set(held["y"])) == 5
    for dot, place in zip(dots, places(path), strict=True):
        assert dot == pytest.approx(place, abs=0.06)


def test_numbers_under_the_pointer_have_a_unit() -> None:
    """That of x; a step has none."""
    assert numbers(chart("m", [series(1)], x_label="hours", x_unit="hours"))["unit"] == "hours"
    assert numbers(chart("m", [series(1)], x_label="step"))["unit"] == ""


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


def test_forty_labels_are_told_apart() -> None:
    """The eleventh has the colour of the first and is dashed: its line, legend and numbers."""
    lines = [series(1, 2, label=str(at)) for at in range(41)]
    text = chart("m", lines, x_label="step")
    looks = [one.get("class") or "" for one in parsed(text).findall(".//path")]
    assert looks[:11] == [*(f"line c{at}" for at in range(10)), "line c0 d1"]
    assert len(set(looks[:40])) == 40
    assert looks[40] == looks[0]
    keys = [one.get("class") for one in parsed(text).findall("./ul[@class='keys']/li")]
    assert [f"line {one}" for one in keys] == looks
    assert [(one["colour"], one.get("dash", 0)) for one in numbers(text)["lines"]][9:12] == [
        (9, 0), (0, 1), (1, 1)
    ]  # fmt: skip
    alone = chart("m", [series(1, 2, label="K", colour=10, is_faded=True)], x_label="step")
    [path] = parsed(alone).findall(".//path")
    assert path.get("class") == "line c0 d1 faded"


def test_a_point_alone_is_a_dot_and_no_point_is_no_line() -> None:
    """Neither is an error."""
    figure = parsed(chart("m", [series(5), series(label="B")], x_label="step"))
    [path] = figure.findall(".//path")
    assert (path.get("d") or "").endswith("h0.01")
    assert [one.text for one in figure.findall("./ul[@class='keys']/li")] == ["A", "B"]


@pytest.mark.parametrize("lines", [[], [series(label="A")]])
def test_without_a_finite_point_there_is_no_axis(lines: list[Series]) -> None:
    """A line says so, beneath the name and before the notes."""
    figure = parsed(chart("m", lines, x_label="step", notes=["1 NaN or infinite left out"]))
    assert figure.find("svg") is figure.find("script") is None
    assert figure.findtext("figcaption") == "m"
    assert figure.findtext("p") == "no finite value to draw"
    assert figure.findtext("./ul[@class='notes']/li") == "1 NaN or infinite left out"


@pytest.mark.parametrize(
    ("x", "y", "texts"),
    [
        (0, 1.0, ("0", "1")),
        (119, 0.123456789, ("119", "0.123457")),
        (1_763_870_001, -2.5e-7, ("1,763,870,001", "-2.5e-07")),
        (7, 0.0, ("7", "0")),
        (7, 1.7976931348623157e308, ("7", "1.79769e+308")),
    ],
)
def test_a_value_alone_stands_alone_at_its_axis(x: int, y: float, texts: tuple[str, str]) -> None:
    """Nothing around it was measured; so of a line that stays where it is."""
    figure = parsed(chart("m", [Series(label="A", x=[x], y=[y], of=1)], x_label="step"))
    assert (*ticks(figure, "x"), *ticks(figure, "y")) == texts
    level = parsed(chart("m", [series(*[y] * 3)], x_label="step"))
    assert ticks(level, "y") == [texts[1]]


def test_long_texts_of_a_table_are_marked() -> None:
    """They may be wrapped; numbers, ids, states and moments stand on one line each."""
    made = table(["a", "b"], [["2026-11-23 05:02:34 UTC", "word " * 9], ["f" * 32, "x" * 41]])
    assert re.findall("<td([^>]*)>", made) == ["", ' class="long"', "", ' class="long"']


@example([0.0, 5e-324], [0.0])
@example([1.7976931348623157e308, -1.7976931348623157e308], [1e17])
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1),
)
def test_any_finite_values_are_drawn_inside(values: list[float], steps: list[float]) -> None:
    """However large, small or alike they are; so are the dots under the pointer."""
    count = min(len(values), len(steps))
    line = Series(label="A", x=sorted(steps[:count]), y=values[:count], of=count)
    text = chart("m", [line], x_label="step")
    figure = parsed(text)
    [path], [dots] = figure.findall(".//path"), under_the_pointer(text)
    left, *_ = numbers(text)["box"]
    assert len(places(path)) == len(dots) == count
    for x, y in [*places(path), *dots]:
        assert left - 0.1 <= x <= 706.1
        assert 9.9 <= y <= 220.1
    assert len(figure.findall(".//line")) <= 30
    for of_axis in "xy":
        assert len(set(ticks(figure, of_axis))) == len(ticks(figure, of_axis))


@pytest.mark.parametrize(
    ("ticks", "texts"),
    [
        ([0.0, 1_500_000.0], ["0", "1,500,000"]),
        ([0.1 + 0.2, 0.4], ["0.3", "0.4"]),
        ([2e-7, 4e-7], ["2e-07", "4e-07"]),
        ([1e15, 2e15], ["1e+15", "2e+15"]),
        ([0.0, 5e11, 1e12], ["0", "5e+11", "1e+12"]),
        ([5.0], ["5"]),
        ([-0.2, 0.0, 0.2], ["-0.2", "0", "0.2"]),
        ([1.76387e18, 1.76387e18 + 2e9], ["1.76387e+18", "1.763870002e+18"]),
        ([1_763_870_000.0, 1_763_870_000.5], ["1,763,870,000", "1,763,870,000.5"]),
        ([1.0, 1 + 2e-12], ["1", "1.000000000002"]),
    ],
)
def test_numbers_at_an_axis_are_short_and_apart(ticks: list[float], texts: list[str]) -> None:
    """With commas; by powers of ten where they are very large or small."""
    assert tick_texts(ticks) == texts


def test_steps_have_no_numbers_between_them() -> None:
    """Values have."""
    figure = parsed(chart("m", [series(0, 0.2, 1)], x_label="step"))
    assert ticks(figure, "x") == ["0", "1", "2"]
    assert "0.2" in ticks(figure, "y")
    alone = Series(label="A", x=[5], y=[1], of=1)
    assert ticks(parsed(chart("m", [alone], x_label="step")), "x") == ["5"]
    between = Series(label="A", x=[0, 0.3, 1], y=[1, 2, 3], of=3)
    assert "0.2" in ticks(parsed(chart("m", [between], x_label="hours")), "x")


def test_facts_and_notes_of_nothing_are_nothing() -> None:
    """And what is said twice is said once."""
    assert facts({"a": ""}) == notes_of(["", ""]) == ""
    assert notes_of(["a", "a"]).count("<li>") == 1
