"""The product as a newcomer meets it: a project run, three places, a served model, the pictures."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from mlflow import MlflowClient
from playwright.sync_api import Browser, Page, sync_playwright

from opusclip_mlops import wandb_log
from tests.journeys import wait_until
from tests.reading import (
    Point,
    points_of_mlflow,
    points_of_tensorboard,
    points_of_wandb,
)
from tests.servers import free_port, running

ROOT = Path(__file__).resolve().parents[1]
PROJECT = ("MLproject", "python_env.yaml", "conda.yaml", "pyproject.toml", "opusclip_mlops")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@dataclass(frozen=True)
class Trained:
    """A finished project run: its folder, what it printed, and its environment."""

    folder: Path
    output: str
    environment: dict[str, str]

    @property
    def store(self) -> str:
        """The tracking URI."""
        return f"sqlite:///{self.folder}/mlflow.db"

    @property
    def client(self) -> MlflowClient:
        """A client of that store."""
        return MlflowClient(self.store)

    def run(self) -> Any:
        """The one run."""
        experiment = self.client.get_experiment_by_name("video-clips")
        every = [experiment.experiment_id] if experiment else []
        [run] = self.client.search_runs([*every, "0"])
        return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """`mlflow run .` without flags for the environment, on a PATH without conda and pyenv."""
    folder = tmp_path_factory.mktemp("project")
    for name in PROJECT:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, folder / name)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(folder / "home"),
        "MLFLOW_ENV_ROOT": str(folder / "envs"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PIP_FIND_LINKS": os.environ.get("PIP_FIND_LINKS", ""),
    }
    (folder / "home").mkdir()
    subprocess.run(["opusclip", "link-env"], cwd=folder, env=environment, check=True)
    small = ["-P", "epochs=2", "-P", "size=32", "-P", "frames=8"]
    done = subprocess.run(
        ["mlflow", "run", ".", *small],
        cwd=folder, env=environment, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Trained(folder, done.stdout, environment)


def narrow(points: list[Point]) -> list[Point]:
    return sorted(
        Point(p.key, p.step, p.timestamp_ms, repr(float(np.float32(float(p.value)))))
        for p in points
    )


def test_three_places_hold_the_same_points(trained: Trained) -> None:
    """Every point of the run stands in MLflow, TensorBoard and W&B alike."""
    run = trained.run()
    record = points_of_mlflow(trained.client, run.info.run_id)
    assert {"train/loss", "val/psnr", "val/baseline_psnr"} <= {p.key for p in record}
    assert points_of_wandb(trained.folder, run.info.run_id) == record
    [events] = {path.parent for path in (trained.folder / "runs").rglob("events*")}
    assert events.name == run.info.run_id
    assert points_of_tensorboard(events) == narrow(record)


def test_the_run_says_where_it_comes_from(trained: Trained) -> None:
    """Params, dataset, libraries, status, checkpoints and samples are all in the record."""
    run = trained.run()
    assert run.info.status == "FINISHED"
    assert (run.data.params["epochs"], run.data.params["frames"]) == ("2", "8")
    [entry] = run.inputs.dataset_inputs
    assert json.loads(entry.dataset.profile)["train_frames"] == 106
    assert run.data.tags["opusclip.library.torch"].startswith("2.")
    best = run.data.tags["opusclip.checkpoint.best"]
    names = {a.path for a in trained.client.list_artifacts(run.info.run_id, "checkpoints")}
    assert f"checkpoints/{best}" in names
    assert len(names) == 2
    media = "media/video/samples/generated_vs_target"
    assert len(trained.client.list_artifacts(run.info.run_id, media)) == 3


def test_the_summary_names_the_next_commands(trained: Trained) -> None:
    """Run, best checkpoint, version, and commands whose files and folders are there."""
    run = trained.run()
    assert run.info.run_id in trained.output
    assert run.data.tags["opusclip.checkpoint.best"] in trained.output
    assert "clip-generator version 1" in trained.output
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in trained.output
    assert "tensorboard --logdir runs" in trained.output
    [activate] = re.findall(r"source (\S+)", trained.output)
    assert Path(activate).resolve() == Path(sys.executable).with_name("activate").resolve()
    assert "mlflow models serve -m models:/clip-generator/1 --env-manager local" in trained.output
    [offline] = re.findall(r"wandb sync (\S+)", trained.output)
    [log] = wandb_log.logs_of(trained.folder, run.info.run_id)
    assert (trained.folder / offline).resolve() == log.parent.resolve()


@pytest.fixture(scope="module")
def served(trained: Trained) -> Iterator[str]:
    """`mlflow models serve`, as the summary says it."""
    port = free_port()
    argv = ["mlflow", "models", "serve", "-m", "models:/clip-generator/1"]
    argv += ["--env-manager", "local", "-p", str(port)]
    environment = {**trained.environment, "MLFLOW_TRACKING_URI": trained.store}
    with running(argv, env=environment, url=f"http://127.0.0.1:{port}/ping", cwd=trained.folder):
        yield f"http://127.0.0.1:{port}/invocations"


def ask(url: str, **row: Any) -> dict[str, Any]:
    body = json.dumps({"dataframe_records": [row]}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return dict(json.load(answer)["predictions"][0])


@pytest.fixture(scope="module")
def answer(served: str) -> dict[str, Any]:
    """The answer to one request."""
    return ask(served, prompt="a rabbit in a meadow", seed=7, frames=16)


def test_the_served_model_answers_with_a_film(trained: Trained, answer: dict[str, Any]) -> None:
    """The answer is an H.264 mp4 of as many frames as asked for, and says what made it."""
    assert (answer["seed"], answer["frames"], answer["model_version"]) == (7, 16, 1)
    path = trained.folder / "answer.mp4"
    path.write_bytes(base64.b64decode(answer["video"]))
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == pytest.approx(answer["fps"])
        assert sum(1 for _ in film.decode(stream)) == 16


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium, driven by playwright."""
    from tests.browser import chromium_path

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium_path(), args=QUIET)


