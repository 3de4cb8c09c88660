"""A tracker's checkpoints: what is kept of them, and training that goes on as if never stopped."""

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from opusclip_mlops import ExperimentTracker, TrackingConfig
from opusclip_mlops.checkpoints import CheckpointMetadata, place_of
from opusclip_mlops.errors import ConfigError, RecordError
from opusclip_mlops.generations import Generation, generations_of, is_superseded
from opusclip_mlops.layout import BEST_TAG, LAST_TAG
from opusclip_mlops.loading import LoadedCheckpoint, load_checkpoint
from tests.journeys import store, wait_until
from tests.mirrored import Place
from tests.reading import (
    Point,
    of_training,
    points_of_mlflow,
    points_of_tensorboard,
    points_of_wandb,
)

FOLDERS = ("live", "runs")

TRAINING = """
import itertools, os, random, signal, sys
import numpy as np, torch
from torch.utils.data import DataLoader, TensorDataset
from opusclip_mlops import ExperimentTracker, TrackingConfig
from opusclip_mlops.loading import load_checkpoint

BATCHES = 6
run_id, loader_kind, save_at, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def loader(epoch):
    own = torch.Generator().manual_seed(epoch) if loader_kind == "seeded" else None
    data = TensorDataset(torch.arange(24 * 3, dtype=torch.float32).reshape(24, 3) / 72)
    return DataLoader(data, batch_size=4, shuffle=True, generator=own)

torch.manual_seed(3), random.seed(3), np.random.seed(3)
model = torch.nn.Sequential(
    torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)
)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
checkpoint, step = None, 0
if run_id != "new":
    checkpoint = load_checkpoint(
        run_id, which="last", model=model, optimizer=optimizer, scheduler=scheduler
    )
    step = checkpoint.metadata.step
with ExperimentTracker(TrackingConfig(use_wandb=False), resume=checkpoint) as tracker:
    while step < 20:
        epoch, done = divmod(step, BATCHES)
        for (batch,) in itertools.islice(loader(epoch), done, None):
            optimizer.zero_grad()
            noise = random.random() + float(np.random.rand())
            loss = (model(batch) - batch.sum(1, keepdim=True) - 0.01 * noise).square().mean()
            loss.backward()
            optimizer.step()
            scheduler.step()
            step += 1
            tracker.log_metrics({"loss": loss}, step)
            if step == save_at:
                tracker.save_checkpoint(model, optimizer, scheduler, epoch=epoch)
            if step == kill_at:
                open("run_id", "w").write(tracker.run_id)
                tracker.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            if step == 20:
                break
torch.save(model.state_dict(), "weights.pt")
"""


def config(tmp_path: Path, **fields: Any) -> TrackingConfig:
    return TrackingConfig(
        experiment_name="films",
        tracking_uri=store(tmp_path),
        use_wandb=False,
        use_tensorboard=False,
        system_metrics=False,
        **fields,
    )


def steps_in_mlflow(tmp_path: Path, run_id: str) -> list[int]:
    """Steps of the checkpoints that a run has in MLflow."""
    found = MlflowClient(store(tmp_path)).list_artifacts(run_id, "checkpoints")
    places = [place_of(Path(one.path).name) for one in found]
    return sorted(place[0] for place in places if place)


def tags(tmp_path: Path, run_id: str) -> tuple[str | None, str | None]:
    """The checkpoints marked best and last."""
    found = MlflowClient(store(tmp_path)).get_run(run_id).data.tags
    return found.get(BEST_TAG), found.get(LAST_TAG)


def folders(tmp_path: Path) -> list[Path]:
    """The runs' folders that are still there."""
    return [path for path in tmp_path.glob(".opusclip/journal/*") if path.is_dir()]


def save(tracker: ExperimentTracker, losses: dict[int, float]) -> list[str]:
    """Save a checkpoint at each step, with its loss."""
    model = torch.nn.Linear(2, 1)
    return [
        tracker.save_checkpoint(model, metrics={"val/loss": loss}, step=step)
        for step, loss in losses.items()
    ]


def test_mlflow_holds_only_what_is_kept(tmp_path: Path) -> None:
    """The best, the newest two and each at a hundred steps; the others are gone from MLflow."""
    with ExperimentTracker(config(tmp_path)) as tracker:
        tracker.keep_checkpoints(last=2, best=("val/loss", "min"), every=100)
        losses = {10: 0.5, 20: 0.1, 90: 0.4, 100: 0.6, 110: 0.7, 120: 0.8, 130: 0.2}
        names = save(tracker, dict(list(losses.items())[:3]))
        tracker.flush()
        names += save(tracker, dict(list(losses.items())[3:]))
    assert steps_in_mlflow(tmp_path, tracker.run_id) == [20, 100, 120, 130]
    assert tags(tmp_path, tracker.run_id) == (names[1], names[-1])
    loaded = load_checkpoint(tracker.run_id, tracking_uri=store(tmp_path))
    assert loaded.metadata.name == names[1]
    wait_until(lambda: not folders(tmp_path))


