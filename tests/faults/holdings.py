"""Compares what MLflow, TensorBoard and W&B hold of a run with what its trainers logged."""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities import Run

from opusclip_mlops import wandb_log
from opusclip_mlops.crash_report import KEY
from opusclip_mlops.layout import CRASHES
from tests.faults.ledger import Call
from tests.faults.site import Site
from tests.reading import (
    Point,
    event_reader,
    points_of_mlflow,
    points_of_tensorboard,
    points_of_wandb,
)

MEASURED = ("system/", "performance/", "profiling/")
"""Begins the keys of what is measured beside what a trainer logs."""

_SHOWN = 5
_NOT_LOGGED = ("mlflow.", "opusclip.local_id", "opusclip.mirror", "opusclip.checkpoint",
               "opusclip.end_reason", "opusclip.traceback")  # fmt: skip
_Name = tuple[str, int, str]


def assert_whole(
    site: Site, *, lost: int = 0, refused: Iterable[str] = (), run: Run | None = None
) -> None:
    """MLflow, TensorBoard and W&B hold exactly what was logged, and each point once.

    Args:
        site: Where it was logged.
        lost: How many calls the disk could not take; they are nowhere.
        refused: Keys that MLflow has refused; the mirrors hold them.
        run: The run, where it isn't the only one.
    """
    run = run or site.run()
    record = points_of_mlflow(site.client, run.info.run_id)
    rows = assert_mirrors_whole(site, run, lost=lost)
    assert _unlike(record, [point for point in rows if point.key not in refused]) == []
    mirror_id = run.data.tags["opusclip.mirror_id"]
    tags = _tags_of_mlflow(run)
    assert _tags_of_wandb(site.wandb_dir, mirror_id) == tags
    assert _tags_of_tensorboard(site.tensorboard_dir / mirror_id) == _as_cells(tags)


def crash_reports(site: Site) -> dict[str, dict[str, str]]:
    """The texts of the reports in the run's artifacts, by session and file name."""
    run_id = site.run().info.run_id
    found: dict[str, dict[str, str]] = {}
    for folder in site.client.list_artifacts(run_id, CRASHES):
        with tempfile.TemporaryDirectory() as place:
            copy = Path(site.client.download_artifacts(run_id, folder.path, place))
            found[copy.name] = {path.name: path.read_text() for path in copy.iterdir()}
    return found


def summary_in_mirrors(site: Site) -> bool:
    """Whether TensorBoard and W&B have the text that sums a report up: both, or neither."""
    mirror_id = site.run().data.tags["opusclip.mirror_id"]
    files = [*(site.tensorboard_dir / mirror_id).glob("*tfevents*")]
    logs = [*site.wandb_dir.glob(f"wandb/*{mirror_id}*/*.wandb")]
    has = [any(KEY.encode() in path.read_bytes() for path in paths) for paths in (files, logs)]
    assert has[0] == has[1], has
    return has[0]


def assert_mirrors_whole(site: Site, run: Run, *, lost: int = 0) -> list[Point]:
    """TensorBoard and W&B hold exactly what was logged; the points, as 64-bit floats."""
    mirror_id = run.data.tags["opusclip.mirror_id"]
    rows = points_of_wandb(site.wandb_dir, mirror_id)
    calls = [call for call in site.calls if call.kind == "metrics"]
    absent = absent_calls(rows, calls)
    assert len(absent) == lost, absent[:_SHOWN]
    assert _problems(rows, calls) == []
    assert _unlike(points_of_tensorboard(site.tensorboard_dir / mirror_id), _narrow(rows)) == []
    return rows


def absent_calls(points: list[Point], calls: list[Call]) -> list[Call]:
    """The calls that have returned and left not one point."""
    found = {(point.key, point.step, point.value) for point in points}
    return [call for call in calls if call.returned and not found & set(_names(call))]


