"""The verb that makes a report: one verb, one call of the library."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from opusclip_mlops.reports import MadeReport


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@click.option("--experiment", help="All its runs, the newest 50 of them: name or id.")
@click.option(
    "--out",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The page; report-ID.html in this folder otherwise.",
)
@click.option(
    "--markdown",
    "short",
    metavar="[FILE|-]",
    is_flag=False,
    flag_value="-",
    help="The same in short, for a pull request; printed without a FILE.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="PATTERN",
    help="Draw these curves only, such as 'val/*'; may be given several times.",
)
@click.option("--no-log", is_flag=True, help="Do not put it into MLflow.")
@click.option("--log-to", metavar="RUN", help="Put it into this run; into the first otherwise.")
@click.option("--tracking-uri", help="The MLflow server or store.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def report(
    runs: tuple[str, ...],
    experiment: str | None,
    file: Path | None,
    short: str | None,
    metrics: tuple[str, ...],
    no_log: bool,
    log_to: str | None,
    tracking_uri: str | None,
    as_json: bool,
) -> None:
    """Write all there is of runs into one HTML file, and log it with the first of them.

    RUN is an MLflow run id, a run name or a unique beginning of one. Several are compared with the
    first. The page needs no network; what cannot be read is named in it with the reason.
    """
    from opusclip_mlops import patience, reports, samples_console
    from opusclip_mlops.page_document import check_place, write_document

    if no_log and log_to:
        raise click.UsageError("--no-log and --log-to exclude each other")
    if short == "-" and as_json:
        raise click.UsageError("--json has the Markdown too: leave out --markdown, or name a FILE")
    if short and short != "-":
        check_place(Path(short))
    patience.ask_briefly()
    with samples_console.progress_shown() as show:
        made = reports.report(
            runs,
            experiment=experiment,
            file=file,
            metrics=metrics,
            logs=not no_log,
            log_to=log_to,
            tracking_uri=tracking_uri,
            show=show,
        )
    if short and short != "-":
        write_document(Path(short), made.markdown)
    if as_json:
        click.echo(json.dumps(_content(made), indent=2, ensure_ascii=False, default=vars))
        return
    for line in _lines(made):
        click.echo(line, err=short == "-")
    if short == "-":
        click.echo(made.markdown, nl=False)


def _content(made: "MadeReport") -> dict[str, Any]:
    return {**vars(made), "file": str(made.file)}


def _lines(made: "MadeReport") -> list[str]:
    """Where the report is, and what is not in it."""
    from opusclip_mlops.amounts import size_text

    count = "" if len(made.run_ids) == 1 else f", {len(made.run_ids)} runs"
    lines = [f"{made.file}: {size_text(made.size_bytes)}{count}"]
    lines += [f"  logged: {one}" for one in made.logged]
    lines += [f"  {one}" for one in made.notes]
    for one in made.unread:
        of_run = f" of {one.run}" if one.run else ""
        lines.append(f"  not read{of_run}: {one.part}: {one.reason}")
    return lines


VERBS = (report,)
"""All of them, for the command."""