def test_a_rule_that_is_none_is_said_at_once(tmp_path: Path) -> None:
    """The caller's line raises, and what was kept before is kept on."""
    with ExperimentTracker(config(tmp_path)) as tracker:
        for rule in ({"last": 0}, {"every": 0}, {"best": ("loss", "low")}):
            with pytest.raises(RecordError):
                tracker.keep_checkpoints(**rule)
        save(tracker, {1: 0.1, 2: 0.2})
    assert steps_in_mlflow(tmp_path, tracker.run_id) == [1, 2]


def test_the_best_and_the_kept_survive_a_resume(tmp_path: Path) -> None:
    """A worse value is not the best of a run gone on with, however it goes on; older ones go."""
    with ExperimentTracker(config(tmp_path)) as first:
        best, last = save(first, {10: 0.1, 20: 0.3})
    resumed = load_checkpoint(first.run_id, which="last", tracking_uri=store(tmp_path))
    with ExperimentTracker(config(tmp_path), resume=resumed) as second:
        second.keep_checkpoints(last=1)
        assert (second.run_id, second.step) == (first.run_id, 20)
        [again] = save(second, {20: 0.2})
    assert again.startswith(f"{last}-")
    assert tags(tmp_path, first.run_id) == (best, again)
    assert steps_in_mlflow(tmp_path, first.run_id) == [10, 20]
    with ExperimentTracker(config(tmp_path, run_id=first.run_id)) as third:
        [newest] = save(third, {30: 0.15})
    assert tags(tmp_path, first.run_id) == (best, newest)
    with ExperimentTracker(config(tmp_path, run_id=first.run_id)) as fourth:
        fourth.keep_checkpoints()
        [better] = save(fourth, {40: 0.05})
    assert tags(tmp_path, first.run_id) == (better, better)
    assert steps_in_mlflow(tmp_path, first.run_id) == [40]


def test_what_was_logged_behind_the_checkpoint_stays_and_is_superseded(tmp_path: Path) -> None:
    """Of each step that was done twice one point counts; the mirrors are equal, live and later."""
    settings = replace(config(tmp_path), use_tensorboard=True, tensorboard_dir="live")
    first = ExperimentTracker(settings)
    for step in range(1, 11):
        first.log_metrics({"loss": 1 / step}, step)
        if step == 5:
            name = first.save_checkpoint(torch.nn.Linear(1, 1), step=5)
    first.close("FAILED", "crashed")
    run_id = first.run_id
    resumed = load_checkpoint(run_id, which="last", tracking_uri=store(tmp_path))
    with ExperimentTracker(settings, resume=resumed) as second:
        for step in range(6, 11):
            second.log_metrics({"loss": 2 / step})
    place = Place(tmp_path)
    run = place.client.get_run(run_id)
    known = generations_of(run.data.tags)
    assert [(one.number, one.after_step, one.checkpoint) for one in known] == [(1, 5, name)]
    points = points_of_mlflow(place.client, run_id)
    assert sorted(point.step for point in points) == sorted([*range(1, 11), *range(6, 11)])
    kept = [one for one in points if not superseded(known, one)]
    assert {one.step: float(one.value) for one in kept} == {
        step: (1 if step <= 5 else 2) / step for step in range(1, 11)
    }
    assert [one.step for one in points if superseded(known, one)] == [6, 7, 8, 9, 10]
    for kind in ("tensorboard", "wandb"):
        place.mirror(run, kind).catch_up(run)
        assert place.mirror(run, kind).compare(run, as_it_is=False).difference.is_empty
    [mirror_id] = [path.name for path in (tmp_path / "runs" / "films").iterdir()]
    live, later = (points_of_tensorboard(tmp_path / at / "films" / mirror_id) for at in FOLDERS)
    assert live == later
    assert len(live) == len(points) == len(points_of_wandb(tmp_path / "runs", mirror_id))


def superseded(known: Sequence[Generation], point: Point) -> bool:
    """Whether a point was given up."""
    return is_superseded(known, key=point.key, step=point.step, timestamp_ms=point.timestamp_ms)


