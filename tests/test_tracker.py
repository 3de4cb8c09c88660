import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

import opusclip_mlops
from opusclip_mlops import (
    AdvancedExperimentTracker,
    ExperimentTracker,
    TrackingConfig,
    checkpoints,
)
from opusclip_mlops.checkpoints import CheckpointMetadata
from opusclip_mlops.errors import OpusclipError, RecordError
from opusclip_mlops.loading import load_checkpoint
from opusclip_mlops.shipper import end_with_children
from tests.journeys import store, wait_until
from tests.reading import (
    Point,
    of_training,
    points_of_mlflow,
    points_of_tensorboard,
    points_of_wandb,
    rows_of_wandb,
)
from tests.servers import mlflow_server


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    return MlflowClient(store(tmp_path))


@pytest.fixture
def config(tmp_path: Path) -> TrackingConfig:
    return TrackingConfig(experiment_name="my_experiment", tracking_uri=store(tmp_path))


@pytest.fixture
def mlflow_only(tmp_path: Path) -> TrackingConfig:
    return TrackingConfig(
        experiment_name="my_experiment",
        tracking_uri=store(tmp_path),
        use_wandb=False,
        use_tensorboard=False,
    )


def journals(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.glob(".opusclip/journal/*") if path.is_dir()]


def narrow(points: list[Point]) -> list[Point]:
    return sorted(
        Point(p.key, p.step, p.timestamp_ms, repr(float(np.float32(float(p.value)))))
        for p in points
    )


def test_the_three_places_hold_the_same_points(
    tmp_path: Path, config: TrackingConfig, client: MlflowClient
) -> None:
    """MLflow, TensorBoard and W&B hold every point with the same step, time and value."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with AdvancedExperimentTracker(config) as tracker:
        for i in range(50):
            tracker.log_metrics({"train/loss": torch.tensor(1 / (i + 1)), "lr": np.float32(0.1)})
        tracker.log_metrics({"val/loss": 0.25}, step=120)
        tracker.log_metrics({"train/loss": 0.0})
        tracker.save_checkpoint(model, optimizer, 3, {"val_loss": 0.25})
        tracker.log_video(np.zeros((4, 16, 16, 3), np.uint8), "generated_video", 121)
        tracker.log_video_metrics(psnr=31.2, ssim=0.93, lpips=0.11)
        tracker.log_training_metrics(epoch=1, step=120, metrics={"loss": 0.5})
        tracker.log_performance_metrics()
        tracker.log_profiling_data(
            {"timings": {"forward": 1.5}, "memory": {"rss": 3}, "bottlenecks": ["data", "copy"]}
        )
        with tracker.profile_operation("forward", "model"):
            pass
    record = points_of_mlflow(client, tracker.run_id)
    steps = {p.step for p in record if p.key == "train/loss"}
    assert steps == {*range(50), 121}
    assert {"video/psnr", "training/loss", "training/epoch", "performance/rss_megabytes",
            "profiling/timings/forward", "profiling/memory/rss",
            "profiling/model/forward/count"} <= {p.key for p in record}  # fmt: skip
    assert points_of_wandb(tmp_path, tracker.local_id) == record
    events = tmp_path / "runs" / "my_experiment" / tracker.local_id
    assert points_of_tensorboard(events) == narrow(record)
    wait_until(lambda: not journals(tmp_path))


def test_a_server_holds_what_was_logged(tmp_path: Path) -> None:
    """Through a real MLflow server: points, clip, checkpoint, times and end all arrive."""
    with mlflow_server(tmp_path) as address:
        config = TrackingConfig(
            experiment_name="remote", tracking_uri=address, use_wandb=False, system_metrics=False
        )
        with ExperimentTracker(config) as tracker:
            for i in range(1500):
                tracker.log_metrics({"train/loss": 1 / (i + 1), "train/lr": 0.1})
            tracker.log_video(np.zeros((4, 16, 16, 3), np.uint8), "clip", 3)
            name = tracker.save_checkpoint(torch.nn.Linear(2, 1), metrics={"val_loss": 0.5})
        client = MlflowClient(address)
        record = points_of_mlflow(client, tracker.run_id)
        assert len(record) == 3000
        events = tmp_path / "runs" / "remote" / tracker.local_id
        assert points_of_tensorboard(events) == narrow(record)
        fetched = Path(client.download_artifacts(tracker.run_id, f"checkpoints/{name}"))
        assert checkpoints.verify(fetched).run_id == tracker.run_id
        assert len(client.list_artifacts(tracker.run_id, "media/video/clip")) == 1
        assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_it_is_one_class_under_two_names() -> None:
    """The earlier name is the same class."""
    assert AdvancedExperimentTracker is ExperimentTracker


def test_checkpoints_are_artifacts_and_the_best_is_marked(
    mlflow_only: TrackingConfig, client: MlflowClient
) -> None:
    """Both shapes of save_checkpoint work; the lowest val loss is the best."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with ExperimentTracker(mlflow_only) as tracker:
        first = tracker.save_checkpoint(model, optimizer, 1, {"val_loss": 0.2})
        tracker.save_checkpoint(
            model, optimizer, scheduler, epoch=2, step=20, metrics={"val_loss": 0.3}
        )
        last = tracker.save_checkpoint(model, epoch=3, step=30, metrics={"val_loss": float("nan")})
    run = client.get_run(tracker.run_id)
    assert run.data.tags["opusclip.checkpoint.best"] == first
    assert run.data.tags["opusclip.checkpoint.last"] == last
    names = {
        Path(a.path).name for a in client.list_artifacts(tracker.run_id, f"checkpoints/{last}")
    }
    assert names == {"weights.safetensors", "state.pt", "metadata.json"}


