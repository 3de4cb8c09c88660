"""Out of MLflow's SQLite file, while MLflow writes to it and after it was worked on."""

import contextlib
import json
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sqlalchemy import URL

from opusclip_mlops.points import Point
from opusclip_mlops.run_history import HistoryError, RunGoneError, open_history
from opusclip_mlops.run_history.sqlite import _NEXT, SqliteHistory
from tests.run_history.logged_run import (
    AWKWARD,
    SAME,
    Follower,
    LoggedRun,
    database_in,
    differences,
    series,
)


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    """MLflow on a file."""
    return MlflowClient(database_in(tmp_path))


@pytest.fixture
def run(client: MlflowClient) -> LoggedRun:
    """A run in the file; another one lies before it."""
    LoggedRun(client).log(*series("other", range(50)))
    found = LoggedRun(client)
    found.log(*AWKWARD)
    return found


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[sqlite3.Connection]:
    """The file, to be worked on by hand."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db", timeout=0)) as database:
        yield database
        database.commit()


def test_the_file_is_read_where_the_client_reads_it(run: LoggedRun) -> None:
    """A client whose tracking URI is a file needs no second URI."""
    assert isinstance(open_history(run.client), SqliteHistory)


@pytest.mark.parametrize("work", ["VACUUM", "REINDEX", "ANALYZE"])
def test_after_work_on_the_file_nothing_is_lost_or_doubled(
    tmp_path: Path, run: LoggedRun, work: str
) -> None:
    """VACUUM may number the rows anew."""
    follower = Follower(open_history(run.client), run)
    with opened(tmp_path) as database:
        database.execute("DELETE FROM metrics WHERE key = 'other'")
        database.commit()
        database.execute(work)
    run.log(*series("loss", range(5), start_ms=9_000))
    follower.poll()
    assert differences(follower.points, run.points()) == SAME


def test_a_table_made_anew_in_another_order_is_read_anew(tmp_path: Path, run: LoggedRun) -> None:
    """As a migration of MLflow's may do; here the last row even stands where it stood."""
    history = open_history(run.client)
    _, cursor = history.read(run.fetched())
    with opened(tmp_path) as database:
        *rows, last = database.execute("SELECT * FROM metrics ORDER BY rowid").fetchall()
        database.execute("ALTER TABLE metrics RENAME TO old_metrics")
        made = "SELECT sql FROM sqlite_master WHERE name = 'old_metrics'"
        database.execute(database.execute(made).fetchone()[0].replace("old_metrics", "metrics"))
        marks = ", ".join("?" * len(last))
        database.executemany(f"INSERT INTO metrics VALUES ({marks})", [*rows[::-1], last])
    assert history.news(run.fetched(), cursor) is None


def test_row_numbers_of_a_removed_run_that_are_used_again_do_no_harm(
    tmp_path: Path, run: LoggedRun
) -> None:
    """The numbers above a run's last row may be used twice, those below never by the run."""
    later = LoggedRun(run.client)
    later.log(*series("later", range(30)))
    follower = Follower(open_history(run.client), run)
    with opened(tmp_path) as database:
        database.execute("DELETE FROM metrics WHERE run_uuid = ?", (later.run_id,))
    run.log(*series("loss", range(5), start_ms=9_000))
    news = follower.poll()
    assert differences(news, news.of(series("loss", range(5), start_ms=9_000))) == SAME
    assert follower.starts == 1


def test_a_backup_that_was_put_back_is_read_anew(tmp_path: Path, run: LoggedRun) -> None:
    """The last row that was read is not in it."""
    history = open_history(run.client)
    shutil.copy(tmp_path / "mlflow.db", tmp_path / "backup.db")
    run.log(Point("loss", 50, 9_000, 1.0))
    _, cursor = history.read(run.fetched())
    run.client._tracking_client.store.engine.dispose()
    shutil.copy(tmp_path / "backup.db", tmp_path / "mlflow.db")
    assert history.news(run.fetched(), cursor) is None


def test_a_run_is_read_in_pieces_between_which_mlflow_can_write(run: LoggedRun) -> None:
    """All the while: no write fails, and no point is missed."""
    run.log(*series("long", range(45_000)))
    follower = Follower(open_history(run.client), run)
    writer = threading.Thread(target=_write, args=(run,))
    writer.start()
    while writer.is_alive():
        points, _ = open_history(run.client).read(run.fetched())
        assert follower.points.minus(points).some(1) == []
    follower.poll()
    assert follower.points.keys.count("meanwhile") == 1
    assert len(run.points()) == len(AWKWARD) + 45_000 + 60
    assert differences(follower.points, run.points()) == SAME
    assert follower.starts == 1


