"""Facts about `opusclip_mlops.server.metric_rows`: points as rows, and many writers at once."""

import math
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.entities import Metric
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import text

from opusclip_mlops.server.metric_rows import Row, latest_of, ordinary_rows
from opusclip_mlops.server.tracking import TrackingStore
from tests.databases import postgres
from tests.journeys import store

WRITERS = 32


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def ours(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[SqlAlchemyStore]:
    folder: Path = tmp_path_factory.mktemp("rows")
    if request.param == "sqlite":
        yield TrackingStore(store(folder), str(folder))
        return
    with postgres() as server:
        made = TrackingStore(server, str(folder))
        yield made
        made.engine.dispose()


@pytest.mark.parametrize(
    ("value", "kept", "is_nan"),
    [
        (0.5, 0.5, False),
        (3, 3.0, False),
        (math.nan, 0.0, True),
        (math.inf, 1.7976931348623157e308, False),
        (-math.inf, -1.7976931348623157e308, False),
        (1.7976931348623157e308, 1.7976931348623157e308, False),
        (5e-324, 5e-324, False),
    ],
)
def test_a_value_is_kept_as_a_column_can_hold_it(value: float, kept: float, is_nan: bool) -> None:
    assert ordinary_rows([Metric("a", value, 1, 2)]) == [Row("a", 1, 2, kept, is_nan)]


@pytest.mark.parametrize(
    "metric",
    [
        *(Metric(key, 1.0, 1, 1) for key in ("", "a@b", "/a", "x" * 251, None, 3, 'a"b', "a\\b")),
        *(Metric("a", value, 1, 1) for value in (True, None, "1", 2**53 + 1, np.float64(1))),
        *(Metric("a", 1.0, time, 1) for time in (-1, None, 1.5, 2**63, True)),
        *(Metric("a", 1.0, 1, step) for step in (None, 1.5, 2**63, -(2**63), np.int64(1))),
    ],
)
def test_one_unusual_point_makes_a_batch_unusual(metric: Metric) -> None:
    good = Metric("loss", 0.5, 1, 1)
    assert ordinary_rows([good, metric, good]) is None
    assert ordinary_rows([good, good]) is not None


def test_the_latest_is_of_the_greatest_step_then_time_then_value_and_the_first_of_equals() -> None:
    def row(step: int, timestamp_ms: int, value: float, is_nan: bool = False) -> Row:
        return Row("a", timestamp_ms, step, value, is_nan)

    assert latest_of([row(1, 9, 9), row(2, 1, 1), row(2, 2, 0), row(2, 2, 1)]) == [row(2, 2, 1)]
    assert latest_of([row(1, 1, 0, True), row(1, 1, 0)]) == [row(1, 1, 0, True)]
    assert latest_of([]) == []


def test_writers_of_one_run_at_once_lose_nothing_and_agree_on_the_latest(
    ours: SqlAlchemyStore,
) -> None:
    run_id = ours.create_run("0", "kim", 1, [], "crowded").info.run_id
    keys = [f"key {number}" for number in range(12)]
    everything = [
        Metric(key, step / 7, 1_000 + step, step % 40) for key in keys for step in range(60)
    ]
    shares = [random.Random(seed).sample(everything, 300) for seed in range(WRITERS)]
    began = threading.Barrier(WRITERS)

    def work(share: list[Metric]) -> None:
        began.wait()
        for start in range(0, len(share), 100):
            ours.log_batch(run_id, share[start : start + 100], [], [])

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(work, shares))
    sent = {(m.key, m.value, m.timestamp, m.step) for share in shares for m in share}
    with ours.engine.connect() as connection:
        asked = text("SELECT key, value, timestamp, step FROM metrics WHERE run_uuid = :run")
        found = [tuple(row) for row in connection.execute(asked, {"run": run_id})]
    assert sorted(found) == sorted(sent)
    greatest = {key: max((m[3], m[2], m[1]) for m in sent if m[0] == key) for key in keys}
    latest = ours.get_run(run_id).data._metric_objs
    assert {m.key: (m.step, m.timestamp, m.value) for m in latest} == greatest


def test_nothing_of_a_batch_is_kept_when_its_writing_fails(ours: SqlAlchemyStore) -> None:
    run_id = ours.create_run("0", "kim", 1, [], "halved").info.run_id
    trigger = "CREATE TRIGGER refuse BEFORE INSERT ON latest_metrics "
    sqlite = ours.db_type == "sqlite"
    with ours.engine.begin() as connection:
        if sqlite:
            connection.execute(text(trigger + "BEGIN SELECT RAISE(ABORT, 'full'); END"))
        else:
            body = "BEGIN RAISE EXCEPTION 'full'; END"
            function = f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS '{body}'"
            connection.execute(text(function.replace("'full'", "''full''")))
            connection.execute(text(trigger + "FOR EACH ROW EXECUTE FUNCTION refuse()"))
    try:
        with pytest.raises(Exception, match="full"):
            ours.log_batch(run_id, [Metric("loss", 1.0, 1, 1)], [], [])
    finally:
        with ours.engine.begin() as connection:
            connection.execute(
                text("DROP TRIGGER refuse" + ("" if sqlite else " ON latest_metrics"))
            )
    assert ours.get_metric_history(run_id, "loss") == []
    ours.log_batch(run_id, [Metric("loss", 1.0, 1, 1)], [], [])
    assert len(ours.get_metric_history(run_id, "loss")) == 1


def test_among_equals_the_point_that_came_first_stays_the_latest(ours: SqlAlchemyStore) -> None:
    run_id = ours.create_run("0", "kim", 1, [], "equals").info.run_id
    for value in (0.0, math.nan):
        ours.log_batch(run_id, [Metric("loss", value, 1, 1)], [], [])
    assert ours.get_run(run_id).data.metrics == {"loss": 0.0}
