"""The page of a comparison as people see it: in a browser without a network."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from opusclip_mlops.compare_page import write_comparison
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
def opened(browser: Browser) -> Iterator[Callable[[Path], Page]]:
    """Opens a page; a fault of its script, or anything it asks for, fails the test."""
    asked: list[str] = []
    said: list[str] = []
    pages: list[Page] = []

    def open_(file: Path) -> Page:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        pages.append(page)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"file://{file}")
        return page

    yield open_
    assert said == []
    assert [one for one in asked if not one.startswith(("file://", "data:"))] == []
    assert sum(one.startswith("file://") for one in asked) == len(pages)
    for page in pages:
        page.close()


Opened = Callable[[Path], Page]


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


def test_it_is_read_without_its_script(browser: Browser, curves: Path) -> None:
    """Charts and tables are there; what only a script can do is not offered."""
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(f"file://{curves}")
    assert page.locator("svg path:visible").count() >= 3
    assert page.locator("#runs table:visible").count() == 1
    assert page.locator("#tools:visible").count() == 0


def test_a_script_that_got_in_would_not_run(browser: Browser, curves: Path, tmp_path: Path) -> None:
    """The page's policy lets its own script run and no other, and asks nobody for a picture."""
    more = "<script>document.title = 'in'</script><img src=x onerror=\"document.title = 'in'\">"
    changed = tmp_path / "changed.html"
    changed.write_text(curves.read_text().replace("<main>", f"<main>{more}"))
    page = browser.new_page()
    page.goto(f"file://{changed}")
    page.wait_for_load_state()
    assert page.title().startswith("A first")


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
    page = browser.new_context(reduced_motion="reduce").new_page()
    page.goto(f"file://{samples}")
    clip = page.locator("details[open] tr video").first
    clip.scroll_into_view_if_needed()
    wait_until(lambda: clip.evaluate("one => one.readyState > 1"))
    assert clip.evaluate("one => one.paused")
    page.click("#play")
    wait_until(lambda: clip.evaluate("one => one.currentTime > 0.1"))
