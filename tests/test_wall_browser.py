"""The wall as people see it: alone as a file, and inside MLflow's own artifact viewer."""

import io
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image
from playwright.sync_api import Browser, Frame, Locator, Page

from opusclip_mlops import layout, video
from opusclip_mlops.panels import Panel
from opusclip_mlops.wall_across import wall_of_runs
from opusclip_mlops.wall_clips import film_at
from opusclip_mlops.wall_page import Column, Sample, Wall, write_page
from tests.browser import open_mlflow
from tests.journeys import store, wait_until
from tests.panelled import FRAMES, NASTY, PANEL, numbered, panelled_run
from tests.servers import mlflow_server

pytestmark = pytest.mark.browser

SHOWN = """
() => [...document.querySelectorAll("video")].map(video => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth || 1, video.videoHeight || 1];
  const pen = canvas.getContext("2d");
  if (!video.error) pen.drawImage(video, 0, 0);
  const bits = [0, 1, 2, 3, 4].map(bit => pen.getImageData(bit * 16 + 8, 8, 1, 1).data[0] > 127);
  return bits.reduce((sum, is, bit) => sum + (is << bit), 0);
})
"""
"""The number of the frame that each clip shows, read out of its pixels."""

LIGHT = """
canvas => {
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let most = 0;
  for (let i = 0; i < pixels.length; i++) if (i % 4 < 3) most = Math.max(most, pixels[i]);
  return most;
}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A server with two runs that sampled one panel, the ids by their names."""
    folder = tmp_path_factory.mktemp("walls")
    with mlflow_server(folder) as url:
        ids = {}
        for name in ("first", "second"):
            clips = [numbered(40 * i + (90 if name == "second" and i else 0)) for i in range(4)]
            own = folder / name
            own.mkdir()
            scores = {"psnr": 31.25}
            _, run = panelled_run(own, run=name, clips=clips, scores=scores, tracking_uri=url)
            ids[name] = run.info.run_id
        yield url, ids


@pytest.fixture
def wall(site: tuple[str, dict[str, str]], tmp_path: Path) -> Path:
    """The wall of both runs' last samples; their first cells are equal, the others not."""
    url, _ = site
    file = tmp_path / "wall.html"
    wall_of_runs(["first", "second"], panel="kites", file=file, steps="last", tracking_uri=url)
    return file


def opened(browser: Browser, file: Path, **options: Any) -> Page:
    """The page in a window of its own, once it plays; any fault of its script fails the test."""
    page = browser.new_context(viewport={"width": 1280, "height": 1000}, **options).new_page()
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto(f"file://{file}")
    settled(page, "playing")
    return page


def settled(page: Page | Frame, state: str) -> None:
    """Wait until the clips have come to where they are to be."""
    page.wait_for_function(
        """state => document.body.dataset.state === state
            && [...document.querySelectorAll("video")].length > 0
            && [...document.querySelectorAll("video")].every(
                one => one.error || (one.readyState > 1 && !one.seeking))""",
        arg=state,
    )


def pixels_of(page: Page) -> np.ndarray:
    """The pixels of the window as a person sees it now."""
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)


def scrub(page: Page | Frame, frame: int) -> None:
    """Move the bar as a person does."""
    move(page, "#scrub", frame)
    settled(page, "paused")


def move(page: Page | Frame, bar: str, value: int) -> None:
    """Move a bar, as a person's hand does."""
    moved = "(bar, value) => { bar.value = value; bar.dispatchEvent(new Event('input')); }"
    page.locator(bar).evaluate(moved, value)


def assert_plays_in_step(page: Page | Frame, *, clips: int) -> None:
    """There are so many clips; at several moments they all show one frame,
    or its neighbour, or are on both sides of the loop.
    """
    seen = set()
    for _ in range(12):
        settled(page, "playing")
        shown = page.evaluate(SHOWN)
        assert len(shown) >= clips
        assert max(shown) - min(shown) <= 1 or {0, FRAMES - 1} <= set(shown), shown
        seen.update(shown)
        time.sleep(0.23)
    assert len(seen) > 5


def test_all_clips_play_in_step(browser: Browser, wall: Path) -> None:
    """Wherever they are, all show one frame; what one of them shows goes on."""
    assert_plays_in_step(opened(browser, wall), clips=8)


