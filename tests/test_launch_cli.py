"""`opusclip launch` and `opusclip launched`: what they print, and their exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.cli import main
from opusclip_mlops.launching.outcomes import Ending
from opusclip_mlops.launching.workplace import PLACE_TAG
from tests.journeys import store
from tests.launching.made import end_of, launch, project


def code_of(*words: str) -> int:
    """The exit code of the command with these words."""
    with pytest.raises(SystemExit) as left:
        main(words)
    return int(left.value.code or 0)


def test_a_dry_run_prints_a_script_and_launches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A whole script, which bash can read, and no run in MLflow."""
    folder = project(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(tmp_path))
    (folder / "b.json").write_text(json.dumps({"kind": "slurm", "chain": 2}))
    words = ("launch", str(folder), "-c", str(folder / "b.json"), "-P", "note=a 'b'")
    assert code_of(*words, "--dry-run") == 0
    script = capfd.readouterr().out
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=opusclip-")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert MlflowClient().search_runs(["0"]) == []
    assert not (folder / ".opusclip").exists()
    assert code_of("launch", str(folder), "-c", str(folder / "b.json"), "-P", "note") == 2
    assert "write it as -P NAME=VALUE" in capfd.readouterr().err
    (folder / "b.json").write_text('{"nodez": 2}')
    assert code_of(*words) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_a_launch_says_how_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a line, or as JSON; with --wait the exit code is the launch's."""
    place, plan = launch(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(plan.tracking_uri))
    MlflowClient().set_tag(plan.run_id, PLACE_TAG, str(place.path))
    place.end(Ending(status="FAILED", reason="rank 1 on vm: exit code 7", exit_code=7))
    assert code_of("launched", plan.run_id) == 0
    line = f"run {plan.run_id}, local: FAILED: rank 1 on vm: exit code 7\n"
    assert capsys.readouterr().out == line
    assert end_of(plan)[0] == "FAILED"
    assert code_of("launched", plan.run_id, "--wait", "--json") == 7
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["exit_code"], found["folder"]) == ("FAILED", 7, str(place.path))
    assert code_of("launched", plan.run_id, "--wait", "--cancel") == 2


def test_asking_after_a_launch_loads_what_it_needs_of_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever cancels one waits for that: MLflow's own way takes twice as long."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(tmp_path))
    code = (
        "import sys\n"
        "from opusclip_mlops.cli import main\n"
        "try:\n"
        "    main(['launched', 'none'])\n"
        "except SystemExit:\n"
        "    print('mlflow' in sys.modules, 'pandas' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n", done.stderr
