"""The guard: one transaction for each decision, whoever asks, whatever dies."""

import functools
import itertools
import os
import signal
import sqlite3
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from opusclip_mlops import chronicle, gated, promotion
from opusclip_mlops.decisions import present_actor
from opusclip_mlops.guarded import Ask
from opusclip_mlops.server import guard
from opusclip_mlops.smoke import SmokeResult
from opusclip_mlops.written import PolicyError
from tests.databases import postgres
from tests.journeys import store, wait_until
from tests.promoters import NAME, is_settled, make_model, marks, shown
from tests.server.guarding import STRICT, at_once, guarded, guarded_server, measured
from tests.servers import free_port

EIGHT = 8

pytestmark = pytest.mark.filterwarnings("ignore:.*transition_model_version_stage:FutureWarning")


@pytest.fixture(params=["sqlite", "postgresql"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A guarded server on each kind of database."""
    if request.param == "sqlite":
        with guarded_server(tmp_path) as (url, _):
            yield url
        return
    with postgres() as uri, guarded_server(tmp_path, uri=uri) as (url, _):
        yield url


def move(url: str, version: int, stage: str = "Production") -> None:
    """Promote as any client of MLflow does."""
    MlflowClient(url).transition_model_version_stage(NAME, str(version), stage)


@pytest.mark.timeout(300)
def test_eight_clients_promote_at_once(served: str) -> None:
    """All are accepted, one holds the stage and its alias, and each has its record."""
    client = MlflowClient(served)
    make_model(client, versions=EIGHT)
    calls = [functools.partial(move, served, version) for version in range(1, EIGHT + 1)]
    assert at_once(calls) == [None] * EIGHT
    records = chronicle.history(NAME, client=client)
    assert sorted(one.version or 0 for one in records) == list(range(1, EIGHT + 1))
    assert shown(client) == {
        "Staging": [],
        "Production": [records[-1].version],
        "production": records[-1].version,
    }
    assert is_settled(client)
    assert marks(client) == []


@pytest.mark.timeout(300)
def test_killed_in_the_middle_of_promotions(tmp_path: Path) -> None:
    """After kill -9 the history and the registry agree, with nobody to put anything right."""
    port = free_port()
    with guarded_server(tmp_path, port=port) as (url, server):
        make_model(MlflowClient(url), versions=EIGHT)
        for version in range(1, 4):
            move(url, version)

        def kill() -> None:
            wait_until(lambda: len(told(tmp_path)) > 5)
            os.killpg(server.pid, signal.SIGKILL)

        raised = at_once([functools.partial(promote_on, url), kill])
        assert isinstance(raised[0], OSError)
        assert raised[1] is None
    stock = MlflowClient(store(tmp_path))
    assert is_settled(stock)
    assert marks(stock) == []
    assert chronicle.observe(NAME, client=stock) == ()
    with guarded_server(tmp_path, port=port) as (url, _):
        move(url, 5, "Staging")
        assert is_settled(stock)


def told(folder: Path) -> tuple[int, ...]:
    """The numbers of all records."""
    records = chronicle.history(NAME, client=MlflowClient(store(folder)))
    return tuple(one.number for one in records)


def promote_on(url: str) -> None:
    """Promote by REST until the server is gone, without MLflow's minutes of trying again."""
    path = f"{url}/api/2.0/mlflow/model-versions/transition-stage"
    for number in itertools.count():
        body = {"name": NAME, "version": str(4 + number % 4), "stage": "Production"}
        assert requests.post(path, json=body, timeout=60).status_code == HTTPStatus.OK


def test_a_history_made_by_clients_goes_on(tmp_path: Path) -> None:
    """A database that had no guard so far keeps its history, and its policy judges."""
    registry, stock = guarded(tmp_path)
    promotion.promote(NAME, 1, to="Production", judge=None, client=stock)
    promotion.set_policy(NAME, STRICT, client=stock)
    good, bad = measured(stock, 31.0), measured(stock, 29.0)
    registry.transition_model_version_stage(NAME, str(good), "Production", False)
    with pytest.raises(MlflowException, match="val/psnr min: 29, wanted 30"):
        registry.transition_model_version_stage(NAME, str(bad), "Production", False)
    records = chronicle.history(NAME, client=stock)
    assert [(one.number, one.version) for one in records] == [(1, 1), (2, None), (3, good)]
    assert is_settled(stock)


def test_what_stock_mlflow_moved_meanwhile_is_recorded_or_put_back(tmp_path: Path) -> None:
    """Versions that were moved on the same database without the guard are judged as ever."""
    registry, stock = guarded(tmp_path)
    registry.guard.decide(Ask(what="policy", name=NAME, text=STRICT))
    good, bad = measured(stock, 31.0), measured(stock, 29.0)
    registry.transition_model_version_stage(NAME, str(good), "Production", False)
    stock.transition_model_version_stage(NAME, str(bad), "Production", True)
    third = measured(stock, 1.0)
    stock.transition_model_version_stage(NAME, str(third), "Staging")
    made = registry.guard.decide(Ask(what="reconcile", name=NAME, came_by="watch"))
    assert [(one.kind, one.version, one.to_stage) for one in made] == [
        ("repair", bad, "Production"),
        ("external", third, "Staging"),
    ]
    assert shown(stock) == {
        "Staging": [third],
        "Production": [good],
        "production": good,
        "staging": third,
    }
    assert is_settled(stock)


def test_a_version_put_back_is_archived_all_the_same(tmp_path: Path) -> None:
    """Who asks that a version moved in by hand be archived gets just that."""
    registry, stock = guarded(tmp_path)
    registry.guard.decide(Ask(what="policy", name=NAME, text=STRICT))
    good, bad = measured(stock, 31.0), measured(stock, 29.0)
    registry.transition_model_version_stage(NAME, str(good), "Production", False)
    stock.transition_model_version_stage(NAME, str(bad), "Production", True)
    moved = registry.transition_model_version_stage(NAME, str(bad), "Archived", False)
    assert moved.current_stage == "Archived"
    assert shown(stock)["Production"] == [good]
    assert is_settled(stock)


def test_nothing_is_locked_while_a_version_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a judge runs may take its time: others write meanwhile."""
    registry, stock = guarded(tmp_path)
    smoke = "stages: {Staging: {smoke_test: {timeout_s: 5}}}\n"
    registry.guard.decide(Ask(what="policy", name=NAME, text=smoke))
    ran: list[float] = []

    def run(_location: str, timeout_s: float) -> SmokeResult:
        stock.create_registered_model(f"written meanwhile {len(ran)}")
        ran.append(timeout_s)
        return SmokeResult(True, "it answered", 0.1)

    monkeypatch.setattr(guard, "_smoke", run)
    version = measured(stock, 1.0)
    registry.transition_model_version_stage(NAME, str(version), "Staging", False)
    assert ran == [5.0]
    assert shown(stock)["Staging"] == [version]


def test_a_policy_is_read_before_anything_is_locked(tmp_path: Path) -> None:
    """A text that takes its time, or is none, keeps nobody waiting and waits for nobody."""
    registry, _ = guarded(tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(PolicyError, match="stages"):
            registry.guard.decide(Ask(what="policy", name=NAME, text="stages: [1]\n"))


def test_gated_asks_the_guard_of_a_database_that_it_opens_itself(tmp_path: Path) -> None:
    """With an `opusclip+` URI there is no server between, and the user of the process decides."""
    _, stock = guarded(tmp_path)
    uri = f"opusclip+{store(tmp_path)}"
    gated.set_policy(
        NAME, "stages: {Staging: {approvals: {not_by_author: false}}}\n", tracking_uri=uri
    )
    version = measured(stock, 1.0)
    made = gated.promote(NAME, version, to="Staging", approve=True, tracking_uri=uri)
    assert (made.actor_known_by, made.version) == (present_actor().known_by, version)
    assert is_settled(stock)