def test_the_bar_brings_all_clips_to_a_frame(browser: Browser, wall: Path) -> None:
    """Each frame of the bar is that frame of every clip, the last too; keys move by one."""
    page = opened(browser, wall)
    for frame in (0, 1, 7, FRAMES - 1):
        scrub(page, frame)
        assert page.evaluate(SHOWN) == [frame] * 8
    page.locator("h1").click()
    for key, frame in (("ArrowLeft", 14), ("ArrowLeft", 13), ("ArrowRight", 14), ("Home", 0)):
        page.keyboard.press(key)
        settled(page, "paused")
        assert page.evaluate(SHOWN) == [frame] * 8
    assert page.locator("#frame").inner_text() == f"frame 1 of {FRAMES}, 0.00 s"
    page.keyboard.press(" ")
    settled(page, "playing")


def test_the_difference_is_black_for_equal_clips_alone(browser: Browser, wall: Path) -> None:
    """The first cell is the same in both runs; of the others something is seen."""
    page = opened(browser, wall)
    scrub(page, 5)
    page.keyboard.press("Escape")
    page.locator("#how").select_option("difference")
    settled(page, "paused")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.apart')].every(one => one.textContent.includes('6'))"
    )
    light = [one.evaluate(LIGHT) for one in page.locator("canvas").all()]
    assert light[0] == 0
    assert all(one > 100 for one in light[1:])
    first, *others = page.locator(".apart").all_inner_texts()
    assert first == "mean difference 0.00 of 255, frame 6"
    assert all("0.00" not in one for one in others)


def test_a_shorter_clip_waits_on_its_last_frame(browser: Browser, tmp_path: Path) -> None:
    """It is said how long it is; the others go on, and all begin together again."""
    panel = Panel(name="unlike", prompts=("a", "b"))
    clips = [numbered(), numbered(frames=6)]
    panelled_run(tmp_path, [0], run="unlike", panel=panel, clips=clips)
    file = tmp_path / "wall.html"
    wall_of_runs(["unlike"], panel="unlike", file=file, tracking_uri=store(tmp_path))
    page = opened(browser, file)
    for frame in (3, 5, 6, 15):
        scrub(page, frame)
        assert page.evaluate(SHOWN) == [frame, min(frame, 5)]
    assert page.locator(".short").all_inner_texts() == ["6 frames"]
    assert "from 6 to 16 frames" in page.locator("#notes").inner_text()
    page.locator("#play").click()
    page.wait_for_function("() => document.body.dataset.frame > 8")
    assert page.evaluate(SHOWN)[1] == 5
    page.wait_for_function("() => document.body.dataset.frame < 5")
    settled(page, "playing")
    first, second = page.evaluate(SHOWN)
    assert abs(first - second) <= 1


def test_what_cannot_be_played_says_so_and_holds_up_nothing(
    browser: Browser, tmp_path: Path
) -> None:
    """A clip that this browser does not play is told in its place; the others are played."""
    good, bad = tmp_path / "good.mp4", tmp_path / "bad.mp4"
    video.write_mp4(numbered(), good, fps=8)
    bad.write_bytes(good.read_bytes()[:200] + bytes(2000))
    first, second = (
        Column(run="r", step=step, samples={PANEL.cells[0].name: Sample(film=film)})
        for step, film in enumerate((film_at(good), replace(film_at(good), path=bad)))
    )
    write_page(Wall(panel=PANEL, columns=[first, second]), tmp_path / "wall.html")
    page = browser.new_page()
    page.goto(f"file://{tmp_path}/wall.html")
    page.get_by_text("this browser cannot play it").wait_for()
    page.wait_for_function("() => document.body.dataset.turn > 3", timeout=30_000)
    scrub(page, 9)
    assert page.evaluate(SHOWN)[0] == 9


def test_a_wall_of_holes_stands_still(browser: Browser, tmp_path: Path) -> None:
    """Each place says why it is empty, and there is nothing to play."""
    column = Column(run="r", step=0, samples={PANEL.cells[0].name: Sample(missing="<b>gone</b>")})
    write_page(Wall(panel=PANEL, columns=[column]), tmp_path / "wall.html")
    page = browser.new_page()
    page.goto(f"file://{tmp_path}/wall.html")
    page.get_by_text("<b>gone</b>").wait_for()
    assert page.get_by_text("no clip was logged").count() == 3
    turn = page.evaluate("() => document.body.dataset.turn")
    time.sleep(0.5)
    assert page.evaluate("() => document.body.dataset.turn") == turn


