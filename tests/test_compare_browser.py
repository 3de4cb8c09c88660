"""The page of a comparison as people see it: in a browser without a network."""

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from opusclip_mlops.compare_page import sections_of, write_comparison
from opusclip_mlops.contrasts import contrasts
from opusclip_mlops.page_charts import Series, chart, table
from opusclip_mlops.page_charts import facts as facts_of_page
from opusclip_mlops.page_document import Section, parts_of, write_document
from tests.compared import NASTY, beside, curve, sampled_runs, went_back
from tests.journeys import wait_until

pytestmark = pytest.mark.browser

SPIKE, AT = 7.25, 61_803


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs: a curve with a spike, one that went back, a name that is markup."""
    values = np.sin(np.arange(100_000) / 9000)
    values[AT] = SPIKE
    again = curve([9, 8, 7, 6, 3, 2])
    rows = again.rows.copy()
    rows["step"] = [0, 1, 2, 3, 2, 3]
    runs = {
        "first": {"long": curve(values.tolist()), "short": curve([1, 2]), NASTY: curve([1])},
        NASTY: {"long": curve([0, 1]), "short": replace(again, rows=rows)},
    }
    tags = {NASTY: went_back(after_step=1, at_s=4)}
    file = tmp_path_factory.mktemp("page") / "curves.html"
    write_comparison(file, beside(runs, tags=tags, branch="all", notes=[NASTY]))
    return file


@pytest.fixture(scope="module")
def charts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of charts: two values at one step, numbers with many digits, thirty runs."""
    twice = Series(label="A", x=[0, 5, 5, 9], y=[0, 1, 2, 3], of=4)
    x, y = [2.0**60 + at * 2.0**40 for at in range(3)], [1_763_870_000.25 + at for at in range(3)]
    digits = Series(label="A", x=x, y=y, of=3)
    whole = Series(label="A", x=[0, 0.5, 1], y=[0, 2**53 - 1, 2**53 - 3], of=3)
    runs = [Series(label=f"run {at}", x=[0, 1], y=[0, at], of=2) for at in range(30)]
    figures = (
        chart("twice", [twice], x_label="step")
        + chart("digits", [digits], x_label="step")
        + chart("whole", [whole], x_label="hours since", x_unit="hours")
        + chart("runs", runs, x_label="step")
    )
    file = tmp_path_factory.mktemp("charts") / "charts.html"
    write_document(file, parts_of("Charts", [Section(id="a", title="a", html=figures)]))
    return file


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of twelve runs with long names, an odd param, and a metric that is NaN alone."""
    runs = {
        f"a name of many words {at} {'x' * 30}": {
            "panels/kites-dd846910/psnr": curve([1 + at / 7, 20.769123]),
            "none": curve([float("nan")]),
        }
        for at in range(12)
    }
    found = beside(runs, notes=["n"])
    facts = [
        replace(one, params={"lr": str((at + 2) / 7), "about": "word " * 50})
        for at, one in enumerate(found.comparison.runs.values())
    ]
    told = replace(
        found.comparison,
        runs=dict(zip(found.comparison.runs, facts, strict=True)),
        differences=contrasts(facts),
    )
    found = replace(found, comparison=told)
    rows = [["2026-11-23 05:02:34 UTC", "raised", "word " * 40, "loss-high", "20.769", "f" * 32]]
    known = {"a long name of something " + "y" * 30: "a value of several words", "id": "f" * 32}
    more = Section(id="more", title="More", html=table(list("abcdef"), rows) + facts_of_page(known))
    file = tmp_path_factory.mktemp("tables") / "tables.html"
    write_document(file, parts_of("Tables", [*sections_of(found), more]))
    return file


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs with samples, as the command writes it."""
    from opusclip_mlops.cli import main

    folder = tmp_path_factory.mktemp("samples")
    file = folder / "samples.html"
    line = ["compare", "first", "second", "--tracking-uri", sampled_runs(folder)]
    with pytest.raises(SystemExit) as ended:
        main([*line, "--html", str(file)])
    assert ended.value.code in (0, None)
    return file


