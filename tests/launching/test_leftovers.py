"""What still runs of a launch here, when nothing that started it does."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from opusclip_mlops.launching import commands, leftovers
from opusclip_mlops.launching.submitted import LaunchedRun, launch_of
from opusclip_mlops.launching.workplace import Plan, Workplace
from tests.journeys import wait_until
from tests.launching.made import end_of, gone_supervisor, launch, said


@pytest.fixture
def begun() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Processes that are ended when the test is."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def rank(plan: Plan, *, attempt: int = 0, run_id: str = "") -> "subprocess.Popen[bytes]":
    """A rank as torchrun starts it."""
    own = {
        "TORCHELASTIC_RUN_ID": f"{run_id or plan.run_id}-{attempt}",
        "RANK": "0",
        "WORLD_SIZE": "1",
    }
    return subprocess.Popen(
        [sys.executable, *plan.program],
        cwd=plan.cwd,
        env={**os.environ, **plan.environment, **own},
        start_new_session=True,
    )


def agent(place: Workplace, deed: str) -> "subprocess.Popen[bytes]":
    """What has the command line of torchrun's agent, and says when it is there."""
    words = [commands.AGENT, place.outcome_file(0)]
    code = f"import signal, time\n{deed}\nprint(flush=True)\ntime.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_ranks_that_nobody_watches_still_run_and_can_be_cancelled(
    tmp_path: Path, begun: list["subprocess.Popen[bytes]"]
) -> None:
    """Supervisor and agent were killed: the launch is RUNNING, and MLflow is told of no end."""
    place, plan = launch(tmp_path, "wait")
    gone_supervisor(place)
    for number, run_id in enumerate([plan.run_id, "f" * 32]):
        begun.append(rank(plan, run_id=run_id))
        # Beginning at once, both would say the same.
        wait_until(lambda number=number: said(Path(plan.cwd), attempt=number))
    launched = LaunchedRun(place, launch_of(place))
    assert launched.get_status() == "RUNNING"
    assert (end_of(plan)[0], place.ending()) == ("RUNNING", None)
    launched.cancel()
    assert begun[0].wait(timeout=60) == -signal.SIGTERM
    assert end_of(plan) == ("KILLED", "cancelled")
    assert begun[1].poll() is None, "another launch's rank"


def test_an_agent_that_ends_its_ranks_still_runs(
    tmp_path: Path, begun: list["subprocess.Popen[bytes]"]
) -> None:
    """As it does when its supervisor was killed: ranks have their grace, and no end is told."""
    place, _ = launch(tmp_path)
    gone_supervisor(place)
    begun.append(agent(place, ""))
    assert LaunchedRun(place, launch_of(place)).get_status() == "RUNNING"
    begun[0].kill()
    begun[0].wait()
    assert LaunchedRun(place, launch_of(place)).get_status() == "FAILED"


def test_what_does_not_listen_is_killed_after_its_grace(
    tmp_path: Path, begun: list["subprocess.Popen[bytes]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent is not told a second time: it would leave its ranks. It is waited for."""
    monkeypatch.setattr(leftovers, "AGENT_WAIT_S", 0.0)
    place, _ = launch(tmp_path, grace_s=1)
    deaf = "signal.signal(signal.SIGTERM, lambda *_: open('told', 'w'))"
    monkeypatch.chdir(tmp_path)
    begun.append(agent(place, deaf))
    place.begin_attempt("here:1")
    leftovers.end(place)
    assert begun[0].wait(timeout=60) == -signal.SIGKILL
    assert not (tmp_path / "told").exists()
    begun.append(agent(place, deaf))
    leftovers.end_processes([psutil.Process(begun[1].pid)], grace_s=0.5)
    assert begun[1].wait(timeout=60) == -signal.SIGKILL
    assert (tmp_path / "told").exists()