def assert_held(points: list[Point], calls: Iterable[Call]) -> None:
    """A place holds every call that has returned by now, whatever others do."""
    found = {(point.key, point.step, float(point.value)) for point in points}
    names = {name for call in calls if call.returned for name in _names(call)}
    exact = {(key, step, float(value)) for key, step, value in names}
    narrow = {(key, step, float(np.float32(value))) for key, step, value in exact}
    assert exact <= found or narrow <= found


def _names(call: Call) -> list[_Name]:
    return [(key, call.step, repr(float(value))) for key, value in call.values.items()]


def _problems(points: list[Point], calls: list[Call]) -> list[str]:
    """What was logged and is there in part, twice or never logged, or outside its call's time."""
    logged: dict[_Name, list[Call]] = defaultdict(list)
    for call in calls:
        for name in _names(call):
            logged[name].append(call)
    found: dict[_Name, list[Point]] = defaultdict(list)
    for point in points:
        if not point.key.startswith(MEASURED):
            found[point.key, point.step, point.value].append(point)
    problems = [
        *(f"in part: {call}" for call in calls if len({bool(found[n]) for n in _names(call)}) > 1),
        *(f"too often: {found[n]}" for n in list(found) if len(found[n]) > len(logged.get(n, []))),
        *(f"wrong time: {found[n]}" for n in found if not _times_fit(found[n], logged.get(n, []))),
    ]
    return [*problems[:_SHOWN], *([f"{len(problems)} in all"] if problems else [])]


def _times_fit(points: list[Point], calls: list[Call]) -> bool:
    """Whether each point's time lies within one of the calls that may have logged it."""
    return all(
        any(
            call.before_ms <= point.timestamp_ms
            and (call.after_ms is None or point.timestamp_ms <= call.after_ms)
            for call in calls
        )
        for point in points
    )


def _unlike(points: list[Point], wanted: list[Point]) -> list[str]:
    """How two places differ, point by point."""
    missing = Counter(wanted) - Counter(points)
    extra = Counter(points) - Counter(wanted)
    shown = [f"missing: {one}" for one in list(missing)[:_SHOWN]]
    shown += [f"too much: {one}" for one in list(extra)[:_SHOWN]]
    return [*shown, f"{missing.total()} missing, {extra.total()} too much"] if shown else []


def _narrow(points: list[Point]) -> list[Point]:
    """The points as 32-bit floats."""
    return [replace(p, value=repr(float(np.float32(float(p.value))))) for p in points]


def _tags_of_mlflow(run: Run) -> dict[str, str]:
    """The tags that were logged, without those that MLflow and the MLflow sink add."""
    return {k: text for k, text in run.data.tags.items() if not k.startswith(_NOT_LOGGED)}


def _as_cells(tags: dict[str, str]) -> dict[str, str]:
    """The tags as a table can hold them."""
    return {key: " ".join(text.replace("|", "\\|").split()) for key, text in tags.items()}


def _tags_of_tensorboard(events: Path) -> dict[str, str]:
    """The tags in the Text tab: later tables go before earlier ones."""
    reader = event_reader(events)
    there = set(reader.Tags()["tensors"]) & {"tags", "provenance"}
    tables = [table for name in sorted(there) for table in reader.Tensors(name)]
    lines = [
        line.strip("| ").split(" | ", 1)
        for table in tables
        for line in table.tensor_proto.string_val[0].decode().splitlines()[2:]
    ]
    return {key: text for key, text in lines if not key.startswith(_NOT_LOGGED)}


def _tags_of_wandb(wandb_dir: Path, run_id: str) -> dict[str, str]:
    """The tags in the run's config, as the last part of the run's log has them."""
    tags: dict[str, str] = {}
    for path in wandb_log.logs_of(wandb_dir, run_id):
        for record in wandb_log.read_records(path):
            config: dict[str, Any] = {}
            wandb_log.changed_config(record, config)
            for name in ("tags", "provenance"):
                tags |= config.get("opusclip", {}).get(name, {})
    return {key: text for key, text in tags.items() if not key.startswith(_NOT_LOGGED)}
