import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from opusclip_mlops.folder import CONTROL, RunFolder
from opusclip_mlops.launch import start_shipper
from opusclip_mlops.records import RunStarted
from opusclip_mlops.sessions import process_started_s
from opusclip_mlops.shipper import end_with_children
from tests.journeys import LOCAL_ID, append, end, make_run, store, wait_until
from tests.reading import points_of_mlflow, points_of_tensorboard
from tests.sinks.sink_contract import expected, metrics


def client(tmp_path: Path) -> MlflowClient:
    return MlflowClient(store(tmp_path))


def only_run(tmp_path: Path):
    experiment = client(tmp_path).get_experiment_by_name("films")
    assert experiment is not None
    [run] = client(tmp_path).search_runs([experiment.experiment_id])
    return run


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path)


@pytest.fixture
def shipper(folder: RunFolder) -> Iterator[subprocess.Popen[bytes]]:
    process = start_shipper(folder)
    yield process
    if process.poll() is None:
        end_with_children(process.pid)
    process.wait()


def sink_process(shipper: subprocess.Popen[bytes]) -> psutil.Process:
    found: list[psutil.Process] = []

    def has_started() -> bool:
        found[:] = psutil.Process(shipper.pid).children()
        return bool(found)

    wait_until(has_started)
    return found[0]


def test_it_delivers_and_removes_the_folder(
    tmp_path: Path, folder: RunFolder, shipper: subprocess.Popen[bytes]
) -> None:
    """Once the run has ended and every sink has everything, nothing is left behind."""
    append(folder, logged := metrics(10))
    end(folder)
    assert shipper.wait(timeout=90) == 0
    assert not folder.path.exists()
    points = points_of_mlflow(client(tmp_path), only_run(tmp_path).info.run_id)
    assert points == expected(logged, narrow=False)


def test_a_killed_sink_is_started_again(
    tmp_path: Path, folder: RunFolder, shipper: subprocess.Popen[bytes]
) -> None:
    """Kill -9 of a sink's process loses and doubles nothing."""
    append(folder, first := metrics(10))
    wait_until(lambda: folder.progress("mlflow").records > 5)
    sink_process(shipper).kill()
    append(folder, more := metrics(10, first=10))
    end(folder)
    assert shipper.wait(timeout=90) == 0
    points = points_of_mlflow(client(tmp_path), only_run(tmp_path).info.run_id)
    assert points == expected(first + more, narrow=False)


def test_two_supervisors_never_ship_at_once(
    tmp_path: Path, folder: RunFolder, shipper: subprocess.Popen[bytes]
) -> None:
    """A second one ends while the first lives, and takes over when it is gone."""
    first_sink = sink_process(shipper)
    assert start_shipper(folder).wait(timeout=90) == 0
    assert shipper.poll() is None
    for process in (first_sink, psutil.Process(shipper.pid)):
        process.kill()
    second = start_shipper(folder)
    append(folder, logged := metrics(10))
    end(folder)
    assert second.wait(timeout=90) == 0
    points = points_of_mlflow(client(tmp_path), only_run(tmp_path).info.run_id)
    assert points == expected(logged, narrow=False)


