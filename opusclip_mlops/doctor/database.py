"""MLflow's database by its URI: driver, reach, schema, writing, clock."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from opusclip_mlops.doctor.findings import (
    LOADING,
    Check,
    Finding,
    Subject,
    Told,
    failed,
    note,
    ok,
    skipped,
    warning,
)
from opusclip_mlops.doctor.folders import existing, room_in
from opusclip_mlops.doctor.web import skew
from opusclip_mlops.redaction import one_line
from opusclip_mlops.server.places import PREFIX, stock_uri

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

CONNECT_S = 4
_MLFLOWS_OWN = ("file", "mysql", "mssql", "databricks", "databricks-uc", "uc")
_DRIVER = "postgresql+psycopg2://"
_TAKEN = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
_REVISION = re.compile(r"^revision\s*(?::[^=]+)?=\s*['\"](\w+)['\"]", re.MULTILINE)
_BEFORE = re.compile(r"^down_revision\s*(?::[^=]+)?=\s*['\"](\w+)['\"]", re.MULTILINE)
_WRITTEN_TABLES = ("runs", "metrics", "latest_metrics", "params", "tags", "model_versions")
_REFUSALS = (
    ("password authentication failed", "the password is wrong, or the user is unknown",
     "compare user and password in the URI"),
    ("no password supplied", "it asks for a password", "give it in the URI"),
    ("no pg_hba.conf entry", "the server lets nobody in from here",
     "add this machine to pg_hba.conf, or use TLS: ?sslmode=require"),
    ("does not exist", "there is no such database, or no such user",
     "createdb NAME, or compare the URI"),
    ("Connection refused", "nothing listens there", "start PostgreSQL, or compare the port"),
    ("No such file or directory", "no PostgreSQL on this machine", "name its host in the URI"),
    ("timeout expired", f"no answer within {CONNECT_S} s",
     "compare the address; a firewall answers like this"),
    ("could not translate host name", "no machine is called so", "compare the host in the URI"),
    ("too many clients", "all its connections are taken",
     "raise max_connections, or put pgbouncer before it"),
    ("remaining connection slots", "all its connections are taken",
     "raise max_connections, or put pgbouncer before it"),
    ("certificate", "its certificate is not trusted", "give sslrootcert= in the URI"),
    ("readonly database", "it may not be written", "make the file and its folder writable"),
    ("read-only transaction", "it may not be written: a replica, or set to read-only",
     "give the primary's URI"),
    ("permission denied", "this user may not write MLflow's tables",
     "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO user"),
    ("database is locked", "another process holds it",
     "end it: only one process at a time may hold sqlite for long"),
    ("not a database", "the file is not a sqlite database", "name another file"),
    ("malformed", "the file is damaged", "restore it from a backup"),
    ("unable to open", "the file cannot be opened", "make the file and its folder readable"),
)  # fmt: skip


def _of_another_kind(subject: Subject, scheme: str) -> Finding:
    """Not for us to look at; what MLflow could not go to either is a failure."""
    seen = f"{scheme or subject.database} is neither sqlite nor PostgreSQL"
    if subject.backend:
        return failed(seen, "name sqlite:///FILE or postgresql://USER@HOST/DATABASE")
    added = {one.name for one in importlib.metadata.entry_points(group="mlflow.tracking_store")}
    is_known = scheme.partition("+")[0] in _MLFLOWS_OWN or scheme in added
    if "://" in subject.database and not is_known:
        return failed(f"MLflow knows no place {scheme}://", "correct the tracking URI")
    return skipped(seen)


def reach(subject: Subject) -> Finding:
    """Whether the database answers, by the driver that MLflow works with."""
    uri = subject.database
    scheme = stock_uri(uri).partition(":")[0]
    if not uri:
        return skipped("no database named: --backend looks at one")
    if not scheme.startswith(("sqlite", "postgresql")):
        return _of_another_kind(subject, scheme)
    if scheme == "sqlite" and sqlite_file(uri).name in ("sqlite:", ":memory:"):
        return skipped("a database in memory, gone with its process")
    if scheme == "sqlite" and not sqlite_file(uri).exists():
        return _not_made_yet(sqlite_file(uri))
    began_s = time.monotonic()
    with connected(uri) as connection:
        seen = _about(connection)
    found = ok(f"{seen}, answers after {(time.monotonic() - began_s) * 1000:.0f} ms")
    return found.worsened(trap) if (trap := _driver_trap(uri)) else found


def _not_made_yet(file: Path) -> Finding:
    above = existing(file.parent)
    if not (above.is_dir() and os.access(above, os.W_OK)):
        return failed(f"{file} is not there and cannot be made", "make its folder writable")
    return note(f"{file} is not there yet: MLflow makes it")


def sqlite_file(uri: str) -> Path:
    """The file of a sqlite database."""
    return Path(stock_uri(uri).partition("?")[0].removeprefix("sqlite:///")).absolute()


def _driver_trap(uri: str) -> Finding | None:
    """What a URI that names no driver, or psycopg 3, means to MLflow itself."""
    scheme = uri.removeprefix(PREFIX).partition("://")[0]
    if uri.startswith(PREFIX) or scheme not in ("postgres", "postgresql", "postgresql+psycopg"):
        return None
    lacks = "" if find_spec("psycopg") else ", which is not installed"
    seen = f"plain MLflow reads {scheme}:// as psycopg 3{lacks}: archiving in a stage fails"
    return warning(seen, f"write {_DRIVER}…")


@contextmanager
def connected(uri: str) -> Iterator[Connection]:
    """A connection that is rolled back and closed; a sqlite file is never made.

    Raises:
        Told: It cannot be had, or what was asked was refused.
    """
    with LOADING:
        import sqlalchemy

        engine = _engine(sqlalchemy, stock_uri(uri))
    try:
        with engine.connect() as connection:
            yield connection
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise Told(refusal(str(getattr(error, "orig", None) or error))) from error
    finally:
        engine.dispose()


def _engine(sqlalchemy: Any, uri: str) -> Any:
    named: dict[str, Any] = {"connect_args": {"connect_timeout": CONNECT_S}}
    if uri.startswith("sqlite"):
        file = quote(str(sqlite_file(uri)))
        named = {"creator": lambda: sqlite3.connect(f"file:{file}?mode=rw", CONNECT_S, uri=True)}
        uri = "sqlite://"
    try:
        return sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool, **named)
    except ModuleNotFoundError as error:
        is_ours = error.name == "psycopg2"
        todo = "pip install 'opusclip-mlops[server]'" if is_ours else f"write {_DRIVER}…"
        raise Told(failed(f"the driver {error.name} is not installed", todo)) from error
    except sqlalchemy.exc.ArgumentError as error:
        raise Told(failed("its URI is malformed", f"write {_DRIVER}user:…@host/name")) from error


def refusal(told: str) -> Finding:
    """What a database's own words mean, and what to do."""
    words = one_line(told, at_most=200)
    for part, meaning, todo in _REFUSALS:
        if part.lower() in words.lower():
            return failed(f"{meaning} ({words})", todo)
    return failed(words, "look at the database's log")


