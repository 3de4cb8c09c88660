"""A report as people see it: alone as a file, and inside MLflow's own artifact viewer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from playwright.sync_api import Browser, Frame, Page

from opusclip_mlops.reports import report
from tests.browser import open_mlflow
from tests.panelled import NASTY, panelled_run
from tests.servers import mlflow_server

pytestmark = pytest.mark.browser

PLAYING = "() => [...document.querySelectorAll('video')].some(one => one.currentTime > 0.2)"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """A server with a run whose report is logged: its address, the run, the page's file."""
    folder = tmp_path_factory.mktemp("reported")
    with mlflow_server(folder) as url:
        _, run = panelled_run(folder, (0,), run=NASTY, tracking_uri=url)
        run_id, client = str(run.info.run_id), MlflowClient(url)
        for step in range(5):
            client.log_metric(run_id, "val/loss", 1 / (step + 1), step=step)
        client.log_param(run_id, "prompt", NASTY)
        file = folder / "made.html"
        report([run_id], file=file, tracking_uri=url)
        yield url, run_id, file


def played(page: Page | Frame) -> None:
    """Let a clip play as a person does, and see that its time moves."""
    page.locator("video").first.scroll_into_view_if_needed()
    page.evaluate("() => document.querySelector('video').play()")
    page.wait_for_function(PLAYING)


def test_the_file_plays_and_no_request_leaves_it(
    browser: Browser, site: tuple[str, str, Path]
) -> None:
    """Nothing but itself is asked for, and its policy has nothing to forbid."""
    page = browser.new_context(offline=True).new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    address = f"file://{site[2]}"
    page.goto(address)
    page.locator('figure.chart[data-key="val/loss"] path.line').wait_for()
    played(page)
    assert [one for one in asked if not one.startswith("data:")] == [address]
    assert said == []


def test_what_a_run_is_called_is_text(browser: Browser, site: tuple[str, str, Path]) -> None:
    """A name, a prompt and a param that are markup are shown, and do nothing."""
    page = browser.new_page()
    page.goto(f"file://{site[2]}")
    assert NASTY in page.locator("h1").inner_text()
    assert NASTY in page.locator("#params").inner_text()
    assert page.title() != "1"
    assert page.locator("main img").count() == 0


def test_it_is_read_inside_mlflow(browser: Browser, site: tuple[str, str, Path]) -> None:
    """In the frame that MLflow's artifact viewer gives a page: heading, chart, and a clip plays."""
    url, run_id, _ = site
    experiment = MlflowClient(url).get_run(run_id).info.experiment_id
    path = "reports/report.html"
    page = open_mlflow(browser, f"{url}/#/experiments/{experiment}/runs/{run_id}/artifacts/{path}")
    page.locator("iframe.mlflow-html-iframe, iframe#html").wait_for()
    found = page.locator("iframe#html").element_handle()
    frame = found.content_frame() if found else None
    assert frame is not None
    frame.locator("h1").wait_for()
    assert NASTY in frame.locator("h1").inner_text()
    frame.locator('figure.chart[data-key="val/loss"] path.line').wait_for()
    played(frame)
