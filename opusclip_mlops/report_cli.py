"""The verb that makes a report: one verb, one call of the library."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from opusclip_mlops.redaction import one_line

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
    help="The same in short, for a pull request, into a FILE that ends in .md; printed without one "
    "(`--markdown=-` where a RUN comes next).",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="PATTERN",
    help="Draw these metrics only, and of several runs compare them, such as 'val/*'; may be given "
    "several times.",
)
@click.option("--no-log", is_flag=True, help="Do not put it into MLflow.")
@click.option("--log-to", metavar="RUN", help="Put it into this run, not the first.")
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
    if no_log and log_to:
        raise click.UsageError("--no-log and --log-to exclude each other")
    _check_markdown(short, file, as_json=as_json)
    made = _made(runs, experiment, file, metrics, not no_log, log_to, tracking_uri)
    _tell(made, short, as_json=as_json)
    if made.not_logged:
        click.echo(f"Error: the report is written, but {made.not_logged}", err=True)
        click.echo("--no-log makes it without MLflow, --log-to names another run", err=True)
        raise SystemExit(1)


def _check_markdown(short: str | None, file: Path | None, *, as_json: bool) -> None:
    """Look whether the Markdown has a place of its own, before the runs are read for it."""
    from opusclip_mlops.page_document import check_place

    if file is not None and str(file) == "-":
        raise click.UsageError("--out takes the name of a file: a page is not for a terminal")
    if short == "-" and as_json:
        raise click.UsageError("--json has the Markdown too: leave out --markdown, or name a FILE")
    if short is None or short == "-":
        return
    if file is not None and file.resolve() == Path(short).resolve():
        raise click.UsageError("--out and --markdown are one file: the one would replace the other")
    if Path(short).suffix not in (".md", ".markdown"):
        raise click.UsageError(
            f"--markdown takes a FILE that ends in .md, not {one_line(short)}: write --markdown=- "
            "before a RUN"
        )
    check_place(Path(short))


def _made(
    runs: tuple[str, ...],
    experiment: str | None,
    file: Path | None,
    metrics: tuple[str, ...],
    logs: bool,
    log_to: str | None,
    tracking_uri: str | None,
) -> "MadeReport":
    from opusclip_mlops import patience, reports, samples_console

    patience.ask_briefly()
    with samples_console.progress_shown() as show:
        return reports.report(
            runs,
            experiment=experiment,
            file=file,
            metrics=metrics,
            logs=logs,
            log_to=log_to,
            tracking_uri=tracking_uri,
            show=show,
        )


def _tell(made: "MadeReport", short: str | None, *, as_json: bool) -> None:
    from opusclip_mlops.page_document import write_document

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
    lines = [f"{one_line(str(made.file))}: {size_text(made.size_bytes)}{count}"]
    lines += [f"  logged: {one}" for one in made.logged]
    lines += [f"  {one}" for one in made.notes]
    lines += [f"  not read: {one.line}" for one in made.unread]
    return lines


VERBS = (report,)
"""All of them, for the command."""
