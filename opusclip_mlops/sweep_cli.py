"""The verb that runs many trials: one verb, one call of the library."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from opusclip_mlops.errors import OpusclipError

if TYPE_CHECKING:
    from opusclip_mlops.sweeps import SweepResult


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--engine",
    type=click.Choice(["optuna", "wandb"]),
    default="optuna",
    show_default=True,
    help="Who searches: wandb needs an account, and W&B's agents start the trials.",
)
@click.option("--count", type=click.IntRange(min=1), help="How many trials; run_cap otherwise.")
@click.option(
    "--workers",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="How many trials run at once on this machine.",
)
@click.option("--resume", metavar="SWEEP", help="Go on with a sweep, in place of FILE.")
@click.option(
    "--storage",
    envvar="OPUSCLIP_SWEEP_STORAGE",
    metavar="PLACE",
    help="For several machines: postgresql://… or grpc://HOST:PORT; a file here otherwise.",
)
@click.option(
    "--experiment",
    envvar="MLFLOW_EXPERIMENT_NAME",
    default="sweeps",
    show_default=True,
    help="Of a new sweep.",
)
@click.option("--register-best", metavar="NAME", help="Register the best trial's checkpoint.")
@click.option("--tracking-uri", help="The MLflow server or store.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def sweep(
    file: Path | None,
    engine: str,
    count: int | None,
    workers: int,
    resume: str | None,
    storage: str | None,
    experiment: str,
    register_best: str | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Run the trials of FILE, a sweep in W&B's own schema, with no account.

    Each trial is a run below the sweep's own. A worker that is killed loses its trial only, and
    that is tried again. The exit code is 1 when no trial ended well, or something is left to do.
    """
    from opusclip_mlops import samples_console, sweeps
    from opusclip_mlops.sweeps.telling import is_well, lines

    if (file is None) == (resume is None):
        raise click.UsageError("give FILE or --resume SWEEP, one of both")
    with samples_console.progress_shown() as show:
        found = sweeps.sweep(
            file,
            engine=engine,
            count=count,
            workers=workers,
            resume=resume,
            storage=storage,
            experiment=experiment,
            tracking_uri=tracking_uri,
            show=show,
        )
    version, fault = None, ""
    if register_best:
        version, fault = _registered(found, register_best, tracking_uri)
    if as_json:
        click.echo(json.dumps(_content(found, version), indent=2, ensure_ascii=False, default=vars))
    else:
        click.echo("\n".join(lines(found, version)))
    if fault:
        click.echo(f"{register_best} is not registered: {fault}", err=True)
    sys.exit(0 if is_well(found) and not fault else 1)


def _registered(
    found: "SweepResult", name: str, tracking_uri: str | None
) -> tuple[str | None, str]:
    """Register the checkpoint of the best trial; the version's URI, or why there is none."""
    from opusclip_mlops import packing, registry

    if not found.is_over:
        return None, "the sweep is not over"
    if found.best is None:
        return None, "no trial is the best"
    packed = packing.clip_generator()
    try:
        made = registry.register(
            found.best.run_id,
            name=name,
            python_model=packed.python_model,
            input_example=packed.input_example,
            signature=packed.signature,
            pip_requirements=packed.pip_requirements,
            serves=packed.serves,
            tracking_uri=tracking_uri,
        )
    except OpusclipError as error:
        return None, f"{error}; later: opusclip register {found.best.run_id} --as {name}"
    return made.uri, ""


def _content(found: "SweepResult", version: str | None) -> dict[str, object]:
    return {**vars(found), "folder": str(found.folder), "registered": version}


VERBS = (sweep,)
"""All of them, for the command."""
