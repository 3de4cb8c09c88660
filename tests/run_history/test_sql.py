"""Out of PostgreSQL: by which index, in what order, as whom, and what is told when it can't be."""

import math
from collections.abc import Iterator

import pytest
import sqlalchemy
from mlflow import MlflowClient

from opusclip_mlops.points import Point
from opusclip_mlops.run_history import HistoryError, open_history
from opusclip_mlops.run_history.by_key import HistoryByKey
from opusclip_mlops.run_history.sql import _BEHIND, SqlRows
from tests.databases import PASSWORD, postgres
from tests.run_history.logged_run import AWKWARD, SAME, Follower, LoggedRun, differences, series
from tests.servers import free_port


@pytest.fixture(scope="module")
def database_uri() -> Iterator[str]:
    """A database that the tests share; each has a run of its own."""
    with postgres() as uri:
        yield uri


@pytest.fixture
def run(database_uri: str) -> LoggedRun:
    """A run in the database; it has begun."""
    found = LoggedRun(MlflowClient(database_uri))
    found.log(*AWKWARD)
    return found


class Statements:
    """What the reader asks the database for."""

    def __init__(self, rows: SqlRows) -> None:
        self.texts: list[str] = []
        sqlalchemy.event.listen(rows._engine, "before_cursor_execute", self._note)

    def _note(self, _connection: object, _cursor: object, text: str, *_more: object) -> None:
        self.texts.append(text)


def test_a_driver_need_not_be_named(database_uri: str, run: LoggedRun) -> None:
    """The one that MLflow works with is taken."""
    short = database_uri.replace("+psycopg2", "")
    points, _ = open_history(run.client, database_uri=short).read(run.fetched())
    assert differences(points, run.points()) == SAME


def test_where_nothing_is_new_one_key_is_looked_at(database_uri: str, run: LoggedRun) -> None:
    """Its rows are counted, and those behind its mark asked for; all else is left alone."""
    rows = SqlRows(database_uri)
    follower = Follower(HistoryByKey(rows), run)
    statements = Statements(rows)
    for _ in range(3):
        statements.texts.clear()
        assert len(follower.poll()) == 0
        assert len(statements.texts) == 2
    assert follower.starts == 1


def test_it_can_only_read(database_uri: str) -> None:
    """The database itself refuses a write of this connection."""
    with (
        SqlRows(database_uri)._engine.connect() as database,
        pytest.raises(sqlalchemy.exc.InternalError, match="read-only transaction"),
    ):
        database.execute(sqlalchemy.text("DELETE FROM metrics"))


def test_a_row_before_a_mark_is_found_by_counting(database_uri: str, run: LoggedRun) -> None:
    """A reader that was started again does not know which one is new, and asks to read all."""
    run.log(*series("only", range(10)))
    _, cursor = HistoryByKey(SqlRows(database_uri)).read(run.fetched())
    run.log(Point("only", 3, 1_003, -1.0))
    again = HistoryByKey(SqlRows(database_uri))
    found = [again.news(run.fetched(), cursor) for _ in run.fetched().data.metrics]
    assert None in found


@pytest.mark.parametrize(
    ("at", "behind"),
    [
        (Point("odd", 7, 9, 0.0), Point("odd", 7, 9, math.nan)),
        (Point("odd", 7, 9, math.nan), Point("odd", 7, 9, 1e-9)),
        (Point("odd", 7, 9, -1.0), Point("odd", 7, 9, math.nan)),
        (Point("odd", 7, 9, math.nan), Point("odd", 8, 9, -1.0)),
        (Point("odd", 7, 9, 1e308), Point("odd", 7, 9, math.inf)),
        (Point("odd", 7, 9, 0.1 + 0.2), Point("odd", 7, 10, 0.1)),
    ],
    ids=str,
)
def test_the_order_of_points_at_one_time_is_that_of_mlflow(
    database_uri: str, at: Point, behind: Point
) -> None:
    """NaN counts as a zero, behind zero itself: it is read on from there, and nothing twice."""
    run = LoggedRun(MlflowClient(database_uri))
    run.log(Point("odd", 1, 1, 1.0), at)
    rows = SqlRows(database_uri)
    mark = Follower(HistoryByKey(rows), run).mark("odd")
    run.log(behind)
    found = rows.since(run.run_id, {"odd": mark}, {"odd": mark})["odd"]
    assert found is not None
    assert [row[:2] for row in found.tolist()] == [(behind.timestamp_ms, behind.step)]


def test_news_are_found_by_an_index(database_uri: str, run: LoggedRun) -> None:
    """What has been read before is not looked through again."""
    run.log(*series("long", range(20_000)))
    engine = sqlalchemy.create_engine(database_uri)
    at = {"run_id": run.run_id, "key": "long", "at_time": 20_990, "at_step": 19_990}
    asked = _BEHIND.compile(engine)
    given = asked.construct_params({**at, "at_value": 0.0})
    with engine.connect() as database:
        database.exec_driver_sql("ANALYZE metrics")
        plan = database.exec_driver_sql(f"EXPLAIN {asked}", given).scalars().all()
    engine.dispose()
    assert any("metric_pk" in line for line in plan)
    assert any("Index Cond" in line and "timestamp" in line for line in plan)


def test_no_password_is_told(database_uri: str, run: LoggedRun) -> None:
    """Neither a wrong one nor a right one, nor one in the query."""
    fetched, port = run.fetched(), free_port()
    host = database_uri.rpartition("@")[2]
    for uri, told in (
        (database_uri.replace(PASSWORD, "wrong-secret"), "authentication failed"),
        (f"postgresql://{host}?user=opusclip&password=wrong-secret", "authentication failed"),
        (database_uri.replace(host, f"127.0.0.1:{port}/x"), "refused"),
    ):
        with pytest.raises(HistoryError, match=told) as error:
            open_history(run.client, database_uri=uri).read(fetched)
        assert PASSWORD not in str(error.value)
        assert "secret" not in str(error.value)
        assert "\n" not in str(error.value)
        assert "127.0.0.1" in str(error.value)


@pytest.mark.parametrize(
    "uri", ["mysql+absent://a:b-secret@c/d", "postgresql://u:p-secret@h:port/x"]
)
def test_a_uri_that_cannot_be_used_is_an_error(run: LoggedRun, uri: str) -> None:
    """At once, on one line, without its password."""
    with pytest.raises(HistoryError, match="cannot read") as error:
        open_history(run.client, database_uri=uri)
    assert "secret" not in str(error.value)


def test_a_database_that_was_away_is_read_again(database_uri: str, run: LoggedRun) -> None:
    """A connection that broke in between is replaced."""
    follower = Follower(open_history(run.client), run)
    run.log(Point("new", 1, 1, 1.0))
    engine = sqlalchemy.create_engine(database_uri)
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    with engine.connect() as database:
        database.execute(sqlalchemy.text(f"{ended} AND backend_type = 'client backend'"))
    engine.dispose()
    run.client._tracking_client.store.engine.dispose()
    assert follower.poll().some(2) == [Point("new", 1, 1, 1.0)]
