"""Checkpoints out of MLflow: of a run by mark, step or name; of the registry by version, stage."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from opusclip_mlops import checkpoints
from opusclip_mlops.checkpoints import CheckpointMetadata, checkpoint_name
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.layout import BEST_TAG, LAST_TAG
from opusclip_mlops.loading import load_checkpoint
from opusclip_mlops.registry import register
from tests.journeys import store
from tests.servers import mlflow_server
from tests.test_registry import CONTENT, SCALER

FIRST, SECOND, THIRD = (checkpoint_name(1, step) for step in (10, 20, 30))


def layer(weight: float = 0.0) -> torch.nn.Linear:
    """A layer that multiplies by a number."""
    made = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(made.weight, weight)
    return made


class Place:
    """An MLflow with a run that has three checkpoints; the weight of each is its step."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri, self.folder, self.client = uri, folder, MlflowClient(uri, uri)
        kept = None if uri.startswith("http") else (folder / "kept").as_uri()
        self.experiment = self.client.create_experiment("loaded", artifact_location=kept)
        self.run_id = self.run(FIRST, SECOND, THIRD)

    def run(self, *names: str) -> str:
        """A run with checkpoints, the second of them the best."""
        run_id = str(self.client.create_run(self.experiment).info.run_id)
        for name in names:
            self.log(run_id, name)
            self.client.set_tag(run_id, LAST_TAG, name)
        if len(names) > 1:
            self.client.set_tag(run_id, BEST_TAG, names[1])
        return run_id

    def log(self, run_id: str, name: str) -> None:
        """Add a checkpoint to a run."""
        step = int(name.split("_")[-1].split("-")[0])
        about = CheckpointMetadata(name=name, step=step, epoch=1, metrics={"loss": 1 / step})
        model = layer(float(step))
        path = self.folder / "made" / run_id / name
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        checkpoints.write_checkpoint(path, model, optimizer, metadata=about)
        checkpoints.seal(path, run_id=run_id)
        self.client.log_artifacts(run_id, str(path), f"checkpoints/{name}")

    def stored(self, run_id: str, name: str) -> Path:
        """Where a checkpoint lies on this machine's disk."""
        root = self.client.get_run(run_id).info.artifact_uri.removeprefix("file://")
        return Path(root, "checkpoints", name)

    def load(self, source: str, **options: Any) -> tuple[float, Any]:
        """Load a layer's weight."""
        model = layer()
        loaded = load_checkpoint(source, model=model, tracking_uri=self.uri, **options)
        return model.weight.item(), loaded

    def register(self, checkpoint: str, name: str) -> int:
        """Make a version of a checkpoint."""
        scaler = self.folder / "scaler.py"
        scaler.write_text(SCALER)
        given = {"name": name, "checkpoint": checkpoint, "python_model": scaler, **CONTENT}
        return register(self.run_id, tracking_uri=self.uri, **given).version


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A database, with artifacts on this machine's disk."""
    folder = tmp_path_factory.mktemp("local")
    return Place(store(folder), folder)


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server that hands out the artifacts."""
    folder = tmp_path_factory.mktemp("remote")
    with mlflow_server(folder) as address:
        yield Place(address, folder)


def test_a_run_gives_the_best_the_last_a_step_or_a_name(local: Place) -> None:
    """What lies on this disk is read where it is."""
    weight, loaded = local.load(local.run_id)
    assert (weight, loaded.metadata.name) == (20.0, SECOND)
    assert loaded.folder == local.stored(local.run_id, SECOND)
    assert local.load(local.run_id, which="last")[0] == 30.0
    assert local.load(local.run_id, which=10)[0] == 10.0
    assert local.load(local.run_id, which=FIRST)[0] == 10.0


def test_of_one_step_the_newest_is_loaded(local: Place) -> None:
    """A checkpoint that a run gone on with saved again goes before the earlier one."""
    run_id = local.run(*(f"epoch_0001-step_000005{end}" for end in ("", "-2", "-10")))
    assert local.load(run_id, which=5)[1].metadata.name == "epoch_0001-step_000005-10"


def test_what_a_run_lacks_is_said_with_what_it_has(local: Place) -> None:
    """No run, a deleted one, none marked, another step, a name that leads elsewhere."""
    bare, deleted, odd = local.run(), local.run(FIRST), local.run(FIRST)
    local.client.delete_run(deleted)
    local.client.set_tag(odd, BEST_TAG, "../../etc")
    for source, which, message in (
        ("0" * 32, "best", "cannot find run '0000"),
        ("nosuchrun", "best", "cannot find run 'nosuchrun'"),
        (deleted, "best", "is deleted: restore it"),
        (bare, "last", r"no checkpoint marked last \(tag opusclip.checkpoint.last\); .*: none"),
        (local.run_id, 7, f"no checkpoint of step 7; it has: {FIRST}, {SECOND}, {THIRD}"),
        (odd, "best", r"no checkpoint '\.\./\.\./etc'; it has"),
    ):
        with pytest.raises(CheckpointError, match=message) as refused:
            local.load(source, which=which)
        assert "\n" not in str(refused.value)


def test_a_damaged_artifact_is_not_loaded(local: Place) -> None:
    """The hash is checked before anything is read: the model is as it was."""
    run_id = local.run(FIRST)
    path = local.stored(run_id, FIRST) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    model = layer(5.0)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors was changed"):
        load_checkpoint(run_id, which="last", model=model, tracking_uri=local.uri)
    assert model.weight.item() == 5.0


def test_a_server_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own stack of retries and causes is not shown, nor a password."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(CheckpointError, match="cannot find run") as refused:
        load_checkpoint("a" * 32, tracking_uri="http://me:secret@127.0.0.1:9")
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_registered_version_is_loaded_by_number_stage_and_alias(local: Place) -> None:
    """It has weights and metadata; training state is refused with where it is."""
    first, second = local.register(FIRST, "scaler"), local.register(SECOND, "scaler")
    local.client.transition_model_version_stage("scaler", str(first), "Production")
    local.client.set_registered_model_alias("scaler", "champion", str(first))
    for suffix in ("/1", "/Production", "/production", "@champion"):
        weight, loaded = local.load(f"models:/scaler{suffix}")
        assert (weight, loaded.metadata.name, loaded.state) == (10.0, FIRST, None)
    assert local.load(f"models:/scaler/{second}")[0] == 20.0
    assert local.load("models:/scaler/latest")[0] == 20.0
    for options in ({"optimizer": torch.optim.SGD([torch.zeros(1)])}, {"restore_rng": True}):
        with pytest.raises(CheckpointError, match="no training state: load that from its run"):
            local.load("models:/scaler/1", **options)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/absent/1", "cannot find models:/absent/1"),
        ("models:/other/77", "cannot find models:/other/77"),
        ("models:/other/Staging", "model other has no version there"),
        ("models:/other/Canary", "cannot find models:/other/Canary"),
        ("models:/other@nobody", "cannot find models:/other@nobody"),
        ("models:/other", "names no registered version"),
        ("models:/", "names no registered version"),
        ("models:/a/b/1", "names no registered version"),
        ("models:/other/1", "holds no checkpoint"),
    ],
)
def test_a_version_that_is_not_there_is_one_line(local: Place, uri: str, message: str) -> None:
    """No model, no version, no stage, no alias, no address, nothing of ours in it."""
    if not local.client.search_registered_models("name='other'"):
        local.client.create_registered_model("other")
        source = (local.folder / "kept").as_uri()
        local.client.create_model_version("other", source, run_id=local.run_id)
    with pytest.raises(CheckpointError, match=message) as refused:
        local.load(uri)
    assert "\n" not in str(refused.value)


def test_what_a_server_has_is_fetched_and_removed(remote: Place, tmp_path: Path) -> None:
    """Nothing stays unless a folder is named; the same again finds it there."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(temporary))
        weight, loaded = remote.load(remote.run_id)
        assert list(temporary.iterdir()) == []
    assert (weight, loaded.folder) == (20.0, None)
    for _ in range(2):
        weight, loaded = remote.load(remote.run_id, which=10, into=tmp_path / "kept")
        assert (weight, loaded.folder) == (10.0, tmp_path / "kept" / FIRST)
        assert [path.name for path in (tmp_path / "kept").iterdir()] == [FIRST]
    checkpoints.verify(loaded.folder)


