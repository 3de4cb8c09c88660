"""Evaluation: a model that was trained scores again what it scored, as a run of its own."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import load_file

from opusclip_mlops.checkpoints import WEIGHTS, finish, flushed, verify
from opusclip_mlops.descent import lineage
from opusclip_mlops.errors import CheckpointError, ConfigError
from opusclip_mlops.projects.evaluate import Settings, fetch_checkpoint, load_model, origin
from opusclip_mlops.shards import Slice, write_slices
from opusclip_mlops.video import read_clip
from tests.journeys import store
from tests.projects.commands import (
    FRAMES,
    SIZE,
    TINY,
    check_refused,
    film,
    start,
    start_each,
    the_run,
)

SCORED = {"--size": str(SIZE), "--frames": str(FRAMES), "--experiment": "scores"}


@dataclass(frozen=True)
class Trained:
    """A model that was trained and registered from the command line."""

    folder: Path
    data: Path
    run: Run

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(store(self.folder))

    @property
    def best(self) -> str:
        return str(self.run.data.tags["opusclip.checkpoint.best"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    data = film(folder)
    done = start("train", folder, {**TINY, "--data": str(data)}, OPUSCLIP_USE_WANDB="false")
    assert done.returncode == 0, done.stderr
    return Trained(folder, data, the_run(folder))


@pytest.fixture(scope="module")
def scored(trained: Trained) -> tuple[Run, str]:
    """The run of an evaluation of the registered model on its own film, and what it said."""
    options = {**SCORED, "--data": str(trained.data), "--seed": "3"}
    done = start("evaluate", trained.folder, options, OPUSCLIP_USE_WANDB="false")
    assert (done.returncode, done.stderr) == (0, "")
    return the_run(trained.folder, "scores"), done.stdout


@pytest.fixture
def checkpoint(trained: Trained, tmp_path: Path) -> Path:
    """The best checkpoint's folder, to be looked at and spoilt."""
    into = tmp_path / "fetched"
    into.mkdir()
    found = trained.client.download_artifacts(
        trained.run.info.run_id, f"checkpoints/{trained.best}", str(into)
    )
    return Path(found)


def settings(**given: str) -> Settings:
    """What the command reads when nothing but these is given."""
    plain = {"data": "default", "model_uri": "models:/clip-generator/1", "seed": "0"}
    return Settings.read(
        {**plain, "size": str(SIZE), "frames": str(FRAMES), "device": "cpu", **given}
    )


def test_a_registered_model_scores_what_its_run_says(
    trained: Trained, scored: tuple[Run, str]
) -> None:
    """On the same film the held-out frames are the same, and so are the scores."""
    run, _ = scored
    assert run.info.status == "FINISHED"
    for name in ("psnr", "ssim", "baseline_psnr"):
        logged = trained.run.data.metrics[f"val/{name}"]
        assert run.data.metrics[f"eval/{name}"] == pytest.approx(logged, abs=0.001)
    assert "eval/loss" in run.data.metrics


def test_an_evaluation_leads_back_to_what_it_scored(
    trained: Trained, scored: tuple[Run, str]
) -> None:
    """Tags name checkpoint, run and weights; the film is the input, for evaluation."""
    run, _ = scored
    version = trained.client.get_model_version("clip-generator", "1")
    tags = run.data.tags
    assert tags["opusclip.evaluated.checkpoint"] == trained.best
    assert tags["opusclip.evaluated.run"] == trained.run.info.run_id
    weights = version.tags["opusclip.weights_sha256"]
    assert tags["opusclip.evaluated.weights_sha256"] == weights
    [used], [before] = run.inputs.dataset_inputs, trained.run.inputs.dataset_inputs
    assert used.dataset.digest == before.dataset.digest
    assert [tag.value for tag in used.tags] == ["evaluation"]
    assert run.data.params["model_uri"] == "models:/clip-generator/1"


def test_an_evaluation_logs_a_sample(trained: Trained, scored: tuple[Run, str]) -> None:
    """A generated clip beside its target, at the checkpoint's step."""
    folder = "media/video/samples/generated_vs_target"
    [found] = trained.client.list_artifacts(scored[0].info.run_id, folder)
    step = trained.best.rpartition("_")[2]
    assert Path(found.path).name.startswith(f"step_00{step}-")
    clip = read_clip(trained.client.download_artifacts(scored[0].info.run_id, found.path))
    assert clip.frames.shape == (FRAMES, SIZE, 2 * SIZE, 3)


def test_the_film_leads_to_the_model_its_version_and_their_samples(
    trained: Trained, scored: tuple[Run, str]
) -> None:
    """From the film's file alone: what was trained on it, registered, evaluated and shown."""
    found = lineage(str(trained.data), tracking_uri=store(trained.folder))
    used = {one.context: (one.trains, [clip.use for clip in one.clips]) for one in found.datasets}
    assert used == {
        "training": (True, ["held out", "training"]),
        "evaluation": (False, ["held out"]),
    }
    assert [(one.run_id, one.by) for one in found.checkpoints] == [
        (trained.run.info.run_id, "dataset")
    ]
    assert [(one.model, one.version, one.by) for one in found.versions] == [
        ("clip-generator", 1, "weights")
    ]
    evaluated = scored[0].info.run_id
    assert [one.run_id for one in found.evaluations] == [evaluated]
    told = {(one.run_id, one.key.partition("/")[0], one.by) for one in found.samples}
    assert told == {
        (trained.run.info.run_id, "panels", "weights"),
        (trained.run.info.run_id, "samples", "source"),
        (evaluated, "panels", "weights"),
        (evaluated, "samples", "source"),
    }


