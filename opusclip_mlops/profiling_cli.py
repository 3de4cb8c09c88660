"""The verb that says where a run's time went: one verb, one call of the library."""

import json
from pathlib import Path

import click


@click.command()
@click.argument("run")
@click.option("--against", metavar="RUN", help="Compare with this run; see above otherwise.")
@click.option("--log", "logs", is_flag=True, help="Put the report into the run, with a picture.")
@click.option(
    "--picture",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw it into this file: .png, .svg or .pdf.",
)
@click.option("--tracking-uri", help="The MLflow server or store.")
@click.option("--registry-uri", help="The MLflow registry, where it is another server.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def bottlenecks(
    run: str,
    against: str | None,
    logs: bool,
    picture: Path | None,
    tracking_uri: str | None,
    registry_uri: str | None,
    as_json: bool,
) -> None:
    """Show where the time of a run went, what limits it, and what changed.

    RUN is an MLflow run id, a run name or a unique beginning of one. It is compared with its parent
    run, else with the run in Production of the model that it made a version of.
    """
    from opusclip_mlops import bottleneck_report, patience, samples_console

    patience.ask_briefly()
    with samples_console.progress_shown() as show:
        found = bottleneck_report.bottlenecks(
            run,
            against=against,
            tracking_uri=tracking_uri,
            registry_uri=registry_uri,
            show=show,
        )
    if picture:
        bottleneck_report.write_picture(found, picture)
    if logs:
        bottleneck_report.log_report(found)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        click.echo(f"run {found.called} ({found.run_id})\n{found.report.text()}")


VERBS = (bottlenecks,)
"""All of them, for the command."""
