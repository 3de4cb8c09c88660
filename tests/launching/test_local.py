"""A launch on this machine: real torchrun, real ranks, and each way to end."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest
from mlflow import MlflowClient

from opusclip_mlops.launching import local
from opusclip_mlops.launching.local import start_supervisor
from opusclip_mlops.launching.outcomes import Ending
from opusclip_mlops.launching.submitted import LaunchedRun, launch_of
from opusclip_mlops.launching.workplace import Workplace
from tests.journeys import wait_until
from tests.launching.made import (
    end_of,
    full_disk,
    full_log,
    launch,
    said,
    without_database,
)


def runs(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet buried does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def rank_pid(place: Workplace, attempt: int = 0) -> int:
    """The process of a rank that has begun."""
    folder = Path(place.plan().cwd)
    wait_until(lambda: said(folder, 0, attempt))
    return int(said(folder, 0, attempt)[2])


def test_a_launch_ends_with_its_launcher(tmp_path: Path) -> None:
    """The launcher is killed with SIGKILL: no rank is left behind, and MLflow says KILLED."""
    place, plan = launch(tmp_path, "wait")
    code = (
        "import pathlib, time\n"
        "from opusclip_mlops.launching.local import start_supervisor\n"
        "from opusclip_mlops.launching.workplace import Workplace\n"
        f"place = Workplace(pathlib.Path({str(place.path)!r}))\n"
        "start_supervisor(place, place.plan(), tied=True, secrets={})\n"
        "time.sleep(600)\n"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code])
    pid = rank_pid(place)
    launcher.kill()
    launcher.wait()
    wait_until(lambda: end_of(plan)[0] != "RUNNING")
    assert end_of(plan) == ("KILLED", "cancelled (SIGTERM)")
    assert not runs(pid)


def test_ranks_do_not_outlive_an_agent_that_is_killed(tmp_path: Path) -> None:
    """Not those that torchrun started anew, in the same run, after one had failed, either.

    Each has a session of its own, and nothing but the supervisor knows them then.
    """
    place, plan = launch(tmp_path, "fail once", restarts=1)
    supervisor = start_supervisor(place, plan, tied=False, secrets={})
    pid = rank_pid(place, attempt=1)
    assert said(Path(plan.cwd), 0, 1)[1] == plan.run_id
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    assert supervisor.wait(timeout=240) == 137
    log = (place.path / "local.log").stat()
    assert (log.st_mode & 0o777, log.st_size > 0) == (0o600, True)
    assert place.ending() == Ending(status="FAILED", reason="torchrun: SIGKILL", exit_code=137)
    assert not runs(pid)


@pytest.mark.parametrize("limit", ["00:00:04"])
def test_time_that_is_over_ends_it(tmp_path: Path, limit: str) -> None:
    """The same time limit as a job of Slurm has."""
    place, plan = launch(tmp_path, "wait", time_limit=limit)
    supervisor = start_supervisor(place, plan, tied=False, secrets={})
    assert supervisor.wait(timeout=240) == 143
    assert end_of(plan) == ("KILLED", f"the time limit of {limit} was over")


@pytest.fixture
def unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process keeps its own ways with signals."""
    monkeypatch.setattr(local.Supervisor, "listen", lambda _: None)


@pytest.mark.usefixtures("unheard")
@pytest.mark.parametrize(
    "ending",
    [
        Ending(status="FINISHED"),
        Ending(status="FAILED", reason="rank 1 on vm: exit code 7", exit_code=7),
        Ending(status="KILLED", reason="cancelled (SIGTERM)", exit_code=143),
    ],
    ids=["finished", "failed", "cancelled"],
)
def test_a_full_disk_hides_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: Ending
) -> None:
    """MLflow is told, the exit code is the launch's, and who asks later hears the same."""
    place, plan = launch(tmp_path)
    place.begin_attempt(f"{socket.gethostname()}:1")
    monkeypatch.setattr(local.Supervisor, "run", lambda _: ending)
    with monkeypatch.context() as patch:
        full_disk(patch)
        assert local.main([str(place.path)]) == ending.exit_code
    assert end_of(plan) == (ending.status, ending.reason)
    later = LaunchedRun(place, launch_of(place))
    assert later.wait() == ending.is_good
    assert later.ending == ending
    assert end_of(plan) == (ending.status, ending.reason)


@pytest.mark.usefixtures("unheard")
def test_what_mlflow_cannot_be_told_hides_no_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its database cannot be opened, and the log has no room for that either."""
    place, plan = launch(tmp_path)
    place.write_plan(without_database(plan, monkeypatch))
    ending = Ending(status="FAILED", reason="rank 1 on vm: exit code 7", exit_code=7)
    monkeypatch.setattr(local.Supervisor, "run", lambda _: ending)
    full_log(monkeypatch)
    assert local.main([str(place.path)]) == 7
    assert (place.ending(), place.is_told()) == (ending, False)


@pytest.mark.usefixtures("unheard")
def test_torchrun_that_cannot_be_started_has_failed(tmp_path: Path) -> None:
    """Nobody waits for it: MLflow is told all the same."""
    place, plan = launch(tmp_path, python="/no/such/python")
    assert local.main([str(place.path)]) == 1
    status, reason = end_of(plan)
    assert (status, reason.startswith("never started: ")) == ("FAILED", True)
    assert "/no/such/python" in reason
    assert place.is_told()


DDP = """\
import os, pathlib, signal
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from opusclip_mlops import ExperimentTracker, TrackingConfig

dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(2, 1))
first = dist.get_rank() == 1 and not pathlib.Path("killed").exists()
with ExperimentTracker(TrackingConfig(system_metrics=False)) as tracker:
    for step in range(3):
        loss = model(torch.ones(4, 2)).square().mean()
        loss.backward()
        tracker.log_metrics({"loss": float(loss)}, step)
        if first:
            pathlib.Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
dist.destroy_process_group()
"""


def test_a_program_of_ones_own_is_started_anew_by_restarts(tmp_path: Path) -> None:
    """DDP by PyTorch's own process group: one rank is killed, and all go on in the same run."""
    place, plan = launch(tmp_path, processes_per_node=2, restarts=1, grace_s=20)
    (Path(plan.cwd) / "ddp.py").write_text(DDP)
    place.write_plan(msgspec.structs.replace(plan, program=["ddp.py"]))
    supervisor = start_supervisor(place, place.plan(), tied=False, secrets={})
    assert supervisor.wait(timeout=240) == 0, (place.path / "local.log").read_text()[-2000:]
    assert (Path(plan.cwd) / "killed").exists()
    wait_until(lambda: end_of(plan)[0] == "FINISHED")
    client = MlflowClient(plan.tracking_uri)
    assert [one.info.run_id for one in client.search_runs(["0"])] == [plan.run_id]
    assert [one.step for one in client.get_metric_history(plan.run_id, "loss")][-3:] == [0, 1, 2]
