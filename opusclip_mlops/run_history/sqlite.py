"""Points out of MLflow's SQLite file: what was written last has the highest row number."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from opusclip_mlops.points import Points
from opusclip_mlops.redaction import one_line
from opusclip_mlops.run_history import Cursor, HistoryError, RunGoneError

if TYPE_CHECKING:
    from mlflow.entities import Run

# A statement keeps MLflow from writing while it runs: many short ones let it in between.
_ROWS_AT_ONCE = 20_000
_BUSY_S = 20.0
_COLUMNS = "key, step, timestamp, CASE WHEN is_nan THEN NULL ELSE value END"
_NEXT = f"""SELECT rowid, {_COLUMNS} FROM metrics
    WHERE run_uuid = ? AND rowid > ? ORDER BY rowid LIMIT {_ROWS_AT_ONCE}"""
_AT = f"SELECT {_COLUMNS} FROM metrics WHERE rowid = ? AND run_uuid = ?"
_IS_THERE = "SELECT 1 FROM runs WHERE run_uuid = ?"
_INTERRUPTED = ("SQLITE_READONLY_ROLLBACK", "SQLITE_READONLY_RECOVERY", "SQLITE_READONLY_CANTINIT")


class _Read(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The cursor: the last row of the run, and the version of the file's tables."""

    run_id: str
    schema_version: int
    row_number: int = 0
    row: str = ""


class SqliteHistory:
    """Reads a database file that MLflow may be writing to.

    Args:
        uri: As MLflow takes it: `sqlite:///mlflow.db`.

    Raises:
        HistoryError: there is no such file.
    """

    def __init__(self, uri: str) -> None:
        try:
            name = make_url(uri).database or ""
        except (ArgumentError, ValueError):
            name = ""
        if not Path(name).is_file():
            raise HistoryError(one_line(f"there is no SQLite database {name or uri!r} to read"))
        self._path = Path(name).absolute()

    def read(self, run: "Run") -> tuple[Points, Cursor]:
        """All points of a run."""
        with self._connected() as database:
            while True:
                version = _schema_version(database)
                begin = _Read(run_id=run.info.run_id, schema_version=version)
                found = _read_on(database, begin)
                # Afterwards: it may be removed between two pieces.
                _check_run(database, run.info.run_id)
                if found is not None:
                    return found

    def news(self, run: "Run", cursor: Cursor) -> tuple[Points, Cursor] | None:
        """What was added since, or None when the file was rebuilt in the meantime."""
        try:
            last = msgspec.convert(cursor, _Read)
        except msgspec.ValidationError:
            return None
        if last.run_id != run.info.run_id:
            return None
        with self._connected() as database:
            found = _read_on(database, last)
            if found is None:
                _check_run(database, last.run_id)
            return found

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection that can't write, and does not make a file that is gone."""
        address = f"file:{quote(str(self._path))}?mode=ro"
        try:
            with contextlib.closing(
                sqlite3.connect(address, uri=True, timeout=_BUSY_S, isolation_level=None)
            ) as database:
                yield database
        except sqlite3.Error as error:
            raise HistoryError(f"cannot read {self._path}: {_told(error)}") from None


def _read_on(database: sqlite3.Connection, last: _Read) -> tuple[Points, Cursor] | None:
    """The points behind the last row, a piece at a time; None when row numbers may have changed."""
    parts, now = [], last
    is_last = False
    while not is_last:
        rows = database.execute(_NEXT, (now.run_id, now.row_number)).fetchall()
        is_last = len(rows) < _ROWS_AT_ONCE
        if rows:
            parts.append(_points(rows))
            number, *row = rows[-1]
            now = msgspec.structs.replace(now, row_number=number, row=repr(row))
    if not _stands(database, last) or _schema_version(database) != last.schema_version:
        return None
    cursor: Cursor = msgspec.to_builtins(now)
    return Points.joined(parts), cursor


def _points(rows: list[tuple[Any, ...]]) -> Points:
    _, keys, steps, times_ms, values = zip(*rows, strict=True)
    numbers = {key: at for at, key in enumerate(dict.fromkeys(keys))}
    return Points.of_columns(list(numbers), [numbers[key] for key in keys], steps, times_ms, values)


def _stands(database: sqlite3.Connection, last: _Read) -> bool:
    """Whether the row that was read last is where it was; others of the run can't be above it."""
    if not last.row_number:
        return True
    found = database.execute(_AT, (last.row_number, last.run_id)).fetchone()
    return found is not None and repr([*found]) == last.row


def _schema_version(database: sqlite3.Connection) -> int:
    """Changes when a table is made anew, and with VACUUM: row numbers may change with both."""
    return int(database.execute("PRAGMA schema_version").fetchone()[0])


def _check_run(database: sqlite3.Connection, run_id: str) -> None:
    if not database.execute(_IS_THERE, (run_id,)).fetchone():
        raise RunGoneError(f"run {run_id} is not in the database: it was removed")


def _told(error: sqlite3.Error) -> str:
    if getattr(error, "sqlite_errorname", "") in _INTERRUPTED:
        return "MLflow was ended in the midst of a write; start it on this file once"
    return one_line(str(error))
