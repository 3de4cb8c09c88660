"""Registries with a guard are found out and asked; all others are written to as ever."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import gated, guarded
from opusclip_mlops.deciding import GateRefused
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.guarded import GUARD_PATH, Ask, RemoteGuard, guard_of, refusal_of
from opusclip_mlops.verdicts import Verdict, condition
from tests.journeys import store
from tests.promoters import NAME, make_model


class Answering(ThreadingHTTPServer):
    """A server that gives one answer to everything, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.status, self.body = 404, b"not found"
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    """One answer."""

    server: Answering

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answering]:
    """The server, which is not asked twice by MLflow itself."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with Answering() as one:
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def client_of(server: Answering) -> MlflowClient:
    """A client of it."""
    return MlflowClient(server.url)


@pytest.mark.parametrize("status", [404, 403, 405, 200])
def test_a_server_that_knows_no_guard_has_none(server: Answering, status: int) -> None:
    """Whatever it says instead; it is asked once."""
    server.status, server.body = status, b"<html>"
    assert guard_of(client_of(server)) is None
    assert guard_of(client_of(server)) is None
    assert server.asked == [f"GET {GUARD_PATH}"]


def test_a_server_with_a_guard_is_asked_once(server: Answering) -> None:
    """And remembered."""
    server.status, server.body = 200, b'{"guard": 1}'
    for _ in range(2):
        assert isinstance(guard_of(client_of(server)), RemoteGuard)
    assert len(server.asked) == 1


def test_who_is_not_logged_in_is_told_so_and_asked_again(server: Answering) -> None:
    """A wrong password says nothing of whether there is a guard."""
    server.status = 401
    with pytest.raises(RegistryError, match="MLFLOW_TRACKING_PASSWORD"):
        guard_of(client_of(server))
    server.status, server.body = 200, b'{"guard": 1}'
    assert guard_of(client_of(server))


def test_a_guard_of_another_version_is_told_of(server: Answering) -> None:
    """Rather than spoken to in a language that it does not know."""
    server.status, server.body = 200, b'{"guard": 2}'
    with pytest.raises(RegistryError, match="of another version"):
        guard_of(client_of(server))


def test_runs_elsewhere_are_told_of(server: Answering, tmp_path: Path) -> None:
    """A guard decides by the runs of its own server."""
    server.status, server.body = 200, b'{"guard": 1}'
    client = MlflowClient(store(tmp_path), registry_uri=server.url)
    with pytest.raises(RegistryError, match="set tracking and registry to the same server"):
        guard_of(client)


def test_a_database_without_a_guard_is_written_to(tmp_path: Path) -> None:
    """Nobody is asked."""
    client = MlflowClient(store(tmp_path))
    make_model(client)
    assert guard_of(client) is None
    assert gated.promote(NAME, 1, to="Staging", tracking_uri=store(tmp_path)).version == 1


def test_a_refusal_arrives_as_it_was(server: Answering) -> None:
    """With the verdict, numbers and all."""
    verdict = Verdict(
        model=NAME,
        version=2,
        stage="Production",
        conditions=(condition("val/psnr min", False, float("nan"), 30.0),),
        policy_digest="a",
    )
    refusal = refusal_of(GateRefused("version 2 may not enter", verdict))
    server.status, server.body = 400, json.dumps(refusal).encode()
    guard = RemoteGuard(client_of(server))
    with pytest.raises(GateRefused, match="version 2 may not enter") as raised:
        guard.decide(Ask(what="promote", name=NAME, version="2", to="Production"))
    assert raised.value.verdict.lines() == verdict.lines()


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (400, b'{"message": "nobody held it\\n before"}', "nobody held it before"),
        (403, b"Permission denied", "EDIT on the model is needed"),
        (401, b"", "MLFLOW_TRACKING_PASSWORD"),
        (404, b"<html>", "the server refused"),
        (200, b'{"records": [{"kind": "theft"}]}', "is no decision"),
    ],
)
def test_other_answers_are_told_in_one_line(
    server: Answering, status: int, body: bytes, told: str
) -> None:
    """Whatever answers there."""
    server.status, server.body = status, body
    with pytest.raises(RegistryError, match=told) as raised:
        RemoteGuard(client_of(server)).decide(Ask(what="rollback", name=NAME, to="Production"))
    assert "\n" not in str(raised.value)


def test_a_rollback_is_asked_for_once(server: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice it would go back by two; everything else may be asked for again."""
    monkeypatch.setattr(guarded, "WAIT_S", 0.5)
    server.status = 503
    guard = RemoteGuard(client_of(server))
    with pytest.raises(RegistryError, match="the server answered 503"):
        guard.decide(Ask(what="rollback", name=NAME, to="Production"))
    assert len(server.asked) == 1
    with pytest.raises(RegistryError, match="the server answered 503"):
        guard.decide(Ask(what="promote", name=NAME, version="1", to="Production"))
    assert len(server.asked) > 2
