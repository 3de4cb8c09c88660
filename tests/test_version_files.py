"""Facts about `opusclip_mlops.version_files`: the checkpoint of a version, and if it is whole."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from opusclip_mlops import checkpoints
from opusclip_mlops.checkpoints import CheckpointMetadata
from opusclip_mlops.version_files import METADATA_TAG, WEIGHTS_TAG, VersionFiles
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


def registered(folder: Path) -> dict[str, str]:
    """The tags of a version that a checkpoint was registered as."""
    about = (folder / "metadata.json").read_bytes()
    weights = checkpoints.read_metadata(folder).files["weights.safetensors"].sha256
    return {WEIGHTS_TAG: weights, METADATA_TAG: hashlib.sha256(about).hexdigest()}


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
    found, tags = files(client, folder), registered(folder)
    assert found.folder == ""
    assert found.hash_problem(tags) == ""
    (folder / "state.pt").write_bytes(b"x")
    assert "state.pt has 1 bytes" in found.hash_problem(tags)


def test_weights_and_metadata_are_those_that_the_tags_name(
    client: MlflowClient, tmp_path: Path
) -> None:
    """Each is told by its own name."""
    folder = checkpoint(tmp_path / "model", 3)
    found = files(client, folder)
    for tag, name in ((WEIGHTS_TAG, "weights.safetensors"), (METADATA_TAG, "metadata.json")):
        problem = found.hash_problem({**registered(folder), tag: "0" * 64})
        assert problem == (
            f"{name} is not the one that was registered: the tag {tag} has another sha256"
        )


@pytest.mark.parametrize("absent", [{WEIGHTS_TAG}, {METADATA_TAG}, {WEIGHTS_TAG, METADATA_TAG}])
def test_without_a_tag_nothing_is_known(
    client: MlflowClient, tmp_path: Path, absent: set[str]
) -> None:
    """Removing one makes nothing pass; versions of earlier releases have the first only."""
    folder = checkpoint(tmp_path / "model", 3)
    tags = {tag: value for tag, value in registered(folder).items() if tag not in absent}
    problem = files(client, folder).hash_problem(tags)
    assert problem.startswith("not known: it was registered without the tag opusclip.")
    assert all(tag in problem for tag in absent)


def test_metadata_that_was_edited_is_found(client: MlflowClient, tmp_path: Path) -> None:
    """Also where its own hash was taken out, as in what earlier releases sealed."""
    folder = checkpoint(tmp_path / "model", 3)
    tags = registered(folder)
    content = json.loads((folder / "metadata.json").read_text())
    content.pop("metadata_sha256")
    content["metrics"] = {"video/psnr": 40.0}
    (folder / "metadata.json").write_text(json.dumps(content))
    found = files(client, folder)
    assert found.metadata is not None
    assert found.hash_problem(tags).startswith("metadata.json is not the one that was registered")


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
    assert files(client, folder).hash_problem(registered(folder)) == ""


def test_a_file_that_goes_away_meanwhile_is_an_error(client: MlflowClient, tmp_path: Path) -> None:
    """It was listed, and can't be fetched."""
    folder = checkpoint(tmp_path / "model", 3)
    found, tags = files(client, folder), registered(folder)
    shutil.rmtree(folder)
    with pytest.raises((OSError, MlflowException), match="No such"):
        found.hash_problem(tags)


def test_a_folder_with_too_many_files_is_not_searched(client: MlflowClient, tmp_path: Path) -> None:
    """It says so; what a policy asks of its files does not pass."""
    (tmp_path / "model").mkdir()
    for number in range(10_001):
        (tmp_path / "model" / str(number)).touch()
    found = files(client, tmp_path / "model")
    assert found.sizes == {}
    assert found.problem == "there are more than 10000 files"