def test_checkpoints_of_one_step_do_not_replace_each_other(
    mlflow_only: TrackingConfig, client: MlflowClient
) -> None:
    """A second checkpoint at the same epoch and step gets a name of its own."""
    model = torch.nn.Linear(2, 1)
    with ExperimentTracker(mlflow_only) as tracker:
        names = [tracker.save_checkpoint(model, None, np.int64(7)) for _ in range(2)]
        with pytest.raises(TypeError, match="scheduler or an epoch"):
            tracker.save_checkpoint(model, None, "x")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="Module"):
            tracker.save_checkpoint(3)  # type: ignore[arg-type]
    assert names == ["epoch_0007-step_000000", "epoch_0007-step_000000-2"]
    assert len(client.list_artifacts(tracker.run_id, "checkpoints")) == 2


def test_wandb_refers_to_the_checkpoint_in_mlflow(
    tmp_path: Path, config: TrackingConfig, client: MlflowClient
) -> None:
    """The W&B artifact points at MLflow's files and makes no second copy."""
    from opusclip_mlops import wandb_log

    with ExperimentTracker(config) as tracker:
        name = tracker.save_checkpoint(torch.nn.Linear(2, 1), metrics={"val_loss": 0.2})
    root = client.get_run(tracker.run_id).info.artifact_uri
    [log] = wandb_log.logs_of(tmp_path, tracker.local_id)
    [artifact] = [r.artifact for r in wandb_log.read_records(log) if r.HasField("artifact")]
    refs = {entry.path: entry.ref for entry in artifact.manifest.contents}
    assert set(refs) == {"weights.safetensors", "state.pt"}
    assert refs["state.pt"] == f"file://{root}/checkpoints/{name}/state.pt"
    assert "best" in artifact.aliases


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExperimentTracker]:
    """A tracker into which nothing was logged."""
    folder = tmp_path_factory.mktemp("empty")
    config = TrackingConfig(
        tracking_uri=store(folder),
        journal_dir=str(folder / "journal"),
        use_wandb=False,
        use_tensorboard=False,
    )
    with ExperimentTracker(config) as tracker:
        yield tracker


@pytest.mark.parametrize("value", ["0.1", None, [0.1], np.ones(1), torch.ones(1), 1j])
def test_a_value_that_is_no_number_raises_in_the_callers_line(
    empty: ExperimentTracker, value: Any
) -> None:
    """TypeError names the key, and nothing of the call is logged."""
    with pytest.raises(TypeError, match="'loss'"):
        empty.log_metrics({"loss": value})
    assert empty.step == -1


