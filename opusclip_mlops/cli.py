"""The `opusclip` command: one verb, one function, one call of the library.

Each verb imports what it needs itself, so that `opusclip --help` answers at once.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from opusclip_mlops.errors import OpusclipError


@click.group()
@click.version_option(package_name="opusclip-mlops", prog_name="opusclip")
def opusclip() -> None:
    """Track video model training: MLflow is the record, TensorBoard and W&B its mirrors."""


@opusclip.command("link-env")
@click.argument(
    "project", type=click.Path(exists=True, file_okay=False, path_type=Path), default="."
)
def link_env(project: Path) -> None:
    """Let `mlflow run PROJECT` use the virtual environment in use.

    MLflow otherwise needs conda or pyenv to build one. PROJECT is the current folder by default.
    """
    from opusclip_mlops.environment import link_environment

    link = link_environment(project)
    click.echo(f"mlflow run uses {link.target} (by {link.path})")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; an error of ours is one line on stderr and exit code 2."""
    try:
        opusclip(arguments)
    except OpusclipError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
