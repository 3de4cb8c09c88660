"""The `opusclip` command: one verb, one function, one call of the library.

Each verb imports what it needs itself, so that `opusclip --help` answers at once.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from opusclip_mlops.errors import OpusclipError

_JOURNAL_DIR = click.option(
    "--journal-dir",
    type=click.Path(path_type=Path),
    help="Where the runs' folders lie; OPUSCLIP_JOURNAL_DIR or .opusclip/journal otherwise.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


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


@opusclip.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@_JOURNAL_DIR
@_JSON
def status(runs: tuple[str, ...], journal_dir: Path | None, as_json: bool) -> None:
    """Show what is on its way from this machine, and how far each sink is.

    RUN is a local id, an MLflow run id, a run name or a unique beginning of one; all runs that
    still have a journal here by default.
    """
    from opusclip_mlops import console, operating

    found = operating.status(runs, journal_dir=journal_dir)
    console.print_status(found, operating.configured_journal_dir(journal_dir), as_json=as_json)


@opusclip.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Recover every run that has a journal here.")
@_JOURNAL_DIR
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="How many seconds to wait; delivery goes on behind it.",
)
@click.option(
    "--discard-refused",
    is_flag=True,
    help="Remove what a sink refused for good, once all else has arrived.",
)
@_JSON
def recover(
    runs: tuple[str, ...],
    every: bool,
    journal_dir: Path | None,
    timeout_s: float,
    discard_refused: bool,
    as_json: bool,
) -> None:
    """Deliver what crashed or offline processes left, then clean up.

    RUN is a local id, an MLflow run id, a run name or a unique beginning of one. The exit code is 0
    when everything was delivered and 1 when something remains.
    """
    from opusclip_mlops import console, operating

    try:
        with console.progress_shown() as show:
            found = operating.recover(
                runs,
                every=every,
                journal_dir=journal_dir,
                timeout_s=timeout_s,
                discard_refused=discard_refused,
                show=show,
            )
    except KeyboardInterrupt:
        console.tell("stopped waiting: what was begun goes on, see opusclip status")
        sys.exit(130)
    where = operating.configured_journal_dir(journal_dir)
    console.print_recoveries(found, where, as_json=as_json)
    sys.exit(0 if all(one.is_settled for one in found) else 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; an error of ours is one line on stderr and exit code 2."""
    try:
        opusclip(arguments)
    except OpusclipError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
