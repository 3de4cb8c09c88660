"""Prints alerts: lines for people, JSON for scripts."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from opusclip_mlops.alerts.events import Event
from opusclip_mlops.alerts.past import Trial
from opusclip_mlops.alerts.rules import Alerts
from opusclip_mlops.redaction import one_line


def print_rules(alerts: Alerts, faults: Sequence[str], *, as_json: bool) -> None:
    """Print what is wrong with a file, or what its rules are."""
    if as_json:
        rules = list(alerts.rules) if not faults else []
        print(json.dumps({"faults": list(faults), "rules": rules}, indent=2, ensure_ascii=False))
        return
    for fault in faults:
        print(fault)
    if not faults:
        print(f"{len(alerts.rules)} rules are understood: {', '.join(alerts.rules)}")


def print_trial(trial: Trial, *, as_json: bool) -> None:
    """Print which alerts would have been raised."""
    if as_json:
        about = {"run_id": trial.run_id, "run_name": trial.run_name, "points": trial.points}
        events = [_plain(one) for one in trial.events]
        _print_json({**about, "events": events, "not_judged": list(trial.not_judged)})
        return
    for event in trial.events:
        print(_line(event))
    raised = sum(event.state == "raised" for event in trial.events)
    what = "alert" if raised == 1 else "alerts"
    print(f"{raised} {what} over {trial.points:,} points of {one_line(trial.run_name)}")
    if trial.not_judged:
        print(f"not judged, as its points cannot tell: {', '.join(trial.not_judged)}")


def print_alerts(events: Sequence[Event], *, as_json: bool) -> None:
    """Print what was raised over a run."""
    if as_json:
        _print_json([_plain(one) for one in events])
        return
    for event in events:
        print(_line(event))
    if not events:
        print("no alert was raised")


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))


def _plain(event: Event) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(event)
    return {"state": event.state, **plain}


def _line(event: Event) -> str:
    try:
        at = datetime.fromtimestamp(event.timestamp_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        at = "?"
    return one_line(f"{at} {event.line}")
