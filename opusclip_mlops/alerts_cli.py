"""The verbs about alerts: one verb, one call of the library."""

import sys
from pathlib import Path

import click

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
_TRACKING = click.option("--tracking-uri", help="The MLflow server or store.")
_FILE = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))


@click.group()
def alerts() -> None:
    """Check rules of alerts, try them on a run, list what was raised."""


@alerts.command()
@_FILE
@_JSON
def check(file: Path, as_json: bool) -> None:
    """Say what is wrong with the rules in FILE, one line each, with its line number.

    Variables that it names need not be set here. The exit code is 1 when something is wrong.
    """
    from opusclip_mlops import alerts_console
    from opusclip_mlops.alerts.reading import FaultyAlerts, alerts_of
    from opusclip_mlops.alerts.rules import Alerts

    found = Alerts(rules={})
    faults: tuple[str, ...] = ()
    try:
        found = alerts_of(file)
    except FaultyAlerts as error:
        faults = error.faults
    alerts_console.print_rules(found, faults, as_json=as_json)
    sys.exit(1 if faults else 0)


@alerts.command("test")
@_FILE
@click.option("--run", required=True, help="An MLflow run id, a run name or a beginning of one.")
@_TRACKING
@_JSON
def test_rules(file: Path, run: str, tracking_uri: str | None, as_json: bool) -> None:
    """Show which alerts the rules in FILE would have raised over a run's history.

    Nobody is told. The exit code is 1 when any would have been raised.
    """
    from opusclip_mlops import alerts_console, patience
    from opusclip_mlops.alerts.past import tried_on
    from opusclip_mlops.alerts.reading import alerts_of

    patience.ask_briefly()
    trial = tried_on(alerts_of(file), run, tracking_uri=tracking_uri)
    alerts_console.print_trial(trial, as_json=as_json)
    sys.exit(1 if trial.events else 0)


@alerts.command("list")
@click.argument("run")
@_TRACKING
@_JSON
def list_raised(run: str, tracking_uri: str | None, as_json: bool) -> None:
    """List the alerts that were raised over a run, and what became of each.

    RUN is an MLflow run id, a run name or a unique beginning of one.
    """
    from opusclip_mlops import alerts_console, patience
    from opusclip_mlops.alerts.past import alerts_in

    patience.ask_briefly()
    alerts_console.print_alerts(alerts_in(run, tracking_uri=tracking_uri), as_json=as_json)


VERBS = (alerts,)
"""All of them, for the command."""