def _about(connection: Connection) -> str:
    if connection.dialect.name == "sqlite":
        version, mode = (
            _one(connection, sql) for sql in ("SELECT sqlite_version()", "PRAGMA journal_mode")
        )
        return f"sqlite {version}, journal {mode}"
    version = str(_one(connection, "SHOW server_version")).split()[0]
    taken = _one(connection, _TAKEN)
    most = _one(connection, "SHOW max_connections")
    return f"PostgreSQL {version}, {taken} of {most} connections taken"


def _one(connection: Connection, sql: str) -> Any:
    return connection.exec_driver_sql(sql).scalar()


def schema(subject: Subject) -> Finding:
    """Whether the tables are those of the MLflow that is installed here."""
    if _is_to_come(subject.database):
        return skipped("there is no database yet")
    head, known = revisions()
    with connected(subject.database) as connection:
        tables = _tables(connection)
        found = _one(connection, "SELECT version_num FROM alembic_version") if (
            "alembic_version" in tables
        ) else None  # fmt: skip
    if not tables:
        return note("no tables yet: the first MLflow that opens it makes them")
    if found is None:
        return failed("it holds tables, but not MLflow's", "name an empty database")
    if found == head:
        return ok(f"version {found}, as this MLflow's")
    if found not in known:
        seen = f"version {found} is unknown here: a newer MLflow made it"
        return failed(seen, "upgrade MLflow on this machine")
    seen = f"version {found}, this MLflow's is {head}"
    return failed(seen, "back it up, then: mlflow db upgrade URI (no server running)")


