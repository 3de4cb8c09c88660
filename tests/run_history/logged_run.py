"""A run that a test logs to, and one who follows it as a mirror does."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from opusclip_mlops.points import Point, Points
from opusclip_mlops.run_history import Cursor, History
from opusclip_mlops.watermarks import Mark


class LoggedRun:
    """A run in MLflow, with all that was ever logged to it."""

    def __init__(self, client: MlflowClient) -> None:
        self.client = client
        self.run_id: str = client.create_run("0").info.run_id
        self.logged: list[Point] = []

    def log(self, *points: Point) -> None:
        """Log points the way every MLflow client does."""
        self.log_many(points)

    def log_many(self, points: Iterable[Point], *, client: MlflowClient | None = None) -> None:
        """Log points through another client."""
        new = list(points)
        metrics = [Metric(p.key, p.value, p.timestamp_ms, p.step) for p in new]
        (client or self.client).log_batch(self.run_id, metrics)
        self.logged += new

    def fetched(self) -> Run:
        """The run as it is now."""
        return self.client.get_run(self.run_id)

    def points(self) -> Points:
        """What MLflow must hold of it: each point once."""
        return Points.of(self.logged).distinct()


class Follower:
    """Reads a run, then only its news, with a cursor that was written down in between."""

    def __init__(self, history: History, run: LoggedRun) -> None:
        self._history, self._run = history, run
        self.starts = 0
        self._read()

    def poll(self) -> Points:
        """The news, or everything where the cursor fits no more."""
        found = self._history.news(self._run.fetched(), self.cursor)
        if found is None:
            return self._read()
        news, cursor = found
        self.points = Points.joined([self.points, news])
        self.cursor = _kept(cursor)
        return news

    def poll_a_round(self) -> None:
        """Poll until every key has been looked at: one or more are in each call."""
        for _ in self._run.fetched().data.metrics:
            self.poll()

    def mark(self, key: str) -> Mark:
        """How far a key was read."""
        return Mark(*self.cursor["marks"][key])

    def _read(self) -> Points:
        self.starts += 1
        self.points, cursor = self._history.read(self._run.fetched())
        self.cursor = _kept(cursor)
        return self.points


def _kept(cursor: Cursor) -> Cursor:
    kept: Cursor = json.loads(json.dumps(cursor, allow_nan=False))
    return kept


def differences(found: Points, wanted: Points) -> tuple[list[Point], list[Point]]:
    """What is missing and what is too much; both are empty where the two are the same."""
    return wanted.minus(found).some(5), found.minus(wanted).some(5)


SAME: tuple[list[Point], list[Point]] = ([], [])


def series(key: str, steps: Sequence[int], *, start_ms: int = 1_000) -> list[Point]:
    """A point a step, a millisecond apart."""
    return [Point(key, step, start_ms + at, step / 8) for at, step in enumerate(steps)]


AWKWARD = [
    *series("loss", [5, 3, 9, 0, 4]),
    Point("loss", 3, 1_001, 7.0),
    Point("loss", 3, 1_001, -7.0),
    Point("loss", 3, 2_000, 0.375),
    Point("loss", -8, 900, 1e-320),
    Point("loss", 2**40, 901, 0.1 + 0.2),
    Point("loss", 5, 2**42, -0.0),
    Point("at once", 1, 5, 0.0),
    Point("at once", 1, 5, math.nan),
    Point("at once", 1, 5, -1.0),
    Point("at once", 1, 5, 1.0),
    Point("odd", 0, 0, math.inf),
    Point("odd", 0, 0, -math.inf),
    Point("odd", 1, 0, math.nan),
    Point("odd", 2, 0, 1.7976931348623157e308),
    Point("with space/and.dot/slash-dash_x:y", 1, 1, 1.0),
    Point("größe/損失/потеря", 1, 1, 2.0),
    Point("k" * 250, 1, 1, 3.0),
    Point("Loss", 1, 1, 4.0),
]
"""Steps out of order, repeated, negative, huge; several values at one time; odd values and keys."""


def database_in(folder: Path) -> str:
    """The URI of the SQLite database that `mlflow_server` keeps in a folder."""
    return f"sqlite:///{folder / 'mlflow.db'}"