@pytest.mark.browser
def test_the_answer_plays_in_a_browser(browser: Browser, answer: dict[str, Any]) -> None:
    """Chromium plays the film that was served."""
    page = browser.new_page()
    page.set_content(f"<video src='data:video/mp4;base64,{answer['video']}' muted autoplay loop>")
    page.wait_for_function("document.querySelector('video').currentTime > 0.1")
    assert page.evaluate("document.querySelector('video').videoWidth") == 32


@pytest.fixture(scope="module")
def interface(trained: Trained) -> Iterator[str]:
    """MLflow's own UI on the run's store."""
    port = free_port()
    argv = ["mlflow", "ui", "--backend-store-uri", trained.store, "--port", str(port)]
    argv += ["--workers", "1"]
    environment = {**trained.environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(argv, env=environment, url=f"http://127.0.0.1:{port}/health", cwd=trained.folder):
        yield f"http://127.0.0.1:{port}"


def open_run(browser: Browser, address: str, run: Any, tab: str) -> Page:
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    settings = {
        "mlflow.workflowType_v1": '"machine_learning"',
        "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
        "mlflow.assistant.panelOpen_v1": "false",
    }
    page.add_init_script(
        f"for (const [k, v] of Object.entries({json.dumps(settings)})) localStorage.setItem(k, v)"
    )
    page.goto(
        f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/{tab}",
        wait_until="domcontentloaded",
    )
    return page


@pytest.mark.browser
def test_the_sample_moves_in_the_stock_image_grid(
    browser: Browser, interface: str, trained: Trained
) -> None:
    """The run's page in MLflow's UI shows the sample, and two looks at it differ: it plays."""
    page = open_run(browser, interface, trained.run(), "model-metrics")
    title = page.get_by_text("samples/generated_vs_target").first
    # The page draws a chart once it is scrolled to.
    for turn in range(360):
        if title.is_visible():
            break
        page.mouse.move(800, 600)
        page.mouse.wheel(0, -100_000 if turn % 90 == 89 else 400)
        page.wait_for_timeout(250)
    title.scroll_into_view_if_needed()
    button = "following::button[@data-component-id='fullscreen_button_chartcard'][1]"
    title.locator(f"xpath={button}").click()
    picture = page.get_by_role("dialog").locator("img[src*='samples~generated_vs_target']").first
    picture.wait_for(state="visible", timeout=60_000)
    first = picture.screenshot()
    wait_until(lambda: picture.screenshot() != first, deadline_s=60)
