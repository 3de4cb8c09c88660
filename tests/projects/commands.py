"""Starts the training and the evaluation as people do, on a film small enough for a test."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops.video import write_mp4
from tests.journeys import store

_EACH = """
import importlib, json, os, sys, tempfile
from opusclip_mlops.projects import options

command = importlib.import_module(f"opusclip_mlops.projects.{sys.argv[1]}").command

def begin(asked):
    outputs = [tempfile.TemporaryFile() for _ in range(2)]
    if not (pid := os.fork()):
        for number, output in enumerate(outputs, start=1):
            os.dup2(output.fileno(), number)
        os.environ.clear()
        os.environ.update(asked["env"])
        os.chdir(asked["folder"])
        options.start(command, asked["words"])
        sys.exit()
    return asked["words"], pid, outputs

def ended(words, pid, outputs):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for output in outputs:
        output.seek(0)
    return [words, code, *(output.read().decode() for output in outputs)]

begun = [begin(asked) for asked in json.load(sys.stdin)]
print(json.dumps([ended(*one) for one in begun]))
"""

SIZE, FRAMES, FPS = 16, 4, 12.5
CAPTION = "a bright square that wanders"
TINY = {"--size": str(SIZE), "--frames": str(FRAMES), "--epochs": "1"}

_OURS = ("MLFLOW_", "WANDB_", "OPUSCLIP_")


def film(folder: Path, *, count: int = 24) -> Path:
    """A film of a square that wanders, with its caption beside it."""
    frames = np.full((count, 32, 32, 3), 40, np.uint8)
    for index in range(count):
        frames[index, 8:20, index : index + 12] = (230, 180, 90)
    folder.mkdir(exist_ok=True)
    path = folder / "wandering_square.mp4"
    write_mp4(frames, path, fps=FPS)
    path.with_suffix(".txt").write_text(f"{CAPTION}\n")
    return path


def start(
    module: str, folder: Path, options: dict[str, str], **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run an entry point in a folder, against the store of that folder."""
    return subprocess.run(
        [sys.executable, "-m", f"opusclip_mlops.projects.{module}", *words(options)],
        cwd=folder,
        env=environment(folder, variables),
        capture_output=True,
        text=True,
        check=False,
    )


def environment(folder: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """Nobody's settings but these, and the store of a folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {
        **kept,
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": store(folder),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_ERROR_REPORTING": "false",
        **variables,
    }


def start_each(
    module: str, cases: Iterable[tuple[Path, dict[str, str]]], **variables: str
) -> list[subprocess.CompletedProcess[str]]:
    """As `start` for each case, at once, in processes forked from one that has loaded all.

    They wait for their delivery as long as many at once may need on a busy machine.
    """
    variables = {"OPUSCLIP_DRAIN_TIMEOUT_S": "300", **variables}
    asked = [
        {"folder": str(folder), "words": words(options), "env": environment(folder, variables)}
        for folder, options in cases
    ]
    done = subprocess.run(
        [sys.executable, "-c", _EACH, module],
        input=json.dumps(asked),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [subprocess.CompletedProcess(*one) for one in json.loads(done.stdout)]


def words(options: dict[str, str]) -> list[str]:
    """Options as a command line."""
    return [word for pair in options.items() for word in pair]


def the_run(folder: Path, experiment: str = "video-clips") -> Run:
    """The one run of an experiment in the store of a folder."""
    client = MlflowClient(store(folder))
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    [run] = client.search_runs([found.experiment_id])
    return run


def check_refused(
    done: subprocess.CompletedProcess[str], folder: Path, culprit: str, *, name: str = "video-clips"
) -> None:
    """Exit code 2, one line on stderr that names the culprit, and a failed run that does too."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert culprit in line
    run = the_run(folder, name)
    assert run.info.status == "FAILED"
    assert culprit in run.data.tags["opusclip.end_reason"]
