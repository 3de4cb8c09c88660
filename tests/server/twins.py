"""Two databases, one for MLflow's own store and one for ours, and what each answers to a call."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import LoggedModelParameter, LoggedModelTag
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import create_engine, text

from opusclip_mlops.server.tracking import TrackingStore
from tests.journeys import store

_TABLES = {
    "metrics": "run_uuid, key, timestamp, step, value, is_nan",
    "latest_metrics": "run_uuid, key, timestamp, step, value, is_nan",
    "params": "run_uuid, key, value",
    "tags": "run_uuid, key, value",
    "logged_model_metrics": (
        "run_id, model_id, metric_name, metric_timestamp_ms, metric_step, metric_value,"
        " dataset_name, dataset_digest, experiment_id"
    ),
}
_HEX = re.compile(r"[0-9a-f]{32}")
_TIMES = ("creation_time", "last_update_time", "creation_timestamp", "last_updated_timestamp")


@dataclass
class World:
    """One store, and what was made in it in one sequence of calls."""

    store: SqlAlchemyStore
    experiment: str = ""
    runs: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    def begin(self, name: str) -> None:
        """Make an experiment with three runs and two logged models."""
        self.experiment = self.store.create_experiment(name)
        for number in range(3):
            self.new_run(number)
        for name in ("kite", "boat"):
            model = self.store.create_logged_model(
                self.experiment, name, self.runs[0], [LoggedModelTag("a", "b")],
                [LoggedModelParameter("c", "d")], "video",
            )  # fmt: skip
            self.models.append(model.model_id)

    def new_run(self, number: int) -> None:
        """Make one more run."""
        run = self.store.create_run(self.experiment, "kim", 1000 + number, [], f"run-{number}")
        self.runs.append(run.info.run_id)

    def answer(self, call: Callable[["World"], Any]) -> Any:
        """What a call gives or raises, in words that do not tell one store from another."""
        try:
            return self.neutral(call(self))
        except MlflowException as error:
            return "refused", error.error_code, self.neutral(error.message)
        except (TypeError, ValueError, AttributeError) as error:
            return type(error).__name__, self.neutral(str(error))

    def neutral(self, value: Any) -> Any:
        """A value with names in place of ids, and without the times of the clock."""
        if isinstance(value, str):
            return _HEX.sub(self._name_of, value)
        if isinstance(value, float):
            return repr(value)
        if isinstance(value, list | tuple):
            token = getattr(value, "token", None)
            return [*map(self.neutral, value), *([token] if token else [])]
        if isinstance(value, dict):
            found = {key: self.neutral(one) for key, one in value.items() if key not in _TIMES}
            if "metric_objs" in found and self.store.db_type == "postgresql":
                # They come in the order in which the last updates moved the rows.
                found["metric_objs"].sort(key=repr)
            return found
        if hasattr(value, "__dict__"):
            return self.neutral({name.strip("_"): one for name, one in vars(value).items()})
        return value

    def _name_of(self, found: re.Match[str]) -> str:
        ids = [*self.runs, *(one.removeprefix("m-") for one in self.models)]
        return f"<{ids.index(found[0])}>" if found[0] in ids else "<new>"

    def rows(self) -> dict[str, list[Any]]:
        """All rows of the runs, as the database itself holds them."""
        return {table: self._rows_of(table, columns) for table, columns in _TABLES.items()}

    def _rows_of(self, table: str, columns: str) -> list[Any]:
        if self.store.db_type == "sqlite":
            names = [f"{one}, typeof({one})" for one in columns.split(", ")]
            columns = ", ".join(names)
        run = "run_id" if table == "logged_model_metrics" else "run_uuid"
        query = text(f"SELECT {columns} FROM {table} WHERE {run} = :run")
        with self.store.engine.connect() as connection:
            found = [connection.execute(query, {"run": one}).all() for one in self.runs]
        return sorted(repr(self.neutral(list(row))) for of_run in found for row in of_run)


@dataclass(frozen=True)
class Twins:
    """MLflow's own store on one database, and ours on another one like it."""

    stock: SqlAlchemyStore
    ours: TrackingStore

    def worlds(self, name: str) -> tuple[World, World]:
        """A new experiment in each, with the same name."""
        both = World(self.stock), World(self.ours)
        for world in both:
            world.begin(name)
        return both


def sqlite_twins(folder: Path) -> Twins:
    """Two files, empty at first."""
    uris = [store(folder / name) for name in ("stock", "ours")]
    return _twins(uris, folder)


@contextlib.contextmanager
def postgres_twins(server: str, folder: Path) -> Iterator[Twins]:
    """Two databases of a server, empty at first; ours made its tables itself."""
    uris = [f"{server.rpartition('/')[0]}/{name}" for name in ("stock", "ours")]
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for name in ("stock", "ours"):
            connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    twins = _twins(uris, folder)
    yield twins
    for one in (twins.stock, twins.ours):
        one.engine.dispose()


def _twins(uris: Sequence[str], folder: Path) -> Twins:
    root = str(folder / "artifacts")
    return Twins(SqlAlchemyStore(uris[0], root), TrackingStore(f"opusclip+{uris[1]}", root))
