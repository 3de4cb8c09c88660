import gc
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

pytest_plugins = ["tests.browser", "tests.object_store", "tests.receivers"]

_DRAWING = Path(tempfile.gettempdir()) / f"matplotlib-of-tests-{os.geteuid()}"
_OURS = ("MLFLOW_", "WANDB_", "OPUSCLIP_")
# Shippers give way to all else: on a machine full of tests a close() waits long for them. What is
# logged once an interval would depend on how long a run takes there.
_PATIENT = {"OPUSCLIP_DRAIN_TIMEOUT_S": "240", "OPUSCLIP_PROFILE_INTERVAL_S": "3600"}

# MLflow keeps every store open that a process has ever asked: hundreds, in one of the tests' own.
_FILES, _MOST_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)
if 0 <= _FILES < 16384:
    may = 16384 if _MOST_FILES < 0 else min(_MOST_FILES, 16384)
    resource.setrlimit(resource.RLIMIT_NOFILE, (may, _MOST_FILES))

# Some machines keep Python from it; then each process that a test starts compiles what it imports.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Minutes each: begun first, they keep no process busy when the others are done.
_LONGEST = (
    "deploy/test_topology", "projects/test_models", "test_checkpoint_uploads",
    "monitoring/test_serving", "server/test_auth", "test_tracker", "sinks/test_wandb_online",
    "test_mirror_online", "test_operating", "faults/test_server_faults", "test_saving",
    "faults/test_wandb_faults",
    "faults/test_shipper_killed", "projects/test_train", "faults/test_ends", "faults/test_parallel",
    "test_promotion_races", "test_shipper", "faults/test_disk_full", "run_history/test_history",
    "test_replay", "projects/test_evaluate", "sinks/test_tensorboard", "test_verifying",
    "test_s3", "test_wall_browser", "test_descent", "metrics/test_distribution",
    "run_history/test_sqlite", "faults/test_trainer_killed", "test_gated", "test_mirroring",
    "test_mirror_scale", "test_registry_ui", "test_smoke", "test_end_to_end", "test_wandb_server",
    "server/test_differential", "server/test_opening", "server/test_announced", "server/test_guard",
    "test_guard_ui", "server/test_tracking", "server/test_decision_routes",
)  # fmt: skip


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What the tests import is never garbage: to look through it takes a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they come."""
    tests = Path(__file__).parent
    order = {tests / f"{name}.py": rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in a folder of its own, with nobody's settings or keys."""
    for name in list(os.environ):
        if name.startswith(_OURS):
            monkeypatch.delenv(name)
    for name, value in _PATIENT.items():
        monkeypatch.setenv(name, value)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    # Made anew it takes seconds of every process that draws or scores.
    monkeypatch.setenv("MPLCONFIGDIR", str(_DRAWING))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def _nothing_of_another_file() -> Iterator[None]:
    """What libraries keep goes: W&B's client its first server and key, MLflow its experiment.

    `mlflow.set_experiment` puts that into the environment, where what a file's tests share would
    find it before any test begins.
    """
    for name in [one for one in os.environ if one.startswith(_OURS)]:
        del os.environ[name]
    os.environ.update(_PATIENT)
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()
    if hasattr(sys.modules.get("mlflow"), "set_tracking_uri"):
        sys.modules["mlflow"].set_tracking_uri(None)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs the command: its exit code and what it printed, on stderr where nothing else."""

    def run(*line: str) -> tuple[int, str]:
        # Not above: most tests need no command, and each worker would load it.
        from opusclip_mlops.cli import main

        with pytest.raises(SystemExit) as ended:
            main(line)
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out or printed.err

    return run