@pytest.mark.parametrize("how", ["over", "split", "blink"])
def test_two_columns_are_compared_in_other_ways(browser: Browser, wall: Path, how: str) -> None:
    """Each way draws a picture of both."""
    page = opened(browser, wall)
    scrub(page, 5)
    page.locator("#how").select_option(how)
    settled(page, "paused")
    page.wait_for_function("() => document.querySelectorAll('canvas')[1].width === 80")
    assert page.locator("canvas").nth(1).evaluate(LIGHT) > 100


def test_no_request_leaves_the_page(browser: Browser, wall: Path) -> None:
    """Besides the file itself nothing is asked for, and nothing the policy forbids is tried."""
    page = browser.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(f"file://{wall}")
    settled(page, "playing")
    page.locator("#how").select_option("difference")
    settled(page, "playing")
    assert [one for one in asked if not one.startswith("blob:")] == [f"file://{wall}"]
    assert said == []


def test_a_prompt_is_text_whatever_it_says(browser: Browser, tmp_path: Path) -> None:
    """Prompts, run names and origins that are markup are shown, and do nothing."""
    panel = Panel(name="nasty", prompts=(NASTY, "b"), sampler={NASTY: NASTY})
    origin = {"checkpoint": NASTY, "git_commit": "<b>x"}
    run = f"<i>{NASTY}"
    panelled_run(tmp_path, [3], run=run, panel=panel, origin=origin, scores={"<u>": 1.0})
    file = tmp_path / "wall.html"
    wall_of_runs(["<i>"], panel="nasty", file=file, tracking_uri=store(tmp_path))
    page = opened(browser, file)
    assert page.locator(".prompt").first.inner_text() == NASTY
    assert NASTY in page.locator("#subtitle").inner_text()
    assert page.locator("img, i, u, main b b").count() == 0
    assert page.title() == "nasty: samples"


def test_a_script_that_got_in_would_not_run(browser: Browser, wall: Path, tmp_path: Path) -> None:
    """The page's policy lets its own script run and no other."""
    text = wall.read_text()
    changed = tmp_path / "changed.html"
    more = "<script>document.title = 'in'</script><img src=x onerror=\"document.title = 'in'\">"
    changed.write_text(text.replace("<noscript>", f"{more}<noscript>"))
    page = opened(browser, changed)
    assert page.title() == "kites: samples"


def test_the_wall_plays_inside_mlflow(browser: Browser, site: tuple[str, dict[str, str]]) -> None:
    """MLflow's artifact viewer gives it a frame without an origin: it plays and compares there."""
    url, ids = site
    frame = in_mlflow(browser, url, ids["first"])
    settled(frame, "playing")
    assert_plays_in_step(frame, clips=2)
    scrub(frame, 9)
    assert set(frame.evaluate(SHOWN)) == {9}
    frame.locator("#how").select_option("difference")
    settled(frame, "paused")
    frame.wait_for_function(
        "() => document.querySelector('.apart').textContent.includes('frame 10')"
    )
    # Its clips are the same at both steps.
    assert frame.locator("canvas").first.evaluate(LIGHT) == 0


def in_mlflow(browser: Browser, url: str, run_id: str) -> Frame:
    """The wall of a run, opened as a person does."""
    experiment = MlflowClient(url).get_run(run_id).info.experiment_id
    path = layout.wall_path(PANEL.title)
    page = open_mlflow(browser, f"{url}/#/experiments/{experiment}/runs/{run_id}/artifacts/{path}")
    page.locator("iframe.mlflow-html-iframe, iframe#html").wait_for()
    found = page.locator("iframe#html").element_handle()
    frame = found.content_frame() if found else None
    assert frame
    return frame


def test_it_waits_where_motion_is_not_wanted(browser: Browser, wall: Path) -> None:
    """Whoever asked for less motion begins it by hand."""
    page = browser.new_context(reduced_motion="reduce").new_page()
    page.goto(f"file://{wall}")
    settled(page, "paused")
    page.locator("#play").click()
    settled(page, "playing")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_looks_as_the_reader_likes_it(browser: Browser, wall: Path, scheme: Any) -> None:
    """A light page for one, a dark one for the other; text stands out from it, clips on it."""
    page = opened(browser, wall, color_scheme=scheme)
    scrub(page, 31 % FRAMES)
    film = page.locator("video").first.bounding_box()
    assert film
    middle = int(film["y"] + 0.7 * film["height"]), int(film["x"] + film["width"] / 2)
    # A frame that is there is painted when the compositor comes to it.
    wait_until(lambda: abs(pixels_of(page)[middle] - [0, 90, 255]).max() < 30, deadline_s=60)
    shot = pixels_of(page)
    ground = float(shot[5, 5].mean())
    assert (ground > 200) is (scheme == "light")
    heading = page.locator("h1").bounding_box()
    assert heading
    left, top = int(heading["x"]), int(heading["y"])
    text = shot[top : top + int(heading["height"]), left : left + 80]
    assert abs(text.mean(axis=2) - ground).max() > 120


