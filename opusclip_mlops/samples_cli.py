"""The verbs about samples: one verb, one call of the library."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from opusclip_mlops.errors import ConfigError

if TYPE_CHECKING:
    from opusclip_mlops.walls import Steps

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
_TRACKING = click.option("--tracking-uri", help="The MLflow server or store.")


@click.command()
@click.argument("runs", metavar="RUN [RUN]...", nargs=-1, required=True)
@click.option("--panel", required=True, help="The panel's name, or its title.")
@click.option(
    "--out",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page; wall-TITLE.html in this folder otherwise.",
)
@click.option("--steps", default="all", show_default=True, help="all, last, or steps like 0,500.")
@_TRACKING
@_JSON
def wall(
    runs: tuple[str, ...],
    panel: str,
    file: Path | None,
    steps: str,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Put the samples of a panel on one page, of several runs side by side.

    RUN is an MLflow run id, a run name or a unique beginning of one. The page is one HTML file
    that plays anywhere, without a network. Panels that differ are not laid side by side.
    """
    from opusclip_mlops import patience, samples_console, wall_across

    patience.ask_briefly()
    with samples_console.progress_shown() as show:
        made = wall_across.wall_of_runs(
            runs,
            panel=panel,
            file=file,
            steps=_wanted(steps),
            tracking_uri=tracking_uri,
            show=show,
        )
    samples_console.print_wall(made, as_json=as_json)


def _wanted(steps: str) -> "Steps":
    """The steps that are meant."""
    if steps == "all":
        return "all"
    if steps == "last":
        return "last"
    try:
        return frozenset(int(one) for one in steps.split(","))
    except ValueError:
        raise ConfigError(
            f"--steps {steps!r:.80} is none of: all, last, numbers like 0,500"
        ) from None


@click.command()
@click.argument("source")
@click.option(
    "--experiment", "experiments", multiple=True, help="Its runs only: name or id; all otherwise."
)
@_TRACKING
@click.option("--registry-uri", help="The MLflow registry, where it is another server.")
@_JSON
def lineage(
    source: str,
    experiments: tuple[str, ...],
    tracking_uri: str | None,
    registry_uri: str | None,
    as_json: bool,
) -> None:
    """Show every dataset, checkpoint, version and sample that a film has touched.

    SOURCE is a file, which is hashed; a SHA-256 or a beginning of 8 digits or more; or a path or
    URI as it was logged.
    """
    from opusclip_mlops import descent, lineage_console, patience, samples_console

    patience.ask_briefly()
    with samples_console.progress_shown() as show:
        found = descent.lineage(
            source,
            experiments=experiments,
            tracking_uri=tracking_uri,
            registry_uri=registry_uri,
            show=show,
        )
    lineage_console.print_lineage(found, as_json=as_json)


VERBS = (wall, lineage)
"""All of them, for the command."""
