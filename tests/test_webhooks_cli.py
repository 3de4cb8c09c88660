"""`opusclip webhooks`, run as the command runs it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops.announcing import Cursor, Tried, failed_tag, progress_tag, to_tag
from tests.journeys import store
from tests.test_announcing import history, known

Said = Callable[..., tuple[int, str]]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return store(tmp_path)


def test_nothing_is_said_to_be_there(said: Said, uri: str) -> None:
    """Without a webhook, or a decision."""
    wanted = "no webhook has anything to tell: none is configured, or nothing was decided yet\n"
    assert said("webhooks", "--tracking-uri", uri) == (0, wanted)
    assert said("webhooks", "--json", "--tracking-uri", uri) == (0, "[]\n")


def test_what_waits_and_what_failed_is_shown(said: Said, uri: str) -> None:
    """Per webhook and model; put back it is no failure any more, and the line says so."""
    client = MlflowClient(uri)
    clip = history(client, "clip", 3)
    history(client, "film", 1)
    known(client, "bot")
    at = 1_767_225_600_000
    tried = Tried(tries=2, first_ms=at, last_ms=at, next_ms=at, error="answered 500")
    client.set_tag(clip.run_id, progress_tag("bot"), to_tag(Cursor(told=2, tried=tried)))
    gone = Tried(tries=1, first_ms=at, last_ms=10**18, error="answered 410")
    client.set_tag(clip.run_id, failed_tag("bot", 1), to_tag(gone))
    code, text = said("webhooks", "clip", "--tracking-uri", f"opusclip+{uri}")
    first, second = text.splitlines()
    assert code == 1
    assert first.startswith(
        "bot of clip: told up to record 2, 1 waiting, 1 FAILED: answered 500 (2 tries since 20"
    )
    assert second.startswith("  record 1: answered 410 (1 try, 20")
    assert second.endswith(" to ?)")
    code, text = said("webhooks", "film", "--tracking-uri", uri)
    assert (code, text) == (0, "bot of film: told of nothing yet, 1 waiting\n")
    code, text = said("webhooks", "--json", "--tracking-uri", uri)
    found = {one["model"]: one for one in json.loads(text)}
    assert (code, found["clip"]["failed"][0]["tried"]["error"]) == (1, "answered 410")
    code, text = said("webhooks", "--retry", "--tracking-uri", f"opusclip+{uri}")
    assert code == 0
    assert "  record 1: put back, sent again soon; was answered 410" in text


def test_what_cannot_be_is_said_in_one_line(said: Said, uri: str) -> None:
    """A model without a history; and a server, of which nothing is asked in vain."""
    code, text = said("webhooks", "kites", "--tracking-uri", uri)
    assert (code, text) == (2, "error: there is no history of 'kites': nothing was decided\n")
    code, text = said("webhooks", "--retry", "--tracking-uri", "http://127.0.0.1:1")
    assert code == 2
    assert text.startswith("error: failed records are put back in the database itself")
