"""Tables and users of an empty database, made once by servers that start at once."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.server import opening, schema, users
from opusclip_mlops.server.settings import Wanted
from tests.databases import PASSWORD, postgres

OPEN = """
import json, os, sys
from opusclip_mlops.server import opening
from opusclip_mlops.server.settings import Wanted
opening.open_database(Wanted(**json.loads(sys.argv[1])), dict(os.environ))
"""
ADMIN = "a-long-admin-password"


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """An empty PostgreSQL."""
    with postgres() as uri:
        yield uri


def opened_at_once(wanted: dict[str, str], env: dict[str, str], times: int) -> list[str]:
    """Open a database in several processes; what each that failed said at last."""
    argv = [sys.executable, "-c", OPEN, json.dumps(wanted)]
    started = [
        subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True) for _ in range(times)
    ]
    said = [one.communicate(timeout=300)[1] for one in started]
    return [text[-500:] for one, text in zip(started, said, strict=True) if one.returncode]


def count(uri: str, table: str) -> int:
    """How many rows a table has."""
    with schema.connected(schema.engine_of(uri)) as connection:
        return int(connection.scalar(sqlalchemy.text(f"SELECT count(*) FROM {table}")) or 0)


def test_servers_that_start_at_once_on_an_empty_postgresql_all_come_up(
    database: str, tmp_path: Path
) -> None:
    """One makes tables and the first user, the other waits; later ones find all made."""
    wanted = {"backend": database, "app_name": "basic-auth"}
    asked = Wanted(**wanted, state=tmp_path / "state")
    env = users.environment(asked, {"PATH": "/usr/bin", "MLFLOW_DISABLE_TELEMETRY": "true"})
    with pytest.raises(ConfigError, match="MLFLOW_AUTH_ADMIN_PASSWORD_FILE"):
        opening.open_database(asked, env)
    assert opened_at_once(wanted, {**env, opening.ADMIN_PASSWORD: ADMIN}, 2) == []
    assert count(database, "experiments") == 1
    assert count(database, "users") == 1
    opening.open_database(asked, env)


def test_servers_that_start_at_once_on_an_empty_file_all_come_up(tmp_path: Path) -> None:
    """The file is made once, with the experiment that MLflow begins with."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    env = {"PATH": "/usr/bin", "MLFLOW_DISABLE_TELEMETRY": "true"}
    assert opened_at_once({"backend": uri}, env, 3) == []
    assert count(uri, "experiments") == 1


def test_a_server_killed_while_it_makes_a_file_leaves_no_half_of_one(tmp_path: Path) -> None:
    """MLflow could neither open nor mend it; the next start makes it anew."""
    uri, half = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / ".mlflow.db.new"
    argv = [sys.executable, "-c", OPEN, json.dumps({"backend": uri})]
    env = {"PATH": "/usr/bin", "MLFLOW_DISABLE_TELEMETRY": "true"}
    started = subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL)
    while started.poll() is None and not (half.exists() and half.stat().st_size > 300_000):
        time.sleep(0.002)
    started.kill()
    started.wait()
    opening.open_database(Wanted(backend=uri), {})
    assert count(uri, "experiments") == 1
    assert not half.exists()


def test_a_file_that_is_a_link_stays_one(tmp_path: Path) -> None:
    """The tables are where it leads to."""
    (tmp_path / "disk").mkdir()
    link = tmp_path / "mlflow.db"
    link.symlink_to(tmp_path / "disk" / "mlflow.db")
    opening.open_database(Wanted(backend=f"sqlite:///{link}"), {})
    assert link.is_symlink()
    assert count(f"sqlite:///{tmp_path}/disk/mlflow.db", "experiments") == 1


def test_a_database_that_something_else_made_is_said_so(tmp_path: Path) -> None:
    """What MLflow would write is there already, but is not MLflow's."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with sqlalchemy.create_engine(uri).begin() as made:
        made.execute(sqlalchemy.text("CREATE TABLE runs (mine TEXT)"))
    with pytest.raises(ConfigError, match=r"mlflow\.db cannot be made.* empty database") as refused:
        opening.open_database(Wanted(backend=uri), {})
    assert "\n" not in str(refused.value)


def test_a_wrong_password_is_refused_without_telling_it(database: str) -> None:
    """The database and its host are named."""
    wrong = database.replace(PASSWORD, "wrong-secret")
    with pytest.raises(ConfigError, match="password authentication failed") as refused:
        opening.open_database(Wanted(backend=wrong), {})
    assert "127.0.0.1" in str(refused.value)
    assert "wrong-secret" not in str(refused.value)
    with pytest.raises(ConfigError, match='database "nowhere" does not exist'):
        opening.open_database(Wanted(backend=database.replace("/postgres", "/nowhere")), {})


def test_a_database_of_another_mlflow_is_refused(tmp_path: Path) -> None:
    """An older one with the command that brings it up to date, a newer one with what it needs."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with sqlalchemy.create_engine(uri).begin() as made:
        made.execute(sqlalchemy.text("CREATE TABLE alembic_version (version_num TEXT)"))
        made.execute(sqlalchemy.text("CREATE TABLE experiments (name TEXT)"))
        made.execute(sqlalchemy.text("INSERT INTO experiments VALUES ('one')"))
        made.execute(sqlalchemy.text("INSERT INTO alembic_version VALUES ('451aebb31d03')"))
    with pytest.raises(ConfigError, match=f"mlflow db upgrade '{uri}'"):
        opening.open_database(Wanted(backend=uri), {})
    with sqlalchemy.create_engine(uri).begin() as made:
        made.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = 'future'"))
    with pytest.raises(ConfigError, match="an MLflow after"):
        opening.open_database(Wanted(backend=uri), {})
