"""The verb that puts runs beside each other: one verb, one call of the library."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

if TYPE_CHECKING:
    from opusclip_mlops.comparing import Beside, Branch
    from opusclip_mlops.curves import By


@click.command()
@click.argument("runs", metavar="RUN RUN [RUN]...", nargs=-1, required=True)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="PATTERN",
    help="Compare these only, such as 'val/*'; may be given several times.",
)
@click.option(
    "--by",
    type=click.Choice(["step", "time"]),
    default="step",
    show_default=True,
    help="What a metric's mean is over: steps, or the time since each run began.",
)
@click.option(
    "--branch",
    type=click.Choice(["now", "all"]),
    default="now",
    show_default=True,
    help="all counts what training went back behind as well.",
)
@click.option("--allow-unlike", is_flag=True, help="Do not look at how values were measured.")
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write a page with the curves and samples too: one file that needs no network.",
)
@click.option("--tracking-uri", help="The MLflow server or store.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def compare(
    runs: tuple[str, ...],
    metrics: tuple[str, ...],
    by: str,
    branch: str,
    allow_unlike: bool,
    page: Path | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Compare runs with the first one: params, code, data, metrics and samples.

    RUN is an MLflow run id, a run name, a unique beginning of one, or a local id.
    """
    from opusclip_mlops import compare_console, comparing, patience, samples_console
    from opusclip_mlops.page_document import check_place

    if page is not None:
        check_place(page)
    patience.ask_briefly()
    with samples_console.progress_shown() as show:
        found = comparing.laid_beside(
            runs,
            metrics=metrics,
            by=cast("By", by),
            branch=cast("Branch", branch),
            allow_unlike=allow_unlike,
            tracking_uri=tracking_uri,
            show=show,
        )
    # Before the page, which may fail: what was found is not lost by it.
    compare_console.print_comparison(found.comparison, as_json=as_json)
    if page is not None:
        size_bytes = _written(page, found, tracking_uri)
        if not as_json:
            compare_console.print_page(page, size_bytes)


def _written(page: Path, found: "Beside", tracking_uri: str | None) -> int:
    from opusclip_mlops import samples_console
    from opusclip_mlops.compare_page import write_comparison

    with samples_console.progress_shown() as show:
        return write_comparison(page, found, tracking_uri=tracking_uri, show=show)


VERBS = (compare,)
"""All of them, for the command."""
