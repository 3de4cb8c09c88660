"""Blind votes as people cast them: by keys, through the command, to the verdict."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from opusclip_mlops.blind_server import serving
from opusclip_mlops.blind_votes import Choice, read_ballots
from opusclip_mlops.blind_voting import Asked, opened, status, write_page
from opusclip_mlops.panels import Panel
from tests.panelled import numbered, panelled_run
from tests.test_ab_cli import voting

pytestmark = pytest.mark.browser

PANEL = Panel(name="kites", prompts=("<b>red</b>", "green", "blue"), seeds=(0, 1, 2, 3))
BLUE = """
side => {
  const video = document.querySelector(`#${side} video`), canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  const [red, , blue] = canvas.getContext("2d").getImageData(40, 30, 1, 1).data;
  return blue > red;
}
"""
"""Whether the clip on a side is blue: those of the first run are."""


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow with a run whose clips are blue and one whose are red."""
    folder = tmp_path_factory.mktemp("runs")
    for name, colour in (("first", 0), ("second", 255)):
        clips = [numbered(colour)] * len(PANEL.cells)
        panelled_run(folder, [0], run=name, panel=PANEL, clips=clips)
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A window; any fault of a script fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    yield page
    context.close()


def settled(page: Page, state: str) -> None:
    """Wait until the page is in a state: "voting", "end", "closed"."""
    page.wait_for_function("state => document.body.dataset.state === state", arg=state)


def pressed(page: Page, key: str) -> None:
    """Press a key on a pair that is shown, and wait for the next pair or the end."""
    settled(page, "voting")
    before = page.evaluate("() => document.body.dataset.pair")
    page.keyboard.press(key)
    page.wait_for_function("was => document.body.dataset.pair !== was", arg=before)


def test_votes_by_keys_come_to_a_verdict(page: Page, uri: str, tmp_path: Path) -> None:
    """Whoever always prefers the blue clip prefers the first run: sides differ, A is found."""
    votes = tmp_path / "votes.jsonl"
    line = ("first", "second", "--panel", "kites", "--votes", str(votes), "--voter", "ann")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with voting(*line, "--tracking-uri", uri, "--json") as (command, address):
        page.goto(address)
        keys = []
        for number in range(12):
            settled(page, "voting")
            assert page.locator("#progress").inner_text() == f"{number} of 12 voted on"
            is_left, is_right = (page.evaluate(BLUE, side) for side in ("left", "right"))
            assert is_left is not is_right
            keys.append("1" if is_left else "2")
            pressed(page, keys[-1])
            assert len(read_ballots(votes).counted) == number + 1
        assert {"1", "2"} == set(keys)
        settled(page, "end")
        page.keyboard.press("u")
        pressed(page, keys[-1])
        settled(page, "end")
        page.keyboard.press("Enter")
        settled(page, "closed")
        printed, _ = command.communicate(timeout=240)
    found = json.loads(printed)
    assert (found["verdict"], found["preference"]["votes_a"], found["a"]["called"]) == (
        "A", 12, "first"
    )  # fmt: skip
    assert all(one.startswith((address.partition("/?")[0], "blob:")) for one in asked)
    said = status(votes)
    assert said.sentence == found["sentence"]


def test_a_prompt_is_text_and_nothing_tells_the_sides_apart(page: Page, uri: str) -> None:
    """Opened as a file: markup is shown, the clips' boxes are alike, nothing is asked for."""
    asked = Asked(run_a="first", run_b="second", panel="kites", tracking_uri=uri)
    with opened(asked) as poll:
        page.goto(f"file://{poll.page}")
        settled(page, "voting")
        prompts = []
        for _ in range(12):
            settled(page, "voting")
            prompts.append(page.locator("#prompt").inner_text())
            sides = [page.locator(f"#{side} video") for side in ("left", "right")]
            boxes = [one.bounding_box() for one in sides]
            assert [one["width"] for one in boxes if one] == [boxes[0]["width"]] * 2  # type: ignore[index]
            labels = [one.get_attribute("aria-label") for one in sides]
            assert labels == ["left clip", "right clip"]
            pressed(page, "0")
        assert sorted(prompts) == sorted(one.prompt for one in PANEL.cells)
        assert page.locator("b").count() == 0
        assert page.title() == "kites: which is better?"


def test_without_a_server_the_votes_are_saved_as_a_file(
    page: Page, uri: str, tmp_path: Path
) -> None:
    """Ties, sides and an undone vote; the file that the page saves is added to the others."""
    html, saved = tmp_path / "page.html", tmp_path / "saved.jsonl"
    asked = Asked(run_a="first", run_b="second", panel="kites", voter="eve", tracking_uri=uri)
    poll = write_page(asked, html)
    page.goto(f"file://{html}")
    pressed(page, "1")
    settled(page, "voting")
    page.locator("#undo").click()
    page.wait_for_function("() => document.body.dataset.pair === '0'")
    pressed(page, "2")
    for _ in range(11):
        pressed(page, "0")
    settled(page, "end")
    with page.expect_download() as download:
        page.locator("#finish").click()
    download.value.save_as(saved)
    assert download.value.suggested_filename == f"votes-{poll.sheet.id}.jsonl"
    found = status(poll.votes, saved=(saved,))
    assert (found.preference.n, found.preference.ties) == (12, 11)
    for_whom = "A" if poll.sheet.pairs[0].a_is == "right" else "B"
    assert [one.vote for one in read_ballots(poll.votes).counted if one.vote != "tie"] == [for_whom]


def test_both_clips_play_from_the_start_together(page: Page, uri: str, tmp_path: Path) -> None:
    """At several moments they show about the same time, and after the end they begin again."""
    html = tmp_path / "page.html"
    asked = Asked(run_a="first", run_b="second", panel="kites", tracking_uri=uri)
    write_page(asked, html)
    page.goto(f"file://{html}")
    settled(page, "voting")
    times = "() => [...document.querySelectorAll('video')].map(one => one.currentTime)"
    seen = []
    for _ in range(30):
        left, right = page.evaluate(times)
        seen.append(left)
        ended = page.evaluate("() => [...document.querySelectorAll('video')].some(v => v.ended)")
        assert abs(left - right) < 0.5 or ended
        time.sleep(0.1)
    assert np.min(np.diff(seen)) < -0.5


def test_a_vote_that_is_not_kept_is_told_in_the_page(page: Page, uri: str) -> None:
    """A full disk, or a command that is gone: the pair stays, and the page says so."""
    asked = Asked(run_a="first", run_b="second", panel="kites", tracking_uri=uri)
    with opened(asked) as poll:
        with serving(poll.page, Refusing()) as address:
            page.goto(address)
            settled(page, "voting")
            page.keyboard.press("1")
            page.get_by_text("This vote was not kept").wait_for()
            page.reload()
            settled(page, "voting")
        page.keyboard.press("1")
        page.get_by_text("This vote was not kept").wait_for()
        assert page.evaluate("() => document.body.dataset.pair") == "0"
        assert page.locator("#progress").inner_text() == "0 of 12 voted on"


class Refusing:
    """Keeps no vote."""

    def vote(self, pair: int, choice: Choice) -> bool:
        return False

    def finish(self) -> None:
        pass
