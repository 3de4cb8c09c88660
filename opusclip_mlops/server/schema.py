"""A database before MLflow opens it: does it answer, and whose tables does it hold?"""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import sqlalchemy
from sqlalchemy import inspect, make_url, text
from sqlalchemy.pool import NullPool

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.redaction import one_line

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

Standing = Literal["none", "older", "ready", "newer"]

_CONNECT_S = 10
_REVISION = re.compile(r"(?m)^(down_)?revision(?:: [^=]+)? = (.+)$")


@dataclass(frozen=True)
class Tables:
    """Tables that MLflow makes together.

    `migrations` is the folder in MLflow that says how, `version` the table of the revision, and
    `filled` one that is not empty when all is made.
    """

    migrations: str
    version: str
    filled: str


RUNS = Tables("store/db_migrations", "alembic_version", "experiments")
USERS = Tables("server/auth/db/migrations", "alembic_version_auth", "users")


def engine_of(uri: str) -> Engine:
    """A way to a database that keeps no connection.

    Args:
        uri: As SQLAlchemy takes it.

    Raises:
        ConfigError: The URI is none, or its driver is not installed.
    """
    try:
        url = make_url(uri)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        # What is said of it shows all of it.
        raise _no_uri() from None
    if "@" in (url.host or ""):
        raise _no_uri()
    is_server = url.get_backend_name() == "postgresql"
    timeout = {"connect_timeout": _CONNECT_S} if is_server else {"timeout": _CONNECT_S}
    try:
        return sqlalchemy.create_engine(url, poolclass=NullPool, connect_args=timeout)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error.name} is not installed: pip install 'opusclip-mlops[server]'"
        ) from None


def _no_uri() -> ConfigError:
    return ConfigError(
        "--backend is no URI of a database; write special characters of a password as %XX"
    )


@contextlib.contextmanager
def connected(engine: Engine) -> Iterator[Connection]:
    """A connection to a database.

    Raises:
        ConfigError: The database does not answer; it is named, without its password.
    """
    try:
        with engine.connect() as connection:
            yield connection
    except sqlalchemy.exc.DBAPIError as error:
        raise ConfigError(f"{_named(engine)}: {_why(error)}") from None


def standing(engine: Engine, tables: Tables) -> Standing:
    """Whether a database holds these tables, as this MLflow makes them.

    Raises:
        ConfigError: The database does not answer.
    """
    with connected(engine) as connection:
        found = inspect(connection)
        if not found.has_table(tables.version) or not found.has_table(tables.filled):
            return "none"
        revision = connection.scalar(text(f"SELECT version_num FROM {tables.version}"))
        if revision is None or not _has_rows(connection, tables.filled):
            return "none"
    return _standing_of(revision, tables.migrations)


def _has_rows(connection: Connection, table: str) -> bool:
    return connection.execute(text(f"SELECT 1 FROM {table} LIMIT 1")).first() is not None


def _standing_of(revision: str, migrations: str) -> Standing:
    known = revisions(migrations)
    if revision not in known:
        return "newer"
    return "older" if revision in known.values() else "ready"


def revisions(migrations: str) -> dict[str, str]:
    """The revisions that this MLflow knows, each with the one it follows.

    They are read as text: to load them takes two seconds.
    """
    found = importlib.util.find_spec("mlflow")
    assert found
    assert found.origin
    known = {}
    for file in Path(found.origin).parent.joinpath(migrations, "versions").glob("*.py"):
        said = {
            bool(down): value.strip("\"'") for down, value in _REVISION.findall(file.read_text())
        }
        if False in said:
            known[said[False]] = said.get(True, "")
    return known


def _named(engine: Engine) -> str:
    url = engine.url
    if not url.host:
        return f"the database {url.database}"
    return f"the database {url.database} on {url.host}:{url.port or 5432}"


def _why(error: sqlalchemy.exc.DBAPIError) -> str:
    """What a database has against a connection, in few words."""
    lines = str(error.orig).strip().splitlines() or ["no answer"]
    said = lines[0].rpartition(" failed: ")[2].replace("FATAL:", "").strip()
    if "unable to open" in said:
        said = "its file cannot be opened: look at its folder, and at who may write there"
    elif "not a database" in said:
        said = "its file is no SQLite database"
    return one_line(f"{said}: start it, or correct --backend" if "refused" in said else said)
