"""What may pass is asked again; what is for good is an error at once."""

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.patience import patiently

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


def test_patience_ends() -> None:
    """A fault that lasts is the same error."""
    with pytest.raises(RegistryError, match=r"^cannot read: the database is locked$"):
        patiently("cannot read", Server(BUSY, BUSY, BUSY), wait_s=0)


def test_other_errors_are_not_caught() -> None:
    """A mistake of ours is not hidden."""
    with pytest.raises(ZeroDivisionError):
        patiently("cannot read", lambda: 1 // 0)
