"""Registering: a run's checkpoint becomes a version that can be loaded anywhere, or one error."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow.entities import Dataset, DatasetInput
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, Schema

from opusclip_mlops import checkpoints, layout
from opusclip_mlops.checkpoints import CheckpointMetadata, checkpoint_name
from opusclip_mlops.errors import CheckpointError, RegistryError
from opusclip_mlops.registry import RegisteredVersion, register
from tests import journeys
from tests.servers import mlflow_server

ROOT = Path(checkpoints.__file__).parents[1]
FIRST, SECOND = checkpoint_name(0, 10), checkpoint_name(1, 20)
SCALER = """
import sys
from pathlib import Path
import mlflow.models
import mlflow.pyfunc

class Scaler(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        import torch
        from opusclip_mlops.checkpoints import WEIGHTS, load_weights
        self.layer = torch.nn.Linear(1, 1, bias=False)
        load_weights(Path(context.artifacts["checkpoint"]), self.layer, only=(WEIGHTS,))

    def predict(self, context, model_input, params=None):
        return (model_input["x"] * self.layer.weight.item()).tolist()

mlflow.models.set_model(Scaler())
"""
LOADER = """
import json, os, sys
from pathlib import Path
if os.environ.get("ABSENT"):
    sys.path[:] = [p for p in sys.path if not Path(p or ".", "opusclip_mlops").is_dir()]
    sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f)]
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(pandas.DataFrame({"x": [1.0, 10.0]}))
import opusclip_mlops.errors
print(json.dumps([answer, opusclip_mlops.errors.__file__]))
"""
CONTENT = {
    "input_example": pd.DataFrame({"x": [1.0]}),
    "signature": ModelSignature(
        inputs=Schema([ColSpec("double", "x")]), outputs=Schema([ColSpec("double")])
    ),
    "pip_requirements": ["mlflow", "torch", "safetensors", "msgspec"],
}


class Store:
    """An MLflow database with one experiment, artifacts in a folder, and a model file."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.uri, self.client = folder, uri, MlflowClient(uri, uri)
        kept = None if uri.startswith("http") else (folder / "kept").as_uri()
        self.experiment_id = self.client.create_experiment("clips", artifact_location=kept)
        self.scaler = folder / "scaler.py"
        self.scaler.write_text(SCALER)

    def run(self, *names: str, weight: float = 3.0, sealed: bool = True) -> str:
        """Make a run with checkpoints of a layer that multiplies by `weight`; the first is best."""
        run_id = self.client.create_run(self.experiment_id, run_name="kite").info.run_id
        for name in names:
            path = self.checkpoint(run_id, name, weight)
            if sealed:
                checkpoints.seal(path)
            self.client.log_artifacts(run_id, str(path), f"checkpoints/{name}")
            self.client.set_tag(run_id, "opusclip.checkpoint.last", name)
        if names:
            self.client.set_tag(run_id, "opusclip.checkpoint.best", names[0])
        return str(run_id)

    def checkpoint(self, run_id: str, name: str, weight: float) -> Path:
        """Write a checkpoint on this machine."""
        layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(layer.weight, weight)
        about = CheckpointMetadata(
            name=name,
            step=20,
            epoch=1,
            run_id=run_id,
            metrics={"val/psnr": 24.123456789, "val/loss": float("nan")},
            model={"class": "Scaler", "config": {}},
            git_commit="0123456789abcdef",
            git_dirty=True,
            dataset_digest="d1g35t",
        )
        return checkpoints.write_checkpoint(self.folder / run_id / name, layer, metadata=about)

    def register(self, run_id: str, **options: object) -> RegisteredVersion:
        """Register with the model file above."""
        given = {"python_model": self.scaler, "tracking_uri": self.uri, **CONTENT, **options}
        return register(run_id, **given)  # type: ignore[arg-type]

    def load(self, uri: str, **env: str) -> tuple[list[float], Path]:
        """Load a model in a process of its own: 1 and 10 multiplied, and whose code was used."""
        done = subprocess.run(
            [sys.executable, "-c", LOADER, uri],
            env={**os.environ, "MLFLOW_TRACKING_URI": self.uri, **env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer, code = json.loads(done.stdout.splitlines()[-1])
        return answer, Path(code)

    def models(self, run_id: str) -> list[mlflow.entities.LoggedModel]:
        """What was logged as a model to a run."""
        found = self.client.search_logged_models(
            [self.experiment_id], filter_string=f"source_run_id='{run_id}'"
        )
        return list(found)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A database that the tests of this file share; each has models and runs of its own."""
    folder = tmp_path_factory.mktemp("store")
    return Store(folder, f"sqlite:///{folder / 'mlflow.db'}")


def test_the_best_checkpoint_becomes_a_version_that_loads_without_the_package(store: Store) -> None:
    """models:/<name>/1 answers with the checkpoint's weights, by the code it carries."""
    run_id = store.run(FIRST, SECOND, weight=3.0)
    version = store.register(run_id, name="alone")
    assert version == RegisteredVersion("alone", 1, "models:/alone/1", run_id, FIRST)
    answer, code = store.load(version.uri, ABSENT="1")
    assert answer == [3.0, 30.0]
    assert code.parts[-3:] == ("code", "opusclip_mlops", "errors.py")


def test_an_installed_package_is_not_replaced_by_the_models_copy(store: Store) -> None:
    """Where the package is installed, loading the generator's file leaves it the one in use."""
    script = store.folder / "generator.py"
    head = (ROOT / "opusclip_mlops" / "projects" / "clip_generator.py").read_text()
    script.write_text(head.partition("\nfrom opusclip_mlops")[0] + SCALER)
    version = store.register(store.run(FIRST), name="beside", python_model=script)
    assert store.load(version.uri, PYTHONPATH=str(ROOT)) == (
        [3.0, 30.0],
        ROOT / "opusclip_mlops" / "errors.py",
    )


def test_a_version_holds_weights_and_metadata_but_no_pickle(store: Store) -> None:
    """The training state is left out, and no file of the model is a pickle."""
    run_id = store.run(FIRST)
    store.register(run_id, name="files")
    (model,) = store.models(run_id)
    root = Path(model.artifact_location.removeprefix("file://"))
    held = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert {path for path in held if path.startswith("artifacts/")} == {
        "artifacts/checkpoint/weights.safetensors",
        "artifacts/checkpoint/metadata.json",
    }
    assert {"scaler.py", "requirements.txt", "code/opusclip_mlops/checkpoints.py"} <= held
    assert not [path for path in held if path.endswith((".pkl", ".pickle", ".pt"))]


def test_a_version_says_where_it_comes_from(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags name checkpoint, metrics, code, data and who; the description says it in Markdown."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "anna")
    run_id = store.run(FIRST)
    used = Dataset("squares", "d1g35t", "local", "/films")
    store.client.log_inputs(run_id, [DatasetInput(used, [])])
    store.register(run_id, name="origin")
    version = store.client.get_model_version("origin", "1")
    weights = store.folder / run_id / FIRST
    about = weights / "metadata.json"
    assert version.run_id == run_id
    assert version.tags == {
        "val/loss": "nan",
        "val/psnr": "24.12",
        "opusclip.checkpoint": FIRST,
        "opusclip.step": "20",
        "opusclip.epoch": "1",
        "opusclip.weights_sha256": checkpoints.verify(weights).files["weights.safetensors"].sha256,
        "opusclip.git_commit": "0123456789ab",
        "opusclip.git_dirty": "true",
        "opusclip.dataset_digest": "d1g35t",
        "opusclip.registered_by": "anna",
        "opusclip.metadata_sha256": hashlib.sha256(about.read_bytes()).hexdigest(),
    }
    first, *_ = version.description.splitlines()
    assert first.startswith("Scaler, epoch 1, step 20, of run [kite](#/experiments/")
    for part in ("| val/psnr |", "Dataset squares, digest d1g35t", "at commit 0123", ", 1 values"):
        assert part in version.description


def test_a_version_shows_the_last_clip_by_its_step(store: Store) -> None:
    """The moving picture, and the clip it was made of; neither where there is none."""
    run_id = store.run(FIRST)
    store.register(run_id, name="shown")
    made = store.folder / "made"
    made.mkdir()
    for step, mark in ((10, "aaaaaaaa"), (20, "bbbbbbbb"), (30, "cccccccc")):
        stem = layout.image_stem("films/a", step, 1_700_000_000_000, mark)
        for folder, name in (
            (layout.IMAGES, f"{stem}+compressed.webp"),
            (layout.clip_folder("films/a"), f"step_{step:08d}-{mark}.mp4"),
        ):
            (made / name).write_bytes(b"a film")
            store.client.log_artifact(run_id, str(made / name), folder)
    store.register(run_id, name="shown")
    bare, shown = (store.client.get_model_version("shown", str(n)).description for n in (1, 2))
    assert "Sample" not in bare
    assert "[films/a, step 20](" in shown
    assert "/artifacts/media/video/films/a/step_00000020-bbbbbbbb.mp4)" in shown
    assert f"bbbbbbbb%2Bcompressed.webp&run_uuid={run_id})" in shown


def test_a_version_in_another_registry_links_to_nothing(store: Store, tmp_path: Path) -> None:
    """The registry's pages cannot show what lies on the tracking server."""
    registry = journeys.store(tmp_path)
    store.register(store.run(FIRST), name="afar", registry_uri=registry)
    version = MlflowClient(registry, registry).get_model_version("afar", "1")
    assert "of run kite\n" in version.description
    assert "](" not in version.description


def test_the_model_is_logged_to_its_run_and_no_other(store: Store) -> None:
    """The run lists the model at the checkpoint's step; an active run of the process stays bare."""
    run_id = store.run(FIRST)
    mlflow.set_tracking_uri(store.uri)
    try:
        with mlflow.start_run(experiment_id=store.experiment_id) as active:
            store.register(run_id, name="logged")
            assert mlflow.active_run() is active
            assert store.client.get_run(active.info.run_id).outputs.model_outputs == []
            source = store.client.get_model_version("logged", "1").source
    finally:
        mlflow.set_tracking_uri(None)
    (model,) = store.models(run_id)
    (output,) = store.client.get_run(run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (model.model_id, 20)
    assert source == f"models:/{model.model_id}"
    assert model.status == "READY"
    assert store.client.get_run(run_id).info.status == "RUNNING"


def test_last_or_a_name_may_be_asked_for_and_again_makes_another_version(store: Store) -> None:
    """Each call adds a version, also of a run that has ended; earlier versions stay."""
    run_id = store.run(FIRST, SECOND)
    asked = ("last", FIRST)
    made = [store.register(run_id, name="again", checkpoint=which) for which in asked]
    store.client.set_terminated(run_id)
    made.append(store.register(run_id, name="again", checkpoint=FIRST))
    assert [(one.version, one.checkpoint) for one in made] == [(1, SECOND), (2, FIRST), (3, FIRST)]
    assert store.client.get_run(run_id).info.status == "FINISHED"
    assert len(store.client.search_model_versions("name='again'")) == 3


def test_a_server_answers_as_a_database_does(tmp_path: Path) -> None:
    """Through HTTP, with proxied artifacts, the version is a number too, and loads."""
    with mlflow_server(tmp_path) as url:
        store = Store(tmp_path, url)
        version = store.register(store.run(FIRST, weight=5.0), name="served")
        assert (version.version, type(version.version)) == (1, int)
        assert store.load(version.uri, ABSENT="1")[0] == [5.0, 50.0]


ERRORS = {
    "no run": ("0" * 32, {}, "cannot find run .*not found"),
    "no such name": (None, {"checkpoint": "epoch_9"}, f"no checkpoint epoch_9; it has: {FIRST}"),
    "not marked": ("bare", {}, r"no checkpoint marked best .*; it has: none"),
    "deleted": ("deleted", {}, "is deleted"),
    "slash": (None, {"name": "a/b"}, "bad model name 'a/b'"),
    "colon": (None, {"name": "a:b"}, "bad model name 'a:b'"),
    "empty": (None, {"name": " "}, "bad model name ' '"),
    "two lines": (None, {"name": "a\nb"}, r"bad model name 'a\\nb': it must be one line"),
    "an escape": (None, {"name": "a\x1b[31m"}, "it must be one line of .* can be seen"),
    "too long": (None, {"name": "a" * 257}, "it must be one line of at most 256 characters"),
    "no file": (None, {"python_model": Path("gone.py")}, r"gone\.py is no Python file"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_registered_is_told_in_one_line(store: Store, case: str) -> None:
    """The error says what is wrong and what there is; nothing is registered."""
    run_id, options, message = ERRORS[case]
    if run_id is None or run_id in ("bare", "deleted"):
        made = store.run(*(() if run_id == "bare" else (FIRST,)))
        if run_id == "deleted":
            store.client.delete_run(made)
        run_id = made
    with pytest.raises(RegistryError, match=message) as refused:
        store.register(run_id, **{"name": "refused", **options})
    assert "\n" not in str(refused.value)
    with pytest.raises(MlflowException, match="not found"):
        store.client.get_registered_model("refused")


def test_a_checkpoint_that_was_changed_in_the_store_is_not_registered(store: Store) -> None:
    """The download is verified first; neither a model nor a version is made."""
    run_id = store.run(FIRST)
    artifacts = Path(store.client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    weights = artifacts / "checkpoints" / FIRST / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors was changed"):
        store.register(run_id, name="changed")
    assert store.models(run_id) == []
    with pytest.raises(MlflowException, match="not found"):
        store.client.get_registered_model("changed")


def test_a_checkpoint_that_is_not_sealed_is_not_registered(store: Store) -> None:
    """Files without hashes cannot be verified, so they do not become a version."""
    with pytest.raises(CheckpointError, match="is not sealed"):
        store.register(store.run(FIRST, sealed=False), name="unsealed")


def test_a_model_file_that_fails_leaves_a_failed_model_and_no_version(store: Store) -> None:
    """Where saving fails, the logged model is closed as failed and the run does not list it."""
    run_id = store.run(FIRST)
    broken = store.folder / "broken.py"
    broken.write_text("import opusclip_mlops.nowhere\n")
    with pytest.raises(RegistryError, match=r"opusclip_mlops\.nowhere"):
        store.register(run_id, name="broken", python_model=broken)
    assert [model.status for model in store.models(run_id)] == ["FAILED"]
    assert store.client.get_run(run_id).outputs.model_outputs == []
    with pytest.raises(MlflowException, match="not found"):
        store.client.get_registered_model("broken")
