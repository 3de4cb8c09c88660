"""What TensorBoard's own dashboards show of insights, seen in a browser."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image as Picture
from playwright.sync_api import Browser, Page

from opusclip_mlops.records import Batch, Image, Metrics, Params, RunEnded, Table
from opusclip_mlops.sinks import open_sink
from tests import insight_records
from tests.journeys import LOCAL_ID, make_run, wait_until
from tests.sinks.sink_contract import T0_MS
from tests.tensorboards import TensorBoard, tensorboard

pytestmark = pytest.mark.browser
RUN = f"films/{LOCAL_ID}"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log folder of a run with an insight of each kind."""
    tmp_path = tmp_path_factory.mktemp("insights")
    folder = make_run(tmp_path, ["tensorboard"])
    Picture.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(folder.media / "grid.png")
    sink = open_sink("tensorboard", folder)
    sink.open({})
    sink.write(
        Batch(
            records=(
                Params({"lr": "0.1", "use_ema": "True", "optimizer": "adamw"}),
                *(Metrics(T0_MS + n, n, {"val/loss": 1 / (n + 1), "mid": n}) for n in range(4)),
                *(Metrics(T0_MS + n, n, {"low": n - 1, "high": n + 1}) for n in range(4)),
                *insight_records.every_kind(folder),
                insight_records.graph(1, key="critic", last="sigmoid"),
                insight_records.embedding(folder, 8, start=1),
                Image(T0_MS + 2, 2, "samples/grid", "grid.png"),
                Table(T0_MS + 2, 2, "worst clips", ["clip", "loss"], [["kite.mp4", 0.5]]),
            )
        )
    )
    sink.close(RunEnded("s1", "FINISHED", T0_MS + 99))
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def server(logs: Path) -> Iterator[TensorBoard]:
    """TensorBoard with its default loader, which has read the run."""
    with tensorboard(logs, fast=True) as server:
        wait_until(lambda: server.tags("pr_curves", RUN))
        wait_until(lambda: server.tags("text", RUN) >= {"worst clips"})
        yield server


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    """One page for all dashboards."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(90_000)
    yield context.new_page()
    context.close()


def show(page: Page, server: TensorBoard, dashboard: str) -> Page:
    """Open a dashboard."""
    page.goto("about:blank")
    page.goto(f"{server.url}/#{dashboard}", wait_until="domcontentloaded")
    return page


def sees(page: Page, text: str) -> None:
    """Wait until a text is visible on a page."""
    page.get_by_text(re.compile(re.escape(text))).first.wait_for()


def test_histograms_are_drawn(page: Page, server: TensorBoard) -> None:
    """With the name of the layer."""
    show(page, server, "histograms")
    sees(page, "encoder.conv")
    # The first is of the layer without a value: a line without a height.
    page.locator("vz-histogram-timeseries path.outline").last.wait_for()
    show(page, server, "distributions")
    sees(page, "encoder.conv")


def test_the_graph_shows_the_modules(page: Page, server: TensorBoard) -> None:
    """The run's graph is the newest; each key is a tag to choose."""
    show(page, server, "graphs")
    page.locator("svg text", has_text="encoder").first.wait_for()
    info = server.asked("plugin/graphs/info")[RUN]
    assert info["run_graph"]
    assert {tag for tag, about in info["tags"].items() if about["op_graph"]} == {"model", "critic"}


def test_the_projector_shows_the_points_with_labels_and_sprites(
    page: Page, server: TensorBoard
) -> None:
    """Both embeddings are there to choose; the labels are columns."""
    show(page, server, "projector")
    points = page.frame_locator("iframe").frame_locator("iframe").locator("body")
    points.get_by_text("Points: 5").first.wait_for()
    points.get_by_text("2 tensors found").first.wait_for()
    names = {one["tensorName"] for one in info_of(server)}
    assert names == {"clips step 3", "clips step 8"}
    sprite = server_bytes(server, "sprite_image", "clips step 3")
    assert sprite.startswith(b"\x89PNG")
    labels = server_bytes(server, "metadata", "clips step 3").decode()
    assert labels.splitlines()[:2] == ["kind\td1", "a cat\t1"]
    assert len(server_bytes(server, "tensor", "clips step 8")) == 5 * 3 * 4


def info_of(server: TensorBoard) -> list[dict[str, str]]:
    found = server.asked("plugin/projector/info", run=RUN)["embeddings"]
    assert isinstance(found, list)
    return found


def server_bytes(server: TensorBoard, what: str, name: str) -> bytes:
    import urllib.request

    path = f"plugin/projector/{what}?run={quote(RUN)}&name={quote(name)}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{server.url}/data/{path}", timeout=30) as answer:
        return bytes(answer.read())


def test_hparams_are_typed_and_know_the_metrics(page: Page, server: TensorBoard) -> None:
    """A switch is a switch, a number has a range, and the result is a column."""
    show(page, server, "hparams")
    sees(page, "use_ema")
    sees(page, "val/loss")
    sees(page, "adamw")


def test_custom_scalars_are_laid_out(page: Page, server: TensorBoard) -> None:
    """By the titles that were given."""
    show(page, server, "custom_scalars")
    sees(page, "Losses of ours")
    sees(page, "Both losses")
    sees(page, "Spread")


def test_the_pr_curve_is_drawn(page: Page, server: TensorBoard) -> None:
    """Under its key."""
    show(page, server, "pr_curves")
    sees(page, "val/cat")
    page.locator("tf-pr-curve-card svg path, tf-pr-curve-card .line").first.wait_for(
        state="attached"
    )


def test_pictures_are_shown(page: Page, server: TensorBoard) -> None:
    """At their step."""
    show(page, server, "images")
    sees(page, "samples/grid")
    page.locator("tf-image-loader img").first.wait_for()


def test_texts_say_where_a_trace_lies(page: Page, server: TensorBoard) -> None:
    """Tables and hyperparameters are there as well."""
    show(page, server, "text")
    page.get_by_text("worst clips").first.click()
    sees(page, "kite.mp4")
    [(step, said)] = server.texts(RUN, "profiling/trace")
    assert step == 12
    assert "trace.json.gz" in said
    assert "adamw" in server.texts(RUN, "hparams")[0][1]