@pytest.fixture
def opened(browser: Browser) -> Iterator["Opened"]:
    """Opens a page; a fault of its script, or anything it asks for, fails the test."""
    asked: list[str] = []
    said: list[str] = []
    pages: list[Page] = []

    def open_(file: Path, width: int = 1280) -> Page:
        page = browser.new_page(viewport={"width": width, "height": 900})
        pages.append(page)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"file://{file}")
        return page

    try:
        yield open_
        assert said == []
        assert [one for one in asked if not one.startswith(("file://", "data:"))] == []
        assert sum(one.startswith("file://") for one in asked) == len(pages)
    finally:
        for page in pages:
            page.close()


Opened = Callable[..., Page]


def shown(key: str) -> str:
    """The chart of a metric that can be seen."""
    return f'.charts > [data-key="{key}"] > div:not([hidden]) figure'


def test_a_spike_of_one_point_in_a_hundred_thousand_is_seen(opened: Opened, curves: Path) -> None:
    """The drawn line reaches the top of the chart at its step."""
    page = opened(curves)
    line = page.locator(f"{shown('long')} path.c0")
    box = line.evaluate("path => { const b = path.getBBox(); return [b.y, b.y + b.height]; }")
    d = line.get_attribute("d") or ""
    tops = [float(x) for x, y in re.findall(r"([\d.]+) ([\d.]+)", d) if float(y) == box[0]]
    assert box == [10, 220]
    assert len(tops) == 1
    assert "of 100,002 points shown, every low and high kept" in page.inner_text(shown("long"))


def test_the_value_under_the_pointer_is_told(opened: Opened, curves: Path) -> None:
    """That of the spike, with its step; it goes when the pointer does."""
    page = opened(curves)
    chart = page.locator(shown("long"))
    chart.scroll_into_view_if_needed()
    d = chart.locator("path.c0").get_attribute("d") or ""
    [x] = [float(x) for x, y in re.findall(r"([\d.]+) ([\d.]+)", d) if float(y) == 10]
    svg = chart.locator("svg").bounding_box()
    assert svg is not None
    scale = svg["width"] / 720
    page.mouse.move(svg["x"] + x * scale, svg["y"] + 60 * scale)
    tip = chart.locator(".tip")
    assert tip.inner_text() == f"A first: {SPIKE} at {AT:,}"
    page.mouse.move(5, 5)
    wait_until(lambda: tip.count() == 0)


def told_at(page: Page, key: str, share: float) -> list[str]:
    """The lines that are told so far along the axis of a chart."""
    figure = page.locator(f'figure[data-key="{key}"]')
    figure.scroll_into_view_if_needed()
    left = json.loads(figure.locator("script").text_content() or "")["box"][0]
    box = figure.locator("svg").bounding_box()
    assert box is not None
    scale = box["width"] / 720
    page.mouse.move(box["x"] + (left + (706 - left) * share) * scale, box["y"] + 60 * scale)
    return figure.locator(".tip").inner_text().splitlines()


def test_of_two_values_at_a_step_the_last_is_told(opened: Opened, charts: Path) -> None:
    """As in the table."""
    page = opened(charts)
    assert told_at(page, "twice", 5 / 9) == ["A: 2 at 5"]
    assert told_at(page, "twice", 5 / 9 - 0.02) == ["A: 2 at 5"]
    assert told_at(page, "twice", 5 / 9 + 0.02) == ["A: 2 at 5"]


def test_numbers_of_many_digits_are_told_apart(opened: Opened, charts: Path) -> None:
    """Whole ones to the last digit, with the unit of x; each dot stands on its line."""
    page = opened(charts)
    [line] = told_at(page, "digits", 0.5)
    told, x = line.split(" at ")
    assert told == "A: 1763870001.25"
    assert float(x) == 2**60 + 2**40
    assert told_at(page, "whole", 1) == ["A: 9,007,199,254,740,989 at 1 hours"]
    assert told_at(page, "whole", 0.5) == ["A: 9,007,199,254,740,991 at 0.5 hours"]
    assert float(page.locator(".dot").get_attribute("cy") or "") == pytest.approx(10)


