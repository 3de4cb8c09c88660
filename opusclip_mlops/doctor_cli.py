"""The verb that looks at everything: one call of the library."""

import sys
from pathlib import Path

import click


@click.command()
@click.option("--tracking-uri", help="The MLflow server or store.")
@click.option("--registry-uri", help="The MLflow registry, where it is another server.")
@click.option("--artifacts", metavar="s3://BUCKET/PREFIX", help="A bucket for artifacts.")
@click.option("--backend", metavar="URI", help="MLflow's own database: sqlite or PostgreSQL.")
@click.option(
    "--journal-dir",
    type=click.Path(path_type=Path),
    help="Where the runs' folders lie; OPUSCLIP_JOURNAL_DIR or .opusclip/journal otherwise.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="A check, or a group of them, such as server; may be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def doctor(
    tracking_uri: str | None,
    registry_uri: str | None,
    artifacts: str | None,
    backend: str | None,
    journal_dir: Path | None,
    only: tuple[str, ...],
    as_json: bool,
) -> None:
    """Look at all that tracking needs, and say what to do.

    Server, database, bucket, journal, TensorBoard, W&B, GPU, clocks and versions. What it writes
    to try a place it takes away again. The exit code is 1 when a check failed.
    """
    from opusclip_mlops import doctor as doctoring
    from opusclip_mlops import doctor_console

    with doctor_console.progress_shown() as show:
        found = doctoring.diagnose(
            tracking_uri=tracking_uri,
            registry_uri=registry_uri,
            artifacts=artifacts,
            backend=backend,
            journal_dir=journal_dir,
            only=only,
            show=show,
        )
    doctor_console.print_findings(found, as_json=as_json)
    sys.exit(0 if doctoring.is_well(found) else 1)


VERBS = (doctor,)
"""All of them, for the command."""
