"""Training by many ranks: equal to one process, through restarts, and ended as it is told."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops.checkpoints import load_weights
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.projects.data import load_dataset
from opusclip_mlops.projects.distributed import Ranks
from opusclip_mlops.projects.judging import validate
from opusclip_mlops.projects.models import ModelConfig, build_model
from opusclip_mlops.projects.shares import Share
from opusclip_mlops.projects.train import Settings, Training, command, shared_out
from opusclip_mlops.ranks import Place
from tests.journeys import store
from tests.projects.commands import FRAMES, SIZE, TINY, film, the_run
from tests.projects.ranks import DEADLINE_S, RESERVED, Ended, by_torchrun, forked

STEPS = 40
GIVEN = {str(one.name): str(one.default) for one in command.params if one.name != "experiment"}
GIVEN |= {"frames": str(FRAMES), "size": str(SIZE), "seed": "3", "watch": "0"}
ASKED = {**TINY, "--seed": "3", "--watch": "0", "--register-as": "none"}

_EQUAL = (
    RESERVED
    + """
import json, os, signal, sys, torch
from dataclasses import replace
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.projects.data import load_dataset
from opusclip_mlops.projects.distributed import Ranks
from opusclip_mlops.projects.judging import validate
from opusclip_mlops.projects.train import Settings, Training, shared_out
from opusclip_mlops.ranks import place_in

def in_float64(dataset):
    clips = dataset.clips
    clips = (replace(c, train=c.train.double(), held_out=c.held_out.double()) for c in clips)
    return replace(dataset, clips=tuple(clips))

def course(kind, dataset, ranks):
    settings = shared_out(Settings.read({**given, "model": kind}), ranks)
    torch.manual_seed(settings.seed)
    training = Training(settings, dataset, None, ranks)
    losses = [ranks.mean(training.do_step()["train/loss"]) for _ in range(19)]
    if ranks.is_owner:
        validate(training.model, dataset, batch_size=4)
    ranks.follow_owner()
    losses.append(ranks.mean(training.do_step()["train/loss"]))
    weights = [one.detach().flatten().double() for one in training.model.parameters()]
    return losses, torch.cat(weights)

def main(of, number):
    torch.set_num_threads(1)
    if of > 1:
        os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(of))
        # As torchrun counts on machines of which one alone has failed.
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
    found = {}
    try:
        with Ranks(place_in(os.environ)) as ranks:
            courses(ranks, found)
            if number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            ranks.any(False)
    except OpusclipError as error:
        found["lost"] = str(error)
    torch.save(found, f"{of}.pt")

def courses(ranks, found):
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        dataset = load_dataset(data, frames=4, size=16)
        dataset = in_float64(dataset) if dtype is torch.float64 else dataset
        for kind in ("video", "transformer"):
            found[f"{kind} {dtype}"] = course(kind, dataset, ranks)

def begin(of, number):
    if not (pid := os.fork()):
        signal.alarm(480)
        main(of, number)
        sys.exit()
    return pid

