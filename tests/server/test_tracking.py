"""Facts about `opusclip_mlops.server.tracking`: the store by itself, and behind `mlflow server`."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from opusclip_mlops.server.tracking import TrackingStore
from tests.databases import PASSWORD, postgres
from tests.journeys import store
from tests.servers import BIN, free_port, running


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def served(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[tuple[str, Path]]:
    """A plain `mlflow server` on our scheme, and the file of what it prints."""
    folder: Path = tmp_path_factory.mktemp("served")
    if request.param == "sqlite":
        with _server(store(folder), folder) as url:
            yield url, folder / "log"
        return
    with postgres() as uri, _server(uri, folder) as url:
        yield url, folder / "log"


@contextmanager
def _server(uri: str, folder: Path) -> Iterator[str]:
    url = f"http://127.0.0.1:{free_port()}"
    argv = [
        *("bash", "-c", 'exec "$@" >log 2>&1', "-", BIN / "mlflow", "server", "--workers", "1"),
        *("--host", "127.0.0.1", "--port", url.rpartition(":")[2]),
        *("--backend-store-uri", f"opusclip+{uri}"),
    ]
    with running(argv, {}, f"{url}/health", cwd=folder):
        yield url


def test_a_client_reads_back_what_it_wrote_through_the_server(served: tuple[str, Path]) -> None:
    client = MlflowClient(served[0])
    experiment = client.create_experiment("films")
    run_id = client.create_run(experiment).info.run_id
    points = [Metric("loss", 1 / (step + 1), 1_000 + step, step) for step in range(900)]
    odd = [Metric("odd", value, 5, step) for step, value in enumerate((math.nan, math.inf, 0.0))]
    for _ in range(2):
        client.log_batch(run_id, points + odd, [Param("lr", "1e-3")], [RunTag("team", "clips")])
    history = client.get_metric_history(run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(m.step, m.value) for m in points]
    kept = client.get_run(run_id).data
    assert kept.metrics == {"loss": points[-1].value, "odd": 0.0}
    assert kept.params == {"lr": "1e-3"}
    assert kept.tags["team"] == "clips"
    assert [m.value for m in client.get_metric_history(run_id, "odd")][1:2] == [
        1.7976931348623157e308
    ]
    found = client.search_runs([experiment], "metrics.loss < 0.01", order_by=["metrics.loss"])
    assert [run.info.run_id for run in found] == [run_id]


def test_the_server_refuses_with_mlflows_own_words(served: tuple[str, Path]) -> None:
    client = MlflowClient(served[0])
    run_id = client.create_run("0").info.run_id
    client.log_batch(run_id, [Metric("loss", 1.0, 1, 1)], [Param("lr", "1")])
    with pytest.raises(MlflowException, match="Changing param values is not allowed"):
        client.log_batch(run_id, [Metric("loss", 2.0, 2, 2)], [Param("lr", "2")])
    assert len(client.get_metric_history(run_id, "loss")) == 1
    client.delete_run(run_id)
    with pytest.raises(MlflowException, match="must be in the 'active' state"):
        client.log_batch(run_id, [Metric("loss", 2.0, 2, 2)])
    with pytest.raises(MlflowException, match="not found"):
        client.log_batch("0" * 32, [Metric("loss", 2.0, 2, 2)])


def test_the_server_prints_no_password(served: tuple[str, Path]) -> None:
    assert PASSWORD not in served[1].read_text()


def test_a_store_just_opened_is_enough_for_all_threads_at_once(tmp_path: Path) -> None:
    """Each needs one connection at a time, so none waits for what the others hold."""
    uri = store(tmp_path)
    made = SqlAlchemyStore(uri, str(tmp_path))
    run_id = made.create_run(made.create_experiment("crowd"), "me", 1, [], "run").info.run_id
    opened, together = TrackingStore(uri, str(tmp_path)), Barrier(32)

    def work(number: int) -> None:
        together.wait()
        opened.log_batch(run_id, [Metric(f"m{number}", 1.0, 1, 1)], [], [])

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(32)))
    assert len(opened.get_run(run_id).data.metrics) == 32


def test_many_clients_write_through_one_server_at_once_without_an_error(
    served: tuple[str, Path],
) -> None:
    client = MlflowClient(served[0])
    experiment = client.create_experiment("crowd")
    runs = [client.create_run(experiment).info.run_id for _ in range(4)]

    def work(number: int) -> None:
        points = [Metric(f"m{number}", float(step), step, step) for step in range(50)]
        MlflowClient(served[0]).log_batch(runs[number % 4], points)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(32)))
    assert sum(len(client.get_run(run).data.metrics) for run in runs) == 32


def test_a_batch_of_points_holds_one_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "1")
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW", "1")
    ours = TrackingStore(store(tmp_path), str(tmp_path))
    run_id = ours.create_run("0", "kim", 1, [], "one").info.run_id
    ours.log_batch(run_id, [], [], [])
    with ours.engine.connect():
        batch = [Metric("loss", 1.0, 1, 1)], [Param("a", "b")], [RunTag("c", "d")]
        ours.log_batch(run_id, *batch)
    assert ours.get_run(run_id).data.metrics == {"loss": 1.0}


def test_stock_mlflow_reads_and_extends_what_was_written(tmp_path: Path) -> None:
    ours = TrackingStore(f"opusclip+{store(tmp_path)}", str(tmp_path))
    run_id = ours.create_run("0", "kim", 1, [], "one").info.run_id
    ours.log_batch(run_id, [Metric("loss", math.nan, 1, 5)], [], [])
    stock = SqlAlchemyStore(store(tmp_path), str(tmp_path))
    stock.log_metric(run_id, Metric("loss", 2.0, 1, 6))
    assert ours.get_run(run_id).data.metrics == {"loss": 2.0}