def test_of_many_runs_twelve_are_told(opened: Opened, charts: Path) -> None:
    """And how many more; each has its dot."""
    page = opened(charts)
    lines = told_at(page, "runs", 1)
    assert lines == [*(f"run {at}: {at} at 1" for at in range(12)), "and 18 more"]
    assert page.locator(".dot").count() == 30


def test_what_counts_no_more_is_faded(opened: Opened, curves: Path) -> None:
    """In the run's own colour."""
    page = opened(curves)
    lines = page.locator(f"{shown('short')} path")
    looks = lines.evaluate_all(
        "every => every.map(one => [getComputedStyle(one).stroke, getComputedStyle(one).opacity])"
    )
    (stroke, opacity), *others = looks
    assert float(opacity) < 0.5
    assert [stroke, "1"] in others
    assert all(one == "1" for _, one in others)


def test_curves_are_shown_by_step_or_by_time(opened: Opened, curves: Path) -> None:
    """A click shows the other."""
    page = opened(curves)
    name = shown("long")
    assert page.locator(f"{name} svg").get_attribute("aria-label") == "long by step"
    page.click('button[data-shows="time"]')
    label = page.locator(f"{name} svg").get_attribute("aria-label")
    assert label == "long by hours since the run began"


def test_metrics_are_found_by_a_part_of_their_names(opened: Opened, curves: Path) -> None:
    """Charts and lines of the table that are not meant are hidden."""
    page = opened(curves)
    assert page.locator(".charts > [data-key]:visible").count() == 3
    page.fill("#find", "SHO")
    assert page.locator(".charts > [data-key]:visible").count() == 1
    assert set(
        page.locator("tr[data-key]:visible").evaluate_all("e => e.map(one => one.dataset.key)")
    ) == {"short"}


def test_markup_in_names_is_text(opened: Opened, curves: Path) -> None:
    """Of runs, metrics and notes, also beside the pointer."""
    page = opened(curves)
    assert page.locator("img").count() == 0
    assert page.title().startswith("A first beside B ")
    assert NASTY in page.inner_text("#runs")
    assert (
        page.locator(".charts > [data-key]").nth(2).locator("figcaption").first.inner_text()
        == NASTY
    )
    chart = page.locator(shown("short"))
    chart.locator("svg").hover()
    assert NASTY[:30] in chart.locator(".tip").inner_text()


LINES = """every => every.map(cell => {
    const text = document.createRange();
    text.selectNodeContents(cell);
    const tops = new Set([...text.getClientRects()].map(one => Math.round(one.top)));
    return [cell.innerText, tops.size, cell.getBoundingClientRect().width];
})"""


@pytest.mark.parametrize("width", [400, 1280])
def test_numbers_ids_and_states_stand_on_one_line(opened: Opened, tables: Path, width: int) -> None:
    """However narrow the window; texts keep a width that can be read, and the page its own."""
    page = opened(tables, width)
    short = page.locator(
        ".wide td:not(.long):not(.better):not(.worse):not([data-key] td:first-child)"
    )
    cells = short.evaluate_all(LINES)
    told = {text for text, _, _ in cells}
    assert {"FINISHED", "90.0 s", "raised", "f" * 32, "20.769", str(2 / 7)} <= told
    assert [text for text, lines, _ in cells if lines > 1] == []
    long = page.locator(".wide td.long").evaluate_all(LINES)
    assert len(long) > 12
    assert min(size for _, _, size in long) > 140
    assert max(size for _, _, size in long) < 420
    values = page.locator(".facts dd").evaluate_all(LINES)
    assert [lines for _, lines, _ in values] == [1, 1]
    assert page.evaluate("document.documentElement.scrollWidth") == width


def edges(table: Locator) -> tuple[float, float]:
    """How dark the left and the right end of a table are, of 255."""
    with Image.open(io.BytesIO(table.screenshot())) as image:
        grey = np.asarray(image.convert("L"), dtype=float)[4:-4]
    return float(255 - np.median(grey[:, 3:6])), float(255 - np.median(grey[:, -6:-3]))


def test_a_shadow_says_to_which_side_a_table_goes_on(opened: Opened, tables: Path) -> None:
    """One that is there whole has none."""
    page = opened(tables, 400)
    wide = page.locator("#metrics .wide")
    left, right = edges(wide)
    assert right > left + 8
    wide.evaluate("one => one.scrollLeft = one.scrollWidth")
    left, right = edges(wide)
    assert left > right + 8


