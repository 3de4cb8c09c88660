"""Runs many trials of a training: what `mlflow run . -e sweep` starts."""

import sys
from pathlib import Path

import click

from opusclip_mlops import operating, registry, sweeps
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.projects import options, serving
from opusclip_mlops.sweeps.telling import is_well, lines, say_begun

_MOST_TRIALS, _MOST_WORKERS = 100_000, 1000


def register(run_id: str, name: str, config: TrackingConfig) -> str:
    """Make the best checkpoint of a run the next version of a model, once it has arrived.

    Returns:
        The version's URI.

    Raises:
        RegistryError: it has no checkpoint, or MLflow refused or did not answer.
    """
    operating.see_through(run_id)
    return registry.register(
        run_id,
        name=name,
        python_model=serving.MODEL_FILE,
        input_example=serving.INPUT_EXAMPLE,
        signature=serving.SIGNATURE,
        pip_requirements=serving.pip_requirements(),
        tracking_uri=config.tracking_uri,
        registry_uri=config.registry_uri,
    ).uri


@click.command()
@click.option("--file", default="sweep.yaml", help="A sweep, in W&B's own schema.")
@click.option("--count", default="4", help="How many trials, 1 to 100000.")
@click.option("--workers", default="1", help="How many at once on this machine, 1 to 1000.")
@click.option("--register-best", default="none", help="A model's name; none: do not.")
def command(file: str, count: str, workers: str, register_best: str) -> None:
    """Run the trials of a sweep, each as a run below this one."""
    name = options.model_name("register_best", register_best)
    config = TrackingConfig()
    found = sweeps.sweep(
        Path(file),
        count=options.whole("count", count, 1, _MOST_TRIALS),
        workers=options.whole("workers", workers, 1, _MOST_WORKERS),
        tracking_uri=config.tracking_uri,
        say=say_begun,
    )
    click.echo("\n".join(lines(found, None)))
    is_lost = bool(name) and (found.best is None or not found.is_over)
    if is_lost:
        why = "no trial is the best" if found.is_over else "the sweep is not over"
        click.echo(f"{name} is not registered: {why}", err=True)
    elif name and found.best:
        click.echo(f"registered: {register(found.best.run_id, name, config)}")
    sys.exit(0 if is_well(found) and not is_lost else 1)


if __name__ == "__main__":
    options.start(command)
