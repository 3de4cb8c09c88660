"""The rows of MLflow's tables that webhooks are told from: params and tags of the histories' runs.

Each function takes a connection, and belongs to the transaction that it is in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import sqlalchemy as sql
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlExperimentTag, SqlParam, SqlTag

from opusclip_mlops import ledger
from opusclip_mlops.chain import is_key, key_of
from opusclip_mlops.decisions import MOST_DIGITS

_MOST_ASKED = 500  # values of one statement


class NotAlone(Exception):
    """Somebody else has written what was about to be written: look again."""


def root_of(connection: sql.Connection) -> str:
    """The run that names all histories, empty where there is none yet."""
    query: sql.Executable = (
        sql.select(SqlExperimentTag.value)
        .join(SqlExperiment, SqlExperiment.experiment_id == SqlExperimentTag.experiment_id)
        .where(SqlExperiment.name == ledger.EXPERIMENT, SqlExperimentTag.key == ledger.ROOT_TAG)
    )
    return str(connection.scalar(query) or "")


def histories(connection: sql.Connection, root_id: str) -> list[str]:
    """The runs of all histories."""
    query: sql.Executable = sql.select(SqlParam.value).where(SqlParam.run_uuid == root_id)
    return list(dict.fromkeys(connection.scalars(query)))


def tag_of(connection: sql.Connection, run_id: str, key: str) -> str | None:
    """A tag of a run, None where it has none of that name."""
    text = connection.scalar(_of_run(sql.select(SqlTag.value), run_id, key))
    return None if text is None else str(text)


def tags_of(connection: sql.Connection, root_id: str, start: str) -> list[tuple[str, str, str]]:
    """Tags of the histories' runs that are `start`, or that begin with it and a dot.

    Returns:
        Run, tag and text of each.
    """
    query: sql.Executable = sql.select(SqlTag.run_uuid, SqlTag.key, SqlTag.value).where(
        SqlTag.run_uuid.in_(_named_by(root_id)),
        sql.or_(SqlTag.key == start, SqlTag.key.startswith(f"{start}.", autoescape=True)),
    )
    return [(str(run_id), str(key), str(text)) for run_id, key, text in connection.execute(query)]


def there(connection: sql.Connection, root_id: str, numbers: Mapping[str, int]) -> dict[str, int]:
    """Those of some records of histories, by run and number, that are written."""
    found: dict[str, int] = {}
    keys = sorted({key_of(number) for number in numbers.values()})
    # By key and by run, each a list: pairs of the two are looked up some forty times slower.
    for start in range(0, len(keys), _MOST_ASKED):
        query: sql.Executable = sql.select(SqlParam.run_uuid, SqlParam.key).where(
            SqlParam.key.in_(keys[start : start + _MOST_ASKED]),
            SqlParam.run_uuid.in_(_named_by(root_id)),
        )
        rows = connection.execute(query)
        found |= {run_id: int(key) for run_id, key in rows if numbers.get(run_id) == int(key)}
    return found


def numbers_of(connection: sql.Connection, root_id: str) -> Iterator[tuple[str, int]]:
    """Run and number of every record there is."""
    query: sql.Executable = sql.select(SqlParam.run_uuid, SqlParam.key).where(
        SqlParam.run_uuid.in_(_named_by(root_id)), sql.func.length(SqlParam.key) <= MOST_DIGITS
    )
    found = connection.execute(query)
    return ((str(run_id), int(key)) for run_id, key in found if is_key(key))


def param_of(connection: sql.Connection, run_id: str, key: str) -> str | None:
    """A param of a run, None where it has none of that name."""
    query: sql.Executable = sql.select(SqlParam.value).where(
        SqlParam.run_uuid == run_id, SqlParam.key == key
    )
    value = connection.scalar(query)
    return None if value is None else str(value)


def parts_of(connection: sql.Connection, run_id: str, digest: str) -> dict[str, str]:
    """The params that keep a long text."""
    query: sql.Executable = sql.select(SqlParam.key, SqlParam.value).where(
        SqlParam.run_uuid == run_id, SqlParam.key.startswith(f"{digest}.", autoescape=True)
    )
    return {str(key): str(value) for key, value in connection.execute(query)}


def insert(connection: sql.Connection, run_id: str, key: str, text: str) -> None:
    """Write a tag that is not there.

    Raises:
        NotAlone: It is there.
    """
    try:
        connection.execute(sql.insert(SqlTag).values(key=key, value=text, run_uuid=run_id))
    except sql.exc.IntegrityError as error:
        raise NotAlone(key) from error


def replace(
    connection: sql.Connection, run_id: str, key: str, before: str | None, text: str
) -> None:
    """Write another text into a tag, where it is as it was read; None: it was not there.

    Raises:
        NotAlone: It is not.
    """
    if before is None:
        return insert(connection, run_id, key, text)
    change = _of_run(sql.update(SqlTag), run_id, key).where(SqlTag.value == before)
    return _only_one(connection, change.values(value=text), key)


def drop(connection: sql.Connection, run_id: str, key: str, before: str) -> None:
    """Take a tag away, where it is as it was read.

    Raises:
        NotAlone: It is not.
    """
    gone = _of_run(sql.delete(SqlTag), run_id, key).where(SqlTag.value == before)
    return _only_one(connection, gone, key)


def clear(connection: sql.Connection, run_id: str, key: str) -> None:
    """Take a tag away, if it is there."""
    connection.execute(_of_run(sql.delete(SqlTag), run_id, key))


_Statement = TypeVar(
    "_Statement", sql.Select[Any], sql.sql.expression.Update, sql.sql.expression.Delete
)


def _of_run(statement: _Statement, run_id: str, key: str) -> _Statement:
    return statement.where(SqlTag.run_uuid == run_id, SqlTag.key == key)


def _only_one(connection: sql.Connection, statement: sql.Executable, key: str) -> None:
    if connection.execute(statement).rowcount != 1:
        raise NotAlone(key)


def _named_by(root_id: str) -> sql.Select[Any]:
    return sql.select(SqlParam.value).where(SqlParam.run_uuid == root_id)
