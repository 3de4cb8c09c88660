"""The points of single keys out of MLflow's database: PostgreSQL, MySQL or SQL Server."""

import contextlib
import importlib.util
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Boolean, Select, and_, bindparam, column, create_engine, func, or_, select
from sqlalchemy import table as table_of
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from opusclip_mlops.redaction import one_line
from opusclip_mlops.run_history import HistoryError, RunGoneError
from opusclip_mlops.watermarks import Mark, Rows, rows_of

_ROWS_AT_ONCE = 50_000
_CONNECT_S = 20
# A server that is frozen, or a connection that a router has dropped, must not be waited for.
_FOR_POSTGRESQL = {
    "connect_timeout": _CONNECT_S,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    "options": "-c statement_timeout=600000",
}

_METRICS_TABLE = table_of(
    "metrics",
    *map(column, ("run_uuid", "key", "timestamp", "step", "value")),
    column("is_nan", Boolean),
)
_METRICS, _RUNS = _METRICS_TABLE.c, table_of("runs", column("run_uuid")).c
_OF_RUN = _METRICS.run_uuid == bindparam("run_id")
_OF_KEY = and_(_OF_RUN, _METRICS.key == bindparam("key"))
_ORDER = (_METRICS.timestamp, _METRICS.step, _METRICS.value, _METRICS.is_nan)


def _behind(*, nan: bool) -> Select[Any]:
    """The rows of a key behind a mark, in the order of the primary key; NaN is kept as 0."""
    time, step, value, is_nan = _ORDER
    at_time: Any = bindparam("at_time")
    at_step: Any = bindparam("at_step")
    at_value: Any = bindparam("at_value")
    of_value = value > at_value if nan else or_(value > at_value, and_(value == at_value, is_nan))
    of_step = or_(step > at_step, and_(step == at_step, of_value))
    of_time = and_(time >= at_time, or_(time > at_time, of_step))
    return select(*_ORDER).where(_OF_KEY, of_time).order_by(*_ORDER)


_IS_THERE = select(_RUNS.run_uuid).where(_RUNS.run_uuid == bindparam("run_id"))
_EVERYTHING = select(_METRICS.key, *_ORDER).where(_OF_RUN)
_WHOLE_KEY = select(*_ORDER).where(_OF_KEY).order_by(*_ORDER)
_BEHIND, _BEHIND_NAN = _behind(nan=False), _behind(nan=True)
_COUNT = select(func.count()).select_from(_METRICS_TABLE).where(_OF_KEY)


class SqlRows:
    """Reads a database that a server writes to.

    Args:
        uri: As MLflow takes it.

    Raises:
        HistoryError: the URI can't be understood, or its driver is not installed.
    """

    def __init__(self, uri: str) -> None:
        try:
            self._url = _with_driver(make_url(uri))
            self._engine = _engine(self._url)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            raise HistoryError(one_line(f"cannot read {uri}: {error}")) from None

    def all(self, run_id: str, keys: Collection[str]) -> dict[str, Rows]:
        """All points of some keys."""
        numbers: dict[str, int] = {}
        with self._connected() as database:
            _check_run(database, run_id)
            asked = database.execution_options(yield_per=_ROWS_AT_ONCE)
            every = asked.execute(_EVERYTHING, {"run_id": run_id}).partitions()
            parts = [_numbered(chunk, numbers) for chunk in every]
        return {key: rows for key, rows in _by_key(numbers, parts).items() if key in keys}

    def since(
        self, run_id: str, changed: Mapping[str, Mark], looked_at: Mapping[str, Mark]
    ) -> dict[str, Rows | None]:
        """The points behind the marks of keys; None for a key that has more before its mark."""
        found: dict[str, Rows | None] = {}
        with self._connected() as database:
            for key, mark in {**changed, **looked_at}.items():
                rows = _read_behind(database, run_id, key, mark)
                is_whole = key not in looked_at or (
                    _count(database, run_id, key) == mark.count + len(rows)
                )
                if key in changed or len(rows) or not is_whole:
                    found[key] = rows if is_whole else None
        return found

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A connection in which nothing changes between two statements."""
        try:
            with self._engine.connect() as database:
                yield database
        except SQLAlchemyError as error:
            told = error.orig if isinstance(error, DBAPIError) else error
            place = self._url.render_as_string(hide_password=True)
            raise HistoryError(one_line(f"cannot read {place}: {told}")) from None


def _with_driver(url: URL) -> URL:
    """SQLAlchemy's own choice for PostgreSQL is another driver than the one MLflow needs."""
    if url.drivername == "postgresql" and importlib.util.find_spec("psycopg2"):
        return url.set(drivername="postgresql+psycopg2")
    return url


def _engine(url: URL) -> Engine:
    kind = url.get_backend_name()
    options: dict[str, Any] = {"pool_pre_ping": True, "pool_size": 1}
    if kind in ("postgresql", "mysql"):
        # Elsewhere it would lock what it reads.
        options["isolation_level"] = "REPEATABLE READ"
    if kind == "postgresql":
        options["execution_options"] = {"postgresql_readonly": True}
        options["connect_args"] = _FOR_POSTGRESQL
    if kind == "mysql":
        options["connect_args"] = {"connect_timeout": _CONNECT_S}
    return create_engine(url, **options)


def _check_run(database: Connection, run_id: str) -> None:
    if not database.execute(_IS_THERE, {"run_id": run_id}).first():
        raise RunGoneError(f"run {run_id} is not in the database: it was removed")


def _read_behind(database: Connection, run_id: str, key: str, mark: Mark) -> Rows:
    of_key = {"run_id": run_id, "key": key}
    if not mark.count:
        return _rows(database.execute(_WHOLE_KEY, of_key).all())
    nan = mark.value == "nan"
    at = {
        "at_time": mark.timestamp_ms,
        "at_step": mark.step,
        "at_value": 0.0 if nan else float(mark.value),
    }
    return _rows(database.execute(_BEHIND_NAN if nan else _BEHIND, of_key | at).all())


def _count(database: Connection, run_id: str, key: str) -> int:
    return int(database.execute(_COUNT, {"run_id": run_id, "key": key}).scalar_one())


def _rows(found: Sequence[Sequence[Any]]) -> Rows:
    if not found:
        return rows_of([], [], [])
    timestamp_ms, step, value, is_nan = zip(*found, strict=True)
    return rows_of(timestamp_ms, step, np.where(is_nan, np.nan, value))


def _numbered(
    found: Sequence[Sequence[Any]], numbers: dict[str, int]
) -> tuple[np.ndarray[Any, Any], Rows]:
    keys = [numbers.setdefault(row[0], len(numbers)) for row in found]
    return np.array(keys, np.int64), _rows([row[1:] for row in found])


def _by_key(
    numbers: Mapping[str, int], parts: Sequence[tuple[np.ndarray[Any, Any], Rows]]
) -> dict[str, Rows]:
    """The rows of each key, in order."""
    number = np.concatenate([np.empty(0, np.int64), *(part[0] for part in parts)])
    rows = np.concatenate([rows_of([], [], []), *(part[1] for part in parts)])
    is_nan = np.isnan(rows["value"])
    value = np.where(is_nan, 0.0, rows["value"])
    order = np.lexsort((is_nan, value, rows["step"], rows["timestamp_ms"], number))
    ends = np.cumsum(np.bincount(number, minlength=len(numbers)))
    return dict(zip(numbers, np.split(rows[order], ends[:-1]), strict=True)) if numbers else {}
