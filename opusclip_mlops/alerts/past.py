"""Alerts of runs in MLflow: what rules would have raised, and what was raised."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops.alerts.events import KEY, Event, event_of
from opusclip_mlops.alerts.production import values_in_production
from opusclip_mlops.alerts.rules import Alerts
from opusclip_mlops.alerts.watcher import Facts, Watcher
from opusclip_mlops.asking import told_in_one_line
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.layout import TEXTS, folder_of_key, text_of
from opusclip_mlops.named_runs import run_called
from opusclip_mlops.patience import connected
from opusclip_mlops.records import Metrics
from opusclip_mlops.run_history import open_history

_MOST_TEXTS = 10_000


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What rules would have raised over a run.

    Args:
        run_id: The run.
        run_name: What it is called.
        points: How many points it has.
        events: What would have been said, in the order of its times.
        not_judged: The rules that no run's points can tell of.
    """

    run_id: str
    run_name: str
    points: int
    events: tuple[Event, ...]
    not_judged: tuple[str, ...] = ()


def tried_on(alerts: Alerts, run: str, *, tracking_uri: str | None = None) -> Trial:
    """What rules would have raised over the history of a run.

    Args:
        alerts: The rules.
        run: Its id, its name, or a unique beginning of either.
        tracking_uri: The MLflow server or store.

    Raises:
        RegistryError: There is no such run, or MLflow does not answer.
    """
    client = connected(tracking_uri=tracking_uri)
    with told_in_one_line(f"cannot read run {run}"):
        found = run_called(client, run)
        points, _ = open_history(client).read(found)
    calls = list(points.in_time().calls())
    values, unknown = _in_production(alerts, {key for one in calls for key in one.values}, client)
    lacking = [name for name, rule in alerts.rules.items() if not rule.from_history]
    return Trial(
        run_id=found.info.run_id,
        run_name=found.info.run_name or "",
        points=len(points),
        events=tuple(_replayed(alerts, calls, found, values)),
        not_judged=tuple(sorted({*lacking, *unknown})),
    )


def _replayed(
    alerts: Alerts, calls: list[Metrics], run: Run, production: dict[str, float]
) -> Iterator[Event]:
    watcher = Watcher(alerts, now_ms=int(run.info.start_time))
    watcher.know_production(production)
    for one in calls:
        yield from watcher.look(Facts(), now_ms=one.timestamp_ms)
        yield from watcher.observe(one, now_ms=one.timestamp_ms)
    if run.info.end_time:
        yield from watcher.look(Facts(), now_ms=int(run.info.end_time))


def _in_production(
    alerts: Alerts, keys: set[str], client: MlflowClient
) -> tuple[dict[str, float], list[str]]:
    """The values that runs are compared with, and the rules that there are none for."""
    values: dict[str, float] = {}
    unknown = []
    for name, rule in alerts.rules.items():
        model = getattr(rule, "model", "")
        if not model:
            continue
        try:
            found = dict(values_in_production(model, keys, client.tracking_uri, None))
        except RegistryError:
            found = {}
        values |= found
        unknown += [] if found else [name]
    return values, unknown


def alerts_in(run: str, *, tracking_uri: str | None = None) -> list[Event]:
    """What was raised over a run and what became of it, the oldest first.

    Args:
        run: Its id, its name, or a unique beginning of either.
        tracking_uri: The MLflow server or store.

    Raises:
        RegistryError: There is no such run, or MLflow does not answer.
    """
    client = connected(tracking_uri=tracking_uri)
    with told_in_one_line(f"cannot read the alerts of run {run}"):
        run_id = run_called(client, run).info.run_id
        folder = f"{TEXTS}/{folder_of_key(KEY)}"
        paths = [one.path for one in client.list_artifacts(run_id, folder) if text_of(one.path)]
        with tempfile.TemporaryDirectory(prefix="opusclip-") as here:
            files = [
                Path(client.download_artifacts(run_id, path, here)) for path in paths[-_MOST_TEXTS:]
            ]
            texts = [one.read_text(encoding="utf-8", errors="replace") for one in files]
    found = [event for text in texts if (event := event_of(text))]
    return sorted(found, key=lambda event: (event.timestamp_ms, event.number, event.state))
