"""An entry point of an MLflow project, as it was asked for."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from git.exc import GitError
from mlflow.exceptions import MlflowException
from mlflow.projects.utils import fetch_and_validate_project, get_or_create_run, load_project

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.launching.commands import program_of
from opusclip_mlops.launching.settings import LaunchConfig
from opusclip_mlops.launching.workplace import Plan
from opusclip_mlops.redaction import one_line, redacted


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What `mlflow run` was called with, and the project it found.

    Attributes:
        uri: The project's folder or Git address.
        name: The entry point.
        params: Its parameters.
        version: A commit or branch of a Git project.
        tracking_uri: Where its run goes.
        experiment_id: The run's experiment.
        cwd: The project's folder on this disk.
        project: What MLflow read there.
    """

    uri: str
    name: str
    params: Mapping[str, str]
    version: str | None
    tracking_uri: str
    experiment_id: str
    cwd: str
    project: Any

    @property
    def is_fetched(self) -> bool:
        """Whether the project was cloned into a folder of this machine's own."""
        return not Path(self.uri).exists() or Path(self.uri).resolve() != Path(self.cwd).resolve()

    @property
    def secrets(self) -> dict[str, str]:
        """What must stand in no file, and goes from environment to environment."""
        is_secret = _shown_uri(self.tracking_uri) is None
        return {"MLFLOW_TRACKING_URI": self.tracking_uri} if is_secret else {}

    def program(self, *, inputs: Path | None) -> list[str]:
        """What torchrun is to start, see `commands.program_of`.

        Args:
            inputs: Where parameters of the type path are fetched to; None leaves them as they are.

        Raises:
            ConfigError: the entry point is no call of python, or a parameter is missing or wrong.
        """
        if inputs is not None:
            inputs.mkdir(mode=0o700, exist_ok=True)
        try:
            entry = self.project.get_entry_point(self.name)
            place = None if inputs is None else str(inputs)
            quoted = entry.compute_parameters(dict(self.params), place)
        except MlflowException as error:
            raise ConfigError(one_line(str(error))) from None
        # MLflow quotes for a shell; none reads them here.
        values, more = ({_bare(k): _bare(v) for k, v in one.items()} for one in quoted)
        return program_of(entry.command, values, more)

    def plan(self, config: LaunchConfig, run_id: str, program: list[str]) -> Plan:
        """What is to be run, for that run."""
        return Plan(
            run_id=run_id,
            experiment_id=self.experiment_id,
            tracking_uri=_shown_uri(self.tracking_uri),
            cwd=self.cwd,
            program=program,
            config=config,
        )

    def make_run(self) -> str:
        """Make the MLflow run that the ranks log to; its id."""
        run = get_or_create_run(
            None, self.uri, self.experiment_id, self.cwd, self.version, self.name, dict(self.params)
        )
        return str(run.info.run_id)


def entry_of(
    uri: str,
    name: str,
    params: Mapping[str, str],
    version: str | None,
    *,
    tracking_uri: str,
    experiment_id: str,
) -> Entry:
    """Find a project, and what is asked for in it.

    Raises:
        ConfigError: there is no such project or entry point, or a parameter is missing.
    """
    try:
        cwd = fetch_and_validate_project(uri, version, name, dict(params))
        project = load_project(cwd)
    except GitError as error:
        why = one_line(str(error), at_most=200)
        raise ConfigError(f"no project in {one_line(uri)}, and no Git address: {why}") from None
    except MlflowException as error:
        raise ConfigError(one_line(str(error))) from None
    return Entry(
        uri=uri,
        name=name,
        params=params,
        version=version,
        tracking_uri=_whole_uri(tracking_uri),
        experiment_id=experiment_id,
        cwd=cwd,
        project=project,
    )


def _bare(quoted: str) -> str:
    return shlex.split(quoted)[0]


def _shown_uri(uri: str) -> str | None:
    return uri if redacted(uri, values=()) == uri else None


def _whole_uri(uri: str) -> str:
    """A store of this disk by its whole path: ranks run in the project's folder."""
    scheme = "sqlite:///"
    if uri.startswith(scheme) and not uri.startswith(f"{scheme}/"):
        return f"{scheme}{Path(uri.removeprefix(scheme)).absolute()}"
    return uri if ":" in uri else str(Path(uri).absolute())
