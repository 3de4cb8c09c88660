"""Our store beside MLflow's own: the same calls, the same answers, the same rows.

With OPUSCLIP_SOAK=1 many more sequences are tried, others each time.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mlflow.entities import Metric, Param, RunStatus, RunTag, ViewType
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import inspect, text

from opusclip_mlops.server.tracking import TrackingStore
from tests.databases import postgres
from tests.server.twins import Twins, World, postgres_twins, sqlite_twins

SOAK = os.environ.get("OPUSCLIP_SOAK") == "1"
SEQUENCES = 400 if SOAK else 8
CALLS = 60 if SOAK else 30
NAMES = count()

KEYS = ("loss", "val/loss", "a b", "lr.0", "t:1", "größe", "-", "line\n")
BAD_KEYS = ("", "a//b", "/a", "..", "a@b", "x" * 251, "a/../b", None, 3, 'quo"te', "back\\slash")
NAN = math.nan
VALUES = (0.0, -0.0, 0.1, 1e-320, -1e308, NAN, math.inf, -math.inf, 3, -7, 2**53, 2**53 + 1)
BAD_VALUES = (True, None, "1.5", 2**70, np.float64(0.3), np.float32(0.1), np.int64(4), 10**400)
STEPS = (0, 1, 2, 5, -1, -(2**63) + 1, 2**63 - 1)
BAD_STEPS = (1.5, "3", None, True, 2**63, -(2**63), np.int64(7))
TIMES = (0, 1, 1_700_000_000_000, 1_700_000_000_001, 2**63 - 1)
BAD_TIMES = (-1, None, 1.5, "now", 2**64)


@dataclass(frozen=True)
class Step:
    """One call: what it is, on which run, with what."""

    what: str
    run: int
    given: tuple[Any, ...] = ()

    def __call__(self, world: World) -> Any:
        run = world.runs[self.run % len(world.runs)] if self.run >= 0 else "0" * 32
        return _CALLS[self.what](world, run, *self.given)


def with_model(world: World, metric: Metric) -> Metric:
    """The same point; of the logged model of this world that it names by a number."""
    if metric.model_id is None or not isinstance(number := metric.model_id, int):
        return metric
    told = (metric.key, metric.value, metric.timestamp, metric.step)
    model = world.models[number] if number < len(world.models) else "m-none"
    return Metric(*told, model, metric.dataset_name, metric.dataset_digest)


def log_batch(world: World, run: str, metrics: Any, params: Any, tags: Any) -> None:
    points = [with_model(world, one) for one in metrics]
    world.store.log_batch(run, points, params, tags)


def search(world: World, _: str, *asked: Any) -> Any:
    return world.store.search_runs([world.experiment], *asked)


_CALLS: dict[str, Callable[..., Any]] = {
    "log_metric": lambda world, run, one: world.store.log_metric(run, with_model(world, one)),
    "log_batch": log_batch,
    "log_param": lambda world, run, one: world.store.log_param(run, one),
    "set_tag": lambda world, run, one: world.store.set_tag(run, one),
    "delete_tag": lambda world, run, key: world.store.delete_tag(run, key),
    "delete_run": lambda world, run: world.store.delete_run(run),
    "restore_run": lambda world, run: world.store.restore_run(run),
    "new_run": lambda world, _: world.new_run(len(world.runs)),
    "end_run": lambda world, run: world.store.update_run_info(run, RunStatus.FINISHED, 9, "over"),
    "get_run": lambda world, run: world.store.get_run(run),
    "history": lambda world, run, *asked: world.store.get_metric_history(run, *asked),
    "interval": lambda world, _, *asked: world.store.get_metric_history_bulk_interval(
        world.runs, *asked
    ),
    "bulk": lambda world, run, *asked: world.store.get_metric_history_bulk([run], *asked),
    "search": search,
    "model": lambda world, _: [world.store.get_logged_model(one) for one in world.models],
}


def mostly(draw: Random, usual: Any, unusual: Any, *, one_in: int = 60) -> Any:
    """A value that any store takes, and now and then another one."""
    return draw.choice(unusual if draw.randrange(one_in) == 0 else usual)


OF_MODEL = ((0,), (1,), (0, "clips", "d1"), (2,))


def point(draw: Random) -> Metric:
    """A point; NaN is now the same object as before, now another one: they are not equal."""
    key, value = mostly(draw, KEYS, BAD_KEYS), mostly(draw, VALUES, BAD_VALUES)
    if value is NAN and draw.random() < 0.5:
        value = float("nan")
    step, time = mostly(draw, STEPS, BAD_STEPS), mostly(draw, TIMES, BAD_TIMES)
    return Metric(key, value, time, step, *mostly(draw, [()], OF_MODEL, one_in=40))


def points(draw: Random) -> list[Metric]:
    """A batch: of a few points, of some again and again, or about as many as one may hold."""
    kind = draw.random()
    if kind < 0.6:
        return [point(draw) for _ in range(draw.randrange(14))]
    if kind < 0.95:
        return [point(draw) for _ in range(3)] * 4
    return [Metric("many", i / 3, 5, i) for i in range(draw.randint(998, 1001))]


def param(draw: Random) -> Param:
    return Param(mostly(draw, KEYS, BAD_KEYS[:7], one_in=20), draw.choice(("1", "2", "x" * 7000)))


def tag(draw: Random) -> RunTag:
    keys = (*KEYS, "mlflow.runName")
    return RunTag(mostly(draw, keys, BAD_KEYS[:7], one_in=20), draw.choice(("a", "b")))


def some(draw: Random, make: Callable[[Random], Any]) -> list[Any]:
    """None of them mostly, else one or two."""
    return [make(draw) for _ in range(draw.choice((0, 0, 0, 0, 1, 2)))]


ORDERS = (None, ["metrics.loss ASC"], ["metrics.`val/loss` DESC"], ["params.loss"])
FILTERS = ("", "metrics.loss > 0.05", "metrics.loss != 0.1", "tags.loss = 'a'", "metrics.x LIKE 1")
VIEWS = (ViewType.ACTIVE_ONLY, ViewType.ALL)
GIVEN: dict[str, Callable[[Random], tuple[Any, ...]]] = {
    "log_batch": lambda draw: (points(draw), some(draw, param), some(draw, tag)),
    "log_metric": lambda draw: (point(draw),),
    "log_param": lambda draw: (param(draw),),
    "set_tag": lambda draw: (tag(draw),),
    "delete_tag": lambda draw: (draw.choice(KEYS),),
    "history": lambda draw: (draw.choice(KEYS), draw.choice((None, 1, 3))),
    "interval": lambda draw: (draw.choice(KEYS), draw.randint(1, 4), -1, draw.randint(0, 5)),
    "bulk": lambda draw: (draw.choice(KEYS), draw.randint(1, 9)),
    "search": lambda draw: (*map(draw.choice, (FILTERS, VIEWS)), 2, draw.choice(ORDERS)),
}
OFTEN = {"log_batch": 14, "log_metric": 5, "restore_run": 2}


def sequence_of(draw: Random) -> list[Step]:
    """Calls as they come, most of them writing points."""
    kinds = list(_CALLS)
    weights = [OFTEN.get(one, 1) for one in kinds]
    return [
        Step(what, mostly(draw, (0, 1, 2), (-1, 3)), GIVEN.get(what, lambda _: ())(draw))
        for what in draw.choices(kinds, weights, k=CALLS)
    ]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def twins(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Twins]:
    folder: Path = tmp_path_factory.mktemp("twins")
    if request.param == "sqlite":
        yield sqlite_twins(folder)
        return
    with postgres() as server, postgres_twins(server, folder) as both:
        yield both


@settings(
    max_examples=SEQUENCES,
    deadline=None,
    derandomize=not SOAK,
    phases=[Phase.generate],
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(draw=st.randoms(use_true_random=True))
def test_any_sequence_of_calls_has_the_same_answers_and_leaves_the_same_rows(
    twins: Twins, draw: Random
) -> None:
    stock, ours = twins.worlds(f"sequence {next(NAMES)}")
    taken = []
    for one in sequence_of(draw):
        answers = stock.answer(one), ours.answer(one)
        assert answers[0] == answers[1], one
        if one.what in ("log_batch", "log_metric") and answers[0] is None:
            taken.append(Step(one.what, one.run % len(ours.runs), one.given))
    assert stock.rows() == ours.rows()
    assert_replay_changes_nothing(stock, ours, taken)


def assert_replay_changes_nothing(stock: World, ours: World, taken: list[Step]) -> None:
    """What was taken once is sent again: no point is new, none is lost, none is the latest now."""
    for world in (stock, ours):
        for run in world.runs:
            world.store.restore_run(run)
    before = ours.rows()
    for one in taken:
        assert stock.answer(one) == ours.answer(one), one
    after = ours.rows()
    assert stock.rows() == after
    for table in ("metrics", "latest_metrics", "params"):
        assert before[table] == after[table]


def test_a_database_opens_in_either_store_and_stays_as_it_is(twins: Twins) -> None:
    stock, ours = twins.worlds("opened by the other")
    for world in (stock, ours):
        world.answer(Step("log_batch", 0, ([Metric("loss", math.nan, 1, 1)], [], [])))
    root = "file:///nowhere"
    before = [_schema(one.engine) for one in (twins.stock, twins.ours)]
    swapped = TrackingStore(twins.stock.db_uri, root), SqlAlchemyStore(twins.ours.db_uri, root)
    for world, other in zip((stock, ours), swapped, strict=True):
        again = World(other, world.experiment, world.runs, world.models)
        assert again.answer(Step("get_run", 0)) == world.answer(Step("get_run", 0))
        assert again.answer(Step("log_metric", 0, (Metric("loss", 1, 2, 3),))) is None
    assert stock.rows() == ours.rows()
    after = [_schema(one.engine) for one in swapped]
    assert before == after
    assert before[0] == before[1]


def _schema(engine: Any) -> Any:
    """All tables with their columns, keys and indexes, and the version of the schema."""
    looked = inspect(engine)
    with engine.connect() as connection:
        version = connection.execute(text("SELECT version_num FROM alembic_version")).all()
    tables = {
        name: (
            repr(looked.get_columns(name)),
            looked.get_pk_constraint(name),
            sorted(looked.get_indexes(name), key=repr),
            sorted(looked.get_foreign_keys(name), key=repr),
            sorted(looked.get_check_constraints(name), key=repr),
        )
        for name in sorted(looked.get_table_names())
    }
    return version, tables