def test_the_last_is_of_the_part_that_goes_on(tmp_path: Path) -> None:
    """What training has gone back behind is not the last, even before anything new is saved."""
    with ExperimentTracker(config(tmp_path)) as first:
        save(first, {3: 0.5})
        fifth, eighth = save(first, {5: 0.4, 8: 0.1})
    resumed = load_checkpoint(first.run_id, which=5, tracking_uri=store(tmp_path))
    with ExperimentTracker(config(tmp_path), resume=resumed) as second:
        second.keep_checkpoints(last=2)
        second.flush()
        assert tags(tmp_path, first.run_id) == (eighth, fifth)
        [sixth] = save(second, {6: 0.3})
    assert tags(tmp_path, first.run_id) == (eighth, sixth)
    assert steps_in_mlflow(tmp_path, first.run_id) == [5, 6, 8]
    found = load_checkpoint(first.run_id, which="last", tracking_uri=store(tmp_path))
    assert found.metadata.parent == fifth


def test_saving_waits_for_nothing(tmp_path: Path) -> None:
    """A run that is gone on with while MLflow does not answer: no name and no mark is taken."""
    with ExperimentTracker(config(tmp_path)) as first:
        best, last = save(first, {10: 0.1, 20: 0.3})
    wait_until(lambda: not folders(tmp_path))
    with store_that_hangs(tmp_path):
        second = ExperimentTracker(config(tmp_path, run_id=first.run_id))
        second.keep_checkpoints(last=1)
        [unknown] = save(second, {20: 0.2})
        assert second._session.known_run_id() is None
    second.flush()
    assert tags(tmp_path, first.run_id) == (best, unknown)
    assert steps_in_mlflow(tmp_path, first.run_id) == [10, 20, 20]
    [newest] = save(second, {30: 0.4})
    second.close()
    assert tags(tmp_path, first.run_id) == (best, newest)
    assert steps_in_mlflow(tmp_path, first.run_id) == [10, 30]
    assert unknown != last


def test_what_never_was_is_not_named_by_samples(tmp_path: Path) -> None:
    """A checkpoint that failed in the background made nothing that is logged after it."""
    with ExperimentTracker(config(tmp_path)) as tracker:
        first, last = save(tracker, {1: 0.3, 2: 0.2})
        tracker._forget(first)
        assert tracker._saved == (2, last)
        tracker._forget(last)
        assert tracker._saved is None


def test_flushing_takes_its_time_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a checkpoint takes of it is not there for the delivery."""
    left_s: list[float] = []

    def settle(*, wait_s: float) -> bool:
        time.sleep(wait_s)
        return False

    def arrive(_sinks: list[str], *, wait_s: float) -> bool:
        left_s.append(wait_s)
        return True

    with ExperimentTracker(config(tmp_path)) as tracker, monkeypatch.context() as slow:
        slow.setattr(tracker, "_settle_saves", settle)
        slow.setattr(tracker._session, "wait_until_arrived", arrive)
        assert not tracker.flush(timeout_s=0.1)
    assert left_s == [0.0]


@contextmanager
def store_that_hangs(tmp_path: Path) -> Iterator[None]:
    """MLflow's database as it is while another process makes its tables: nobody gets at it."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def test_a_clock_that_was_set_back_takes_nothing_from_the_new_part(tmp_path: Path) -> None:
    """Points of the new part have no earlier time than it, nor has it than its checkpoint."""
    with ExperimentTracker(config(tmp_path)) as first:
        first.log_metrics({"loss": 1.0}, step=5)
        save(first, {5: 0.1})
    resumed = load_checkpoint(first.run_id, which="last", tracking_uri=store(tmp_path))
    ahead_ms = resumed.metadata.created_ms + 3600_000
    metadata = replace(resumed.metadata, created_ms=ahead_ms)
    with ExperimentTracker(config(tmp_path), resume=replace(resumed, metadata=metadata)) as second:
        second.log_metrics({"loss": 0.5})
        [name] = save(second, {6: 0.1})
    client = MlflowClient(store(tmp_path))
    [generation] = generations_of(client.get_run(first.run_id).data.tags)
    points = points_of_mlflow(client, first.run_id)
    assert [point.timestamp_ms for point in points if point.step == 6] == [ahead_ms + 1]
    assert generation.start_ms == ahead_ms + 1
    found = load_checkpoint(first.run_id, which=name, tracking_uri=store(tmp_path))
    assert found.metadata.created_ms == ahead_ms + 1


