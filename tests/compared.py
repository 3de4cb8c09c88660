"""Runs beside each other, without a store or out of one, for tests of what is made of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, RunData, RunInfo, RunTag

from opusclip_mlops.comparing import Beside, Branch, Comparison, PanelBeside
from opusclip_mlops.contrasts import contrasts, facts_of
from opusclip_mlops.curves import By, Curve, curves_of
from opusclip_mlops.generations import generation_tag
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.metric_rows import rows_of
from opusclip_mlops.points import Points
from tests.journeys import store
from tests.panelled import numbered, panelled_run

T0_MS = 1_700_000_000_000
SECRET = "x password: geheim123 \u202eevil"
NASTY = '</script><img src=x onerror="document.title=1">'


def curve(values: Sequence[float], *, start: int = 0, every_ms: int = 1000) -> Curve:
    """These values at steps from `start` on, so many milliseconds apart."""
    count = len(values)
    steps = range(start, start + count)
    times = range(T0_MS, T0_MS + every_ms * count, every_ms)
    points = Points.of_columns(["m"], [0] * count, list(steps), list(times), list(values))
    return curves_of(points, wanted=lambda _: True)["m"]


def run_of(name: str, tags: Mapping[str, str] | None = None) -> Run:
    """A run as MLflow gives it."""
    info = RunInfo(
        run_id=(name.encode().hex() * 32)[:32],
        experiment_id="1",
        user_id="u",
        status="FINISHED",
        start_time=T0_MS,
        end_time=T0_MS + 90_000,
        lifecycle_stage="active",
        run_name=name,
    )
    return Run(info, RunData(tags=[RunTag(key, text) for key, text in (tags or {}).items()]))


def beside(
    curves: Mapping[str, Mapping[str, Curve]],
    *,
    tags: Mapping[str, Mapping[str, str]] | None = None,
    by: By = "step",
    branch: Branch = "now",
    panels: Sequence[PanelBeside] = (),
    notes: Sequence[str] = (),
) -> Beside:
    """Runs with these curves by their names, which were read from nowhere."""
    found = {chr(65 + at): run_of(name, (tags or {}).get(name)) for at, name in enumerate(curves)}
    of_label = dict(zip(found, curves.values(), strict=True))
    starts = dict.fromkeys(found, T0_MS)
    keys = sorted({key for one in curves.values() for key in one})
    rows = [
        row
        for key in keys
        for row in rows_of(
            key,
            {label: one[key] for label, one in of_label.items() if key in one},
            {},
            by=by,
            starts=starts,
        )
    ]
    facts = {label: facts_of(one) for label, one in found.items()}
    comparison = Comparison(
        runs=facts,
        differences=contrasts(list(facts.values())),
        by=by,
        metrics=tuple(rows),
        panels=tuple(panels),
        notes=tuple(notes),
    )
    return Beside(comparison=comparison, runs=found, curves=of_label, branch=branch)


def went_back(*, after_step: int, at_s: int) -> dict[str, str]:
    """The tag of a run that went on from a checkpoint so many seconds after its beginning."""
    about = CheckpointMetadata(
        name="c", epoch=0, step=after_step, metrics={}, created_ms=T0_MS + 1000 * after_step + 1
    )
    return generation_tag("s", start_ms=T0_MS + 1000 * at_s, begun_from=about)


def sampled_runs(folder: Path, **fields: Any) -> str:
    """A store with two runs of one panel: the second did not sample its first prompt.

    Their steps are 0, 10, 20 and 10, 20, 30.
    """
    for name, steps, lr in (("first", (0, 10, 20), "0.1"), ("second", (10, 20, 30), "0.2")):
        clips = [numbered(40 * at) for at in range(4)]
        given = clips if name == "first" else [None, *clips[1:]]
        _, run = panelled_run(
            folder, steps, run=name, clips=given, scores={"psnr": 31.25}, **fields
        )
        client = MlflowClient(store(folder))
        client.log_param(run.info.run_id, "lr", lr)
        for step in range(5):
            client.log_metric(run.info.run_id, "val/loss", float(lr) * step, step=step)
    return store(folder)
