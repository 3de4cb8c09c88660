"""`mlflow run . -b torchrun -c backend.json`: MLflow's project backend, for every place."""

from collections.abc import Mapping
from typing import Any

import click
from mlflow import MlflowClient
from mlflow.exceptions import ExecutionException, MlflowException
from mlflow.projects import utils as names
from mlflow.projects.backend.abstract_backend import AbstractBackend

from opusclip_mlops.errors import ConfigError, OpusclipError
from opusclip_mlops.launching import starting
from opusclip_mlops.launching.ending import settle
from opusclip_mlops.launching.entries import Entry, entry_of
from opusclip_mlops.launching.outcomes import Ending
from opusclip_mlops.launching.settings import LaunchConfig, checked
from opusclip_mlops.launching.submitted import LaunchedRun
from opusclip_mlops.launching.telling import say
from opusclip_mlops.launching.workplace import PLACE_TAG, Plan, Workplace, folder_for
from opusclip_mlops.redaction import one_line

_MLFLOWS_OWN = (
    names.PROJECT_BUILD_IMAGE,
    names.PROJECT_DOCKER_ARGS,
    names.PROJECT_DOCKER_AUTH,
    names.PROJECT_ENV_MANAGER,
    names.PROJECT_STORAGE_DIR,
    names.PROJECT_SYNCHRONOUS,
)
_NO_RUN = "0" * 32
_COMMANDS = ("mlflow.cli", "opusclip_mlops.launch_cli")


class TorchrunBackend(AbstractBackend):
    """Launches an entry point by torchrun, where the configuration says."""

    def run(
        self,
        project_uri: str,
        entry_point: str,
        params: Mapping[str, str] | None,
        version: str | None,
        backend_config: Mapping[str, Any] | str | None,
        tracking_uri: str,
        experiment_id: str,
    ) -> LaunchedRun:
        """Launch it. The command `mlflow run` then waits for its end, where it is to wait.

        Raises:
            ExecutionException: it cannot be launched, and why; or it was a dry run, and what
                would have been launched.
        """
        try:
            config, given = _read(backend_config)
            entry = entry_of(
                project_uri,
                entry_point,
                params or {},
                version,
                tracking_uri=tracking_uri,
                experiment_id=str(experiment_id),
            )
            _check(config, given, entry)
            program = entry.program(inputs=None)
            plan = entry.plan(config, _NO_RUN, program)
            starting.check(plan)
            if config.dry_run:
                _show(starting.rendered(plan))
            is_waited_for = bool(given.get(names.PROJECT_SYNCHRONOUS))
            return _launched(entry, config, program, is_waited_for=is_waited_for)
        except (OpusclipError, OSError) as error:
            raise ExecutionException(str(error)) from None


def _read(given: Mapping[str, Any] | str | None) -> tuple[LaunchConfig, dict[str, Any]]:
    """The configuration, and what MLflow itself has put into it."""
    if isinstance(given, str):
        raise ConfigError(f"the backend's config {given!r:.80} is no file: name one in .json")
    values = dict(given or {})
    own = {name: values.pop(name) for name in _MLFLOWS_OWN if name in values}
    return checked(values), own


def _check(config: LaunchConfig, given: Mapping[str, Any], entry: Entry) -> None:
    manager = given.get(names.PROJECT_ENV_MANAGER)
    if manager not in (None, "local"):
        raise ConfigError(
            f"--env-manager {manager}: torchrun starts the interpreter in use, or the one that "
            "python names in the backend's config"
        )
    if given.get(names.PROJECT_DOCKER_ARGS):
        raise ConfigError("docker arguments are for MLflow's own backends")
    if config.kind == "slurm" and entry.is_fetched and not config.dry_run:
        raise ConfigError(
            "Slurm's nodes do not see a project that MLflow fetches for this machine: clone it "
            "into a folder they share, and run it from there"
        )


def _launched(
    entry: Entry, config: LaunchConfig, program: list[str], *, is_waited_for: bool
) -> LaunchedRun:
    context = _command()
    waits = config.is_waited_for if context else is_waited_for
    run_id = entry.make_run()
    place = Workplace(folder_for(config, entry.cwd, run_id))
    plan = entry.plan(config, run_id, program)
    try:
        place.create(plan)
        if config.kind != "kubernetes":
            plan = entry.plan(config, run_id, entry.program(inputs=place.path / "inputs"))
            place.write_plan(plan)
        MlflowClient().set_tag(run_id, PLACE_TAG, str(place.path))
        watched = starting.start(place, plan, tied=waits, secrets=entry.secrets)
    except (OpusclipError, MlflowException, OSError, KeyboardInterrupt) as error:
        _never_started(place, plan, error)
        raise
    launched = LaunchedRun(place, watched, last="SCHEDULED")
    _tell(plan, place)
    if context is not None and waits:
        # MLflow names and tags the run first: then the command has nothing left to do but wait.
        context.call_on_close(lambda: _leave(launched))
    return launched


def _never_started(place: Workplace, plan: Plan, error: BaseException) -> None:
    """First in the folder: a job that was submitted all the same finds there that it is over."""
    why = one_line(f"never started: {str(error) or 'interrupted'}")
    ending = Ending(status="FAILED", reason=why, exit_code=1)
    place.end(ending)
    settle(plan, ending, delivery_wait_s=0)


def _command() -> click.Context | None:
    """The context of `mlflow run` or `opusclip launch`; another program's is none of ours."""
    context = click.get_current_context(silent=True)
    callback = getattr(context and context.command, "callback", None)
    return context if getattr(callback, "__module__", None) in _COMMANDS else None


def _leave(launched: LaunchedRun) -> None:
    """End the command as the launch ends: its exit code is that of the rank that failed first."""
    try:
        _wait(launched)
    except OpusclipError as error:
        say(f"opusclip: {error}")
    ending = launched.ending
    if ending is None:
        raise click.exceptions.Exit(1)
    reason = f": {ending.reason}" if ending.reason else ""
    say(f"run {launched.run_id} {ending.status}{reason}")
    raise click.exceptions.Exit(ending.exit_code)


def _wait(launched: LaunchedRun) -> None:
    try:
        launched.wait()
    except KeyboardInterrupt:
        say(f"stopping run {launched.run_id}")
        launched.cancel()


def _tell(plan: Plan, place: Workplace) -> None:
    """Which run it is, where it lies, and how to ask after it: nobody may wait for its end."""
    submitted = place.submitted()
    jobs = ", ".join(submitted.jobs) if submitted else ""
    where = {"slurm": f"jobs {jobs}", "kubernetes": f"Job {jobs}"}.get(plan.config.kind, "here")
    how = f"opusclip launched {plan.run_id} says how it is"
    say(f"run {plan.run_id}: {where}, in {place.path}; {how}")


def _show(text: str) -> None:
    """Print what a dry run would have launched; there is no run that could be returned."""
    context = _command()
    if context is None:
        raise ExecutionException(f"dry_run: nothing was launched; it would be\n{text}")
    click.echo(text, nl=False)
    context.exit(0)
