"""What is still to be told, on either database: read from the histories, and written by one."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from mlflow import MlflowClient
from mlflow.entities import Param

from opusclip_mlops.announcing import Tried, progress_tag
from opusclip_mlops.chain import parts_of
from opusclip_mlops.decisions import sha256_of
from opusclip_mlops.ledger import EXPERIMENT, Ledger, open_ledger
from opusclip_mlops.server.outbox import NotAlone, Outbox, Turn, is_over
from tests.databases import postgres
from tests.journeys import store
from tests.test_ledger import draft

MADE_MS = 1_700_000_000_000


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database with MLflow's tables, one for all tests here."""
    if request.param == "sqlite":
        yield store(tmp_path_factory.mktemp("store"))
        return
    with postgres() as found:
        MlflowClient(found).search_experiments()
        yield found


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A webhook of this test's own, with what a pattern would take for any character."""
    return f"bot_{sha256_of(request.node.name)[:8]}"


@pytest.fixture
def box(uri: str, name: str) -> Outbox:
    """What a webhook that is known is still to be told."""
    found = Outbox(f"opusclip+{uri}", name)
    found.begin()
    return found


def history(uri: str, name: str, count: int = 0) -> Ledger:
    """A history of this test's own, with so many records."""
    ledger = open_ledger(MlflowClient(uri), name, created_ms=MADE_MS)
    for number in range(count):
        assert ledger.append(ledger.read().chain.next(draft(str(number), name)))
    return ledger


def told(box: Outbox, run_id: str) -> list[int]:
    """All that is due of a history, kept as told one after the other."""
    found = []
    due = next((one for one in box.due(0) if one.run_id == run_id), None)
    while due:
        box.keep_told(due)
        found.append(due.number)
        due = box.following(due)
    return found


def test_a_webhook_begins_once(uri: str, name: str) -> None:
    """However many begin it at once; old histories begin at their end, new ones at the start."""
    old = history(uri, f"{name} old", 2)
    assert Outbox(uri, name).turn() is None
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: Outbox(uri, name).begin(), range(8)))
    box = Outbox(uri, name)
    found = box.turn()
    assert found is not None
    assert found[0] == Turn()
    assert told(box, old.run_id) == []
    new = history(uri, f"{name} new", 2)
    assert told(box, new.run_id) == [1, 2]
    assert old.append(old.read().chain.next(draft("x", f"{name} old")))
    assert told(box, old.run_id) == [3]


def test_a_webhook_of_a_like_name_is_another(uri: str, box: Outbox, name: str) -> None:
    """A name with another's at its beginning, or that a pattern would match."""
    ledger = history(uri, name, 1)
    assert told(box, ledger.run_id) == [1]
    for other in (name.replace("_", "x"), f"{name}2", name[:-1]):
        ledger.client.set_tag(ledger.run_id, progress_tag(other), json.dumps({"told": 9}))
    assert ledger.append(ledger.read().chain.next(draft("x", name)))
    assert told(box, ledger.run_id) == [2]


def test_the_turn_is_one_s_alone(box: Outbox) -> None:
    """Of many who take it at once one has it."""
    found = box.turn()
    assert found is not None
    text = found[1]
    start, took = threading.Barrier(6), []

    def take(number: int) -> None:
        start.wait()
        try:
            box.set_turn(text, Turn(holder=str(number)))
            took.append(str(number))
        except NotAlone:
            return

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(take, range(6)))
    now = box.turn()
    assert now is not None
    assert [now[0].holder] == took


def test_what_somebody_else_has_kept_stands(uri: str, box: Outbox, name: str) -> None:
    """Who read before that, writes nothing: neither told, nor tried, nor given up."""
    history(uri, name, 2)
    (due,) = [one for one in box.due(0) if one.tried == Tried()][-1:]
    box.keep_tried(due, Tried(tries=1, next_ms=5))
    for late in (
        lambda: box.keep_told(due),
        lambda: box.keep_tried(due, Tried(tries=1)),
        lambda: box.keep_given_up(due, Tried()),
    ):
        with pytest.raises(NotAlone):
            late()
    assert [one for one in box.due(4) if one.run_id == due.run_id] == []
    (now,) = [one for one in box.due(5) if one.run_id == due.run_id]
    assert (now.number, now.tried.tries) == (1, 1)
    box.keep_given_up(now, Tried(tries=2, error="gone"))
    with pytest.raises(NotAlone):
        box.keep_given_up(now, Tried(tries=3))
    assert told(box, due.run_id) == [2]


def test_a_gap_is_seen_behind(uri: str, box: Outbox, name: str) -> None:
    """Somebody wrote a number that was not its turn; what is no number is passed over."""
    ledger = history(uri, name, 1)
    for key in ("000005", "1000000", "5", "0000005", "x"):
        ledger.client.log_param(ledger.run_id, key, "rubbish")
    assert told(box, ledger.run_id) == [1]
    for number in (5, 1_000_000):
        assert [one for one in box.due(0) if one.run_id == ledger.run_id] == []
        (due,) = [one for one in box.due(0, with_gaps=True) if one.run_id == ledger.run_id]
        assert (due.number, box.record(due)) == (number, "rubbish")
        box.keep_told(due)


def test_a_long_text_is_put_together(uri: str, box: Outbox, name: str) -> None:
    """By its sha256; none where a part is missing."""
    ledger = history(uri, name, 1)
    text = "ä" * 20_000
    assert ledger.append(ledger.read().chain.next(draft("x", name)), text=text)
    (due,) = [one for one in box.due(0) if one.run_id == ledger.run_id]
    assert box.long_text(due, sha256_of(text)) == text
    lone = next(iter(parts_of("b" * 20_000).items()))
    ledger.client.log_param(ledger.run_id, *lone)
    assert box.long_text(due, sha256_of("b" * 20_000)) is None


def test_hundreds_of_histories_are_looked_at_at_once(uri: str, box: Outbox, name: str) -> None:
    """More than a statement takes values for."""
    made = history(uri, name, 1)
    experiment = made.client.get_experiment_by_name(EXPERIMENT)
    root_id = experiment.tags["opusclip.root"]
    runs = {f"{sha256_of(f'{name}{one}')[:32]}.{MADE_MS}": f"{one:032d}" for one in range(700)}
    rows = [Param(key, value) for key, value in runs.items()]
    for start in range(0, len(rows), 100):
        made.client.log_batch(root_id, params=rows[start : start + 100])
    assert [one.number for one in box.due(0) if one.run_id == made.run_id] == [1]


def test_a_wait_that_a_wrong_clock_began_is_none() -> None:
    """Nobody waits for longer than an hour; a day ahead somebody's clock was wrong."""
    day_ms, now_ms = 86_400_000, 1_767_225_600_000
    assert [is_over(now_ms + ms, now_ms) for ms in (-1, 0, 1, 3_600_000)] == [
        True,
        True,
        False,
        False,
    ]
    assert is_over(now_ms + day_ms, now_ms)