def _write(run: LoggedRun) -> None:
    for step in range(60):
        run.log(Point("meanwhile", step, 90_000 + step, 1.0))


def test_reading_takes_no_lock_that_lasts(tmp_path: Path, run: LoggedRun) -> None:
    """Another process can lock the whole file for itself between two calls."""
    history = open_history(run.client)
    _, cursor = history.read(run.fetched())
    fetched = run.fetched()
    run.client._tracking_client.store.engine.dispose()
    with opened(tmp_path) as database:
        database.execute("BEGIN EXCLUSIVE")
        database.rollback()
    assert history.news(fetched, cursor) is not None


def test_a_file_in_write_ahead_mode_is_read(tmp_path: Path, run: LoggedRun) -> None:
    """What a writer has not moved into the file itself yet counts too."""
    with opened(tmp_path) as database:
        database.execute("PRAGMA journal_mode=WAL")
        follower = Follower(open_history(run.client), run)
        run.log(Point("loss", 50, 9_000, 1.0))
        assert follower.poll().some(2) == [Point("loss", 50, 9_000, 1.0)]
    assert differences(follower.points, run.points()) == SAME


@pytest.mark.parametrize("name", ["with space.db", "q?mark.db", "per%20cent.db", "größe#1.db"])
def test_a_file_of_any_name_is_read(tmp_path: Path, run: LoggedRun, name: str) -> None:
    """What means something in a URI is part of the name here."""
    fetched = run.fetched()
    (tmp_path / "mlflow.db").rename(tmp_path / name)
    uri = URL.create("sqlite", database=str(tmp_path / name)).render_as_string()
    history = open_history(run.client, database_uri=uri)
    assert differences(history.read(fetched)[0], run.points()) == SAME


@pytest.mark.parametrize("uri", ["sqlite:///absent.db", "sqlite://", "sqlite:///."])
def test_a_file_that_is_not_there_is_not_made(tmp_path: Path, uri: str) -> None:
    """It is an error that names it."""
    with pytest.raises(HistoryError, match="there is no SQLite database"):
        open_history(MlflowClient("http://127.0.0.1:9"), database_uri=uri)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_file_that_is_gone_or_none_of_mlflow_is_an_error(tmp_path: Path, run: LoggedRun) -> None:
    """One line that names the file; nothing is made in its place."""
    history, fetched = open_history(run.client), run.fetched()
    database = tmp_path / "mlflow.db"
    database.unlink()
    with pytest.raises(HistoryError, match=r"mlflow\.db: unable to open"):
        history.read(fetched)
    assert not database.exists()
    database.write_bytes(b"not a database at all" * 100)
    with pytest.raises(HistoryError, match=r"mlflow\.db: file is not a database"):
        history.read(fetched)


def test_a_file_left_in_the_midst_of_a_write_says_what_to_do(
    tmp_path: Path, run: LoggedRun
) -> None:
    """Only who may write can put it in order: MLflow does when it is started."""
    fetched, copy = run.fetched(), tmp_path / "copy"
    copy.mkdir()
    with opened(tmp_path) as database:
        database.execute("PRAGMA cache_size = 5")
        database.execute("UPDATE metrics SET step = step + 7")
        database.execute("CREATE TABLE large AS SELECT hex(randomblob(500000))")
        for path in tmp_path.glob("mlflow.db*"):
            shutil.copy(path, copy)
        database.rollback()
    with pytest.raises(HistoryError, match="start it on this file once"):
        open_history(run.client, database_uri=database_in(copy)).read(fetched)


def test_a_run_of_another_database_is_gone(tmp_path: Path, run: LoggedRun) -> None:
    """A database that was given beside a server may be the wrong one."""
    other = tmp_path / "other"
    other.mkdir()
    LoggedRun(MlflowClient(database_in(other)))
    with pytest.raises(RunGoneError, match="not in the database"):
        open_history(run.client, database_uri=database_in(other)).read(run.fetched())


def test_the_cursor_stays_short(run: LoggedRun) -> None:
    """However many keys there are."""
    run.log(*(Point(f"key {at}", 0, 1, 1.0) for at in range(500)))
    _, cursor = open_history(run.client).read(run.fetched())
    assert len(json.dumps(cursor)) < 300


def test_news_are_found_by_an_index(tmp_path: Path, run: LoggedRun) -> None:
    """What has been read before is not looked through again."""
    with opened(tmp_path) as database:
        plan = database.execute(f"EXPLAIN QUERY PLAN {_NEXT}", (run.run_id, 3)).fetchall()
    assert [row[3] for row in plan] == [
        "SEARCH metrics USING INDEX index_metrics_run_uuid (run_uuid=? AND rowid>?)"
    ]