def test_the_dashes_of_a_run_are_those_of_its_marks(opened: Opened, tables: Path) -> None:
    """Run K has the colour of A: its line is dashed, and its marks are striped."""
    page = opened(tables)
    dash = "every => every.map(one => getComputedStyle(one).strokeDasharray !== 'none')"
    lines = page.locator(".charts [data-axis=step] path").evaluate_all(dash)
    assert lines == [False] * 10 + [True] * 2
    look = """every => every.map(one =>
        getComputedStyle(one, "::before").backgroundImage.startsWith("repeating"))"""
    assert page.locator(".mark").evaluate_all(look) == lines
    keys = page.locator(".charts [data-axis=step] figure:has(svg) .keys li")
    assert keys.evaluate_all(look) == lines


def test_a_metric_without_a_finite_value_has_no_axis(opened: Opened, tables: Path) -> None:
    """Its name stands there, and why nothing is drawn; the pointer finds nothing."""
    page = opened(tables)
    chart = page.locator(shown("none"))
    chart.scroll_into_view_if_needed()
    chart.hover()
    assert chart.locator("svg").count() == 0
    assert "no finite value to draw" in chart.inner_text()


def test_it_is_read_without_its_script(browser: Browser, curves: Path) -> None:
    """Charts and tables are there; what only a script can do is not offered."""
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(f"file://{curves}")
        assert page.locator("svg path:visible").count() >= 3
        assert page.locator("#runs table:visible").count() == 1
        assert page.locator("#tools:visible").count() == 0


@pytest.fixture
def listening() -> Iterator[tuple[str, list[str]]]:
    """A server of this machine: its address, and what it was asked for."""
    asked: list[str] = []

    class Asked(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Asked) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_markup_that_got_in_would_do_nothing(
    browser: Browser, curves: Path, tmp_path: Path, listening: tuple[str, list[str]]
) -> None:
    """The policy lets the page's own script run and no other, and nobody be asked for a picture.

    The same page without its policy does both.
    """
    address, asked = listening
    more = f"""<img src="{address}/picture" onerror="document.title = 'in'">"""
    whole = curves.read_text().replace("<main>", f"<main>{more}")
    free = re.sub("<meta http-equiv[^>]+>", "", whole)
    titles = []
    for number, text in enumerate((whole, free)):
        file = tmp_path / f"{number}.html"
        file.write_text(text)
        with browser.new_page() as page:
            page.goto(f"file://{file}")
            wait_until(lambda page=page: page.evaluate("document.images[0].complete"))  # type: ignore[misc]
            titles.append(page.title())
        assert asked == number * ["/picture"]
    assert titles[0].startswith("A first")
    assert titles[1] == "in"


def test_clips_play_side_by_side(opened: Opened, samples: Path) -> None:
    """Those that can be seen, in a loop; one button holds them."""
    page = opened(samples)
    page.locator("#samples").scroll_into_view_if_needed()
    clips = page.locator("details[open] tr video")
    assert clips.count() == 7
    clips.nth(1).scroll_into_view_if_needed()
    moving = "every => every.slice(1, 3).every(one => one.readyState > 1 && one.currentTime > 0.1)"
    wait_until(lambda: clips.evaluate_all(moving))
    assert page.locator("details[open] tbody tr").first.inner_text().count("only A sampled it") == 1
    page.click("#play")
    wait_until(lambda: clips.evaluate_all("every => every.every(one => one.paused)"))


def test_clips_wait_where_motion_is_not_wanted(browser: Browser, samples: Path) -> None:
    """Each shows its first picture, and plays once it is asked to."""
    with browser.new_context(reduced_motion="reduce") as context:
        page = context.new_page()
        page.goto(f"file://{samples}")
        clip = page.locator("details[open] tr video").first
        clip.scroll_into_view_if_needed()
        wait_until(lambda: clip.evaluate("one => one.readyState > 1"))
        assert clip.evaluate("one => one.paused")
        page.click("#play")
        wait_until(lambda: clip.evaluate("one => one.currentTime > 0.1"))
