"""Many points of one run into MLflow's tables by a handful of statements.

Points already there are left alone, and `latest_metrics` keeps the greatest (step, time, value) of
each key: the rows are those that MLflow's own store makes of the same points.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_metric

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from sqlalchemy import Connection

_LARGEST_INTEGER = 2**63 - 1
_LARGEST_FLOAT = 1.7976931348623157e308
_EXACT = 2**53


class Row(NamedTuple):
    """A point as the tables keep it: NaN is 0 and `is_nan`, infinite is the largest float."""

    key: str
    timestamp_ms: int
    step: int
    value: float
    is_nan: bool


def ordinary_rows(metrics: Sequence[Metric]) -> list[Row] | None:
    """The rows of points that MLflow takes as they are; None when any of them is unusual.

    Unusual are names that MLflow refuses, values that are not plain numbers, integers that a
    float cannot hold, and steps and times that are not integers of 64 bits, or before 1970.
    """
    rows = []
    for metric in metrics:
        key, value, timestamp_ms, step = metric.key, metric.value, metric.timestamp, metric.step
        if not (_is_whole(timestamp_ms, 0) and _is_whole(step, -_LARGEST_INTEGER)):
            return None
        if type(key) is not str or not _is_legal(key):
            return None
        if type(value) is int and -_EXACT <= value <= _EXACT:
            value = float(value)
        if type(value) is not float:
            return None
        rows.append(Row(key, timestamp_ms, step, *_stored(value)))
    return rows


def write(connection: Connection, run_id: str, rows: Sequence[Row]) -> None:
    """Insert the points that are not there, and let `latest_metrics` follow.

    Writers wait for each other, and never crosswise: in PostgreSQL, where several write at once,
    each takes the rows in the order of their keys.
    """
    if not rows:
        return
    into = _into_postgresql if connection.dialect.name == "postgresql" else _into_sqlite
    into(connection, run_id, rows, latest_of(rows))


def latest_of(rows: Iterable[Row]) -> list[Row]:
    """The row of the greatest (step, time, value) of each key; the first among equals."""
    found: dict[str, Row] = {}
    for row in rows:
        held = found.get(row.key)
        if held is None or _place(row) > _place(held):
            found[row.key] = row
    return list(found.values())


def _place(row: Row) -> tuple[int, int, float]:
    return row.step, row.timestamp_ms, row.value


def _is_whole(value: object, least: int) -> bool:
    return type(value) is int and least <= value <= _LARGEST_INTEGER


@functools.lru_cache(maxsize=16_384)
def _is_legal(key: str) -> bool:
    try:
        _validate_metric(key, 0.0, 0, 0)
    except MlflowException:
        return False
    return True


def _stored(value: float) -> tuple[float, bool]:
    """A value as a column can hold it, and whether it is NaN."""
    if math.isfinite(value):
        return value, False
    return (0.0, True) if math.isnan(value) else (math.copysign(_LARGEST_FLOAT, value), False)


_INSERT = "INSERT INTO metrics (run_uuid, key, timestamp, step, value, is_nan) "
_INSERT_LATEST = "INSERT INTO latest_metrics (run_uuid, key, timestamp, step, value, is_nan) "
_VALUES = "VALUES (?, ?, ?, ?, ?, ?)"
# A constant -0.0, as MLflow writes it, is 0 in PostgreSQL; out of an array it would stay -0.
_COLUMNS = (
    "SELECT %s, key, timestamp, step, value + 0, is_nan FROM "
    "unnest(%s::varchar[], %s::bigint[], %s::bigint[], %s::float8[], %s::boolean[]) "
    "AS point (key, timestamp, step, value, is_nan)"
)
_UNLESS_THERE = " ON CONFLICT DO NOTHING"
_UNLESS_LATER = """
ON CONFLICT (key, run_uuid) DO UPDATE SET timestamp = excluded.timestamp, step = excluded.step,
    value = excluded.value, is_nan = excluded.is_nan
WHERE (excluded.step, excluded.timestamp, excluded.value)
    > (latest_metrics.step, latest_metrics.timestamp, latest_metrics.value)"""


def _into_sqlite(
    connection: Connection, run_id: str, rows: Sequence[Row], latest: Sequence[Row]
) -> None:
    for insert, given in (
        (_INSERT + _VALUES + _UNLESS_THERE, rows),
        (_INSERT_LATEST + _VALUES + _UNLESS_LATER, latest),
    ):
        connection.exec_driver_sql(insert, [(run_id, *row) for row in given])


def _into_postgresql(
    connection: Connection, run_id: str, rows: Sequence[Row], latest: Sequence[Row]
) -> None:
    for insert, given in (
        (_INSERT + _COLUMNS + _UNLESS_THERE, sorted(rows)),
        (_INSERT_LATEST + _COLUMNS + _UNLESS_LATER, sorted(latest)),
    ):
        connection.exec_driver_sql(insert, (run_id, *_arrays(given)))


def _arrays(rows: Sequence[Row]) -> list[str]:
    """The columns as PostgreSQL reads arrays: it takes a text sooner than a list of constants."""
    keys, *numbers = zip(*rows, strict=True)
    # A legal name has neither quotes nor backslashes.
    texts = (map(repr, column) for column in numbers)
    return ['{"' + '","'.join(keys) + '"}', *(f"{{{','.join(column)}}}" for column in texts)]