def test_the_table_says_what_was_scored_on_what(trained: Trained, scored: tuple[Run, str]) -> None:
    """The model, the film, whether it was trained on it, and every score."""
    run, said = scored
    lines = dict(line.split(maxsplit=1) for line in said.splitlines())
    assert lines["model"] == f"models:/clip-generator/1 (VideoGenerationModel, {trained.best})"
    assert lines["data"] == "wandering_square, 5 held-out frames, data trained on"
    assert lines["psnr"] == f"{run.data.metrics['eval/psnr']:.2f} dB"
    assert lines["baseline"].startswith(f"{run.data.metrics['eval/baseline_psnr']:.2f} dB")
    assert lines["ssim"] == f"{run.data.metrics['eval/ssim']:.3f}"


def test_a_folder_is_scored_on_a_film_it_never_saw(
    trained: Trained, checkpoint: Path, tmp_path: Path
) -> None:
    """A checkpoint's folder does without the registry, and the table tells that the film is new."""
    other = film(tmp_path / "other", count=30)
    options = {**SCORED, "--data": str(other), "--model-uri": str(checkpoint)}
    done = start("evaluate", tmp_path, options, OPUSCLIP_USE_WANDB="false")
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 held-out frames, data not trained on" in done.stdout
    assert f"{checkpoint} (VideoGenerationModel, {trained.best})" in done.stdout


def test_a_run_s_checkpoint_is_found_by_its_uri(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """runs:/RUN/checkpoints/NAME fetches the whole checkpoint."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(trained.folder))
    uri = f"runs:/{trained.run.info.run_id}/checkpoints/{trained.best}"
    assert verify(fetch_checkpoint(uri, tmp_path)).name == trained.best


def test_a_checkpoint_of_shares_is_scored_as_a_whole_one(checkpoint: Path, tmp_path: Path) -> None:
    """The same weights; what leads back to it is the digest of all shares."""
    expected, about = load_model(checkpoint, settings())
    stored = load_file(checkpoint / WEIGHTS)
    shares: list[dict[str, Slice]] = [{}, {}]
    for number, (name, tensor) in enumerate(stored.items()):
        whole = Slice(tuple(tensor.shape), (0,) * tensor.ndim, tensor)
        shares[number % 2][name] = whole
    (tmp_path / "hidden").mkdir()
    names = [f"weights-{number:05d}-of-00002.safetensors" for number in range(2)]
    for name, share in zip(names, shares, strict=True):
        write_slices(tmp_path / "hidden" / name, share)
    files = {name: flushed(tmp_path / "hidden" / name) for name in names}
    finish(tmp_path / "hidden", tmp_path / "shared", replace(about, files=files))
    model, metadata = load_model(tmp_path / "shared", settings())
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))
    digest = origin(tmp_path / "shared", metadata)["opusclip.evaluated.weights_sha256"]
    assert digest == metadata.weights_sha256 != about.weights_sha256


UNKNOWN = {
    "model": ("models:/nobody/3", "nobody"),
    "folder": ("nowhere", "model_uri is 'nowhere'"),
}


def test_a_model_that_is_not_there_is_one_line_and_a_failed_run(tmp_path: Path) -> None:
    """The line on stderr names the model, and so does the tag of the failed run."""
    cases = []
    for case, (uri, _) in UNKNOWN.items():
        options = {**SCORED, "--data": str(film(tmp_path / case)), "--model-uri": uri}
        cases.append((tmp_path / case, options))
    every = start_each("evaluate", cases, OPUSCLIP_USE_WANDB="false")
    for done, (folder, _), (_, culprit) in zip(every, cases, UNKNOWN.values(), strict=True):
        check_refused(done, folder, culprit, name="scores")


@pytest.mark.parametrize(("name", "text"), [("size", "32"), ("frames", "8")])
def test_another_shape_than_the_model_s_is_refused(checkpoint: Path, name: str, text: str) -> None:
    """The error says both numbers."""
    trained_with = {"size": SIZE, "frames": FRAMES}[name]
    with pytest.raises(ConfigError, match=f"^{name} is {text}, the model .* with {trained_with}"):
        load_model(checkpoint, settings(**{name: text}))


def test_spoilt_weights_are_refused(checkpoint: Path) -> None:
    """One changed byte is enough; the file is named."""
    content = bytearray((checkpoint / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (checkpoint / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=WEIGHTS):
        load_model(checkpoint, settings())


def test_a_folder_without_a_checkpoint_is_refused(checkpoint: Path) -> None:
    """The error names the file that is missing."""
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    with pytest.raises(CheckpointError, match=r"metadata\.json"):
        load_model(checkpoint, settings())