def test_processes_that_train_together_begin_one_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them one, so that who comes a moment later gives nothing up."""
    with ExperimentTracker(config(tmp_path)) as first:
        save(first, {5: 0.1})
    resumed = load_checkpoint(first.run_id, which="last", tracking_uri=store(tmp_path))
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        with ExperimentTracker(config(tmp_path, ranks="own"), resume=resumed) as tracker:
            tracker.log_metrics({f"loss/{rank}": 0.5})
            [name] = save(tracker, {6: 0.1})
    last = load_checkpoint(first.run_id, which=name, tracking_uri=store(tmp_path))
    assert (resumed.metadata.world_size, last.metadata.world_size) == (1, 2)
    client = MlflowClient(store(tmp_path))
    known = generations_of(client.get_run(first.run_id).data.tags)
    assert len(known) == 1
    points = points_of_mlflow(client, first.run_id)
    assert [(one.key, superseded(known, one)) for one in points] == [
        ("loss/0", False),
        ("loss/1", False),
    ]


def test_steps_go_on_behind_the_checkpoint(tmp_path: Path) -> None:
    """A point without a step is the one after the checkpoint's, in the same run."""
    with ExperimentTracker(config(tmp_path)) as first:
        first.log_metrics({"loss": 1.0}, step=10)
        first.save_checkpoint(torch.nn.Linear(1, 1))
        first.log_metrics({"loss": 0.9}, step=17)
    resumed = load_checkpoint(first.run_id, which="last", tracking_uri=store(tmp_path))
    with ExperimentTracker(config(tmp_path), resume=resumed) as second:
        second.log_metrics({"loss": 0.8})
    client = MlflowClient(store(tmp_path))
    steps = [point.step for point in of_training(points_of_mlflow(client, first.run_id))]
    assert sorted(steps) == [10, 11, 17]
    assert client.get_run(first.run_id).info.status == "FINISHED"


def test_a_checkpoint_goes_on_in_its_own_run_only(tmp_path: Path) -> None:
    """No run, or another one than the settings name, is an error before anything is begun."""
    about = CheckpointMetadata(name="c", step=1, epoch=0)
    loaded = LoadedCheckpoint(folder=None, metadata=about)
    with pytest.raises(ConfigError, match="names no run to go on with"):
        ExperimentTracker(config(tmp_path), resume=loaded)
    of_a = LoadedCheckpoint(folder=None, metadata=replace(about, run_id="a"))
    beyond = LoadedCheckpoint(folder=None, metadata=replace(about, run_id="a", step=2**63))
    with pytest.raises(RecordError, match="64 bits"):
        ExperimentTracker(config(tmp_path), resume=beyond)
    with pytest.raises(ConfigError, match="run_id is b, but checkpoint c is of run a"):
        ExperimentTracker(config(tmp_path, run_id="b"), resume=of_a)
    assert not (tmp_path / ".opusclip").exists()


def train(folder: Path, tmp_path: Path, *arguments: str, code: int = 0) -> None:
    """Run the training in a process of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "training.py").write_text(TRAINING)
    done = subprocess.run(
        [sys.executable, "training.py", *arguments],
        cwd=folder,
        env={**os.environ, "MLFLOW_TRACKING_URI": store(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr


def digest(folder: Path) -> str:
    """The hash of all weights that a training has ended with."""
    weights = torch.load(folder / "weights.pt", weights_only=True)
    content = b"".join(name.encode() + value.numpy().tobytes() for name, value in weights.items())
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(("loader", "save_at"), [("seeded", 10), ("plain", 12)])
def test_training_goes_on_bit_for_bit(tmp_path: Path, loader: str, save_at: int) -> None:
    """Killed and gone on with, in the midst of an epoch or between two: the same weights."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train(straight, tmp_path, "new", loader, str(save_at), "0")
    train(stopped, tmp_path, "new", loader, str(save_at), "14", code=-signal.SIGKILL)
    run_id = (stopped / "run_id").read_text()
    train(stopped, tmp_path, run_id, loader, "0", "0")
    assert digest(stopped) == digest(straight)
    client = MlflowClient(store(tmp_path))
    assert client.get_run(run_id).info.status == "FINISHED"
    points = of_training(points_of_mlflow(client, run_id))
    known = generations_of(client.get_run(run_id).data.tags)
    assert [one.step for one in points if not superseded(known, one)] == list(range(1, 21))
    assert [one.step for one in points if superseded(known, one)] == list(range(save_at + 1, 15))


def test_what_is_no_checkpoint_is_not_gone_on_from() -> None:
    """A run id, or a path: one line that says what to give."""
    with pytest.raises(TypeError, match=r"not str: give what load_checkpoint\(\) returns"):
        ExperimentTracker(resume="a" * 32)  # type: ignore[arg-type]
