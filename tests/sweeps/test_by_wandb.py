"""The engine `wandb`: the real client and its agents, with a stub of W&B's server."""

import json
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import sweeps
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.sweeps.by_wandb import PLACE_TAG
from tests.journeys import store, wait_until
from tests.wandb_server import wandb_server

ROOT = Path(__file__).resolve().parents[2]
TRAINS = """
import sys
x = float(sys.argv[1].partition("=")[2])
if x == 2:
    sys.exit(3)
from opusclip_mlops import ExperimentTracker, TrackingConfig
config = TrackingConfig(use_tensorboard=False, system_metrics=False)
with ExperimentTracker(config) as tracker:
    tracker.log_metrics({"loss": x / 2}, 7)
"""


def document(folder: Path) -> dict[str, object]:
    (folder / "train.py").write_text(TRAINS)
    return {
        "method": "grid",
        "project": "films",
        "program": str(folder / "train.py"),
        "command": [sys.executable, "${program}", "${args}"],
        "metric": {"name": "loss"},
        "parameters": {"x": {"values": [1, 2]}},
    }


def test_wandb_searches_and_each_trial_is_a_run_in_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that W&B waits for is the mirror of the trial's run, below the sweep's own."""
    (tmp_path / "sweep.yaml").write_text(json.dumps(document(tmp_path)))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with wandb_server(tmp_path / "wandb-server") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        begun: list[tuple[str, str]] = []
        found = sweeps.sweep(
            tmp_path / "sweep.yaml", engine="wandb", tracking_uri=store(tmp_path),
            say=lambda *told: begun.append(told),
        )  # fmt: skip
        wait_until(lambda: len(server.state()["runs"]) > 0)
        row = server.run("sweep0run0", project="films")
        wait_until(lambda: server.run("sweep0run0", project="films")["state"] == "finished")
    assert begun == [(found.name, found.run_id)]
    good, bad = found.trials
    assert (good.state, good.value, good.values) == ("complete", 0.5, {"x": 1})
    assert (bad.state, bad.reason) == ("failed", "exit code 3")
    assert found.best == good
    assert found.is_over
    assert row["groupName"].endswith(found.run_id[:8])
    client = MlflowClient(store(tmp_path))
    assert client.get_run(found.run_id).data.tags[PLACE_TAG] == "team/films/sweep0"
    child = client.get_run(good.run_id)
    assert child.data.tags["mlflow.parentRunId"] == found.run_id
    assert child.data.metrics["loss"] == 0.5
    assert client.get_run(bad.run_id).info.status == "FAILED"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"program": ""}, "program is missing: W&B's agents need it"),
        ({"job": "a"}, "job: engine wandb can't"),
        ({"controller": {"type": "local"}}, "controller: engine wandb can't"),
        ({"method": "custom"}, "method: engine wandb can't do custom"),
    ],
)
def test_what_its_agents_cannot_run_is_refused(
    more: dict[str, object], said: str, tmp_path: Path
) -> None:
    """Before W&B is asked for anything."""
    (tmp_path / "sweep.yaml").write_text(json.dumps(document(tmp_path) | more))
    with pytest.raises(ConfigError, match=said):
        sweeps.sweep(tmp_path / "sweep.yaml", engine="wandb", count=1)


def test_it_has_no_study_here(tmp_path: Path) -> None:
    """W&B has it: there is nothing to go on with, and no place to share."""
    with pytest.raises(ConfigError, match="leave out resume and storage"):
        sweeps.sweep(resume="s", engine="wandb")
    with pytest.raises(ConfigError, match="engine is 'ray'"):
        sweeps.sweep(tmp_path / "x", engine="ray")