def test_another_checkpoint_is_not_replaced(remote: Place, tmp_path: Path) -> None:
    """A folder of this name that holds anything else is left as it is."""
    (tmp_path / "kept" / FIRST).mkdir(parents=True)
    (tmp_path / "kept" / FIRST / "mine").touch()
    with pytest.raises(CheckpointError, match="cannot keep the checkpoint in"):
        remote.load(remote.run_id, which=10, into=tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").rglob("*")] == [FIRST, "mine"]
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write to"):
        remote.load(remote.run_id, into=tmp_path / "file")


def test_a_server_gives_registered_versions_too(remote: Place, tmp_path: Path) -> None:
    """Weights and metadata come through the server; a named folder keeps these two."""
    remote.register(SECOND, "served")
    assert remote.load("models:/served/1")[0] == 20.0
    weight, loaded = remote.load("models:/served/1", into=tmp_path / "kept")
    assert (weight, loaded.folder) == (20.0, tmp_path / "kept" / SECOND)
    assert {p.name for p in loaded.folder.iterdir()} == {"weights.safetensors", "metadata.json"}


def test_what_is_kept_of_a_version_is_completed_by_its_run(remote: Place, tmp_path: Path) -> None:
    """One folder has both, in either order; what stands there damaged is not mended by it."""
    kept, version = tmp_path / "kept", f"models:/twice/{remote.register(SECOND, 'twice')}"
    for source in (version, remote.run_id, version):
        loaded = remote.load(source, which=SECOND, into=kept)[1]
        assert loaded.folder == kept / SECOND
    checkpoints.verify(loaded.folder)
    (kept / SECOND / "state.pt").write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match=r"state\.pt has 7 bytes"):
        remote.load(remote.run_id, which=SECOND, into=kept)


def test_a_file_that_the_server_lost_is_missed(remote: Place, tmp_path: Path) -> None:
    """A checkpoint that is not whole there is not loaded, and nothing is kept of it."""
    run_id = remote.run(FIRST)
    [lost] = remote.folder.glob(f"**/{run_id}/artifacts/checkpoints/{FIRST}/state.pt")
    lost.unlink()
    with pytest.raises(CheckpointError, match=r"state\.pt is missing"):
        remote.load(run_id, which="last", into=tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []
    shutil.rmtree(lost.parent)
    with pytest.raises(CheckpointError, match="it has: none"):
        remote.load(run_id, which="last")
