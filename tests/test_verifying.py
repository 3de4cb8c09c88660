"""MLflow and its mirrors compared: a live run is equal to its replay, and what differs is found."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from opusclip_mlops import ExperimentTracker, TrackingConfig, mirror, verify, wandb_log
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.replay import Places
from tests.mirrored import AWKWARD, T0, Place
from tests.reading import Point, points_of_tensorboard, points_of_wandb
from tests.servers import BIN
from tests.tensorboards import tensorboard
from tests.test_mirror_names import begun

STEPS = (5, 3, 9, 9, -4, 2**40, 0, 1)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A store and a place for mirrors, in the current folder."""
    found = Place(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
    monkeypatch.setenv("WANDB_MODE", "offline")
    found.experiment()
    return found


def trained() -> tuple[str, str]:
    """A run that our tracker has logged and mirrored live; its id, and the one in mirrors."""
    config = TrackingConfig(experiment_name="films", project_name="clips", system_metrics=False)
    with ExperimentTracker(config) as tracker:
        tracker.log_params({"depth": 4, "global_step": 1, "tags": "x"})
        for n, step in enumerate(STEPS):
            tracker.log_metrics({"loss": n / 7, "val/psnr": float(n)}, step=step)
            tracker.log_metrics({"odd": (np.nan, np.inf, -np.inf, 1e300)[n % 4]}, step=step)
        for _ in range(50):
            tracker.log_metrics({"the same": 1.0}, step=1)
        tracker.log_text("some text", "notes/a", step=3)
        clip = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
        tracker.log_video(clip, key="sample/a", step=2, fps=4, caption="a prompt: with | marks")
        tracker.set_tags({"team": "vision"})
        run_id = tracker.run_id
    tags = MlflowClient().get_run(run_id).data.tags
    return run_id, tags["opusclip.mirror_id"]


def test_a_live_run_is_equal_to_its_replay(place: Place) -> None:
    """The tracker's own mirrors are equal to MLflow, and to a replay into fresh places."""
    run_id, mirror_id = trained()
    found = verify(run_id)
    assert [(one.target.partition(":")[0], one.outcome) for one in found] == [
        ("tensorboard", "equal"),
        ("wandb", "equal"),
    ], found
    fresh = Places(wandb_dir="fresh")
    mirror(run_id, to=["tensorboard:fresh", "wandb:clips"], places=fresh)
    again = verify(run_id, to=["tensorboard:fresh", "wandb:clips"], places=fresh)
    assert [one.outcome for one in again] == ["equal", "equal"], again
    live, replayed = (place.path / where / "films" / mirror_id for where in ("runs", "fresh"))
    assert points_of_tensorboard(live) == points_of_tensorboard(replayed)
    rows, replayed_rows = (points_of_wandb(place.path / at, mirror_id) for at in (".", "fresh"))
    assert [_text(one) for one in rows] == [_text(one) for one in replayed_rows]
    for fast in (True, False):
        with tensorboard(place.path, fast=fast) as board:
            charts = [board.all_scalars(f"{at}/films/{mirror_id}") for at in ("runs", "fresh")]
        assert charts[0] == charts[1]
        assert {"loss", "odd", "the same", "val/psnr"} == charts[0].keys()


def _text(point: Point) -> Point:
    return Point(point.key, point.step, point.timestamp_ms, str(float(point.value)))


def test_what_differs_is_found_and_repaired(place: Place) -> None:
    """A lost half, a point too many, another value: each is told, and mended."""
    run = place.run(AWKWARD["the same step in other keys"])
    to = ["tensorboard:runs", "wandb:clips"]
    mirror(run.info.run_id, to=to)
    [file] = place.folder(run).glob("*tfevents*")
    os.truncate(file, file.stat().st_size - 300)
    [log] = wandb_log.logs_of(place.path, run.info.run_id)
    shutil.copytree(log.parent, log.parent.with_name(f"offline-run-2020_1-{run.info.run_id}"))
    found = verify(run.info.run_id)
    assert [one.outcome for one in found] == ["unequal", "unequal"]
    assert found[0].points
    assert not found[0].extra
    assert (found[1].points, found[1].extra) == (0, 60)
    assert any(example.startswith("has too much: a = ") for example in found[1].examples)
    assert "has too much: 55 more points" in found[1].examples
    assert [one.outcome for one in verify(run.info.run_id, repair=True)] == ["equal", "equal"]
    assert [one.outcome for one in verify(run.info.run_id)] == ["equal", "equal"]


def test_changed_words_are_found(place: Place) -> None:
    """A tag that was changed in MLflow behind the mirror's back."""
    run = place.run(AWKWARD["huge steps"])
    mirror(run.info.run_id, to="tensorboard:runs")
    place.client.set_tag(run.info.run_id, "team", "other")
    [one] = verify(run.info.run_id, to="tensorboard:runs")
    assert (one.outcome, one.points, one.words) == ("unequal", 0, 1)
    assert one.examples == ["differs: tags"]


def test_a_mirror_of_before_the_run_went_back_is_told_and_repaired(place: Place) -> None:
    """With the call that makes it show the line as it now is."""
    run = place.run([Metric("loss", float(s), T0 + s, s) for s in range(11)])
    mirror(run.info.run_id, to="tensorboard:runs")
    for name, value in begun(T0 + 1000, 5, T0 + 5).items():
        place.client.set_tag(run.info.run_id, name, value)
    [one] = verify(run.info.run_id, to="tensorboard:runs")
    assert (one.outcome, one.points, one.extra) == ("unequal", 5, 5)
    call = f"`opusclip mirror {run.info.run_id}`"
    assert one.examples[0] == f"the run went back: {call} shows the line as it now is"
    [again] = verify(run.info.run_id, to="tensorboard:runs", repair=True)
    assert again.outcome == "equal"


def test_a_run_without_mirrors_is_told(place: Place) -> None:
    """Nothing to compare is an error, or unequal where a place was named."""
    run = place.run(AWKWARD["huge steps"])
    with pytest.raises(ConfigError, match="--to"):
        verify(run.info.run_id)
    [one] = verify(run.info.run_id, to="tensorboard:runs")
    assert one.outcome == "absent"


def test_the_command_says_it_by_its_exit_code(place: Place) -> None:
    """0 when equal, 1 when not, 2 for wrong use; JSON for scripts."""
    run = place.run(AWKWARD["huge steps"])
    words = [run.info.run_id, "--to", "tensorboard:runs"]

    def said(*line: str) -> tuple[int, str]:
        done = subprocess.run(
            [BIN / "opusclip", *line], capture_output=True, text=True, check=False, cwd=place.path
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    assert said("verify", *words)[0] == 1
    assert said("mirror", *words, "--plan")[0] == 0
    code, text = said("mirror", *words)
    assert code == 0
    assert "mirrored: 2 points" in text
    code, text = said("verify", *words, "--json")
    assert code == 0
    assert json.loads(text)["mirrors"][0]["outcome"] == "equal"
    code, text = said("verify", "--to", "nowhere:x", run.info.run_id)
    assert code == 2
    assert text.startswith("error: cannot mirror to 'nowhere:x'")
    assert len(text.splitlines()) == 1


def test_nothing_flows_back_into_mlflow(place: Place) -> None:
    """Mirroring and comparing leave MLflow's database as it was, with autologging on too."""
    run = place.run(AWKWARD["no numbers"])
    other = place.run(AWKWARD["no numbers"], status=None)

    def everything() -> list[str]:
        with sqlite3.connect(place.path / "mlflow.db") as database:
            return list(database.iterdump())

    before = everything()
    code = (
        "import mlflow, sys; mlflow.pytorch.autolog(log_every_n_step=1); mlflow.autolog()\n"
        "import opusclip_mlops as o\n"
        "with mlflow.start_run(run_id=sys.argv[2]):\n"
        "    o.mirror(sys.argv[1:], to=['tensorboard:runs', 'wandb:clips'])\n"
        "    o.verify(sys.argv[1:])\n"
        "    import os; os._exit(0)\n"
    )
    ids = [run.info.run_id, other.info.run_id]
    subprocess.run([sys.executable, "-c", code, *ids], check=True, cwd=place.path)
    assert everything() == before
    assert verify(ids[0])[0].outcome == "equal"
