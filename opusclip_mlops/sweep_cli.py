"""The verb that runs many trials: one verb, one call of the library."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from opusclip_mlops.errors import ConfigError, OpusclipError
from opusclip_mlops.faults import attempted
from opusclip_mlops.redaction import one_line

if TYPE_CHECKING:
    from opusclip_mlops.open_sweeps import OpenSweep
    from opusclip_mlops.packing import Packing
    from opusclip_mlops.sweeps import SweepResult

Told = dict[str, str | bool]
"""A sweep that was cut off, for scripts."""

_Files = tuple[Path | None, Path | None, Path | None]
_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--engine",
    type=click.Choice(["optuna", "wandb"]),
    default="optuna",
    show_default=True,
    help="Who searches: wandb needs an account, and W&B's agents start the trials.",
)
@click.option(
    "--count", type=click.IntRange(min=1), help="How many trials, run_cap at most and otherwise."
)
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
@click.option("--model-file", type=_FILE, help="With it: what serves a model of your own.")
@click.option("--input-example", type=_FILE, help="With it: rows of a request, in JSON.")
@click.option("--requirements", type=_FILE, help="With it: what serving needs, as pip reads it.")
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
    model_file: Path | None,
    input_example: Path | None,
    requirements: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Run the trials of FILE, a sweep in W&B's own schema, with no account.

    Each trial is a run below the sweep's own. A worker that is killed loses its trial only, and
    that is tried again. The exit code is 1 when no trial ended well, or something is left to do.
    """
    from opusclip_mlops import samples_console, sweeps
    from opusclip_mlops.sweeps.telling import is_well, lines, say_begun, say_going_on

    if (file is None) == (resume is None):
        raise click.UsageError("give FILE or --resume SWEEP, one of both")
    own = _own_model(register_best, (model_file, input_example, requirements))
    try:
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
                say=say_going_on if resume else say_begun,
            )
    except ConfigError:
        raise
    except OpusclipError as error:
        # No wrong use: there is something left to do.
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    version, fault = None, ""
    if register_best:
        version, fault = _registered(found, register_best, tracking_uri, own)
    if as_json:
        click.echo(json.dumps(_content(found, version), indent=2, ensure_ascii=False, default=vars))
    else:
        click.echo("\n".join(lines(found, version)))
    if fault:
        click.echo(f"{register_best} is not registered: {fault}", err=True)
    sys.exit(0 if is_well(found) and not fault else 1)


def _own_model(name: str | None, files: _Files) -> "Packing | None":
    """What serves a model of the user's own, read before the first trial; None for none."""
    from opusclip_mlops import packing

    if not any(files):
        return None
    if not name:
        raise click.UsageError("--model-file is for --register-best NAME")
    return packing.chosen(*files)


def _registered(
    found: "SweepResult", name: str, tracking_uri: str | None, own: "Packing | None" = None
) -> tuple[str | None, str]:
    """Register the checkpoint of the best trial; the version's URI, or why there is none."""
    from opusclip_mlops import operating, packing, registry

    if not found.is_over:
        return None, "the sweep is not over"
    if found.best is None:
        return None, "no trial is the best"
    packed = own or packing.clip_generator()
    operating.see_through(found.best.run_id)
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
        files = ", with the same files" if own else ""
        return None, f"{error}; later: opusclip register {found.best.run_id} --as {name}{files}"
    return made.uri, ""


def tell_cut_off() -> None:
    """Name the sweeps of this folder whose command was killed, and what goes on with each."""
    from opusclip_mlops import console, open_sweeps

    for one in open_sweeps.cut_off():
        console.tell(
            f"sweep {one.name} (run {one.run_id}) was cut off before it was over: {one.resuming} "
            "goes on, opusclip recover --all ends its run"
        )


def cut_off() -> list[Told]:
    """Those sweeps for scripts: `name`, `run_id`, and `resuming`, the command that goes on."""
    from opusclip_mlops import open_sweeps

    return [_told(one) for one in open_sweeps.cut_off()]


def settle_cut_off() -> list[Told]:
    """Have MLflow know how those sweeps stand; each as `cut_off`, with `is_ended` and `problem`."""
    from opusclip_mlops import console, open_sweeps

    faults = [(one, _settled(one)) for one in open_sweeps.cut_off()]
    for one, fault in faults:
        said = fault or "its run is ended"
        console.tell(f"sweep {one.name} was cut off: {said}; go on: {one.resuming}")
    return [_told(one) | {"is_ended": not fault, "problem": fault} for one, fault in faults]


def _told(one: "OpenSweep") -> Told:
    return {"name": one.name, "run_id": one.run_id, "resuming": one.resuming}


def _settled(one: "OpenSweep") -> str:
    """End the run of a sweep that was cut off; why not, "" where it is ended."""
    from opusclip_mlops import sweeps

    storage = os.environ.get("OPUSCLIP_SWEEP_STORAGE")
    if one.is_shared and not storage:
        return "its run goes on, for others may work at it: set OPUSCLIP_SWEEP_STORAGE to see"
    place = storage if one.is_shared else None
    found: list[SweepResult | None] = []
    fault = attempted(
        lambda: found.append(sweeps.settle(one.name, storage=place, tracking_uri=one.tracking_uri))
    )
    if isinstance(fault, OpusclipError):
        return f"its run goes on: {fault}"
    if fault:
        why = one_line(str(fault)) or type(fault).__name__
        return f"its run goes on, for it cannot be looked at: {why}; again: opusclip recover --all"
    return "" if found != [None] else "its run goes on, for others work at it"


def _content(found: "SweepResult", version: str | None) -> dict[str, object]:
    return {**vars(found), "folder": str(found.folder), "registered": version}


VERBS = (sweep,)
"""All of them, for the command."""
