"""Our routes are there for the first request that a server of MLflow's answers."""

import threading

import flask
import pytest

from opusclip_mlops.guarded import GUARD_PATH
from opusclip_mlops.server import joining

STORE = "_MLFLOW_SERVER_FILE_STORE"


def test_the_first_request_finds_the_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight first requests at once, too; the application takes no routes after them."""
    monkeypatch.setenv(STORE, "opusclip+sqlite:///mlflow.db")
    app = flask.Flask("mlflow.server")
    joining.if_guarding()
    start, answers = threading.Barrier(8), list[int]()

    def ask() -> None:
        start.wait()
        answers.append(app.test_client().get(GUARD_PATH).status_code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 8


@pytest.mark.parametrize(
    ("name", "uri"),
    [("another.app", "opusclip+sqlite:///mlflow.db"), ("mlflow.server", "sqlite:///mlflow.db")],
)
def test_nobody_else_is_given_any(name: str, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither another application, nor a server whose database has no guard."""
    monkeypatch.setenv(STORE, uri)
    app = flask.Flask(name)
    joining.await_requests()
    assert app.test_client().get(GUARD_PATH).status_code == 404


def test_a_registry_of_its_own_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for is whether the registered models are guarded."""
    monkeypatch.setenv(STORE, "sqlite:///mlflow.db")
    assert not joining.is_guarding()
    monkeypatch.setenv("_MLFLOW_SERVER_REGISTRY_STORE", "opusclip+sqlite:///mlflow.db")
    assert joining.is_guarding()
