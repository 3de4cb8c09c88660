"""Launching from the command, and asking after a launch that another process began."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from opusclip_mlops.asking import told_in_one_line
from opusclip_mlops.errors import ConfigError, LaunchError, RegistryError
from opusclip_mlops.launching.submitted import LaunchedRun, launch_of
from opusclip_mlops.launching.workplace import LAUNCHES, PLACE_TAG, Workplace
from opusclip_mlops.named_runs import run_called
from opusclip_mlops.patience import asking_briefly, connected
from opusclip_mlops.redaction import one_line


@dataclass(kw_only=True)
class Found:
    """A launch, and how it is.

    Attributes:
        run_id: Its MLflow run.
        kind: "local", "slurm" or "kubernetes".
        jobs: What the scheduler calls it.
        folder: Where its scripts and logs lie.
        status: SCHEDULED, RUNNING, FINISHED, FAILED or KILLED.
        reason: Why it ended.
        exit_code: Of the rank that failed first; 0 while it goes on.
    """

    run_id: str
    kind: str
    jobs: list[str]
    folder: str
    status: str
    reason: str = ""
    exit_code: int = 0


def config_in(file: Path, *, dry_run: bool) -> dict[str, Any]:
    """The configuration in a JSON file.

    Raises:
        ConfigError: it cannot be read, or is no JSON object.
    """
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {one_line(str(error))}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds no JSON object")
    return {**values, "dry_run": True} if dry_run else values


def launch(
    project: str,
    config: dict[str, Any],
    *,
    entry_point: str,
    params: Mapping[str, str],
    experiment: str | None,
    run_name: str | None,
) -> None:
    """Launch a project as `mlflow run -b torchrun` does; a command then waits as the config says.

    Raises:
        LaunchError: it cannot be launched.
    """
    try:
        mlflow.projects.run(
            project,
            entry_point=entry_point,
            parameters=dict(params),
            experiment_name=experiment,
            backend="torchrun",
            backend_config=config,
            run_name=run_name,
            synchronous=False,
        )
    except MlflowException as error:
        raise LaunchError(one_line(str(error))) from None


def launched(run: str, *, wait: bool = False, cancel: bool = False) -> Found:
    """How a launch is; MLflow is told where it has ended and nobody has said so.

    Raises:
        OpusclipError: no run is called so, it was not launched by us, its folder is not here, or
            where it runs does not answer.
    """
    found = _called(run)
    folder = found.data.tags.get(PLACE_TAG)
    if folder is None:
        raise ConfigError(f"run {found.info.run_id} was not launched by -b torchrun")
    place = Workplace(Path(folder))
    submitted = LaunchedRun(place, launch_of(place))
    if cancel:
        submitted.cancel()
    elif wait:
        submitted.wait()
    return _found(place, submitted)


def _called(run: str) -> Run:
    try:
        with asking_briefly(), told_in_one_line(f"cannot find run {run}"):
            return run_called(connected(), run)
    except RegistryError as error:
        raise RegistryError(f"{error}{_end_here(run)}") from error


def _end_here(run: str) -> str:
    """What a folder of this project says of a run's end, for who cannot ask MLflow."""
    # An id is; what leads out of the folder is not.
    place = Workplace(Path(LAUNCHES, run)) if run.isalnum() else None
    if place is None or (ending := place.ending()) is None:
        return ""
    return one_line(f"; {place.path} says {ending.status}: {ending.reason}").rstrip(": ")


def _found(place: Workplace, submitted: LaunchedRun) -> Found:
    plan, given = place.plan(), place.submitted()
    status = submitted.get_status()
    ending = submitted.ending
    if ending is not None:
        submitted.wait()
    return Found(
        run_id=plan.run_id,
        kind=plan.config.kind,
        jobs=given.jobs if given and plan.config.kind != "local" else [],
        folder=str(place.path),
        status=status,
        reason=ending.reason if ending else "",
        exit_code=ending.exit_code if ending else 0,
    )
