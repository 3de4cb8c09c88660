"""Training: what a run leaves in MLflow, what it says at its end, and how it fails."""

import base64
import json
import re
import shlex
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops.checkpoints import load_weights, verify
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.panels import Panel
from opusclip_mlops.projects import options
from opusclip_mlops.projects.data import ClipDataset, load_dataset
from opusclip_mlops.projects.judging import panel_of, validate
from opusclip_mlops.projects.models import ModelConfig, build_model
from opusclip_mlops.projects.train import Settings, Training, command
from opusclip_mlops.scoring import calculate_video_metrics
from opusclip_mlops.video import read_clip
from opusclip_mlops.wandb_log import rows
from tests.journeys import store
from tests.projects.commands import (
    CAPTION,
    FPS,
    FRAMES,
    SIZE,
    TINY,
    check_refused,
    film,
    start,
    start_each,
    the_run,
)

EPOCHS = 2
GIVEN = {
    str(option.name): str(option.default)
    for option in command.params
    if option.name != "experiment"
}


@dataclass(frozen=True)
class Trained:
    """A training that was run from the command line, to its end."""

    folder: Path
    data: Path
    run: Run
    said: str
    stderr: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(store(self.folder))

    @property
    def dataset(self) -> ClipDataset:
        return load_dataset(self.data, frames=FRAMES, size=SIZE)

    def history(self, key: str) -> list[tuple[int, float]]:
        points = self.client.get_metric_history(self.run.info.run_id, key)
        return sorted((point.step, point.value) for point in points)

    def artifacts(self, path: str) -> list[str]:
        found = self.client.list_artifacts(self.run.info.run_id, path)
        return sorted(Path(each.path).name for each in found)

    def fetched(self, path: str) -> Path:
        return Path(self.client.download_artifacts(self.run.info.run_id, path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Both mirrors on, W&B offline, as on a machine without a key."""
    folder = tmp_path_factory.mktemp("trained")
    data = film(folder)
    asked = {**TINY, "--data": str(data), "--epochs": str(EPOCHS), "--seed": "7"}
    done = start("train", folder, asked)
    assert done.returncode == 0, done.stderr
    return Trained(folder, data, the_run(folder), done.stdout, done.stderr)


@pytest.fixture
def dataset(tmp_path: Path) -> ClipDataset:
    return load_dataset(film(tmp_path), frames=FRAMES, size=SIZE)


def test_a_run_that_went_well_is_finished_and_complains_of_nothing(trained: Trained) -> None:
    """The run's status is FINISHED, and stderr is empty."""
    assert trained.run.info.status == "FINISHED"
    assert trained.stderr == ""


def test_every_parameter_is_logged_as_it_was_given(trained: Trained) -> None:
    """Each option of the command is a parameter of the run, with the command line's own text."""
    asked = {"data": str(trained.data), "epochs": "2", "frames": "4", "size": "16", "seed": "7"}
    assert trained.run.data.params == {**GIVEN, "experiment": "video-clips", **asked}


def test_the_dataset_is_an_input_of_the_run(trained: Trained) -> None:
    """It is named with the digest of its frames, and its source is the film."""
    [dataset_input] = trained.run.inputs.dataset_inputs
    assert dataset_input.dataset.name == "wandering_square"
    assert dataset_input.dataset.digest == trained.dataset.digest
    assert str(trained.data) in dataset_input.dataset.source
    assert [tag.value for tag in dataset_input.tags if tag.key == "mlflow.data.context"] == [
        "training"
    ]


def test_training_is_logged_each_step_and_validation_each_epoch(trained: Trained) -> None:
    """The loss, its parts and the learning rate at every step; the scores at each epoch's last."""
    a_step = trained.dataset.steps_per_epoch
    every_step = list(range(1, EPOCHS * a_step + 1))
    keys = {key for key in trained.run.data.metrics if key.startswith("train/")}
    assert {"train/loss", "train/learning_rate"} < keys
    for key in keys:
        assert [step for step, _ in trained.history(key)] == every_step
    for name in ("loss", "psnr", "ssim", "baseline_psnr"):
        assert [step for step, _ in trained.history(f"val/{name}")] == [a_step, 2 * a_step]
    assert [key for key in trained.run.data.metrics if key.startswith("performance/")]


def test_the_model_is_looked_into(trained: Trained) -> None:
    """Its graph stands at the run's begin, histograms of the first step and every 500th after."""
    [graph] = trained.artifacts("insights/graph/graph")
    assert graph.startswith("step_00000000-")
    for key in ("gradients", "weights"):
        names = trained.artifacts(f"insights/histograms/{key}")
        looks = range(1, EPOCHS * trained.dataset.steps_per_epoch + 1, 500)
        assert [int(name[5:13]) for name in names] == [*looks]
        assert [step for step, _ in trained.history(f"{key}/norm")] == [*looks]


def test_the_loss_falls_and_the_learning_rate_ends_near_zero(trained: Trained) -> None:
    """The model learns, along the schedule."""
    losses = [value for _, value in trained.history("train/loss")]
    rates = [value for _, value in trained.history("train/learning_rate")]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert rates[0] == 0.002
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.00001


def test_the_scores_are_those_of_the_checkpoint(trained: Trained) -> None:
    """The best checkpoint, loaded again, scores on the held-out frames what the run says."""
    folder, metadata = best_checkpoint(trained)
    model = build_model(ModelConfig.from_dict(metadata.model["config"]))
    load_weights(folder, model)
    scores = validate(model, trained.dataset, batch_size=4)
    logged = dict(trained.history("val/psnr"))
    assert scores.psnr == pytest.approx(logged[metadata.step], abs=0.001)
    assert scores.ssim == pytest.approx(dict(trained.history("val/ssim"))[metadata.step], abs=0.001)


def test_the_baseline_is_the_mean_training_frame(trained: Trained) -> None:
    """It is measured on every held-out frame, and is the same each epoch."""
    windows = [window for window, _ in trained.dataset.held_out_windows()]
    target = torch.cat(windows)
    mean = trained.dataset.mean_train_frame().expand_as(target)
    expected = calculate_video_metrics(mean, target)["psnr"]
    assert [value for _, value in trained.history("val/baseline_psnr")] == [expected] * EPOCHS


def test_each_epoch_has_a_checkpoint_and_the_best_by_psnr_is_marked(trained: Trained) -> None:
    """A tag names the checkpoint whose val/psnr is the highest."""
    a_step = trained.dataset.steps_per_epoch
    names = [f"epoch_{n:04d}-step_{n * a_step:06d}" for n in (1, 2)]
    assert trained.artifacts("checkpoints") == names
    scores = [value for _, value in trained.history("val/psnr")]
    tags = trained.run.data.tags
    assert tags["opusclip.checkpoint.best"] == names[scores.index(max(scores))]
    assert tags["opusclip.checkpoint.last"] == names[-1]


def best_checkpoint(trained: Trained) -> tuple[Path, Any]:
    folder = trained.fetched(f"checkpoints/{trained.run.data.tags['opusclip.checkpoint.best']}")
    return folder, verify(folder)


def test_a_checkpoint_knows_what_it_was_trained_with(trained: Trained) -> None:
    """Settings, dataset and model are in its metadata, so that it can be built and served."""
    _, metadata = best_checkpoint(trained)
    config = {"model": "video", "seed": 7, "fps": FPS, "device": "cpu", "learning_rate": 0.002}
    assert config.items() <= metadata.config.items()
    assert metadata.dataset_digest == trained.dataset.digest
    shape = ModelConfig.from_dict(metadata.model["config"])
    assert (shape.kind, shape.frames, shape.size) == ("video", FRAMES, SIZE)


def test_each_epoch_logs_a_generated_clip_beside_its_target(trained: Trained) -> None:
    """One before training and one an epoch, as wide as two targets, the right half the target."""
    names = trained.artifacts("media/video/samples/generated_vs_target")
    assert len(names) == EPOCHS + 1
    clip = read_clip(trained.fetched(f"media/video/samples/generated_vs_target/{names[-1]}"))
    assert clip.frames.shape == (FRAMES, SIZE, 2 * SIZE, 3)
    assert clip.fps == FPS
    window, caption = trained.dataset.held_out_windows()[0]
    assert caption == CAPTION
    assert calculate_video_metrics(clip.frames[:, :, SIZE:], window)["psnr"] > 25


def test_each_epoch_logs_the_same_panel_with_what_made_it(trained: Trained) -> None:
    """Before training no checkpoint did; then each epoch's own, by its weights."""
    panel = panel_of(trained.dataset, seed=7)
    assert [(one.prompt, one.seed) for one in panel.cells] == [(CAPTION, 7)]
    folder = f"panels/{panel.title}"
    accounts = [
        json.loads(trained.fetched(f"{folder}/{name}").read_text())
        for name in trained.artifacts(folder)
    ]
    cells = [one["cells"][panel.cells[0].name] for one in accounts]
    assert len(cells) == EPOCHS + 1
    assert all(Panel.from_dict(one["panel"]) == panel for one in accounts)
    assert "checkpoint" not in cells[0]["origin"]
    names = trained.artifacts("checkpoints")
    assert [one["origin"]["checkpoint"] for one in cells[1:]] == names
    assert len({one["origin"]["weights_sha256"] for one in cells[1:]}) == EPOCHS


def test_the_films_of_the_dataset_are_told_with_their_parts(trained: Trained) -> None:
    """By the film's hash, with the timecodes of what was trained on and held out."""
    [used] = trained.run.inputs.dataset_inputs
    [film_] = json.loads(used.dataset.profile)["sources"]["films"]
    assert film_["sha256"] == sha256(trained.data.read_bytes()).hexdigest()
    assert [use for _, _, use in film_["clips"]] == ["training", "held out"]
    assert film_["clips"][0][1] == film_["clips"][1][0] == pytest.approx(19 / FPS)


def test_the_best_checkpoint_is_registered_and_answers(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """models:/clip-generator/1 is that checkpoint, and makes a clip at the film's rate."""
    version = trained.client.get_model_version("clip-generator", "1")
    assert version.run_id == trained.run.info.run_id
    best = trained.run.data.tags["opusclip.checkpoint.best"]
    assert version.tags["opusclip.checkpoint"] == best
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(trained.folder))
    model = mlflow.pyfunc.load_model("models:/clip-generator/1")
    [answer] = model.predict(pd.DataFrame({"prompt": [CAPTION], "seed": [3]}))
    made = trained.folder / "made.mp4"
    made.write_bytes(base64.b64decode(answer["video"]))
    assert read_clip(made).frames.shape == (FRAMES, SIZE, SIZE, 3)
    assert answer["fps"] == FPS


def test_progress_is_one_line_an_epoch(trained: Trained) -> None:
    """Each line says the loss, the psnr and the baseline of its epoch."""
    lines = trained.said.splitlines()[:EPOCHS]
    scores = [value for _, value in trained.history("val/psnr")]
    for number, (line, score) in enumerate(zip(lines, scores, strict=True), start=1):
        assert line.startswith(f"epoch {number}/2  train loss ")
        assert f"val psnr {score:.2f} dB (baseline " in line
    assert trained.said.splitlines()[EPOCHS] == ""


def closing(trained: Trained) -> dict[str, str]:
    """The rows of what a run says at its end."""
    lines = trained.said.splitlines()[EPOCHS:]
    return dict(re.split(r" {2,}", line) for line in lines if "  " in line)  # type: ignore[misc]


def test_the_end_says_what_came_of_it(trained: Trained) -> None:
    """The run, the best checkpoint with its score, and the registered version."""
    said = closing(trained)
    best = trained.run.data.tags["opusclip.checkpoint.best"]
    score = max(value for _, value in trained.history("val/psnr"))
    assert said["run"] == trained.run.info.run_id
    assert said["best"] == f"{best}, val psnr {score:.2f} dB"
    assert said["registered"] == "clip-generator version 1"


def test_the_end_says_what_to_type_next(trained: Trained) -> None:
    """Every command names what is truly there: the store, the events, the version, the W&B run."""
    said = closing(trained)
    assert f"next, in {trained.folder}:" in trained.said
    assert said["look"] == "mlflow ui --backend-store-uri sqlite:///mlflow.db"
    *_, folder = shlex.split(said["curves"])
    assert list(Path(trained.folder, folder).rglob("events.out.tfevents.*"))
    assert said["serve"] == (
        "mlflow models serve -m models:/clip-generator/1 --env-manager local -p 5001"
    )
    wandb, sync, *parts = shlex.split(said["upload"])
    assert (wandb, sync) == ("wandb", "sync")
    logs = [log for part in parts for log in Path(trained.folder, part).glob("run-*.wandb")]
    steps = {row["global_step"] for log in logs for row in rows(log) if "train/loss" in row}
    assert len(steps) == EPOCHS * trained.dataset.steps_per_epoch


@pytest.fixture(scope="module")
def unregistered(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The other model, nothing to register, no W&B, and a store that is not the folder's own."""
    folder = tmp_path_factory.mktemp("unregistered")
    data = film(folder)
    asked = {**TINY, "--data": str(data), "--model": "transformer", "--register-as": ""}
    kept = folder / "elsewhere"
    done = start(
        "train", folder, asked, MLFLOW_TRACKING_URI=store(kept), OPUSCLIP_USE_WANDB="false"
    )
    assert done.returncode == 0, done.stderr
    return Trained(kept, data, the_run(kept), done.stdout, done.stderr)


def test_without_a_name_nothing_is_registered(unregistered: Trained) -> None:
    """The transformer trains as well; there is no model, no command to serve or upload one."""
    assert unregistered.run.info.status == "FINISHED"
    assert unregistered.client.search_registered_models() == []
    assert "registered  no" in unregistered.said
    assert "serve" not in unregistered.said
    assert "wandb" not in unregistered.said
    assert f"mlflow ui --backend-store-uri {store(unregistered.folder)}" in unregistered.said


BAD_INPUT = {
    "nowhere": ({"--data": "nowhere"}, "nowhere"),
    "text": ({"--data": "notes.mp4"}, "notes.mp4"),
    "short": ({"--data": "wandering_square.mp4", "--frames": "13"}, "24 frames"),
    "epochs": ({"--epochs": "many"}, "epochs is 'many'"),
    "diverged": ({"--data": "wandering_square.mp4", "--learning-rate": "1"}, "learning_rate is 1"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """What came of each bad input, and the folder it was given in."""
    cases = []
    for case, (asked, _) in BAD_INPUT.items():
        folder = tmp_path_factory.mktemp(case)
        film(folder)
        (folder / "notes.mp4").write_text("no film at all\n")
        cases.append((folder, {**TINY, **asked}))
    done = start_each("train", cases, OPUSCLIP_USE_WANDB="false")
    folders = (folder for folder, _ in cases)
    return dict(zip(BAD_INPUT, zip(done, folders, strict=True), strict=True))


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_a_failed_run(
    refused: dict[str, tuple[Any, Path]], case: str
) -> None:
    """The line on stderr names the culprit, and so does the tag of the failed run."""
    check_refused(*refused[case], BAD_INPUT[case][1])


def test_a_model_that_cannot_be_registered_fails_the_run(tmp_path: Path) -> None:
    """Training went well, but the run is FAILED: who waits for a version is told."""
    asked = {**TINY, "--data": str(film(tmp_path)), "--register-as": "square"}
    nobody = {"MLFLOW_REGISTRY_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = start("train", tmp_path, asked, OPUSCLIP_USE_WANDB="false", **nobody)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: cannot register checkpoint epoch_0001-step_")
    run = the_run(tmp_path)
    assert run.info.status == "FAILED"
    assert "cannot register" in run.data.tags["opusclip.end_reason"]
    assert "opusclip.checkpoint.best" in run.data.tags


REFUSED = [
    ("epochs", "0", "from 1 to 10000"),
    ("epochs", "2.5", "a whole number from 1 to 10000"),
    ("batch_size", "1025", "from 1 to 1024"),
    ("learning_rate", "0", "a number above 0, at most 1"),
    ("learning_rate", "nan", "a number above 0, at most 1"),
    ("learning_rate", "fast", "a number above 0, at most 1"),
    ("frames", "1", "from 2 to 256"),
    ("size", "8", "from 16 to 512"),
    ("seed", "-1", "from 0 to 9223372036854775807"),
    ("watch", "-1", "from 0 to 1000000000"),
    ("model", "gan", "one of video, transformer"),
    ("device", "tpu", "one that is here: cpu"),
    ("device", "cpu:1", "from 0 to 0"),
    ("device", "cpu:", "a whole number from 0 to 0"),
    ("register_as", "a/b", "a name without / and :"),
    ("register_as", "models:/a", "a name without / and :"),
]


@pytest.mark.parametrize(("name", "text", "allowed"), REFUSED)
def test_a_value_out_of_range_is_refused(name: str, text: str, allowed: str) -> None:
    """The error names the parameter, the value and what is allowed, on one line."""
    with pytest.raises(ConfigError) as refused:
        Settings.read({**GIVEN, name: text})
    value = text.partition(":")[2] if name == "device" and ":" in text else text
    assert str(refused.value).startswith(f"{name} is {value!r}: it must be {allowed}")
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    """The message says which devices there are."""
    with pytest.raises(ConfigError, match=r"device is 'cuda': it must be one that is here: cpu"):
        Settings.read({**GIVEN, "device": "cuda"})


@pytest.mark.parametrize("text", ["", "none", "NONE", " "])
def test_none_registers_nothing(text: str) -> None:
    """Empty and `none`, however written, mean no model."""
    assert Settings.read({**GIVEN, "register_as": text}).register_as is None


def test_an_unknown_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The nearest option is named, and the exit code is 2."""
    with pytest.raises(SystemExit) as exit_:
        options.start(command, ["--epoch", "3"])
    assert exit_.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: No such option")
    assert "--epochs" in line


def test_help_names_the_ranges() -> None:
    """--help says what each option takes."""
    done = CliRunner().invoke(command, ["--help"])
    assert done.exit_code == 0
    for part in ("1 to 10000", "1 to 1024", "2 to 256", "multiple of 8 from 16 to 512"):
        assert part in " ".join(done.output.split())


def first_losses(dataset: ClipDataset, seed: int) -> list[float]:
    """The losses of a training's first steps."""
    torch.manual_seed(seed)
    given = {**GIVEN, "size": str(SIZE), "frames": str(FRAMES), "seed": str(seed)}
    training = Training(Settings.read(given), dataset)
    return [training.do_step()["train/loss"] for _ in range(3)]


def test_the_seed_decides_everything(dataset: ClipDataset) -> None:
    """The same seed gives the same losses, another seed others."""
    assert first_losses(dataset, 1) == first_losses(dataset, 1)
    assert first_losses(dataset, 1) != first_losses(dataset, 2)


def test_validation_leaves_the_model_as_it_was(dataset: ClipDataset) -> None:
    """No weight changes, no gradient is left, and the batch size does not change a score."""
    model = build_model(ModelConfig(frames=FRAMES, size=SIZE))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, many = (validate(model, dataset, batch_size=size) for size in (1, 64))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert one.psnr == pytest.approx(many.psnr, abs=0.001)
    assert model.training