def test_wrong_use_raises_at_once(mlflow_only: TrackingConfig) -> None:
    """Bad keys, steps, statuses, monitors and calls after close() are told to the caller."""
    tracker = ExperimentTracker(mlflow_only)
    with pytest.raises(RecordError, match="a//b"):
        tracker.log_metrics({"a//b": 1.0})
    with pytest.raises(TypeError, match="whole"):
        tracker.log_metrics({"a": 1.0}, step=1.5)  # type: ignore[arg-type]
    with pytest.raises(RecordError, match="monitor"):
        tracker.save_checkpoint(torch.nn.Linear(1, 1), metrics={"a": 1.0}, monitor="b")
    with pytest.raises(RecordError, match="status"):
        tracker.close("DONE")
    tracker.close()
    tracker.close()
    for call in (
        lambda: tracker.log_metrics({"a": 1.0}),
        lambda: tracker.log_figure(np.zeros((2, 2)), "a"),
        lambda: tracker.log_embedding([[1.0]]),
    ):
        with pytest.raises(OpusclipError, match=r"the tracker is closed: .* after close\(\)"):
            call()


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("no frames"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_an_exception_ends_the_run_truly(
    mlflow_only: TrackingConfig, client: MlflowClient, error: BaseException, status: str
) -> None:
    """Leaving by an exception closes the run with it as the reason."""
    tracker = ExperimentTracker(mlflow_only)
    with pytest.raises(type(error)), tracker:
        raise error
    run = client.get_run(tracker.run_id)
    assert run.info.status == status
    assert run.data.tags["opusclip.end_reason"].startswith(type(error).__name__)


def test_a_run_is_gone_on_with(
    tmp_path: Path, config: TrackingConfig, client: MlflowClient
) -> None:
    """A second tracker on the same run counts steps on, in MLflow and in the same mirrors."""
    with ExperimentTracker(config) as first:
        first.log_metrics({"loss": 1.0}, step=7)
    second_config = TrackingConfig(run_id=first.run_id, tracking_uri=store(tmp_path))
    with ExperimentTracker(second_config) as second:
        second.log_metrics({"loss": 0.5})
    assert second.run_id == first.run_id
    record = points_of_mlflow(client, first.run_id)
    assert [p.step for p in of_training(record)] == [7, 8]
    rows = rows_of_wandb(tmp_path, first.local_id)
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert [row["global_step"] for row in rows if "loss" in row] == [7, 8]
    events = tmp_path / "runs" / "my_experiment" / first.local_id
    assert points_of_tensorboard(events) == narrow(record)
    assert client.get_run(first.run_id).info.status == "FINISHED"


def test_a_run_gone_on_with_while_its_past_still_drains(
    tmp_path: Path, client: MlflowClient
) -> None:
    """The next tracker joins the folder that is being delivered: one run, in order, FINISHED."""
    run_script(
        "import os, signal\n"
        "from opusclip_mlops import ExperimentTracker, TrackingConfig\n"
        "tracker = ExperimentTracker(TrackingConfig(experiment_name='my_experiment'))\n"
        "for i in range(20000): tracker.log_metrics({'loss': i})\n"
        "open('run_id', 'w').write(tracker.run_id)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        tmp_path,
        check=False,
    )
    run_id = (tmp_path / "run_id").read_text()
    with ExperimentTracker(TrackingConfig(run_id=run_id, tracking_uri=store(tmp_path))) as tracker:
        tracker.log_metrics({"loss": 1.0}, step=20000)
    wait_until(lambda: not journals(tmp_path))
    record = points_of_mlflow(client, run_id)
    assert [p.step for p in of_training(record)] == list(range(20001))
    assert client.get_run(run_id).info.status == "FINISHED"
    assert points_of_wandb(tmp_path, tracker.local_id) == record


@pytest.fixture
def fluent(tmp_path: Path) -> Iterator[Any]:
    import mlflow

    mlflow.set_tracking_uri(store(tmp_path))
    mlflow.set_experiment("fluent")
    with mlflow.start_run() as run:
        yield run
    mlflow.set_tracking_uri(None)


def test_an_active_fluent_run_is_adopted_and_left_open(fluent: Any, client: MlflowClient) -> None:
    """The tracker logs into MLflow's active run and does not end it."""
    with ExperimentTracker(TrackingConfig(use_wandb=False)) as tracker:
        tracker.log_metrics({"loss": 0.5})
    assert tracker.run_id == fluent.info.run_id
    assert client.get_run(tracker.run_id).data.metrics == {"loss": 0.5}
    assert client.get_run(tracker.run_id).info.status == "RUNNING"


def run_script(
    code: str, tmp_path: Path, *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "script.py"
    script.write_text(code)
    ours = ("MLFLOW_", "WANDB_", "OPUSCLIP_")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(ours)}
    own = {"MLFLOW_TRACKING_URI": store(tmp_path), "MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env={**kept, **own}, text=True,
        capture_output=True, check=check,
    )  # fmt: skip


@pytest.fixture(scope="module")
def impatient(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A training that logs a point and does not wait for its delivery, and its folder."""
    folder = tmp_path_factory.mktemp("impatient")
    done = run_script(
        "import sys\n"
        "from opusclip_mlops import ExperimentTracker, TrackingConfig\n"
        "with ExperimentTracker(TrackingConfig(use_wandb=False, drain_timeout_s=0)) as tracker:\n"
        "    tracker.log_metrics({'a': 1})\n"
        "heavy = {'mlflow', 'wandb', 'tensorboard', 'torch', 'numpy', 'av', 'PIL', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))\n",
        folder,
    )
    return done, folder


def test_the_training_process_imports_no_backend(
    impatient: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    """A tracker that logs, imports neither MLflow, W&B, TensorBoard, torch nor NumPy."""
    done, _ = impatient
    assert done.stdout == "[]\n"


def test_close_says_what_is_still_on_its_way(
    impatient: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    """At the deadline close() returns, says so in one line a sink, and the shipper finishes."""
    done, folder = impatient
    assert "still on their way to mlflow" in done.stderr
    wait_until(lambda: not journals(folder))
    client = MlflowClient(store(folder))
    experiment = client.get_experiment_by_name("Default")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"a": 1.0})


@pytest.mark.parametrize(
    ("ending", "status", "reason"),
    [
        ("raise ValueError('no frames')", "FAILED", "ValueError: no frames"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "FAILED", "vanished"),
        ("import sys; sys.exit(3)", "FAILED", "SystemExit: 3"),
        ("import sys; sys.exit()", "FINISHED", ""),
        ("pass", "FINISHED", ""),
    ],
)
def test_a_process_that_ends_without_close_does_not_lie(
    tmp_path: Path, client: MlflowClient, ending: str, status: str, reason: str
) -> None:
    """Uncaught exception, kill -9 and plain exit leave the run as it truly ended, and whole."""
    run_script(
        "from opusclip_mlops import ExperimentTracker, TrackingConfig\n"
        "tracker = ExperimentTracker(TrackingConfig(use_wandb=False, experiment_name='e'))\n"
        "for i in range(500): tracker.log_metrics({'a': i})\n"
        f"{ending}\n",
        tmp_path,
        check=False,
    )
    wait_until(lambda: not journals(tmp_path))
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == status
    assert reason in run.data.tags.get("opusclip.end_reason", "")
    assert len(client.get_metric_history(run.info.run_id, "a")) == 500


def test_a_password_in_a_uri_is_never_written_down() -> None:
    """The tracking URI's password reaches the shipper by the environment only."""
    secret = "s3cr3t-pa55"
    config = TrackingConfig(
        tracking_uri=f"http://user:{secret}@127.0.0.1:9", drain_timeout_s=0, use_wandb=False
    )
    tracker = ExperimentTracker(config)
    tracker.log_metrics({"a": 1.0})
    tracker.close()
    folder = tracker._session.folder
    wait_until(lambda: folder.progress("mlflow").faults > 0)
    written = b"".join(p.read_bytes() for p in folder.path.rglob("*") if p.is_file())
    assert b"mlflow" in written
    assert secret.encode() not in written
    end_with_children(tracker._session._guard._process.pid)


def test_a_full_disk_does_not_stop_training(
    mlflow_only: TrackingConfig,
    capsys: pytest.CaptureFixture[str],
    client: MlflowClient,
) -> None:
    """A clip the disk can't take is counted and told at close; all else is delivered."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ExperimentTracker(mlflow_only) as tracker:
        tracker.log_metrics({"loss": 0.5})
        # As a full disk does, but for this process alone: no file may grow beyond 50 kB.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            tracker.log_video(np.zeros((16, 64, 64, 3), np.uint8), "clip")
            tracker.log_metrics({"loss": 0.25})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "1 records could not be kept" in capsys.readouterr().err
    steps = [p.step for p in points_of_mlflow(client, tracker.run_id)]
    assert steps == [0, 1]


def test_the_public_names_are_there() -> None:
    """Every name in __all__ can be imported from the package."""
    for name in opusclip_mlops.__all__:
        assert getattr(opusclip_mlops, name) is not None
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        opusclip_mlops.nothing_of_this_name  # noqa: B018


def test_a_checkpoint_names_the_last_dataset_of_each_use(mlflow_only: TrackingConfig) -> None:
    """What is logged for an evaluation does not become what was trained on."""
    with ExperimentTracker(mlflow_only) as tracker:
        for digest, context in [
            ("t1", "training"),
            ("e1", "evaluation"),
            ("t2", "Train"),
            ("e2", "val"),
            ("c1", "calibration"),
        ]:
            tracker.log_dataset(name="films", digest=digest, source="/films", context=context)
        tracker.save_checkpoint(torch.nn.Linear(1, 1), step=1)
        run_id = tracker.run_id
    about = load_checkpoint(run_id, which="last", tracking_uri=mlflow_only.tracking_uri).metadata
    assert (about.dataset_digest, about.evaluation_digest) == ("t2", "e2")
    older = {key: one for key, one in about.to_dict().items() if key != "evaluation_digest"}
    assert CheckpointMetadata.from_dict(older) == replace(about, evaluation_digest=None)
