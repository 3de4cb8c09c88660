"""Facts about `opusclip_mlops.version_files`: the checkpoint of a version, and if it is whole."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from opusclip_mlops import checkpoints
from opusclip_mlops.checkpoints import CheckpointMetadata
from opusclip_mlops.version_files import VersionFiles
from tests.journeys import store


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    """A client of a registry of this test."""
    return MlflowClient(store(tmp_path))


def files(client: MlflowClient, folder: Path) -> VersionFiles:
    """What a version holds that was made of a folder."""
    name = f"kite {len(client.search_registered_models())}"
    client.create_registered_model(name)
    return VersionFiles.of(client, client.create_model_version(name, folder.as_uri()))


def checkpoint(folder: Path, step: int) -> Path:
    """A sealed checkpoint, with its training state."""
    metadata = CheckpointMetadata(name=folder.name, step=step, epoch=0)
    checkpoints.write_checkpoint(folder, torch.nn.Linear(1, 1), metadata=metadata)
    checkpoints.seal(folder)
    return folder


def test_the_checkpoint_nearest_to_the_root_counts(client: MlflowClient, tmp_path: Path) -> None:
    """Whatever the folder is called."""
    checkpoint(tmp_path / "model" / "a" / "b" / "c", 1)
    checkpoint(tmp_path / "model" / "z", 2)
    found = files(client, tmp_path / "model")
    assert found.folder == "z"
    assert found.metadata is not None
    assert found.metadata.step == 2
    assert found.problem == ""


def test_a_version_may_be_a_checkpoint_and_nothing_else(
    client: MlflowClient, tmp_path: Path
) -> None:
    """All that it has a hash of is checked, the training state too."""
    folder = checkpoint(tmp_path / "model", 3)
    found = files(client, folder)
    assert found.folder == ""
    assert found.hash_problem("") == ""
    assert "is not the one that was registered" in found.hash_problem("0" * 64)
    (folder / "state.pt").write_bytes(b"x")
    assert "state.pt has 1 bytes" in found.hash_problem("")


def test_metadata_that_names_files_elsewhere_fetches_none(
    client: MlflowClient, tmp_path: Path
) -> None:
    """A hash of /etc/passwd, or of a file beside the version, is of nothing the version holds."""
    folder = checkpoint(tmp_path / "model", 3)
    content = json.loads((folder / "metadata.json").read_text())
    content.pop("metadata_sha256", None)
    for other in ("/etc/passwd", "../../mlflow.db"):
        content["files"] = {**content["files"], other: content["files"]["state.pt"]}
    (folder / "metadata.json").write_text(json.dumps(content))
    assert files(client, folder).hash_problem("") == ""


def test_a_file_that_goes_away_meanwhile_is_an_error(client: MlflowClient, tmp_path: Path) -> None:
    """It was listed, and can't be fetched."""
    folder = checkpoint(tmp_path / "model", 3)
    found = files(client, folder)
    shutil.rmtree(folder)
    with pytest.raises((OSError, MlflowException), match="No such"):
        found.hash_problem("")


def test_a_folder_with_too_many_files_is_not_searched(client: MlflowClient, tmp_path: Path) -> None:
    """It says so; what a policy asks of its files does not pass."""
    (tmp_path / "model").mkdir()
    for number in range(10_001):
        (tmp_path / "model" / str(number)).touch()
    found = files(client, tmp_path / "model")
    assert found.sizes == {}
    assert found.problem == "there are more than 10000 files"
