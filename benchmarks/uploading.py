"""Part `uploading`: how fast the shipper brings a checkpoint to S3, beside boto3's `upload_file`.

A checkpoint of 300 MB that was just written is sent by the shipper's MLflow sink: checked, brought
to the disk, hashed, sealed, uploaded, and marked in MLflow. boto3 uploads the same weights and does
nothing else. They take turns in one process, on one SeaweedFS; told is the rate, and the median of
the turns' ratios is judged by the interval that holds 95 % of bootstrap resamples. The same is told
of a run whose files pass through an MLflow server, and of one whose parts that server signs.
"""

import logging
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.figures import Figure, interval_of, paired_ratios
from opusclip_mlops.checkpoints import WEIGHTS, CheckpointMetadata, write_checkpoint
from opusclip_mlops.folder import Manifest, RunFolder
from opusclip_mlops.records import Batch, Checkpoint
from tests.object_store import BUCKET, ObjectStore, object_store
from tests.servers import mlflow_server

if TYPE_CHECKING:
    from opusclip_mlops.sinks.mlflow import MlflowSink

PART = "uploading"
LEAST = 0.9
TURNS, QUICK_TURNS = 9, 3
MEGABYTES, QUICK_MEGABYTES = 300, 48
_PARTS = "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD"
_ROADS: dict[str, dict[str, str]] = {
    "itself": {},
    "through an MLflow server": {_PARTS: "false"},
    "in parts that it signs": {_PARTS: "true"},
}


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Send it to S3 on each road."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    megabytes = QUICK_MEGABYTES if quick else MEGABYTES
    turns = QUICK_TURNS if quick else TURNS
    model = _model(folder / "model", megabytes)
    with (
        object_store() as store,
        _variables(store.environment()),
        mlflow_server(folder, artifacts=f"s3://{BUCKET}/served") as uri,
    ):
        return [
            # Of what nothing is promised, a few turns tell enough.
            _compared(_Road(name, folder, uri), model, store, turns // 3 if _ROADS[name] else turns)
            for name in _ROADS
        ]


def _model(folder: Path, megabytes: int) -> Path:
    import torch

    model = torch.nn.Linear(1024, 256 * megabytes, bias=False)
    about = CheckpointMetadata(name=folder.name, epoch=0, step=0)
    return write_checkpoint(folder, model, metadata=about)


class _Road:
    """A run whose files take one road to S3."""

    def __init__(self, name: str, folder: Path, uri: str) -> None:
        from mlflow import MlflowClient

        self.name = name
        self._turn = 0
        place = f"s3://{BUCKET}/itself" if not _ROADS[name] else None
        MlflowClient(uri, uri).create_experiment(name, artifact_location=place)
        local_id = name.replace(" ", "-")
        self.folder = RunFolder(folder / local_id)
        self.folder.create(
            Manifest(
                local_id=local_id,
                cwd=str(folder),
                sinks=["mlflow"],
                experiment_name=name,
                start_time_ms=1_700_000_000_000,
                tracking_uri=uri,
            )
        )
        self._sink: MlflowSink | None = None

    def fresh(self, model: Path) -> Path:
        """A checkpoint that was written in this moment."""
        self._turn += 1
        place = self.folder.checkpoints / f"epoch_0000-step_{self._turn:06d}"
        shutil.copytree(model, place)
        return place

    def send(self, place: Path) -> None:
        """What the shipper does with it."""
        from opusclip_mlops.sinks.mlflow import MlflowSink

        with _variables(_ROADS[self.name]):
            if self._sink is None:
                self._sink = MlflowSink(self.folder)
                self._sink.open({})
            record = Checkpoint(1_700_000_000_000, self._turn, 0, place.name, {}, False)
            written = self._sink.write(Batch(records=(record,)))
        if written.fault or written.refused:
            raise AssertionError(f"not sent: {written.fault or written.refused}")


def _compared(road: _Road, model: Path, store: ObjectStore, turns: int) -> Figure:
    size_mb = (model / WEIGHTS).stat().st_size / 1e6

    def direct(place: Path) -> None:
        store.client.upload_file(str(place / WEIGHTS), BUCKET, f"plain/{place.name}")

    ways: tuple[Callable[[Path], Any], ...] = (road.send, direct)
    rates: tuple[list[float], list[float]] = ([], [])
    for turn in range(-1, turns):  # the first one is not counted
        for which in (0, 1) if turn % 2 else (1, 0):
            place = road.fresh(model)
            began_s = time.perf_counter()
            ways[which](place)
            rate = size_mb / (time.perf_counter() - began_s)
            shutil.rmtree(place)
            if turn >= 0:
                rates[which].append(rate)
    return Figure(
        part=PART,
        what=f"a checkpoint of {size_mb:.0f} MB, {road.name}",
        ours=statistics.median(rates[0]),
        unit="MB/s",
        peer="boto3",
        theirs=statistics.median(rates[1]),
        at_least=None if _ROADS[road.name] else LEAST,
        interval=interval_of(paired_ratios(*rates)),
    )


@contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
