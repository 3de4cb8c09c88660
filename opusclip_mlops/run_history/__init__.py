"""A run's points, read from MLflow: all of them, then only what is new.

A cursor remembers what was read. It is plain JSON, so that a reader started again goes on with it.
"""

import importlib
import re
from typing import TYPE_CHECKING, Any, Protocol

from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.points import Points

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_DATABASE = re.compile(r"(sqlite|postgresql|mysql|mssql)(\+\w+)?:")

Cursor = dict[str, Any]
"""What was read of a run so far, as JSON; of use to the kind of reader it came from only."""


class HistoryError(OpusclipError):
    """The points of a run cannot be read now."""


class RunGoneError(HistoryError):
    """A run is not there to be read: it was removed for good."""


class History(Protocol):
    """Reads the points of runs.

    Both calls raise `RunGoneError` when the run is no more, `HistoryError` when a database can't be
    read, and MLflow's own errors when a server can't. A run that was only marked as deleted is read
    like any other.
    """

    def read(self, run: "Run") -> tuple[Points, Cursor]:
        """All points of a run that was fetched just now."""

    def news(self, run: "Run", cursor: Cursor) -> tuple[Points, Cursor] | None:
        """What was added since; None where only reading all can tell.

        Each point is given once. One that was added late, at a lower step or an earlier time than
        the latest of its key, may be found only by one of the next 64 calls.
        """


def open_history(client: "MlflowClient", *, database_uri: str | None = None) -> History:
    """Read from a database where there is one at hand, else through the client.

    Args:
        client: Of the MLflow that holds the runs.
        database_uri: MLflow's own database behind a server; read past the server, never written.

    Raises:
        HistoryError: there is no such database.
    """
    uri = database_uri or str(client.tracking_uri)
    kind = _DATABASE.match(uri)
    if kind and kind[1] == "sqlite":
        sqlite: History = _module("sqlite").SqliteHistory(uri)
        return sqlite
    rows = _module("sql").SqlRows(uri) if kind else _module("rest").RestRows(client)
    by_key: History = _module("by_key").HistoryByKey(rows)
    return by_key


def latest_of(run: "Run") -> dict[str, str]:
    """For each key of a run its point of the highest step, as a text to compare."""
    # The public mapping of a run's metrics has their values only.
    every = run.data._metric_objs
    return {one.key: f"{one.step} {one.timestamp} {float(one.value)!r}" for one in every}


def _module(name: str) -> Any:
    """One of the kinds of reader; each brings libraries that the others have no use for."""
    return importlib.import_module(f"opusclip_mlops.run_history.{name}")
