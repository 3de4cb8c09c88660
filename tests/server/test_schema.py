"""A database before MLflow opens it."""

import sqlite3
from pathlib import Path

import pytest
from mlflow.store.db.utils import _get_latest_schema_revision

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.server import schema

SECRET = "s3same-open"


def database(file: Path, revision: str | None, *, rows: int = 1) -> str:
    """A file with the tables of runs as of a revision; its URI."""
    with sqlite3.connect(file) as made:
        made.execute("CREATE TABLE alembic_version (version_num TEXT)")
        made.execute("CREATE TABLE experiments (name TEXT)")
        if revision:
            made.execute("INSERT INTO alembic_version VALUES (?)", [revision])
        made.executemany("INSERT INTO experiments VALUES (?)", [("one",)] * rows)
    return f"sqlite:///{file}"


def standing(uri: str) -> str:
    """How the tables of runs stand in a database."""
    return schema.standing(schema.engine_of(uri), schema.RUNS)


def test_the_newest_revision_is_the_one_mlflow_knows() -> None:
    """It is read from MLflow's files, which MLflow itself loads."""
    known = schema.revisions(schema.RUNS.migrations)
    assert set(known) - set(known.values()) == {_get_latest_schema_revision()}


def test_the_revisions_of_users_are_a_line() -> None:
    """One follows another, to one newest."""
    known = schema.revisions(schema.USERS.migrations)
    assert len(set(known) - set(known.values())) == 1


def test_a_database_is_empty_ready_older_or_newer(tmp_path: Path) -> None:
    """As its revision says; tables that nothing was written to are not ready."""
    newest = _get_latest_schema_revision()
    assert standing(f"sqlite:///{tmp_path}/empty.db") == "none"
    assert standing(database(tmp_path / "a.db", newest)) == "ready"
    assert standing(database(tmp_path / "b.db", "451aebb31d03")) == "older"
    assert standing(database(tmp_path / "c.db", "from-the-future")) == "newer"
    assert standing(database(tmp_path / "d.db", newest, rows=0)) == "none"
    assert standing(database(tmp_path / "e.db", None)) == "none"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (f"postgresql+psycopg2://u:{SECRET}@127.0.0.1:1/runs", "runs on 127.0.0.1:1: Connection"),
        (f"postgresql+psycopg2://u:{SECRET}@no-such.invalid/runs", "runs on no-such.invalid:5432"),
        (f"postgresql+psycopg2://u:x@{SECRET}@h/runs", "is no URI"),
        (f"postgresql+psycopg2://u:{SECRET}@h:port/runs", "is no URI"),
    ],
)
def test_a_database_that_does_not_answer_is_named_without_its_password(uri: str, said: str) -> None:
    """One line: which one, and why."""
    with pytest.raises(ConfigError, match=said) as refused:
        standing(uri)
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    """Neither is one in a folder that is not there."""
    (tmp_path / "text.db").write_text("not a database, but long enough to be taken for one" * 20)
    with pytest.raises(ConfigError, match="no SQLite database"):
        standing(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(ConfigError, match="cannot be opened"):
        standing(f"sqlite:///{tmp_path}/gone/m.db")
