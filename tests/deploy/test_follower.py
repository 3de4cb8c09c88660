"""How far TensorBoard is behind MLflow, as Prometheus is told."""

import os
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from opusclip_mlops.event_files import event_folder
from opusclip_mlops.folder import Identity
from opusclip_mlops.layout import MIRROR_ID_TAG
from tests.deploy.programs import script

NOW_S = 1_800_000_000.0


@pytest.fixture
def follower() -> Any:
    """The program; loaded once, as its figures have one name each."""
    import sys

    return sys.modules.get("follower") or script("follower")


class Looks:
    """A database with a live run, a folder of event files, and a clock."""

    def __init__(self, folder: Path, follower: Any, tags: dict[str, str] | None = None) -> None:
        self.now_s, self.folder = NOW_S, folder / "mirrors"
        self.client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        experiment = self.client.create_experiment("clips", artifact_location=str(folder / "kept"))
        self.run_id = self.client.create_run(experiment, tags=tags).info.run_id
        self.mirror_id = (tags or {}).get(MIRROR_ID_TAG, self.run_id)
        self.watch = follower.Watch(
            self.client, ["clips", "not there"], self.folder, now_s=lambda: self.now_s
        )

    def logged(self, at_s: float) -> None:
        """A point of that time is in MLflow."""
        self.client.log_metric(self.run_id, "loss", 1.0, timestamp=int(at_s * 1000))

    def written(self, at_s: float) -> None:
        """The mirror was written last at that time."""
        identity = Identity(mirror_id=self.mirror_id, experiment_name="clips")
        file = event_folder(self.folder, identity) / "events.out.tfevents.1.a"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (at_s, at_s))


def test_the_age_of_what_is_lacking_is_told(tmp_path: Path, follower: Any) -> None:
    """Zero while nothing is new; then since when news was seen that is not written."""
    looks = Looks(tmp_path, follower)
    assert looks.watch.behind_s() == 0.0
    looks.logged(NOW_S)
    assert looks.watch.behind_s() == 0.0
    looks.now_s += 40
    assert looks.watch.behind_s() == 40.0
    looks.written(NOW_S + 30)
    assert looks.watch.behind_s() == 0.0
    looks.now_s += 1000
    assert looks.watch.behind_s() == 0.0
    looks.logged(NOW_S + 900)
    assert looks.watch.behind_s() == 0.0
    looks.now_s += 60
    assert looks.watch.behind_s() == 60.0
    looks.client.set_terminated(looks.run_id)
    assert looks.watch.behind_s() == 0.0


def test_a_run_is_looked_for_where_its_mirror_is(tmp_path: Path, follower: Any) -> None:
    """A tracker's run has another name in mirrors than in MLflow."""
    looks = Looks(tmp_path, follower, {MIRROR_ID_TAG: "0123456789abcdef0123456789abcdef"})
    looks.logged(NOW_S)
    looks.written(NOW_S)
    looks.watch.behind_s()
    looks.now_s += 40
    assert looks.watch.behind_s() == 0.0
