"""Going on: one rank finds the run's last checkpoint, on its disk or in MLflow, for all."""

import os
import re
from pathlib import Path

import pytest
from mlflow import MlflowClient
from torch import nn

from opusclip_mlops import checkpoints
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.errors import CheckpointError, ConfigError, OpusclipError, RegistryError
from opusclip_mlops.layout import LAST_TAG
from opusclip_mlops.resuming import last_checkpoint, last_verified
from tests.journeys import store
from tests.rank_processes import run_ranks
from tests.test_joint_loads import save


@pytest.fixture
def run_id(tmp_path: Path) -> str:
    """A run of MLflow's with a checkpoint of step 1."""
    client = MlflowClient(store(tmp_path))
    found: str = client.create_run("0").info.run_id
    place = save(tmp_path / "saved", 1, 1.0)
    client.log_artifacts(found, str(place), f"checkpoints/{place.name}")
    client.set_tag(found, LAST_TAG, place.name)
    return found


def launch(folder: Path, run_id: str, journal: str = "journal") -> dict[str, str]:
    """What a process is launched with that is to go on in a run."""
    return {
        "MLFLOW_TRACKING_URI": store(folder),
        "MLFLOW_RUN_ID": run_id,
        "OPUSCLIP_JOURNAL_DIR": str(folder / journal),
    }


def staged(folder: Path, run_id: str) -> Path:
    """Where the run's checkpoints lie on the disk."""
    return folder / "journal" / run_id / "checkpoints"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run_id: str) -> None:
    """This process, launched for the run."""
    for name, value in launch(tmp_path, run_id).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("alone")
def test_what_is_on_the_disk_goes_before_what_has_arrived(tmp_path: Path, run_id: str) -> None:
    """If it is whole: what a crash has torn is passed over, and MLflow has the last."""
    model = nn.Linear(3, 5)
    torn = save(staged(tmp_path, run_id), 3, 3.0)
    (torn / "weights.safetensors").write_bytes(b"torn")
    loaded = last_checkpoint(model=model)
    assert loaded is not None
    assert (loaded.metadata.step, model.bias[0].item()) == (1, 1.0)
    whole = save(staged(tmp_path, run_id), 2, 2.0)
    loaded = last_checkpoint(model=model)
    assert loaded is not None
    assert (loaded.folder, model.bias[0].item()) == (whole, 2.0)


@pytest.mark.usefixtures("alone")
def test_ranks_that_cannot_tell_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each might find another one: the line says what to call first."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 ranks have to find the same .*init_process_group"):
        last_checkpoint()


def go_on(rank: int, folder: Path, run_id: str) -> None:
    """The second rank's journal has no checkpoint."""
    os.environ.update(launch(folder, run_id, "other" if rank else "journal"))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    model = nn.Linear(3, 5)
    loaded, verified = last_checkpoint(model=model), last_verified(TrackingConfig())
    assert loaded is not None
    assert verified is not None
    assert (loaded.metadata.step, model.bias[0].item()) == (2, 2.0)
    assert verified.folder == loaded.folder
    assert verified.metadata == loaded.metadata == checkpoints.read_metadata(verified.folder)
    # A run that is not there: one line on every rank, that of the rank that has looked.
    os.environ["MLFLOW_RUN_ID"] = "f" * 32
    with pytest.raises(OpusclipError) as refused:
        last_checkpoint(model=model)
    assert isinstance(refused.value, CheckpointError if rank else RegistryError)
    said = re.escape(f"cannot find the last checkpoint of run {'f' * 32}: ")
    assert re.search(f"{said}[^\n]+$", str(refused.value))


def test_one_rank_finds_it_for_all(tmp_path: Path, run_id: str) -> None:
    """What only the owner's journal has is every rank's; and if the owner fails all say why."""
    save(staged(tmp_path, run_id), 2, 2.0)
    run_ranks(2, go_on, tmp_path, run_id)
