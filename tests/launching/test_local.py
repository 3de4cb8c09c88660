"""A launch on this machine: real torchrun, real ranks, and each way to end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from opusclip_mlops.launching.local import start_supervisor
from opusclip_mlops.launching.outcomes import Ending
from opusclip_mlops.launching.workplace import Workplace
from tests.journeys import wait_until
from tests.launching.made import end_of, launch, said


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
    assert place.ending() == Ending(status="FAILED", reason="torchrun: SIGKILL", exit_code=137)
    assert not runs(pid)


@pytest.mark.parametrize("limit", ["00:00:04"])
def test_time_that_is_over_ends_it(tmp_path: Path, limit: str) -> None:
    """The same time limit as a job of Slurm has."""
    place, plan = launch(tmp_path, "wait", time_limit=limit)
    supervisor = start_supervisor(place, plan, tied=False, secrets={})
    assert supervisor.wait(timeout=240) == 143
    log = place.path / "local.log"
    assert (log.stat().st_mode & 0o777, log.stat().st_size > 0) == (0o600, True)
    assert end_of(plan) == ("KILLED", f"the time limit of {limit} was over")
