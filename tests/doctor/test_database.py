"""MLflow's database as the doctor sees it: sqlite files and a real PostgreSQL."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy
from mlflow.store.db.utils import _get_latest_schema_revision, _initialize_tables

from opusclip_mlops.doctor import database
from opusclip_mlops.doctor.examining import examine
from opusclip_mlops.doctor.findings import Finding, Subject
from tests.databases import PASSWORD, postgres
from tests.journeys import store
from tests.servers import free_port

Make = Callable[..., Subject]


def looked(subject: Subject) -> dict[str, Finding]:
    """What all checks of a database find, by the thing they look at."""
    found = examine(database.CHECKS, subject, show=lambda *_: None)
    return {one.check.removeprefix("database."): one for one in found}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A PostgreSQL with an empty database."""
    with postgres() as uri:
        yield uri


@pytest.fixture(scope="module")
def mlflow_database(server: str) -> str:
    """A database in it with MLflow's tables."""
    run(server, "CREATE DATABASE mlflow")
    uri = f"{server.rpartition('/')[0]}/mlflow"
    engine = sqlalchemy.create_engine(uri)
    _initialize_tables(engine)
    engine.dispose()
    return uri


def run(uri: str, *lines: str) -> None:
    """Run lines of SQL, each by itself."""
    engine = sqlalchemy.create_engine(uri, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for line in lines:
            connection.exec_driver_sql(line)
    engine.dispose()


def test_the_newest_schema_is_the_one_mlflow_names() -> None:
    """Read out of its scripts, without loading it."""
    head, known = database.revisions()
    assert head == _get_latest_schema_revision()
    assert len(known) > 40


def test_postgresql_that_is_well(subject: Make, mlflow_database: str) -> None:
    """Reached, of our schema, writable, with our time; nothing is written."""
    found = looked(subject(backend=f"opusclip+{mlflow_database}"))
    assert {name: one.state for name, one in found.items()} == {
        "reach": "ok", "schema": "ok", "writing": "ok", "room": "skipped", "clock": "ok",
    }  # fmt: skip
    assert "of 100 connections taken" in found["reach"].seen
    assert found["writing"].seen == f"{len(database._WRITTEN_TABLES)} tables may be written"


def test_a_bare_uri_is_warned_of(subject: Make, mlflow_database: str) -> None:
    """MLflow itself would use another driver for it; what follows is looked at all the same."""
    bare = mlflow_database.replace("+psycopg2", "")
    found = looked(subject(tracking_uri=bare))
    assert found["reach"].state == "warning"
    assert found["reach"].todo == "write postgresql+psycopg2://…"
    assert found["schema"].state == "ok"


def test_a_wrong_password_is_never_shown(subject: Make, server: str) -> None:
    """It is said that it is wrong."""
    wrong = server.replace(PASSWORD, "battery-staple")
    found = looked(subject(backend=wrong))
    assert found["reach"].state == "failed"
    assert "the password is wrong" in found["reach"].seen
    assert "staple" not in f"{found}"
    assert found["writing"].state == "skipped"


def test_what_is_not_there(subject: Make, server: str) -> None:
    """No such database; nothing that listens."""
    other = f"{server.rpartition('/')[0]}/elsewhere"
    assert "there is no such database" in looked(subject(backend=other))["reach"].seen
    dead = f"postgresql+psycopg2://me:{PASSWORD}@127.0.0.1:{free_port()}/db"
    found = looked(subject(backend=dead))["reach"]
    assert found.seen.startswith("nothing listens there")
    assert found.todo == "start PostgreSQL, or compare the port"


def test_a_database_without_tables_is_a_note(subject: Make, server: str) -> None:
    """MLflow makes them."""
    found = looked(subject(backend=server))
    assert found["schema"].state == "note"
    assert found["writing"].seen == "it may be written"


def test_a_schema_of_another_mlflow(subject: Make, mlflow_database: str) -> None:
    """An older one is to be upgraded, with the command; a newer one wants a newer MLflow here."""
    head, known = database.revisions()
    older = min(known - {head})
    try:
        run(mlflow_database, f"UPDATE alembic_version SET version_num = '{older}'")
        found = looked(subject(backend=mlflow_database))["schema"]
        assert (found.state, found.seen) == ("failed", f"version {older}, this MLflow's is {head}")
        assert "mlflow db upgrade" in found.todo
        run(mlflow_database, "UPDATE alembic_version SET version_num = 'fffffffffff0'")
        found = looked(subject(backend=mlflow_database))["schema"]
        assert found.seen.endswith("a newer MLflow made it")
    finally:
        run(mlflow_database, f"UPDATE alembic_version SET version_num = '{head}'")


def test_a_replica_cannot_be_written(subject: Make, mlflow_database: str) -> None:
    """As a session that may only read shows."""
    options = "?options=-c%20default_transaction_read_only%3Don"
    found = looked(subject(backend=f"{mlflow_database}{options}"))
    assert found["schema"].state == "ok"
    assert found["writing"].state == "failed"
    assert found["writing"].todo == "give the primary's URI"


def test_a_user_who_may_only_read(subject: Make, mlflow_database: str) -> None:
    """The finding says what to grant."""
    run(
        mlflow_database,
        "CREATE ROLE viewer LOGIN PASSWORD 'only-reads-here'",
        "GRANT pg_read_all_data TO viewer",
    )
    viewer = mlflow_database.replace(f"opusclip:{PASSWORD}", "viewer:only-reads-here")
    found = looked(subject(backend=viewer))["writing"]
    assert found.state == "failed"
    assert found.todo.startswith("GRANT SELECT, INSERT")


def test_sqlite_that_is_well(subject: Make, tmp_path: Path) -> None:
    """The tracking URI is looked at where it is a database; nothing is left behind."""
    uri = store(tmp_path)
    files = sorted(path.name for path in tmp_path.glob("mlflow.db*"))
    found = looked(subject(tracking_uri=uri))
    assert {name: one.state for name, one in found.items()} == {
        "reach": "ok", "schema": "ok", "writing": "ok", "room": "ok", "clock": "skipped",
    }  # fmt: skip
    assert found["reach"].seen.startswith("sqlite 3.")
    assert sorted(path.name for path in tmp_path.glob("mlflow.db*")) == files


def test_sqlite_with_an_odd_name(subject: Make, tmp_path: Path) -> None:
    """Whatever a URI would take for something else."""
    folder = tmp_path / "50% of #1"
    assert looked(subject(tracking_uri=store(folder)))["schema"].state == "ok"


def test_sqlite_that_is_to_come(subject: Make, tmp_path: Path) -> None:
    """It is not made by looking at it."""
    found = looked(subject())
    assert found["reach"].state == "note"
    assert found["writing"].state == "skipped"
    assert not (tmp_path / "mlflow.db").exists()


def test_sqlite_held_by_another(
    subject: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who writes for long keeps all others from it."""
    monkeypatch.setattr(database, "CONNECT_S", 0.1)
    uri = store(tmp_path)
    holder = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    found = looked(subject(tracking_uri=uri))
    holder.close()
    assert found["reach"].state == "failed"
    assert "another process holds it" in found["reach"].seen


def test_a_file_that_is_no_database(subject: Make, tmp_path: Path) -> None:
    """Rubbish, and tables of something else."""
    (tmp_path / "mlflow.db").write_bytes(b"rubbish, and much of it" * 1000)
    assert "the file is not a sqlite database" in looked(subject())["reach"].seen
    with sqlite3.connect(tmp_path / "films.db") as films:
        films.execute("CREATE TABLE films (name TEXT)")
    found = looked(subject(backend=f"sqlite:///{tmp_path}/films.db"))["schema"]
    assert found.seen == "it holds tables, but not MLflow's"


@pytest.mark.parametrize(
    "uri", ["mysql://me@host/db", "./mlruns", "databricks", "sqlite://", "sqlite:///:memory:"]
)
def test_what_is_no_database_of_ours_is_skipped(subject: Make, uri: str) -> None:
    """Nothing is opened."""
    assert database.reach(subject(tracking_uri=uri)).state == "skipped"


def test_a_file_where_a_folder_should_be(subject: Make, tmp_path: Path) -> None:
    """No database can be made below it."""
    (tmp_path / "films").write_text("")
    found = database.reach(subject(backend=f"sqlite:///{tmp_path}/films/mlflow.db"))
    assert found.state == "failed"
    assert found.seen.endswith("cannot be made")


def test_a_driver_that_is_not_there(subject: Make) -> None:
    """Another one than MLflow works with."""
    found = looked(subject(backend="postgresql+asyncpg://me@127.0.0.1:1/db"))["reach"]
    assert (found.state, found.todo) == ("failed", "write postgresql+psycopg2://…")


def test_a_place_that_nobody_knows_fails(subject: Make) -> None:
    """A scheme that MLflow has no store for; what was named as a database, and is none of ours."""
    found = database.reach(subject(tracking_uri="bogus://u:hunter22@h/x"))
    assert (found.state, found.seen) == ("failed", "MLflow knows no place bogus://")
    for uri in ("mysql://u:hunter22@h/x", "rubbish"):
        found = database.reach(subject(backend=uri))
        assert (found.state, "sqlite:///FILE" in found.todo) == ("failed", True)
        assert "hunter22" not in found.seen


def test_a_malformed_uri_fails(subject: Make) -> None:
    """In one line, without the password."""
    found = looked(subject(backend="postgresql+psycopg2://me:correct-horse@host:port/db"))["reach"]
    assert found.state == "failed"
    assert "horse" not in f"{found}"
