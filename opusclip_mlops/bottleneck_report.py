"""Where the time of a run went, read from MLflow, beside its parent or the run in Production."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops import layout
from opusclip_mlops.asking import client_of, told_in_one_line
from opusclip_mlops.bottlenecks import (
    SECONDS_KEY,
    STEPS_KEY,
    SUMMED,
    TEXT_KEY,
    TRACKER_KEY,
    Figures,
    Report,
    Totals,
    machine_of,
    report_of,
)
from opusclip_mlops.errors import DataError
from opusclip_mlops.insight_documents import table_document
from opusclip_mlops.insight_uploads import with_table
from opusclip_mlops.named_runs import run_called
from opusclip_mlops.points import Point, Points
from opusclip_mlops.records import Table, now_ms
from opusclip_mlops.standing import read_standing
from opusclip_mlops.tables import TABLES_TAG

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Show = Callable[[str, int, int], None]
"""Is told what is being read, how much of it is done, and of how much."""

_PARENT_TAG = "mlflow.parentRunId"
_MACHINE = ("utilization_percentage", "memory_usage_percentage")
_MOST_BARS = 12


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """The report of a run, and which run it is."""

    run_id: str
    called: str
    report: Report
    step: int
    client: MlflowClient

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {"run_id": self.run_id, "run_name": self.called, **self.report.as_json()}


def bottlenecks(
    run: str,
    *,
    against: str | None = None,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
    show: Show = lambda *_: None,
) -> RunReport:
    """Report where the time of a run went, and what changed.

    It is compared with `against`; else with its parent run; else with the run of the version that
    is in Production of the registered model which this run made a version of.

    Args:
        run: Its id, its name, or a unique beginning of one.
        against: Another run, named alike.
        tracking_uri: The MLflow server or store.
        registry_uri: The registry, where it is elsewhere.
        show: Is told what is being read.

    Raises:
        RegistryError: No such run, several, or MLflow does not answer.
        DataError: Nothing was timed in the run, or in `against`.
    """
    client = client_of(tracking_uri, registry_uri)
    with told_in_one_line(f"cannot read run {run}"):
        found = run_called(client, run)
        figures = _figures(client, found, show)
        _check(figures, found)
        other = run_called(client, against) if against else comparable(client, found)
        before = _figures(client, other, show) if other else None
    if before is not None and other is not None and against:
        _check(before, other)
    is_compared = other is not None and before is not None and before.seconds > 0
    return RunReport(
        run_id=found.info.run_id,
        called=_called(found),
        report=report_of(
            figures,
            before=before if is_compared else None,
            against=_called(other) if is_compared and other else "",
        ),
        step=max((one.step for one in found.data._metric_objs), default=0),
        client=client,
    )


def log_report(found: RunReport) -> None:
    """Put a report into its run, as a text, a table and a picture; its mirrors get them next time.

    Raises:
        RegistryError: MLflow or the store of its files refuses, or does not answer.
    """
    report, client, run_id = found.report, found.client, found.run_id
    timestamp_ms, text = now_ms(), found.report.text()
    table = Table(timestamp_ms, found.step, TEXT_KEY, report.columns, report.rows)
    document, digest = table_document(table)
    path = layout.table_path(TEXT_KEY, found.step, timestamp_ms, digest)
    with told_in_one_line(f"cannot log the report of run {run_id}"):
        client.log_text(run_id, text, layout.text_path(TEXT_KEY, found.step, timestamp_ms, text))
        client.log_text(run_id, document, path)
        note = with_table(client.get_run(run_id).data.tags.get(TABLES_TAG, "[]"), path)
        if note is not None:
            client.set_tag(run_id, TABLES_TAG, note)
        pixels = _pixels(picture(report))
        client.log_image(run_id, pixels, key=TEXT_KEY, step=found.step, timestamp=timestamp_ms)


def write_picture(found: RunReport, path: Path) -> None:
    """Draw a report into a file; its ending says which kind.

    Raises:
        DataError: It cannot be written there, or is of an unknown kind.
    """
    try:
        picture(found.report).savefig(path)
    except (OSError, ValueError) as error:
        raise DataError(f"picture {path} cannot be written: {error}") from None


def picture(report: Report) -> Figure:
    """The operations that took most, as bars, and what was found."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    spent = report.figures.spent[:_MOST_BARS][::-1]
    figure = Figure(figsize=(9, 2.2 + 0.35 * len(spent)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.barh([one.called for one in spent], [100 * report.figures.share(one) for one in spent])
    axes.set_xlabel("% of the time, by itself")
    lines = [f"limit: {report.limit}", *(one.text for one in report.findings[:3])]
    # A name may hold dollar signs, which would begin a formula.
    axes.set_title("\n".join(lines).replace("$", r"\$"), fontsize=9, loc="left")
    return figure


def _pixels(figure: Figure) -> Any:
    canvas: Any = figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _check(figures: Figures, run: Run) -> None:
    if not figures.seconds:
        raise DataError(
            f"nothing was timed in run {_called(run)}: call tracker.profile_operation, or train "
            "for longer than profile_interval_s"
        )


def _called(run: Run) -> str:
    return str(run.info.run_name or run.info.run_id)


def comparable(client: MlflowClient, run: Run) -> Run | None:
    """The run that one is compared with where none is named; None where there is none.

    That is its parent, else the run in Production of a model that it made a version of.

    Raises:
        RegistryError: A registered model cannot be read.
        MlflowException: MLflow does not answer.
    """
    parent = run.data.tags.get(_PARENT_TAG)
    run_id = parent or next(_in_production(client, run.info.run_id), None)
    return client.get_run(run_id) if run_id else None


def _in_production(client: MlflowClient, run_id: str) -> Iterator[str]:
    """The runs whose versions are in Production of the models that a run made versions of."""
    made = client.search_model_versions(f"run_id = '{run_id}'")
    for name in dict.fromkeys(one.name for one in made):
        for version in sorted(read_standing(client, name).inside("Production"), reverse=True):
            other = client.get_model_version(name, str(version)).run_id
            if other and other != run_id:
                yield str(other)


def _figures(client: MlflowClient, run: Run, show: Show) -> Figures:
    return _summed(_points(client, run, show))


def figures_in(points: Points) -> Figures:
    """What was timed in a run, of all its points, as `bottlenecks` reads it; 0 s for nothing."""
    chosen = [at for at, key in enumerate(points.keys) if _is_timed(key) or _is_of_machine(key)]
    rows = points.rows[np.isin(points.rows["key"], chosen)]
    return _summed(
        Point(points.keys[key], step, timestamp_ms, value)
        for key, step, timestamp_ms, value in rows.tolist()
    )


def _points(client: MlflowClient, run: Run, show: Show) -> Iterator[Point]:
    keys = [key for key in run.data.metrics if _is_timed(key) or _is_of_machine(key)]
    for done, key in enumerate(keys):
        show(f"reading {_called(run)}", done, len(keys))
        for one in client.get_metric_history(run.info.run_id, key):
            yield Point(key, one.step, one.timestamp, one.value)


def _summed(points: Iterable[Point]) -> Figures:
    intervals: dict[tuple[int, int], dict[str, float]] = defaultdict(dict)
    used: dict[str, list[float]] = defaultdict(list)
    for one in points:
        if _is_of_machine(one.key):
            used[one.key].append(one.value)
        else:
            intervals[one.timestamp_ms, one.step][_of_one_rank(one.key)] = one.value
    totals = Totals()
    for values in intervals.values():
        totals.add(values)
    return totals.figures(machine_of(used))


def _of_one_rank(key: str) -> str:
    """A key as one rank has it: of many, the one in their midst stands for all."""
    return key.removesuffix("/p50")


def _is_timed(key: str) -> bool:
    key = _of_one_rank(key)
    if key in (SECONDS_KEY, STEPS_KEY, TRACKER_KEY):
        return True
    last = key.rpartition("/")[2]
    return key.startswith("profiling/") and key.count("/") >= 3 and last in (*SUMMED, "max_ms")


def _is_of_machine(key: str) -> bool:
    return key.startswith("system/") and key.endswith(_MACHINE)
