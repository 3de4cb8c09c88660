"""A run with something of everything, logged by a tracker's records, and one that is plain."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric
from PIL import Image as Picture

from opusclip_mlops import media, promotion
from opusclip_mlops.alerts.events import Event
from opusclip_mlops.crash_report import KEY as CRASH_KEY
from opusclip_mlops.curves import Curve
from opusclip_mlops.delivery import deliver
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.generations import generation_tag
from opusclip_mlops.layout import BEST_TAG
from opusclip_mlops.metadata import WEIGHTS, CheckpointMetadata, StoredFile
from opusclip_mlops.records import Dataset, Image, Metrics, Params, Record, Table, Text, Video
from opusclip_mlops.reports import MadeReport, report
from tests import insight_records
from tests.journeys import append, end, make_run, store
from tests.panelled import T0_MS, numbered, run_of, samples
from tests.promoters import Gate

_ROW = np.dtype([("step", "<i8"), ("timestamp_ms", "<i8"), ("value", "<f8")])
STEPS = 40
AGAIN_AFTER, AGAIN_TO = 19, 24
SPIKE = 77.25
MODEL = "kites"
CHECKPOINT = "epoch_0000-step_000019"


@dataclass(frozen=True)
class Site:
    """A store with runs to report.

    Attributes:
        uri: Of the store.
        client: Asks it.
        rich: The run with something of everything, called "rich".
        plain: One with metrics alone, called "plain".
    """

    uri: str
    client: MlflowClient
    rich: str
    plain: str

    def made(self, *runs: str, **options: object) -> tuple[MadeReport, str]:
        """A report of runs, and the text of its page."""
        given = {"logs": False, "tracking_uri": self.uri, "file": Path("made.html"), **options}
        made = report(runs, **given)  # type: ignore[arg-type]
        return made, made.file.read_text()


def curve(*values: float, **fields: Any) -> Curve:
    """A curve with these values at steps 0, 1, 2 and so on."""
    rows = np.array([(at, at, value) for at, value in enumerate(values)], dtype=_ROW)
    return Curve(rows=rows, **fields)


def bare_run(
    client: MlflowClient,
    name: str,
    values: Mapping[str, Sequence[float]],
    *,
    experiment: str = "films",
    tags: Mapping[str, str] | None = None,
    start_ms: int | None = None,
) -> str:
    """A run of MLflow's own client, with these values at steps 0, 1, 2 and so on."""
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    run = client.create_run(experiment_id, start_ms, dict(tags or {}), name)
    points = [
        Metric(key, value, T0_MS + step, step)
        for key, every in values.items()
        for step, value in enumerate(every)
    ]
    client.log_batch(run.info.run_id, metrics=points)
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def gone_on(run: str, client: MlflowClient, *, after_step: int, at_ms: int) -> None:
    """Let a run have gone on from a checkpoint."""
    about = CheckpointMetadata(name="c19", epoch=0, step=after_step, created_ms=at_ms - 1)
    for name, text in generation_tag("s2", start_ms=at_ms, begun_from=about).items():
        client.set_tag(run, name, text)


def rich_run(folder: Path) -> str:
    run = make_run(folder, run_name="rich")
    append(run, [*_words(), *_points(), *_seen(run)])
    end(run, "FAILED", "ValueError: the loss is <b>NaN</b>")
    deliver(run, "mlflow")
    made, client = run_of(run), MlflowClient(store(folder))
    run_id = str(made.info.run_id)
    _checkpoint(client, run_id, folder)
    gone_on(run_id, client, after_step=AGAIN_AFTER, at_ms=T0_MS + 100_000)
    return run_id


def _words() -> list[Record]:
    event = Event(
        alert="loss-nan", state="raised", number=1, message="train/loss is NaN", step=7,
        timestamp_ms=T0_MS,
    )  # fmt: skip
    summary = "FAILED: ValueError\n\n    loaded = load_checkpoint('RUN', which='c19')\n"
    return [
        Params({"lr": "0.1", "prompt": "<script>alert(1)</script> | `x`"}),
        Dataset("films", "d1", "local", "/films", "training", '{"clips": 3}'),
        Text(T0_MS + 9, 39, CRASH_KEY, summary),
        *event.records(),
    ]


def _points() -> list[Record]:
    first = [Metrics(T0_MS + step, step, {"train/loss": 1 / (step + 1)}) for step in range(STEPS)]
    again = range(AGAIN_AFTER + 1, AGAIN_TO + 1)
    later = [Metrics(T0_MS + 100_000 + step, step, {"train/loss": 0.5}) for step in again]
    more = [
        Metrics(T0_MS + 1, 1, {"train/loss": float("nan")}),
        Metrics(T0_MS + 5, 5, {"val/psnr": 21.5, "system/cpu": 3.0}),
        Metrics(T0_MS + 6, 6, {"val/psnr": SPIKE}),
        Metrics(T0_MS + 7, 7, {"val/psnr": 22.5}),
    ]
    return [*first, *later, *more]


def _seen(run: RunFolder) -> list[Record]:
    Picture.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(run.media / "grid.png")
    clips = [
        Video(
            T0_MS + step, step, "films/walk",
            media.stage(run, numbered(step), value_range=(0, 1)), 8.0, "a <i>walk</i>",
        )
        for step in (2, 9)
    ]  # fmt: skip
    return [
        *clips,
        *samples(run, 0, timestamp_ms=T0_MS),
        *samples(run, 10, timestamp_ms=T0_MS + 1, scores={"psnr": 31.25}),
        Image(T0_MS + 3, 3, "grids/first", "grid.png"),
        Table(T0_MS + 2, 2, "worst clips", ["clip", "loss"], [["kite.mp4", 0.5]] * 30),
        insight_records.histograms(),
    ]


def _checkpoint(client: MlflowClient, run_id: str, folder: Path) -> None:
    """A checkpoint as it stands in MLflow, without the weights that it would take torch to make."""
    stored = StoredFile(sha256=sha256(b"weights").hexdigest(), size_bytes=7)
    about = CheckpointMetadata(
        name=CHECKPOINT, epoch=0, step=19, metrics={"val/loss": 0.25},
        created_ms=T0_MS, files={WEIGHTS: stored},
    )  # fmt: skip
    here = folder / about.name
    here.mkdir()
    (here / WEIGHTS).write_bytes(b"weights")
    (here / "metadata.json").write_text(json.dumps(about.to_dict()))
    client.log_artifacts(run_id, str(here), f"checkpoints/{about.name}")
    client.set_tag(run_id, BEST_TAG, about.name)


def register(client: MlflowClient, run_id: str) -> None:
    client.create_registered_model(MODEL)
    source = f"{client.get_run(run_id).info.artifact_uri}/checkpoints/{CHECKPOINT}"
    for _ in range(2):
        client.create_model_version(MODEL, source=source, run_id=run_id)
    for version, why in ((1, "first"), (2, "sharper | <b>kites</b>")):
        promotion.promote(MODEL, version, to="Production", judge=Gate(), reason=why, client=client)
