"""The hooks: what a request is given and gives is as it was without them, and it is counted."""
# ruff: noqa: ARG001, ARG005 - models and applications take what they are given

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

from opusclip_mlops.monitoring.hooks import kind_of, watched_application, watched_predict
from opusclip_mlops.monitoring.settings import MonitorSettings
from opusclip_mlops.monitoring.watcher import Watcher

ROWS = {"size": [1.0, 2.0]}


class Idle(Watcher):
    """Counts; begins nothing in the background."""

    def start(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def watcher(tmp_path: Path) -> Idle:
    """One that has no files."""
    return Idle(tmp_path, MonitorSettings())


def served(watcher: Watcher, predict: Callable[[], Any], *, path: str = "/invocations") -> int:
    """Send a request through an application that answers by `predict`; gives the status."""
    sent: list[Any] = []

    async def application(_: Any, scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.to_thread(predict)
            status = 200
        except ValueError:
            status = 400
        await send({"type": "http.response.start", "status": status})
        await send({"type": "http.response.body", "body": b"answer"})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    watched = watched_application(application, watcher)
    asyncio.run(watched(None, {"type": "http", "path": path}, receive, send))
    assert sent[1]["body"] == b"answer"
    return int(sent[0]["status"])


def test_an_answer_is_the_models_own(watcher: Idle) -> None:
    """The very object; MLflow finds the same parameters."""
    answer = object()

    def predict(context: object, model_input: object, params: object = None) -> object:
        return answer

    watched = watched_predict(predict, watcher)
    assert watched(None, ROWS, params=None) is answer
    assert inspect.signature(watched) == inspect.signature(predict)
    assert served(watcher, lambda: watched(None, ROWS)) == 200
    tally = watcher.counts.tally()
    assert (tally.requests, tally.errors, tally.rows) == ({"200": 1}, {}, 4)
    assert (tally.in_flight, tally.waiting) == (0, 0)
    assert tally.spent_s["request"] > 0


def test_an_error_is_the_models_own(watcher: Idle) -> None:
    """It is counted by its class, and raised as it was."""
    error = ValueError("a fault")

    def predict(model_input: object) -> object:
        raise error

    watched = watched_predict(predict, watcher)
    with pytest.raises(ValueError, match="a fault") as found:
        watched(ROWS)
    assert found.value is error
    assert served(watcher, lambda: watched(ROWS)) == 400
    assert watcher.counts.tally().errors == {"ValueError": 1}


def test_a_fault_of_the_watching_reaches_nobody(watcher: Idle) -> None:
    """Inputs and answers that cannot be looked at are answered all the same, and counted."""

    class Odd(dict[str, Any]):
        def items(self) -> Any:
            raise RuntimeError("odd")

        values = items

    answer = Odd(frames=1)
    watched = watched_predict(lambda model_input: answer, watcher)
    assert watched(Odd(a=[1])) is answer
    assert served(watcher, lambda: watched(Odd(a=[1]))) == 200
    assert watcher.counts.tally().faults == {"request": 4}


def test_other_paths_are_left_alone(watcher: Idle) -> None:
    """Whether the server is alive is asked all the time."""
    assert served(watcher, lambda: None, path="/ping") == 200
    assert watcher.counts.tally().requests == {}


def test_a_request_that_nobody_waits_for_is_counted(watcher: Idle) -> None:
    """The client went before an answer began."""

    async def application(*_: Any) -> None:
        raise asyncio.CancelledError

    watched = watched_application(application, watcher)
    scope = {"type": "http", "path": "/invocations"}
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(watched(None, scope, None, None))  # type: ignore[arg-type]
    tally = watcher.counts.tally()
    assert (tally.requests, tally.errors) == ({"0": 1}, {"disconnected": 1})
    assert tally.in_flight == 0


def test_a_clip_of_an_answer_is_kept_until_it_is_looked_at(watcher: Idle) -> None:
    """Further answers are not, and are counted as skipped."""
    clip = np.zeros((3, 8, 8, 3), np.uint8)
    watched = watched_predict(lambda model_input: clip, watcher)
    for _ in range(3):
        watched(ROWS)
    assert watcher.counts.tally().skipped == {"answers": 2}
    assert watcher.counts.tally().frames == 9


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MlflowException("no", error_code=INVALID_PARAMETER_VALUE), "invalid_input"),
        (MlflowException("no", error_code=INTERNAL_ERROR), "MlflowException"),
        (KeyError("x"), "KeyError"),
    ],
)
def test_a_refusal_of_the_model_is_told_from_a_fault(error: Exception, kind: str) -> None:
    """What MLflow answers as a bad request is the caller's fault."""
    assert kind_of(error) == kind
