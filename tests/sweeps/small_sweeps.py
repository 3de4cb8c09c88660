"""Sweeps of small programs that need no library, and studies of them."""

import sys
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from optuna.trial import TrialState

from opusclip_mlops.sweeps.claims import Claim, Claims
from opusclip_mlops.sweeps.schema import SweepConfig, sweep_of
from opusclip_mlops.sweeps.studies import Study, begin_study
from opusclip_mlops.sweeps.trial_runs import TrialRuns
from tests.journeys import store

LOGS = """
import os, sys, time
given = dict(word[2:].split("=") for word in sys.argv[1:])
with open(os.environ["OPUSCLIP_SWEEP_VALUES"], "a") as file:
    for step in range(int(given.get("steps", 1))):
        print(step, float(given["x"]) / (step + 1), file=file, flush=True)
"""
"""Logs x, x / 2, x / 3 … as a tracker would."""


def config_of(program: str | Path = "train.py", **more: Any) -> SweepConfig:
    """A random sweep over x of 0..1 that wants a small loss."""
    plain: dict[str, Any] = {
        "method": "random",
        "metric": {"name": "loss"},
        "program": str(program),
        "parameters": {"x": {"min": 0.0, "max": 1.0}},
    }
    return sweep_of(plain | more)


def program(folder: Path, text: str = LOGS) -> Path:
    """A program in a file."""
    path = folder / "train.py"
    path.write_text(text)
    return path


def study_of(folder: Path, config: SweepConfig, *, count: int = 3, parent: str = "p") -> Study:
    """A study in a file."""
    place = str(folder / "study.journal")
    return begin_study(place, "s", config, parent_run_id=parent, count=count)


def claims_of(study: Study, **more: Any) -> Claims:
    """One worker's view of it."""
    return Claims(study.storage, study.name, study.config, **more)


def end(claims: Claims, claim: Claim | None, value: float) -> None:
    """End a trial well."""
    assert claim
    assert claims.end(claim, TrialState.COMPLETE, value, "")


def runs_of(folder: Path) -> TrialRuns:
    """The runs of trials below a new run, in a store of this test."""
    client = MlflowClient(store(folder))
    parent = client.create_run("0", run_name="tune")
    return TrialRuns(client, parent.info.run_id, "s")


def python(*words: str) -> list[str]:
    """What starts Python without its libraries."""
    return [sys.executable, "-I", "-S", *words]