given, data = json.loads(sys.argv[1]), sys.argv[2]
with reserved() as port:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    pids = [begin(*one) for one in ((1, 0), (2, 0), (2, 1))]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
sys.exit(int(codes != [0, 0, -signal.SIGKILL]))
"""
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that spin for so small a model cost more than they do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("film"))


@pytest.fixture(scope="module")
def courses(tmp_path_factory: pytest.TempPathFactory, data: Path) -> list[Any]:
    """What twenty steps came to, by one process and by two."""
    folder = tmp_path_factory.mktemp("equal")
    done = subprocess.run(
        [sys.executable, "-c", _EQUAL, json.dumps(GIVEN), str(data)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{of}.pt") for of in (1, 2)]


@pytest.mark.parametrize(("dtype", "most"), [("torch.float64", 1e-12), ("torch.float32", 2e-5)])
@pytest.mark.parametrize("kind", ["video", "transformer"])
def test_two_ranks_go_the_steps_of_one_process(
    courses: list[Any], kind: str, dtype: str, most: float
) -> None:
    """Each step's loss and all weights are equal but for the order in which gradients are summed.

    Also behind a validation that only the owner did, which drew random numbers. They meet though
    their launchers have counted other attempts.
    """
    (alone, weights), (shared, others) = (course[f"{kind} {dtype}"] for course in courses)
    assert alone == pytest.approx(shared, rel=0, abs=most)
    assert (weights - others).abs().max() < most
    assert alone[0] > alone[-1]


def test_a_rank_that_is_killed_is_missed_in_one_line(courses: list[Any]) -> None:
    """By the rank that waits for it, at once; a process that is alone misses nobody."""
    alone, shared = courses
    assert re.match(r"rank 0 lost another one: Connection [\w ]+$", shared["lost"])
    assert "lost" not in alone


@dataclass(frozen=True)
class Trained:
    """What ranks left in MLflow."""

    folder: Path
    run: Run

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(store(self.folder))

    def history(self, key: str) -> list[tuple[int, float]]:
        points = self.client.get_metric_history(self.run.info.run_id, key)
        return [(one.step, one.value) for one in sorted(points, key=lambda one: one.timestamp)]

    def checkpoints(self) -> list[str]:
        found = self.client.list_artifacts(self.run.info.run_id, "checkpoints")
        return sorted(Path(one.path).name for one in found)

    def last_weights(self) -> torch.Tensor:
        name = self.run.data.tags["opusclip.checkpoint.last"]
        path = self.client.download_artifacts(self.run.info.run_id, f"checkpoints/{name}")
        model = build_model(ModelConfig(frames=FRAMES, size=SIZE))
        load_weights(Path(path), model)
        return torch.cat([one.detach().flatten() for one in model.parameters()])


def check_equal_to_one_process(trained: Trained, data: Path, *, epochs: int) -> None:
    """The last loss of each step and the last weights, whatever happened on the way."""
    settings = Settings.read({**GIVEN, "epochs": str(epochs)})
    torch.manual_seed(settings.seed)
    training = Training(settings, load_dataset(data, frames=FRAMES, size=SIZE))
    losses = {}
    for _ in range(epochs):
        for _ in range(STEPS):
            loss = training.do_step()["train/loss"]
            losses[training.step] = loss
        scores = validate(training.model, training.dataset, batch_size=4)
    assert dict(trained.history("train/loss")) == pytest.approx(losses, rel=0, abs=2e-5)
    assert dict(trained.history("val/psnr"))[epochs * STEPS] == pytest.approx(scores.psnr, abs=0.01)
    weights = torch.cat([one.detach().flatten() for one in training.model.parameters()])
    assert (trained.last_weights() - weights).abs().max() < 2e-4


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Trained, Ended]:
    """A rank is killed in the second epoch, and torchrun starts both anew."""
    folder = tmp_path_factory.mktemp("restarted")
    asked = {**ASKED, "--data": str(data), "--epochs": "2", "--register-as": "square"}
    ended = by_torchrun(folder, asked, dies="57 1 SIGKILL")
    assert ended.exit_code == 0, ended.said
    return Trained(folder, the_run(folder)), ended


def test_a_training_goes_on_behind_its_last_checkpoint_when_a_rank_was_killed(
    restarted: tuple[Trained, Ended], data: Path
) -> None:
    """In the same run, which ends FINISHED, equal to a training that nothing happened to."""
    trained, _ = restarted
    assert trained.run.info.status == "FINISHED"
    check_equal_to_one_process(trained, data, epochs=2)
    assert [name[:22] for name in trained.checkpoints()] == [
        "epoch_0001-step_000040",
        "epoch_0002-step_000080",
    ]


def test_what_only_the_owner_does_is_there_once(restarted: tuple[Trained, Ended]) -> None:
    """A line an epoch, its samples, and one registered version, of the best checkpoint."""
    trained, ended = restarted
    lines = ended.said.splitlines()
    assert [line[:9] for line in lines if line.startswith("epoch ")] == ["epoch 1/2", "epoch 2/2"]
    best = trained.run.data.tags["opusclip.checkpoint.best"]
    assert any(line.startswith(f"best        {best}, val psnr ") for line in lines)
    clips = trained.client.list_artifacts(
        trained.run.info.run_id, "media/video/samples/generated_vs_target"
    )
    assert len(clips) == 3
    version = trained.client.get_model_version("square", "1")
    assert version.tags["opusclip.checkpoint"] == best
    assert [step for step, _ in trained.history("val/psnr")] == [STEPS, 2 * STEPS]


@pytest.fixture(scope="module")
def launched(
    tmp_path_factory: pytest.TempPathFactory, data: Path
) -> tuple[Trained, list[list[Ended]]]:
    """Two launches: one is told to end, the next goes on in its run."""
    folder = tmp_path_factory.mktemp("launched")
    client = MlflowClient(store(folder))
    experiment = client.create_experiment("launched", artifact_location=str(folder / "files"))
    run_id = client.create_run(experiment).info.run_id
    launches = [{"MLFLOW_RUN_ID": run_id, "TEST_DIES": "25 0 SIGTERM"}, {"MLFLOW_RUN_ID": run_id}]
    ended = forked(folder, {**ASKED, "--data": str(data)}, launches)
    return Trained(folder, client.get_run(run_id)), ended


Launched = tuple[Trained, list[list[Ended]]]


def test_ranks_that_are_told_to_end_save_a_checkpoint_together(launched: Launched) -> None:
    """One is told by SIGTERM, all end behind the same step; who waits sees 128 and the signal.

    None of them waits for delivery in the time that it has left, and the owner says so.
    """
    trained, (told, _) = launched
    assert [one.exit_code for one in told] == [143, 143]
    (line,) = told[0].said.splitlines()
    assert line.startswith("opusclip: what was logged is not waited for; the shipper goes on")
    assert told[1].said == ""
    assert trained.checkpoints()[0][:22] == "epoch_0000-step_000026"


def test_the_next_job_goes_on_in_the_run(launched: Launched, data: Path) -> None:
    """From the checkpoint that was saved last, out of MLflow; equal to one that was not stopped."""
    trained, (_, gone_on) = launched
    assert [one.exit_code for one in gone_on] == [0, 0], gone_on
    assert trained.run.info.status == "FINISHED"
    assert [step for step, _ in trained.history("train/loss")] == list(range(1, STEPS + 1))
    check_equal_to_one_process(trained, data, epochs=1)


def of_three() -> Ranks:
    """Ranks that need not have met."""
    ranks = Ranks()
    ranks.share = Share(1, 3)
    return ranks


def test_a_batch_size_that_ranks_cannot_share_out_is_refused() -> None:
    """In one line that names what would do."""
    with pytest.raises(ConfigError) as refused:
        shared_out(Settings.read({**GIVEN, "batch_size": "4"}), of_three())
    assert str(refused.value) == (
        "batch_size is 4: 3 ranks cannot share it out equally; give a multiple of 3"
    )
    assert shared_out(Settings.read({**GIVEN, "batch_size": "6"}), of_three()).batch_size == 6


def test_ranks_that_nobody_can_meet_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the launcher says no place, the line says which variables are missing."""
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ConfigError, match=r"^MASTER_ADDR is not set: 2 ranks cannot meet"):
        Ranks(Place(rank=1, local_rank=1, world_size=2))
