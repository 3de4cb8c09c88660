"""MLflow runs of many shapes, and their mirrors read back by readers that are not ours."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from opusclip_mlops.mirror_state import MirrorState
from opusclip_mlops.mirroring import RunMirror, Source
from opusclip_mlops.run_history import open_history
from opusclip_mlops.targets import Target, parse_target
from tests.journeys import store
from tests.reading import Point, points_of_mlflow, points_of_tensorboard, points_of_wandb

INF = float("inf")
NAN = float("nan")
T0 = 1_700_000_000_000

LONG = "k" * 250
RESERVED = ("_step", "global_step", "_timestamp", "_runtime", "_wandb", "metrics/global_step")
"""Keys that W&B keeps for itself, and one that looks like what is made of them."""

AWKWARD: dict[str, list[Metric]] = {
    "steps out of order": [Metric("a", float(s), T0 + n, s) for n, s in enumerate([5, 3, 9, 1])],
    "a repeated step": [Metric("a", v, T0 + n, 7) for n, v in enumerate([1.0, 2.0, 3.0])],
    "negative steps": [Metric("a", 1.0, T0, -5), Metric("a", 2.0, T0 + 1, -(2**40))],
    "huge steps": [Metric("a", 1.0, T0, 2**40), Metric("a", 2.0, T0 + 1, 2**62)],
    "two values at one step and time": [Metric("a", 1.0, T0, 1), Metric("a", 2.0, T0, 1)],
    "no numbers": [Metric("a", v, T0 + n, n) for n, v in enumerate([NAN, INF, -INF, -0.0, 0.0])],
    "no numbers at one moment": [Metric("a", v, T0, 0) for v in (NAN, INF, -INF, 0.5)],
    "extreme values": [Metric("a", v, T0 + n, n) for n, v in enumerate([1e300, 5e-324, 1 / 3])],
    "awkward keys": [
        Metric(key, float(n), T0 + n, n)
        for n, key in enumerate(
            ("a b", "a.b", "a/b/c", "žluťoučký/kůň", LONG, "a:b", "params", "tags", *RESERVED)
        )
    ],
    "the same step in other keys": [
        Metric(key, float(s), T0 + s, s) for s in range(20) for key in ("a", "b", "c")
    ],
    "a clock that goes back": [Metric("a", float(s), T0 - 1000 * s, s) for s in range(5)],
    "time zero": [Metric("a", 1.0, 0, 0)],
}


@dataclass(frozen=True)
class Place:
    """A folder with an MLflow store, and mirrors of its runs."""

    path: Path

    @property
    def uri(self) -> str:
        """The tracking URI."""
        return store(self.path)

    @property
    def client(self) -> MlflowClient:
        """A client of this store."""
        return MlflowClient(self.uri)

    def target(self, kind: str) -> Target:
        """The mirrors of a kind."""
        name = f"tensorboard:{self.path / 'runs'}" if kind == "tensorboard" else "wandb:clips"
        return parse_target(name, wandb_dir=str(self.path / "runs"), wandb_mode="offline")

    def experiment(self, name: str = "films") -> str:
        """An experiment whose artifacts lie here."""
        found = self.client.get_experiment_by_name(name)
        if found:
            return str(found.experiment_id)
        return str(self.client.create_experiment(name, str(self.path / "artifacts" / name)))

    def run(self, metrics: Iterable[Metric] = (), *, status: str | None = "FINISHED") -> Run:
        """A run with points, which still goes on where it has no status."""
        run = self.client.create_run(self.experiment(), run_name="a run")
        self.log(run, metrics)
        if status:
            self.client.set_terminated(run.info.run_id, status)
        return self.again(run)

    def log(self, run: Run, metrics: Iterable[Metric]) -> None:
        """Log points, a thousand at a time."""
        stream = iter(metrics)
        while part := list(itertools.islice(stream, 1000)):
            self.client.log_batch(run.info.run_id, metrics=part)

    def again(self, run: Run) -> Run:
        """The run as it is now."""
        return self.client.get_run(run.info.run_id)

    def mirror(self, run: Run, kind: str) -> RunMirror:
        """The run's mirror of a kind."""
        source = Source(
            client=self.client,
            history=open_history(self.client),
            state=MirrorState(self.path / "state"),
        )
        return RunMirror(source, self.target(kind), run.info.run_id)

    def folder(self, run: Run) -> Path:
        """Where the run's event files are."""
        return self.path / "runs" / "films" / run.info.run_id

    def wanted(self, run: Run, kind: str) -> list[Point]:
        """What a mirror of this kind is to hold."""
        found = [_plain(one) for one in points_of_mlflow(self.client, run.info.run_id)]
        return sorted(_narrow(one) for one in found) if kind == "tensorboard" else sorted(found)

    def held(self, run: Run, kind: str) -> list[Point]:
        """What the mirror holds, read by TensorBoard's own loader or out of W&B's log."""
        if kind == "tensorboard":
            found = points_of_tensorboard(self.folder(run)) if self.folder(run).exists() else []
        else:
            found = points_of_wandb(self.path / "runs", run.info.run_id)
            found = [replace(one, key=_unreserved(one.key)) for one in found]
        return sorted(_plain(one) for one in found)


def _plain(point: Point) -> Point:
    value = float(point.value)
    if abs(value) >= 1.7976931348623157e308:
        value = INF if value > 0 else -INF
    return Point(point.key, point.step, point.timestamp_ms, repr(value + 0.0))


def _narrow(point: Point) -> Point:
    import numpy as np

    with np.errstate(over="ignore"):
        value = float(np.float32(float(point.value)))
    return Point(point.key, point.step, point.timestamp_ms, repr(value + 0.0))


def _unreserved(column: str) -> str:
    is_reserved = column.rpartition("/")[2] in RESERVED and column.startswith("metrics/")
    return column.removeprefix("metrics/") if is_reserved else column
