"""`mlflow run . -b torchrun`, by its command and by MLflow's own API."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import mlflow
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.exceptions import ExecutionException

from opusclip_mlops.launching import backend
from opusclip_mlops.launching.outcomes import Ending
from opusclip_mlops.launching.submitted import LaunchedRun, launch_of
from opusclip_mlops.launching.workplace import PLACE_TAG, Workplace
from tests.journeys import store, wait_until
from tests.launching.made import full_log, launch, project, said

BIN = Path(sys.prefix) / "bin"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project, and MLflow's store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(tmp_path))
    return project(tmp_path)


def runs() -> list[Any]:
    """All runs of the store, the newest first."""
    return list(MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).search_runs(["0"]))


def test_the_command_waits_and_has_the_ranks_exit_code(here: Path) -> None:
    """Two ranks log to the run that `mlflow run` made and named; one fails with code 7."""
    (here / "b.json").write_text(json.dumps({"processes_per_node": 2, "grace_s": 2}))
    done = subprocess.run(
        [BIN / "mlflow", "run", here, "-b", "torchrun", "-c", here / "b.json",
         "-P", "deed=fail", "-P", "note=it's $HOME", "--run-name", "both"],
        capture_output=True, text=True, check=False, cwd=here.parent,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    [run] = runs()
    assert (run.info.status, run.info.run_name) == ("FAILED", "both")
    assert run.data.tags["mlflow.project.backend"] == "torchrun"
    assert said(here, 1)[:2] == ["2", run.info.run_id]
    assert said(here)[3] == "it's $HOME"
    assert done.stderr.rstrip().endswith("exit code 7")
    assert run.data.tags["opusclip.end_reason"] in done.stderr


def test_ctrl_c_ends_the_ranks_and_says_so(here: Path) -> None:
    """The run is KILLED once the command has ended, and no rank is left."""
    command = subprocess.Popen(
        [BIN / "mlflow", "run", here, "-b", "torchrun", "-c", '{"grace_s": 2}',
         "-P", "deed=wait"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: said(here))
    command.send_signal(signal.SIGINT)
    _, told = command.communicate(timeout=240)
    assert command.returncode == 143
    [run] = runs()
    assert run.info.status == "KILLED"
    assert f"stopping run {run.info.run_id}" in told
    assert "Traceback" not in told


def launched(here: Path, config: dict[str, Any], **named: Any) -> Any:
    """Launch by MLflow's API."""
    given = {"backend": "torchrun", "backend_config": config, **named}
    return mlflow.projects.run(str(here), experiment_id="0", **given)


def test_by_the_api_it_is_a_run_that_can_be_asked_and_cancelled(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is under way when the call returns; a line and a tag say where, so that others can ask."""
    run = launched(here, {"grace_s": 2}, parameters={"deed": "wait"}, synchronous=False)
    wait_until(lambda: said(here))
    place = Workplace(Path(runs()[0].data.tags[PLACE_TAG]))
    how = f"opusclip launched {run.run_id} says how it is"
    assert f"run {run.run_id}: here, in {place.path}; {how}\n" in capsys.readouterr().err
    other = LaunchedRun(place, launch_of(place))
    assert (run.get_status(), other.get_status()) == ("RUNNING", "RUNNING")
    other.cancel()
    assert (run.get_status(), runs()[0].info.status) == ("KILLED", "KILLED")
    run.cancel()
    assert not run.wait()


def test_another_programs_command_is_none_of_ours(here: Path) -> None:
    """Its exit code stays its own, and it does not wait for what it did not wait for."""

    @click.command()
    def theirs() -> None:
        with pytest.raises(ExecutionException, match="nothing was launched"):
            launched(here, {"dry_run": True})
        print("went on")

    done = CliRunner().invoke(theirs)
    assert (done.exit_code, done.output) == (0, "went on\n")


@pytest.mark.parametrize(
    ("config", "named", "words"),
    [
        ({"nodez": 1}, {}, "unknown key 'nodez'"),
        ({"kind": "slurm", "folder": "/proc/x"}, {}, "the launch's folder /proc/x/"),
        ({}, {"env_manager": "conda"}, "--env-manager conda"),
        ({}, {"docker_args": {"gpus": "all"}}, "docker arguments"),
        ({}, {"entry_point": "shell"}, "torchrun starts"),
        ({"dry_run": True}, {}, "dry_run: nothing was launched; it would be\nenv "),
        ({"pass_env": ["NO_SUCH"]}, {}, "pass_env names NO_SUCH"),
        ({"pass_env": ["NO_SUCH"], "dry_run": True}, {}, "pass_env names NO_SUCH"),
        ({"kind": "slurm", "nodes": 4, "dry_run": True}, {}, "4 nodes cannot share sqlite:"),
        ({"kind": "kubernetes", "image": "i"}, {}, "no pod reaches sqlite:"),
    ],
)
def test_what_cannot_be_launched_is_mlflows_own_error(
    here: Path, config: dict[str, Any], named: dict[str, Any], words: str
) -> None:
    """One that its command prints in a line; a run that was made already says it never started."""
    with pytest.raises(ExecutionException) as caught:
        launched(here, config, **named)
    assert words in str(caught.value)
    for run in runs():
        assert run.info.status == "FAILED"
        assert run.data.tags["opusclip.end_reason"].startswith("never started: ")
    for ended in here.glob(".opusclip/launches/*"):
        assert Workplace(ended).ending() is not None, "a job that was taken finds that it is over"
    assert bool(runs()) == words.startswith("the ")


@pytest.mark.parametrize(
    "ending",
    [
        Ending(status="FINISHED"),
        Ending(status="FAILED", reason="rank 1 on vm: exit code 7", exit_code=7),
    ],
)
def test_the_last_line_of_a_command_that_waits_is_how_it_ended(
    ending: Ending, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when all is well: who waited knows which run to look at."""
    place, plan = launch(tmp_path)
    place.end(ending)
    with pytest.raises(click.exceptions.Exit) as left:
        backend._leave(LaunchedRun(place, launch_of(place)))
    assert left.value.exit_code == ending.exit_code
    why = f": {ending.reason}" if ending.reason else ""
    assert capsys.readouterr().err == f"run {plan.run_id} {ending.status}{why}\n"


def test_a_full_log_hides_no_exit_code_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why it failed cannot be printed: who started the command sees that it did."""
    place, _ = launch(tmp_path)
    place.end(Ending(status="FAILED", reason="rank 1 on vm: exit code 7", exit_code=7))
    full_log(monkeypatch)
    with pytest.raises(click.exceptions.Exit) as left:
        backend._leave(LaunchedRun(place, launch_of(place)))
    assert left.value.exit_code == 7
