from pathlib import Path

import msgspec
import pytest
import torch

from opusclip_mlops import checkpoints
from opusclip_mlops.arrivals import Arrivals
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.folder import Identity, Progress, RunFolder
from opusclip_mlops.records import Checkpoint
from tests.journeys import make_run

IDENTITY = Identity(
    mirror_id="m", experiment_name="films", run_id="r", artifact_uri="s3://bucket/r/artifacts"
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = make_run(tmp_path, ["mlflow", "tensorboard"])
    made.write_identity(IDENTITY)
    return made


def saved(folder: RunFolder, name: str, step: int, *, best: bool = False) -> Checkpoint:
    """A checkpoint in the run's folder."""
    about = checkpoints.CheckpointMetadata(name=name, epoch=1, step=step)
    checkpoints.write_checkpoint(folder.checkpoints / name, torch.nn.Linear(2, 1), metadata=about)
    return Checkpoint(1_700_000_000_000, step, 1, name, {"loss": 0.5}, best)


def aliases(arrivals: Arrivals) -> dict[str, set[str]]:
    """What is said of each checkpoint that has news."""
    return {one.metadata["name"]: set(one.aliases) - {"latest"} for one in arrivals.news()}


def test_a_checkpoint_is_said_once_it_stands_in_mlflow(folder: RunFolder) -> None:
    """With where its files are and how long, and only once."""
    arrivals = Arrivals(folder, {})
    arrivals.expect(saved(folder, "a", 3))
    assert arrivals.news() == []
    assert arrivals.is_waiting
    folder.note_arrival("a")
    [files] = arrivals.news()
    assert files.name == "checkpoint-m"
    assert files.uris["weights.safetensors"].startswith("s3://bucket/r/artifacts/checkpoints/a/")
    assert files.sizes_bytes["weights.safetensors"] > 0
    assert not arrivals.is_waiting
    assert arrivals.news() == []


def test_the_best_is_one_at_a_time(folder: RunFolder) -> None:
    """Who was best before, however long ago, and who had a step's name, is said without it."""
    arrivals = Arrivals(folder, {})
    found = []
    for name, step, best in [("a", 1, True), ("b", 2, False), ("c", 3, False), ("d", 3, True)]:
        arrivals.expect(saved(folder, name, step, best=best))
        folder.note_arrival(name)
        found.append(aliases(arrivals))
        arrivals = Arrivals(folder, msgspec.json.decode(msgspec.json.encode(arrivals.state())))
    assert found == [
        {"a": {"best", "step-1"}},
        {"b": {"step-2"}},
        {"c": {"step-3"}},
        {"d": {"best", "step-3"}, "a": {"step-1"}, "c": set()},
    ]


def test_what_was_on_its_way_outlives_a_restart(folder: RunFolder) -> None:
    """The state is JSON."""
    arrivals = Arrivals(folder, {})
    arrivals.expect(saved(folder, "a", 3))
    again = Arrivals(folder, msgspec.json.decode(msgspec.json.encode(arrivals.state())))
    folder.note_arrival("a")
    assert aliases(again) == {"a": {"step-3"}}


def test_nobody_waits_for_what_can_not_come(folder: RunFolder, tmp_path: Path) -> None:
    """MLflow's sink is done without it, or there is none."""
    arrivals = Arrivals(folder, {})
    arrivals.expect(saved(folder, "a", 3))
    folder.write_progress("mlflow", Progress(number=1, done=True))
    assert not arrivals.is_waiting
    alone = make_run(tmp_path / "alone", ["tensorboard"])
    arrivals = Arrivals(alone, {})
    arrivals.expect(saved(alone, "a", 3))
    assert not arrivals.is_waiting


def test_what_is_no_checkpoint_is_refused(folder: RunFolder) -> None:
    """The error says which."""
    with pytest.raises(CheckpointError, match="gone"):
        Arrivals(folder, {}).expect(Checkpoint(1, 1, 1, "gone"))
