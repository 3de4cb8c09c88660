"""The verbs that launch a project, and ask after a launch: one verb, one call of the library."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from opusclip_mlops.launching.asking_after import Found

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


@click.command()
@click.argument("project", default=".")
@click.option(
    "-c",
    "--config",
    "file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Where and how to launch it, as JSON.",
)
@click.option("-e", "--entry-point", default="main", show_default=True, help="What to launch.")
@click.option("-P", "--param", "params", multiple=True, metavar="NAME=VALUE", help="A parameter.")
@click.option("--experiment", help="The experiment's name; MLflow's default otherwise.")
@click.option("--run-name", help="What the run is called.")
@click.option("--dry-run", is_flag=True, help="Print what would be run or submitted, no more.")
def launch(
    project: str,
    file: Path,
    entry_point: str,
    params: tuple[str, ...],
    experiment: str | None,
    run_name: str | None,
    dry_run: bool,
) -> None:
    """Launch an MLflow PROJECT by torchrun: here, by Slurm, or on Kubernetes.

    It is what `mlflow run PROJECT -b torchrun -c FILE` does, and can print the script or manifest.
    """
    from opusclip_mlops.launching import asking_after

    named = [one.partition("=") for one in params]
    if wrong := [name for name, equals, _ in named if not equals]:
        raise click.UsageError(f"-P {wrong[0]}: write it as -P NAME=VALUE")
    asking_after.launch(
        project,
        asking_after.config_in(file, dry_run=dry_run),
        entry_point=entry_point,
        params={name: value for name, _, value in named},
        experiment=experiment,
        run_name=run_name,
    )


@click.command()
@click.argument("run")
@click.option("--wait", is_flag=True, help="Wait for its end, and have its exit code.")
@click.option("--cancel", is_flag=True, help="End it, and tell MLflow.")
@_JSON
def launched(run: str, wait: bool, cancel: bool, as_json: bool) -> None:
    """Say how a launch is, and tell MLflow of its end where nobody has.

    RUN is an MLflow run id, a run name or a unique beginning of one.
    """
    from opusclip_mlops.lean_mlflow import load_mlflow

    if wait and cancel:
        raise click.UsageError("--wait and --cancel exclude each other")
    load_mlflow()
    from opusclip_mlops.launching import asking_after

    found = asking_after.launched(run, wait=wait, cancel=cancel)
    click.echo(json.dumps(vars(found), indent=2) if as_json else _line(found))
    sys.exit(found.exit_code if wait else 0)


def _line(found: "Found") -> str:
    jobs = f", {found.kind} {', '.join(found.jobs)}" if found.jobs else f", {found.kind}"
    reason = f": {found.reason}" if found.reason else ""
    return f"run {found.run_id}{jobs}: {found.status}{reason}"


VERBS = (launch, launched)
"""All of them, for the command."""
