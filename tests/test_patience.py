"""What may pass is asked again; what is for good is an error at once."""

import os

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    TEMPORARILY_UNAVAILABLE,
    UNAUTHENTICATED,
)

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.patience import ask_briefly, asking_briefly, connected, patiently

BUSY = MlflowException("the database is locked", TEMPORARILY_UNAVAILABLE)
REFUSED = MlflowException("no such version\nat line 7", INVALID_PARAMETER_VALUE)


class Server:
    """Answers after some faults."""

    def __init__(self, *faults: Exception) -> None:
        self.faults, self.calls = list(faults), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.faults:
            raise self.faults.pop(0)
        return "answer"


def test_a_bad_day_is_waited_for() -> None:
    """A locked database, a connection that was reset."""
    server = Server(BUSY, ConnectionResetError("reset"), BUSY)
    assert patiently("cannot read", server) == "answer"
    assert server.calls == 4


def test_a_refusal_is_not_asked_again() -> None:
    """It is one line that begins with what cannot be done."""
    server = Server(REFUSED, REFUSED)
    with pytest.raises(RegistryError, match=r"^cannot read clip: no such version at line 7$"):
        patiently("cannot read clip", server)
    assert server.calls == 1


@pytest.mark.parametrize(
    ("code", "said"),
    [(UNAUTHENTICATED, "set MLFLOW_TRACKING_USERNAME"), (PERMISSION_DENIED, "Permission denied")],
)
def test_a_wrong_password_is_not_waited_for(code: int, said: str) -> None:
    """Who is not let in is told at once, and what to do."""
    shut_out = MlflowException("API request to endpoint /x failed: 'Permission denied'", code)
    server = Server(shut_out, shut_out)
    with pytest.raises(RegistryError, match=f"^cannot read clip: .*{said}"):
        patiently("cannot read clip", server)
    assert server.calls == 1


def test_patience_ends() -> None:
    """A fault that lasts is the same error."""
    with pytest.raises(RegistryError, match=r"^cannot read: the database is locked$"):
        patiently("cannot read", Server(BUSY, BUSY, BUSY), wait_s=0)


def test_other_errors_are_not_caught() -> None:
    """A mistake of ours is not hidden."""
    with pytest.raises(ZeroDivisionError):
        patiently("cannot read", lambda: 1 // 0)


@pytest.mark.parametrize(
    "uri", ["bogus://x", "http://[bad", "mysql+nothing://anna:hunter22@127.0.0.1/runs"]
)
def test_a_place_that_is_none_is_one_line(uri: str) -> None:
    """No such scheme, no such host, no driver for it; a password is not told."""
    with pytest.raises(RegistryError, match=r"^cannot reach MLflow: ") as error:
        connected(tracking_uri=uri)
    assert len(str(error.value).splitlines()) == 1
    assert "hunter22" not in str(error.value)


def test_a_client_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one is made for the places, or for where MLflow itself would look."""
    client = MlflowClient("http://127.0.0.1:9")
    assert connected(client) is client
    assert connected(tracking_uri="http://127.0.0.1:9").tracking_uri == "http://127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:8")
    assert connected().tracking_uri == "http://127.0.0.1:8"


def test_mlflows_own_patience_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user has set stays; the rest is set so that a server that is gone is told soon."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    ask_briefly()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "30"


def test_mlflow_has_its_own_patience_again_behind_a_brief_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the user has set was never touched."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    with asking_briefly():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "30"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ
