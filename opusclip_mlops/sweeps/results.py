"""The run of a sweep in MLflow: begun, gone on with, and ended with what came of it."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric as MlflowMetric
from mlflow.entities import Param
from mlflow.exceptions import MlflowException

from opusclip_mlops import records
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.faults import attempted
from opusclip_mlops.layout import REASON_TAG
from opusclip_mlops.patience import patiently
from opusclip_mlops.provenance import run_tags
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import EXISTS
from opusclip_mlops.sweeps import plots
from opusclip_mlops.sweeps.outcome import TrialOutcome
from opusclip_mlops.sweeps.schema import Metric, SweepConfig
from opusclip_mlops.sweeps.trial_runs import SWEEP_TAG

BEST_TAG = "opusclip.sweep.best_run_id"
"""Which run of the sweep was the best."""

FOLDER = "sweep"
"""Where the sweep's files lie among the artifacts of its run."""

_BATCH = 500

_Made = TypeVar("_Made")


def begin_run(client: MlflowClient, config: SweepConfig, *, name: str, experiment: str) -> str:
    """Make the sweep's run, or take the one that `mlflow run` has made; the run's id.

    Raises:
        RegistryError: MLflow refused, or did not answer.
    """
    what = f"cannot make the run of sweep {name}"
    run_id = os.environ.get("MLFLOW_RUN_ID") or patiently(
        what, lambda: _made(client, config, name, experiment)
    )
    params = {"method": config.method, **({"metric": config.metric.name} if config.metric else {})}
    given = records.to_text_values({f"sweep.{key}": value for key, value in params.items()})

    def describe() -> None:
        client.log_batch(run_id, params=[Param(*pair) for pair in given.items()])
        client.set_tag(run_id, SWEEP_TAG, name)
        client.log_dict(run_id, dict(config.document), f"{FOLDER}/sweep.yaml")

    or_failed(client, run_id, name, lambda: patiently(what, describe))
    return run_id


def or_failed(client: MlflowClient, run_id: str, name: str, begin: Callable[[], _Made]) -> _Made:
    """Do what a sweep begins with, and have what came of it; where that fails, so has its run.

    Raises:
        OpusclipError: it could not be done.
    """
    made: list[_Made] = []
    try:
        fault = attempted(lambda: made.append(begin()))
    except KeyboardInterrupt:
        attempted(lambda: _fail(client, run_id, "interrupted"))
        raise
    if fault is None:
        return made[0]
    why = one_line(str(fault)) or type(fault).__name__
    attempted(lambda: _fail(client, run_id, why))
    if isinstance(fault, OpusclipError):
        raise fault
    raise OpusclipError(f"sweep {name} cannot begin: {why}") from None


def _fail(client: MlflowClient, run_id: str, why: str) -> None:
    client.set_tag(run_id, REASON_TAG, f"the sweep could not begin: {why}")
    client.set_terminated(run_id, "FAILED")


def _made(client: MlflowClient, config: SweepConfig, name: str, experiment: str) -> str:
    tags = run_tags(Path.cwd()) | {SWEEP_TAG: name}
    if config.description:
        tags["mlflow.note.content"] = config.description
    experiment_id = _experiment_id(client, experiment)
    made = client.create_run(experiment_id, run_name=config.name or name, tags=tags)
    return str(made.info.run_id)


def _experiment_id(client: MlflowClient, name: str) -> str:
    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name))
    except MlflowException as error:
        # Another process made it in between.
        if error.error_code != EXISTS:
            raise
        return _experiment_id(client, name)


def go_on(client: MlflowClient, run_id: str) -> None:
    """Say that the sweep's run goes on.

    Raises:
        RegistryError: MLflow refused, or did not answer.
    """

    def begin_again() -> None:
        if REASON_TAG in client.get_run(run_id).data.tags:
            client.delete_tag(run_id, REASON_TAG)
        client.update_run(run_id, status="RUNNING")

    patiently(f"cannot go on with run {run_id}", begin_again)


def end_run(
    client: MlflowClient,
    run_id: str,
    trials: Sequence[TrialOutcome],
    *,
    metric: Metric | None,
    best: TrialOutcome | None,
    shares: Mapping[str, float],
    status: str | None,
    reason: str = "",
) -> None:
    """Log what came of a sweep, and end its run; without a status it goes on.

    Raises:
        RegistryError: MLflow refused, or did not answer.
    """

    def end() -> None:
        if best:
            client.set_tag(run_id, BEST_TAG, best.run_id)
        _log_values(client, run_id, trials, metric)
        if status and reason:
            client.set_tag(run_id, REASON_TAG, one_line(reason))
        if status:
            client.set_terminated(run_id, status)
        _log_files(client, run_id, trials, metric, best, shares)

    patiently(f"cannot end run {run_id}", end)


def _log_values(
    client: MlflowClient, run_id: str, trials: Sequence[TrialOutcome], metric: Metric | None
) -> None:
    """Each trial's value as a point at its number, and the best so far; what is there stays."""
    if metric is None:
        return
    choose = max if metric.maximizes else min
    now_ms, points, best = time.time_ns() // 1_000_000, [], None
    for one in trials:
        if one.state != "complete" or one.value is None:
            continue
        best = one.value if best is None else choose(best, one.value)
        points.append(MlflowMetric("sweep/value", one.value, now_ms, one.number))
        points.append(MlflowMetric("sweep/best", best, now_ms, one.number))
    known = {
        (key, one.step): one.value
        for key in ("sweep/value", "sweep/best")
        for one in client.get_metric_history(run_id, key)
    }
    points = [one for one in points if known.get((one.key, one.step)) != one.value]
    for start in range(0, len(points), _BATCH):
        client.log_batch(run_id, metrics=points[start : start + _BATCH])


def _log_files(
    client: MlflowClient,
    run_id: str,
    trials: Sequence[TrialOutcome],
    metric: Metric | None,
    best: TrialOutcome | None,
    shares: Mapping[str, float],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write(folder / "trials.json", [asdict(one) for one in trials])
        if best:
            _write(folder / "best.json", asdict(best))
        if metric:
            _draw(folder / "history.png", lambda: plots.history(trials, metric))
        if shares:
            _write(folder / "importance.json", dict(shares))
            _draw(folder / "importance.png", lambda: plots.importance(shares))
        client.log_artifacts(run_id, name, FOLDER)


def _draw(path: Path, draw: Callable[[], Any]) -> None:
    """A picture, but for values so large that no axis can hold them."""
    if attempted(lambda: draw().savefig(path, dpi=100)):
        path.unlink(missing_ok=True)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False))
