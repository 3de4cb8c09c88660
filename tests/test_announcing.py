"""How far webhooks are, as tags keep it: what was written is read, and rubbish is nothing."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import announcing
from opusclip_mlops.announcing import (
    Cursor,
    Tried,
    failed_number,
    failed_tag,
    from_tag,
    progress_tag,
    to_tag,
)
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.ledger import EXPERIMENT, Ledger, open_ledger
from tests.journeys import store
from tests.test_ledger import MADE_MS, draft


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    return MlflowClient(store(tmp_path))


def history(client: MlflowClient, model: str, count: int) -> Ledger:
    ledger = open_ledger(client, model, created_ms=MADE_MS)
    for number in range(count):
        assert ledger.append(ledger.read().chain.next(draft(str(number), model)))
    return ledger


def known(client: MlflowClient, *names: str) -> None:
    """Make webhooks known, as a server does."""
    root_id = client.get_experiment_by_name(EXPERIMENT).tags["opusclip.root"]
    for name in names:
        client.set_tag(root_id, progress_tag(name), "{}")


def test_what_a_tag_keeps_is_read_back() -> None:
    """Of a cursor and of a failure; a failed record's tag names it."""
    tried = Tried(tries=3, first_ms=1, last_ms=2, next_ms=3, error="answered 500 ä", again=True)
    for kept in (tried, Cursor(told=7, tried=tried), Cursor()):
        assert from_tag(to_tag(kept), type(kept)) == kept
    assert failed_tag("bot", 12) == "opusclip.webhook.bot.failed.000012"
    assert failed_number("bot", failed_tag("bot", 1_000_000)) == 1_000_000
    for tag in (progress_tag("bot"), failed_tag("bot2", 1), failed_tag("bot", 1) + "x", ""):
        assert failed_number("bot", tag) == 0


@pytest.mark.parametrize("text", [None, "", "x", "[]", "7", '{"told":"x"}', '{"told":1.5}', "{"])
def test_rubbish_counts_as_nothing(text: str | None) -> None:
    """Nothing was told: what is told again is known by its id."""
    assert from_tag(text, Cursor) == Cursor()


def test_nobody_is_told_of_nothing(client: MlflowClient) -> None:
    """Neither without a history, nor without a webhook."""
    assert announcing.deliveries(client=client) == ()
    history(client, "clip", 1)
    assert announcing.deliveries(client=client) == ()


def test_each_webhook_is_somewhere_in_each_history(client: MlflowClient) -> None:
    """By what the tags say; the models that are asked for, others are an error."""
    clip, film = history(client, "clip", 3), history(client, "film", 1)
    known(client, "bot", "chat")
    tried = Tried(tries=2, error="answered 500")
    client.set_tag(clip.run_id, progress_tag("bot"), to_tag(Cursor(told=2, tried=tried)))
    client.set_tag(clip.run_id, failed_tag("bot", 2), to_tag(Tried(tries=1, error="answered 410")))
    client.set_tag(clip.run_id, failed_tag("bot", 1), to_tag(Tried(tries=1)))
    found = announcing.deliveries(client=client)
    assert {(one.webhook, one.model, one.told, one.waiting) for one in found} == {
        ("bot", "clip", 2, 1),
        ("bot", "film", 0, 1),
        ("chat", "clip", 0, 3),
        ("chat", "film", 0, 1),
    }
    (bot,) = [one for one in found if (one.webhook, one.model) == ("bot", "clip")]
    assert (bot.run_id, bot.tried) == (clip.run_id, tried)
    assert [(one.number, one.tried.error) for one in bot.failed] == [(1, ""), (2, "answered 410")]
    assert announcing.lost(found)
    named = announcing.deliveries(["film"], client=client)
    assert {one.run_id for one in named} == {film.run_id}
    assert not announcing.lost(named)
    with pytest.raises(RegistryError, match="there is no history of 'kites'"):
        announcing.deliveries(["film", "kites"], client=client)


def test_what_is_put_back_begins_anew(client: MlflowClient) -> None:
    """Its tries are counted from then on; what was wrong is still known."""
    clip = history(client, "clip", 1)
    known(client, "bot")
    tried = Tried(tries=9, first_ms=1, last_ms=2, next_ms=3, error="answered 410")
    client.set_tag(clip.run_id, failed_tag("bot", 1), to_tag(tried))
    assert announcing.put_back(announcing.deliveries(client=client), client=client) == 1
    ((failure,),) = [one.failed for one in announcing.deliveries(client=client)]
    assert failure.tried == Tried(last_ms=2, error="answered 410", again=True)
    assert not announcing.lost(announcing.deliveries(client=client))


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "https://x", "databricks"])
def test_a_server_is_not_where_it_is_put_back(uri: str) -> None:
    """It lets nobody write histories: said in one line, before anything is asked of it."""
    with pytest.raises(RegistryError, match="in the database itself: give its URI"):
        announcing.put_back([], client=MlflowClient(uri))


def test_our_uri_means_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given, or where MLflow itself would look."""
    assert announcing.plain_uri("opusclip+sqlite:///x.db") == "sqlite:///x.db"
    assert announcing.plain_uri("http://x") == "http://x"
    assert announcing.plain_uri(None) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "opusclip+sqlite:///y.db")
    assert announcing.plain_uri(None) == "sqlite:///y.db"
