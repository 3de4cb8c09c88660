"""Through a server: what is asked for, and what comes in between two pages."""

import contextlib
from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from opusclip_mlops.points import Point
from opusclip_mlops.run_history import History, open_history
from opusclip_mlops.run_history.by_key import HistoryByKey
from opusclip_mlops.run_history.rest import RestRows
from tests.run_history.logged_run import AWKWARD, SAME, Follower, LoggedRun, differences, series
from tests.run_history.proxy import Proxy, in_front_of
from tests.servers import mlflow_server


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that the tests share; each has a run of its own."""
    with mlflow_server(tmp_path_factory.mktemp("store")) as url:
        yield url


@pytest.fixture
def proxy(server_url: str) -> Iterator[Proxy]:
    """What the reader asks the server for is seen here."""
    with in_front_of(server_url) as found:
        yield found


@pytest.fixture
def run(server_url: str) -> LoggedRun:
    """A run that is logged to past the proxy."""
    return LoggedRun(MlflowClient(server_url))


def reader(proxy: Proxy, *, page_rows: int = 10) -> History:
    """A reader with small pages."""
    return HistoryByKey(RestRows(MlflowClient(proxy.url), page_rows=page_rows))


def test_where_nothing_is_new_no_row_is_read(proxy: Proxy, run: LoggedRun) -> None:
    """One key of a few is looked at, by a request that finds nothing."""
    run.log(*AWKWARD)
    follower = Follower(reader(proxy), run)
    for _ in range(5):
        proxy.forget()
        follower.poll()
        assert (len(proxy.asked), proxy.rows_given) == (1, 0)
    assert follower.starts == 1


def test_keys_are_looked_at_in_turns(proxy: Proxy, run: LoggedRun) -> None:
    """So a late point of any is found."""
    run.log(*AWKWARD)
    follower = Follower(reader(proxy), run)
    proxy.forget()
    follower.poll_a_round()
    assert {one["metric_key"] for one in proxy.asked} == {point.key for point in AWKWARD}


def test_only_changed_keys_are_read_and_only_their_new_rows(proxy: Proxy, run: LoggedRun) -> None:
    """One more row is read of each: the last that was known."""
    keys = [f"key {at}" for at in range(20)]
    run.log(*(point for key in keys for point in series(key, range(40))))
    follower = Follower(reader(proxy), run)
    proxy.forget()
    run.log(*(Point(key, 50, 5_000, 1.0) for key in keys[:3]))
    follower.poll()
    read = [one["metric_key"] for one in proxy.asked if one["max_results"] != "1"]
    assert sorted(read) == keys[:3]
    assert proxy.rows_given == 2 * 3
    assert differences(follower.points, run.points()) == SAME


@pytest.mark.parametrize("late_ms", [1_000, 1_009, 1_015, 1_024], ids=str)
def test_a_row_that_comes_in_front_while_pages_are_read_is_not_missed(
    proxy: Proxy, run: LoggedRun, late_ms: int
) -> None:
    """Nor is one that it pushes onto the next page read twice."""
    run.log(*series("loss", range(45)))
    proxy.before[4] = lambda: run.log(Point("loss", 100, late_ms, -1.0))
    points, _ = reader(proxy).read(run.fetched())
    assert differences(points, run.points()) == SAME


def test_rows_that_come_in_front_while_news_are_read_are_news(proxy: Proxy, run: LoggedRun) -> None:
    """Whether the server has given their page already or not."""
    run.log(*series("loss", range(30)))
    follower = Follower(reader(proxy), run)
    run.log(*series("loss", range(30, 60), start_ms=2_000))
    proxy.forget()
    late = Point("loss", 100, 1_500, -1.0), Point("loss", 101, 1, -2.0)
    proxy.before[3] = lambda: run.log(*late)
    follower.poll()
    follower.poll()
    assert differences(follower.points, run.points()) == SAME
    assert follower.starts == 1


def test_a_reader_that_was_started_again_asks_to_read_all_when_rows_came_in_front(
    proxy: Proxy, run: LoggedRun
) -> None:
    """It does not remember the rows before its mark; to guess would be to lose or to double."""
    run.log(*series("loss", range(30)))
    _, cursor = reader(proxy).read(run.fetched())
    run.log(Point("loss", 100, 5, 1.0))
    assert reader(proxy).news(run.fetched(), cursor) is None


def test_more_than_is_remembered_of_a_key_is_asked_for_again(proxy: Proxy, run: LoggedRun) -> None:
    """The last five hundred points of a key are remembered."""
    run.log(*series("loss", range(1_500)))
    follower = Follower(reader(proxy, page_rows=25_000), run)
    run.log(Point("loss", 2_000, 2_100, 1.0))
    follower.poll()
    assert follower.starts == 1
    run.log(Point("loss", 2_001, 1_600, 2.0))
    follower.poll()
    assert follower.starts == 2
    assert differences(follower.points, run.points()) == SAME


def test_a_server_that_knows_no_pages_is_read_too(server_url: str, run: LoggedRun) -> None:
    """It gives all rows whatever it is asked for: at first, and for news."""
    with contextlib.ExitStack() as stack:
        hidden = ("max_results", "page_token")
        old = stack.enter_context(in_front_of(server_url, hidden=hidden))
        run.log(*AWKWARD, *series("long", range(25)))
        follower = Follower(reader(old), run)
        for added in ([Point("loss", 2**41, 2**43, 1.0)], [Point("long", 3, 1, 1.0)], []):
            run.log(*added)
            follower.poll_a_round()
            assert differences(follower.points, run.points()) == SAME
        assert follower.starts == 1


def test_an_old_server_is_found_out_by_a_short_history(server_url: str, run: LoggedRun) -> None:
    """None of its answers was longer than a page; the reader was started again in between."""
    with in_front_of(server_url, hidden=("max_results", "page_token")) as old:
        run.log(*series("loss", range(5)))
        _, cursor = open_history(MlflowClient(old.url)).read(run.fetched())
        run.log(later := Point("loss", 9, 9_000, 1.0))
        found = open_history(MlflowClient(old.url)).news(run.fetched(), cursor)
    assert found is not None
    assert found[0].some(3) == [later]