def revisions() -> tuple[str, set[str]]:
    """The newest version of the schema that the MLflow here knows, and all that it knows.

    Read as text: MLflow itself needs not be loaded for it.
    """
    found = find_spec("mlflow")
    places = found.submodule_search_locations if found else None
    scripts = Path(next(iter(places or [""]))) / "store/db_migrations/versions"
    texts = [path.read_text() for path in sorted(scripts.glob("*.py"))]
    known = {match[1] for text in texts if (match := _REVISION.search(text))}
    before = {match[1] for text in texts if (match := _BEFORE.search(text))}
    heads = sorted(known - before)
    return (heads[0] if len(heads) == 1 else "unknown"), known


def _tables(connection: Connection) -> set[str]:
    import sqlalchemy

    return set(sqlalchemy.inspect(connection).get_table_names())


def _is_to_come(uri: str) -> bool:
    return stock_uri(uri).startswith("sqlite") and not sqlite_file(uri).exists()


def writing(subject: Subject) -> Finding:
    """Whether MLflow's tables may be written; nothing is."""
    if _is_to_come(subject.database):
        return skipped("there is no database yet")
    with connected(subject.database) as connection:
        wanted = [name for name in _WRITTEN_TABLES if name in _tables(connection)]
        if connection.dialect.name == "sqlite":
            file = sqlite_file(subject.database)
            if not os.access(file.parent, os.W_OK):
                return failed(f"{file.parent} may not be written", "sqlite needs a file beside it")
            # What only this takes: the lock of who writes.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        for table in wanted:
            connection.exec_driver_sql(f"DELETE FROM {table} WHERE 1 = 0")
        connection.rollback()
    return ok(f"{len(wanted)} tables may be written" if wanted else "it may be written")


def room(subject: Subject) -> Finding:
    """How much room a sqlite database has."""
    if not stock_uri(subject.database).startswith("sqlite"):
        return skipped("not on this machine's disk")
    file = sqlite_file(subject.database)
    found = room_in(file.parent)
    return found.worsened(ok(f"{file.stat().st_size:,} bytes now")) if file.exists() else found


def clock(subject: Subject) -> Finding:
    """How far PostgreSQL's clock is off this machine's."""
    if not stock_uri(subject.database).startswith("postgresql"):
        return skipped("sqlite has this machine's")
    with connected(subject.database) as connection:
        asked_s = time.time()
        sql = "SELECT extract(epoch FROM clock_timestamp())"
        told_s = float(_one(connection, sql))
        answered_s = time.time()
    ahead_s = told_s - (asked_s + answered_s) / 2
    return skew(ahead_s, doubt_s=(answered_s - asked_s) / 2, whose="the database's clock")


CHECKS = (
    Check(name="database.reach", look=reach),
    Check(name="database.schema", look=schema, after="database.reach"),
    Check(name="database.writing", look=writing, after="database.reach"),
    Check(name="database.room", look=room, after="database.reach"),
    Check(name="database.clock", look=clock, after="database.reach"),
)
"""In the order they are told in."""