def test_a_stopped_sink_is_replaced(
    tmp_path: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink's process that somebody stopped is killed and started again."""
    monkeypatch.setenv("OPUSCLIP_HUNG_S", "1")
    shipper = start_shipper(folder)
    stopped = sink_process(shipper)
    stopped.suspend()
    append(folder, logged := metrics(10))
    end(folder)
    assert shipper.wait(timeout=90) == 0
    assert not stopped.is_running()
    points = points_of_mlflow(client(tmp_path), only_run(tmp_path).info.run_id)
    assert points == expected(logged, narrow=False)


def test_sinks_that_outlive_their_supervisor_double_nothing(tmp_path: Path) -> None:
    """With the supervisor alone killed, its sinks and those of the next never write at once."""
    folder = make_run(tmp_path, ["mlflow", "tensorboard"])
    append(folder, first := metrics(3000))
    shipper = start_shipper(folder)
    wait_until(lambda: folder.progress("tensorboard").records > 5)
    left = psutil.Process(shipper.pid).children()
    shipper.kill()
    shipper.wait()
    second = start_shipper(folder)
    append(folder, more := metrics(300, first=3000))
    end(folder)
    assert second.wait(timeout=120) == 0
    psutil.wait_procs(left, timeout=30)
    events = tmp_path / "runs" / "films" / LOCAL_ID
    assert points_of_tensorboard(events) == expected(first + more, narrow=True)
    points = points_of_mlflow(client(tmp_path), only_run(tmp_path).info.run_id)
    assert points == expected(first + more, narrow=False)


def test_runs_that_begin_at_once_make_a_new_store_once(tmp_path: Path) -> None:
    """Several sinks that find a database file without tables do not break it for good."""
    uri = f"sqlite:///{tmp_path}/new.db"
    folders = [make_run(tmp_path, name=char * 32, tracking_uri=uri) for char in "abc"]
    for folder in folders:
        append(folder, metrics(5))
        end(folder)
    shippers = [start_shipper(folder) for folder in folders]
    assert [shipper.wait(timeout=120) for shipper in shippers] == [0, 0, 0]
    assert not any(folder.path.exists() for folder in folders)
    experiment = MlflowClient(uri).get_experiment_by_name("films")
    assert experiment is not None
    assert len(MlflowClient(uri).search_runs([experiment.experiment_id])) == 3


def test_a_process_that_vanished_has_its_run_closed(tmp_path: Path) -> None:
    """Kill -9 of the trainer leaves the run FAILED, with a reason that names the process."""
    folder = make_run(tmp_path)
    code = "import os; input(); os.kill(os.getpid(), 9)"
    gone = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    started_s = process_started_s(gone.pid)
    start = RunStarted("s2", socket.gethostname(), gone.pid, started_s, 0)
    append(folder, [start, *metrics(3)], journal="s2" + CONTROL)
    end(folder)
    shipper = start_shipper(folder)
    wait_until(lambda: folder.progress("mlflow").records > 3)
    os.kill(gone.pid, signal.SIGKILL)
    gone.wait()
    assert shipper.wait(timeout=90) == 0
    run = only_run(tmp_path)
    assert run.info.status == "FAILED"
    assert f"process {gone.pid} " in run.data.tags["opusclip.end_reason"]
    assert run.data.tags["opusclip.dropped"] == "0"


def test_a_fault_of_the_machine_only_delays(tmp_path: Path) -> None:
    """A supervisor that can't start its sinks for a while tries again, and says why in its log."""
    away = tmp_path / "away"
    away.mkdir()
    folder = make_run(tmp_path, cwd=str(away))
    append(folder, logged := metrics(10))
    shipper = start_shipper(folder)
    away.rmdir()
    wait_until(lambda: "supervisor: " in (folder.path / "shipper.log").read_text())
    away.mkdir()
    end(folder)
    assert shipper.wait(timeout=120) == 0
    points = points_of_mlflow(client(tmp_path), only_run(tmp_path).info.run_id)
    assert points == expected(logged, narrow=False)


def test_refused_records_keep_the_folder(tmp_path: Path) -> None:
    """A run with refused records stays on disk, so that they can be looked at."""
    folder = make_run(tmp_path, run_id="f" * 32, name="f" * 32)
    append(folder, metrics(1))
    end(folder)
    client(tmp_path).create_experiment("films")
    assert start_shipper(folder).wait(timeout=90) == 0
    assert folder.rejected.read_text().count("\n") == 1


def test_the_supervisor_stays_small(folder: RunFolder, shipper: subprocess.Popen[bytes]) -> None:
    """It imports no backend: at most 40 MB."""
    sink_process(shipper)
    assert psutil.Process(shipper.pid).memory_info().rss < 40e6
    end(folder)


def test_the_shipper_yields_to_training(shipper: subprocess.Popen[bytes]) -> None:
    """The supervisor and its sinks run at a lower priority."""
    wait_until(lambda: psutil.Process(shipper.pid).nice() == 10)
    assert psutil.Process(sink_process(shipper).pid).nice() == 10