def test_many_steps_are_chosen_from(browser: Browser, tmp_path: Path) -> None:
    """As many stand side by side as the window holds; chips and the bar choose others."""
    panel = Panel(name="many", prompts=("a",))
    panelled_run(tmp_path, range(0, 800, 100), run="many", panel=panel)
    file = tmp_path / "wall.html"
    wall_of_runs(["many"], panel="many", file=file, tracking_uri=store(tmp_path))
    page = opened(browser, file)
    assert steps_shown(page) == [0, 200, 500, 700]
    page.locator("#from").evaluate(
        "bar => { bar.value = 2; bar.dispatchEvent(new Event('input')) }"
    )
    assert steps_shown(page) == [200, 300, 400, 500]
    page.locator("#chips").get_by_role("button", name="step 500").click()
    assert steps_shown(page) == [200, 300, 400]
    page.locator("#chips").get_by_role("button", name="first and last").click()
    assert steps_shown(page) == [0, 700]
    settled(page, "playing")


def test_of_each_run_the_first_and_the_last_are_shown(browser: Browser, tmp_path: Path) -> None:
    """However many steps the one has, and however few the other."""
    panel = Panel(name="many", prompts=("a",))
    panelled_run(tmp_path, range(0, 800, 100), run="long", panel=panel)
    panelled_run(tmp_path, (0, 50), run="short", panel=panel)
    file = tmp_path / "wall.html"
    wall_of_runs(["long", "short"], panel="many", file=file, tracking_uri=store(tmp_path))
    page = opened(browser, file)
    assert steps_shown(page) == [0, 700, 0, 50]


def steps_shown(page: Page) -> list[int]:
    """The steps of the columns, from left to right."""
    found = page.locator("thead .at").all_inner_texts()
    return [int(re.sub(r"\D", "", one)) for one in found]


def test_posters_move_in_mlflows_image_grid(
    browser: Browser, site: tuple[str, dict[str, str]]
) -> None:
    """The tab of a run's metrics plays a panel's clips, and its slider goes from step to step."""
    url, ids = site
    experiment = MlflowClient(url).get_run(ids["first"]).info.experiment_id
    address = f"{url}/#/experiments/{experiment}/runs/{ids['first']}/model-metrics"
    page = open_mlflow(browser, address)
    poster = posters(page, 0).first
    assert_moves(poster)
    for slider in page.get_by_role("slider").all():
        slider.press("ArrowRight")
    for number in range(4):
        assert_moves(posters(page, 10).nth(number))
    assert posters(page, 0).count() == 0


def test_posters_of_two_runs_move_side_by_side(
    browser: Browser, site: tuple[str, dict[str, str]]
) -> None:
    """The chart view of an experiment has a tile for each cell, and in it both runs' clips."""
    url, ids = site
    experiment = MlflowClient(url).get_run(ids["first"]).info.experiment_id
    page = open_mlflow(browser, f"{url}/#/experiments/{experiment}/runs?compareRunsMode=CHART")
    key = layout.image_stem(PANEL.key_of(PANEL.cells[1]), 0, 0, "").partition("+")[0]
    tile = page.locator(f"img[src*='{key}'][src*='compressed']")
    tile.nth(1).wait_for()
    runs = {str(one.get_attribute("src")).rpartition("=")[2] for one in tile.all()}
    assert runs == set(ids.values())
    for one in tile.all():
        assert_moves(one)


def posters(page: Page, step: int) -> Locator:
    """The moving pictures of a step that the page shows."""
    return page.locator(f"img[src*='panels~'][src*='step%2B{step}%2B'][src*='compressed']")


def assert_moves(picture: Locator) -> None:
    """It is not the same half a second later, once it is there."""
    picture.wait_for()
    first = picture.screenshot()
    wait_until(lambda: time.sleep(0.5) or picture.screenshot() != first, deadline_s=30)
