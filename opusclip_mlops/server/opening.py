"""Makes the tables of an empty database, once, however many servers start on it at the time."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from sqlalchemy import make_url, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.redaction import one_line
from opusclip_mlops.server import builders, schema, secret_files, users
from opusclip_mlops.server.places import PREFIX

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import URL, Engine

    from opusclip_mlops.server.settings import Wanted

ADMIN_PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"
_ONE_AT_A_TIME = 0x6F7075736C6970
_WAIT_S = 300
_POLL_S = 0.2


def open_database(wanted: Wanted, env: Mapping[str, str]) -> None:
    """Make the tables that the database lacks, and the first user where users are asked for.

    Of several servers one does it while the others wait.

    Args:
        wanted: The server that will use the database.
        env: The variables it will run with.

    Raises:
        ConfigError: The database does not answer, or its tables are another MLflow's.
    """
    engine = schema.engine_of(wanted.stock_backend)
    has_runs, has_users = _has_runs(engine), _has_users(wanted, env)
    if has_runs and has_users:
        return
    if not has_users and not env.get(ADMIN_PASSWORD):
        raise ConfigError(
            "the first start needs a password for the user admin: put it into a file, and name "
            f"that by {ADMIN_PASSWORD}_FILE"
        )
    with _alone(engine, wanted.state_folder):
        if not _has_runs(engine):
            _make_tables(wanted)
        if not _has_users(wanted, env):
            _make_users(env)


def _has_runs(engine: Engine) -> bool:
    found = schema.standing(engine, schema.RUNS)
    version = importlib.metadata.version("mlflow")
    if found == "older":
        raise ConfigError(
            f"the database is of an MLflow before {version}: make a backup, then run "
            f"mlflow db upgrade '{make_url(engine.url).render_as_string()}'"
        )
    if found == "newer":
        raise ConfigError(f"the database is of an MLflow after {version}: install that one")
    return found == "ready"


def _has_users(wanted: Wanted, env: Mapping[str, str]) -> bool:
    """Whether users are known, where they are asked for; older tables MLflow brings up to date."""
    if not wanted.has_users:
        return True
    found = schema.standing(schema.engine_of(users.database_uri(env)), schema.USERS)
    if found == "newer":
        raise ConfigError("the database of the users is of a newer MLflow: install that one")
    return found == "ready"


@contextlib.contextmanager
def _alone(engine: Engine, state: Path) -> Iterator[None]:
    """Keep other servers from doing the same until the block ends."""
    held = _holding(engine) if engine.url.host else _holding_file(state)
    with held:
        yield


@contextlib.contextmanager
def _holding(engine: Engine) -> Iterator[None]:
    with schema.connected(engine) as connection:
        connection.execute(text(f"SET lock_timeout = '{_WAIT_S}s'"))
        try:
            # It ends with the transaction: a pool of connections may stand between.
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_ONE_AT_A_TIME})"))
        except OperationalError:
            raise _waited() from None
        yield


@contextlib.contextmanager
def _holding_file(state: Path) -> Iterator[None]:
    try:
        secret_files.private_folder(state)
        descriptor = os.open(state / "opening.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{state} cannot be written: {error.strerror}; name another by --state"
        ) from None
    try:
        _wait_for(descriptor)
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int) -> None:
    end = time.monotonic() + _WAIT_S
    while True:
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.monotonic() > end:
            raise _waited()
        time.sleep(_POLL_S)


def _waited() -> ConfigError:
    return ConfigError(f"another server has been making the tables for {_WAIT_S} s: look at it")


def _make_tables(wanted: Wanted) -> None:
    """Make the tables; a file is made whole under another name, for who is killed meanwhile."""
    url, file = make_url(wanted.stock_backend), wanted.sqlite_file
    if file is None or file.stat().st_size:
        _make_in(url, wanted.artifact_root)
        return
    # A link stays a link.
    file = file.resolve()
    new = file.with_name(f".{file.name}.new")
    for left in (new, new.with_name(f"{new.name}-journal")):
        left.unlink(missing_ok=True)
    _make_in(url.set(database=str(new)), wanted.artifact_root)
    new.replace(file)


def _make_in(url: URL, artifact_root: str) -> None:
    from mlflow.exceptions import MlflowException

    uri = PREFIX + url.render_as_string(hide_password=False)
    try:
        for made in (builders.tracking_store(uri, artifact_root), builders.registry_store(uri)):
            made.engine.dispose()
    except MlflowException as error:
        raise ConfigError(one_line(error.message)) from None
    except SQLAlchemyError as error:
        why = one_line(str(getattr(error, "orig", error)), at_most=200)
        raise ConfigError(
            f"the tables of {url.database} cannot be made: {why}; if it holds nothing that is "
            "needed, begin with an empty database"
        ) from None


def _make_users(env: Mapping[str, str]) -> None:
    # MLflow reads its configuration when it is loaded.
    os.environ.update(env)
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth import bootstrap_admin_user

    try:
        bootstrap_admin_user()
    except MlflowException as error:
        raise ConfigError(one_line(error.message)) from None
