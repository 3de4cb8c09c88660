"""Asking MLflow again while it has a bad day: a locked database, a server that starts anew."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from mlflow import MlflowClient, get_tracking_uri
from mlflow.exceptions import MlflowException

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.new_store import alone_in_store
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import asking_faults, is_for_good, is_shut_out, reason_of

WAIT_S = 30.0
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0

_BRIEFLY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}

_Answer = TypeVar("_Answer")
_holding_up: ContextVar[bool] = ContextVar("holding_up", default=False)


@contextmanager
def without_waiting() -> Iterator[None]:
    """Nothing is waited for in the block: a lock is held there, and others wait for it."""
    token = _holding_up.set(True)
    try:
        yield
    finally:
        _holding_up.reset(token)


def may_wait() -> bool:
    """Whether waiting holds up nobody else."""
    return not _holding_up.get()


def ask_briefly() -> None:
    """Have this process's MLflow give up soon, where the user has not said when it does.

    MLflow's own seven retries keep back for four minutes that a server is gone; what is asked
    `patiently` is asked again anyway.
    """
    for name, value in _BRIEFLY.items():
        os.environ.setdefault(name, value)


@contextmanager
def asking_briefly() -> Iterator[None]:
    """Do as `ask_briefly` in the block; behind it, MLflow has its own time to come back."""
    unset = [name for name in _BRIEFLY if name not in os.environ]
    ask_briefly()
    try:
        yield
    finally:
        for name in unset:
            os.environ.pop(name, None)


def connected(
    client: MlflowClient | None = None,
    /,
    *,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> MlflowClient:
    """The client, or one that looks at these places, else where MLflow itself would look.

    Raises:
        RegistryError: MLflow knows no such place, or lacks what it needs to go there.
    """
    if client is not None:
        return client
    try:
        with alone_in_store(tracking_uri or get_tracking_uri()):
            return MlflowClient(tracking_uri=tracking_uri, registry_uri=registry_uri)
    except _place_faults() as error:
        raise RegistryError(f"cannot reach MLflow: {reason_of(error)}") from error


def _place_faults() -> tuple[type[Exception], ...]:
    """What a place that is none may raise; SQLAlchemy is loaded only where it is one."""
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, ValueError, ImportError, SQLAlchemyError


def patiently(what: str, call: Callable[[], _Answer], *, wait_s: float = WAIT_S) -> _Answer:
    """The answer to a call that may be made any number of times.

    Args:
        what: What cannot be done, for the error: "cannot read the history of clip".
        call: It is made again, after pauses that grow, while its fault may pass.
        wait_s: Not again once this many seconds have passed since the first call.

    Raises:
        RegistryError: MLflow refused, or its fault lasted.
    """
    end_s, pause_s = time.monotonic() + wait_s, _FIRST_PAUSE_S
    while True:
        try:
            return call()
        except asking_faults() as error:
            is_final = is_for_good(error) or is_shut_out(error)
            if is_final or not may_wait() or time.monotonic() > end_s:
                raise RegistryError(f"{one_line(what, at_most=200)}: {reason_of(error)}") from error
        # Processes that met at a lock do not meet again.
        time.sleep(pause_s * random.uniform(0.5, 1.5))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
