"""What every kind of reader gives: through a server, an old server, and out of both databases."""

import contextlib
import functools
import itertools
import math
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient

from opusclip_mlops.points import Point
from opusclip_mlops.run_history import History, RunGoneError, open_history
from tests.databases import postgres
from tests.run_history.logged_run import (
    AWKWARD,
    SAME,
    Follower,
    LoggedRun,
    database_in,
    differences,
    series,
)
from tests.run_history.proxy import in_front_of
from tests.servers import BIN, mlflow_server

_FETCHES = ("max_results", "page_token")
_MINUTE_MS = 60_000


@dataclass(frozen=True)
class Place:
    """A place that runs are logged to and read from."""

    client: MlflowClient
    opened: Callable[[], History]
    database_uri: str

    @functools.cached_property
    def history(self) -> History:
        """The reader that the tests share."""
        return self.opened()

    def run(self) -> LoggedRun:
        """A new run."""
        return LoggedRun(self.client)

    def log_directly(self, run: LoggedRun, points: list[Point]) -> None:
        """Log many points past the server, which takes half the time."""
        run.log_many(points, client=MlflowClient(self.database_uri))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    """The kinds of reader, on two databases; each test has runs of its own."""
    folder = tmp_path_factory.mktemp("store")
    file = database_in(folder)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(mlflow_server(folder))
        old = stack.enter_context(in_front_of(url, hidden=_FETCHES))
        database = stack.enter_context(postgres())
        server, direct = MlflowClient(url), MlflowClient(database)
        yield {
            "rest": Place(server, lambda: open_history(server), file),
            "old server": Place(server, lambda: open_history(MlflowClient(old.url)), file),
            "sqlite": Place(server, lambda: open_history(server, database_uri=file), file),
            "postgresql": Place(direct, lambda: open_history(direct), database),
        }


@pytest.fixture(params=["rest", "sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, places: dict[str, Place]) -> Place:
    """Each kind of reader in turn."""
    return places[request.param]


def test_all_points_are_read_as_they_were_logged(place: Place) -> None:
    """Whatever their order, steps, values and keys; each once, though sent twice."""
    run = place.run()
    run.log(*AWKWARD)
    run.log(*AWKWARD[:3])
    points, _ = place.history.read(run.fetched())
    assert differences(points, run.points()) == SAME


def test_a_run_without_metrics_has_no_points_and_no_news(place: Place) -> None:
    """Its first point is news."""
    run = place.run()
    follower = Follower(place.history, run)
    assert (len(follower.points), len(follower.poll())) == (0, 0)
    run.log(Point("loss", 0, 1, 1.0))
    assert (len(follower.poll()), follower.starts) == (1, 1)


@pytest.mark.parametrize("kind", ["rest", "sqlite", "postgresql"])
def test_a_run_of_three_thousand_keys_is_read_whole(places: dict[str, Place], kind: str) -> None:
    """And news of some of them are found."""
    place = places[kind]
    run = place.run()
    keys = [f"layer {at}/norm" for at in range(3_000)]
    place.log_directly(run, [Point(key, 0, 1, float(at)) for at, key in enumerate(keys)])
    follower = Follower(place.history, run)
    place.log_directly(run, [Point(key, 1, 2, float(at)) for at, key in enumerate(keys[::75])])
    assert len(follower.poll()) == len(keys[::75])
    assert differences(follower.points, run.points()) == SAME
    assert follower.starts == 1


def test_a_key_of_more_points_than_a_page_is_read_whole(place: Place) -> None:
    """25,000 rows are a page."""
    run = place.run()
    place.log_directly(run, series("loss", range(25_500)))
    follower = Follower(place.history, run)
    place.log_directly(run, series("loss", range(25_500, 26_000), start_ms=27_000))
    follower.poll()
    assert differences(follower.points, run.points()) == SAME
    assert follower.starts == 1


def test_news_are_the_points_that_were_added(place: Place) -> None:
    """Later ones, new keys, another value at the same step; nothing where nothing was added."""
    run = place.run()
    run.log(*series("loss", range(10)), *series("at once", [2]), *series("odd", [2]))
    follower = Follower(place.history, run)
    for added in (
        series("loss", [10, 11], start_ms=_MINUTE_MS),
        [Point("loss", 11, _MINUTE_MS + 5, 99.0)],
        [Point("new", 0, 0, 1.0), Point("at once", 2, 1_001, math.nan)],
        [Point("odd", 3, 2_000, -math.inf), Point("odd", 4, 2_000, math.nan)],
        [],
    ):
        run.log(*added)
        news = follower.poll()
        assert differences(news, news.of(added)) == SAME
    assert follower.starts == 1


@pytest.mark.parametrize(
    "late",
    [
        Point("loss", 2, 2 * _MINUTE_MS, 1.0),
        Point("loss", 2, 1, 1.0),
        Point("loss", 200, 1, 1.0),
        Point("loss", 4, _MINUTE_MS + 4, -1.0),
        Point("loss", 9, _MINUTE_MS + 9, 1e6),
        Point("loss", 4, _MINUTE_MS + 4, math.nan),
    ],
    ids=["lower step", "lower step, earlier", "earlier", "in between", "same time", "NaN"],
)
def test_points_that_come_late_are_found(place: Place, late: Point) -> None:
    """At the latest when its key is looked at in its turn; and each is given once."""
    run = place.run()
    run.log(*series("loss", range(10), start_ms=_MINUTE_MS), *series("other", range(10)))
    follower = Follower(place.history, run)
    run.log(late)
    follower.poll_a_round()
    assert differences(follower.points, run.points()) == SAME
    assert follower.starts == 1


def test_a_reader_that_was_started_again_goes_on(place: Place) -> None:
    """It knows no more than the cursor."""
    run = place.run()
    run.log(*series("loss", range(10)))
    _, cursor = place.history.read(run.fetched())
    run.log(later := Point("loss", 11, _MINUTE_MS, 1.0))
    found = place.opened().news(run.fetched(), cursor)
    assert found is not None
    assert found[0].some(9) == [later]


def test_a_cursor_of_another_run_or_reader_fits_not(place: Place) -> None:
    """The caller reads everything then."""
    run, other = place.run(), place.run()
    run.log(*AWKWARD)
    other.log(*AWKWARD)
    _, cursor = place.history.read(run.fetched())
    assert place.history.news(other.fetched(), cursor) is None
    assert place.history.news(run.fetched(), {}) is None
    assert place.history.news(run.fetched(), {"run_id": run.run_id, "row": 3}) is None


def test_a_run_marked_as_deleted_is_read_and_one_that_is_gone_is_an_error(place: Place) -> None:
    """Whether to read a deleted run is for the caller to say."""
    run = place.run()
    run.log(*AWKWARD)
    fetched = run.fetched()
    run.client.delete_run(run.run_id)
    assert differences(place.history.read(fetched)[0], run.points()) == SAME
    argv = [BIN / "mlflow", "gc", "--backend-store-uri", place.database_uri]
    env = {**os.environ, "MLFLOW_TRACKING_URI": place.client.tracking_uri}
    subprocess.run([*argv, "--run-ids", run.run_id], check=True, env=env)
    with pytest.raises(RunGoneError, match=run.run_id):
        place.history.read(fetched)


def test_what_two_writers_log_meanwhile_arrives_once(place: Place) -> None:
    """Their clocks differ, and both log the same keys."""
    run = place.run()
    follower = Follower(place.history, run)
    writers = [threading.Thread(target=_write, args=(run, number)) for number in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        follower.poll()
    follower.poll_a_round()
    assert differences(follower.points, run.points()) == SAME


def _write(run: LoggedRun, number: int) -> None:
    for call in range(40):
        at_ms = call * 50 + number * 170
        values = itertools.product(("loss", "lr", f"only {number}"), range(5))
        run.log(*(Point(key, 5 * call + at, at_ms + at, number + 0.5) for key, at in values))


_POINTS = st.builds(
    Point,
    st.sampled_from(["a", "b"]),
    st.integers(-1, 2),
    st.integers(0, 3),
    st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf]),
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(batches=st.lists(st.lists(_POINTS, max_size=6), max_size=6))
def test_what_was_read_at_first_and_all_news_are_all_points(
    place: Place, batches: list[list[Point]]
) -> None:
    """Whatever is logged, in whatever order."""
    run = place.run()
    follower = Follower(place.history, run)
    for batch in batches:
        run.log(*batch)
        follower.poll()
    follower.poll_a_round()
    assert differences(follower.points, run.points()) == SAME
