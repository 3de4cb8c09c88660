"""Where the watching takes hold: around the application that answers, and around the model.

MLflow's scoring server is a FastAPI application. Around it requests are counted whole, from the
first byte to the last, those that MLflow refuses before the model included. Around the model's
`predict` its inputs, its answers and its errors are seen.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import mlflow.models.model
from fastapi import FastAPI
from mlflow.exceptions import MlflowException

from opusclip_mlops.faults import attempted
from opusclip_mlops.monitoring.counts import Asked
from opusclip_mlops.monitoring.watcher import Watcher

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Any, Message, Receive, Send], Awaitable[None]]

_PATH = "/invocations"
_REFUSED = 400
_asked: contextvars.ContextVar[Asked | None] = contextvars.ContextVar("asked", default=None)


def hook(watcher: Watcher) -> None:
    """Watch the application that this process is going to run, and the model that was set last."""
    model: Any = getattr(mlflow.models.model, "__mlflow_model__", None)
    if hasattr(model, "predict"):
        model.predict = watched_predict(model.predict, watcher)
    elif callable(model):
        mlflow.models.set_model(watched_predict(model, watcher))
    # Each request of an application goes through its class.
    FastAPI.__call__ = watched_application(FastAPI.__call__, watcher)  # type: ignore[assignment,method-assign]


def watched_predict(predict: Callable[..., Any], watcher: Watcher) -> Callable[..., Any]:
    """The function itself to who calls it, with its signature."""
    signature = inspect.signature(predict)
    takes_context = next(iter(signature.parameters), "") == "context"

    @functools.wraps(predict)
    def watched(*args: Any, **kwargs: Any) -> Any:
        asked, content = _asked.get(), _content(args, kwargs, takes_context)
        own_s = -time.thread_time()
        if attempted(lambda: watcher.asked(asked, content, kwargs.get("params"))):
            watcher.counts.fault("request")
        own_s += time.thread_time()
        began_s = time.perf_counter()
        try:
            answer = predict(*args, **kwargs)
        except BaseException as error:
            if asked is not None:
                asked.kind = kind_of(error)
            raise
        seconds = time.perf_counter() - began_s
        own_s -= time.thread_time()
        if attempted(lambda: watcher.gave(asked, content, answer, seconds)):
            watcher.counts.fault("request")
        watcher.counts.spent("request", own_s + time.thread_time())
        return answer

    watched.__signature__ = signature  # type: ignore[attr-defined]
    return watched


def watched_application(call: Application, watcher: Watcher) -> Application:
    """The application itself to the server, which tells it too when it starts and stops."""

    async def watched(app: Any, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lived(call, watcher, (app, scope, receive, send))
        elif scope["type"] == "http" and scope["path"] == _PATH:
            await _answered(call, watcher, (app, scope, receive, send))
        else:
            await call(app, scope, receive, send)

    return watched


def kind_of(error: BaseException) -> str:
    """What kind of error a model raised: "invalid_input" where it refused, else its class."""
    if isinstance(error, MlflowException) and error.get_http_status_code() == _REFUSED:
        return "invalid_input"
    return type(error).__name__


def _content(args: tuple[Any, ...], kwargs: dict[str, Any], takes_context: bool) -> Any:
    """What the model is asked: the first argument, behind the context where there is one."""
    named = [value for name, value in kwargs.items() if name not in ("context", "params")]
    place = int(takes_context and "context" not in kwargs)
    return args[place] if len(args) > place else next(iter(named), None)


async def _lived(
    call: Application, watcher: Watcher, parts: tuple[Any, Message, Receive, Send]
) -> None:
    app, scope, receive, send = parts

    async def telling(message: Message) -> None:
        if message["type"] == "lifespan.startup.complete":
            attempted(watcher.start)
        if message["type"].startswith("lifespan.shutdown."):
            await asyncio.to_thread(attempted, watcher.close)
        await send(message)

    await call(app, scope, receive, telling)


async def _answered(
    call: Application, watcher: Watcher, parts: tuple[Any, Message, Receive, Send]
) -> None:
    app, scope, receive, send = parts
    began_s, own_s, status = time.perf_counter(), -time.thread_time(), 0
    asked = Asked()
    _asked.set(asked)
    attempted(watcher.start)
    watcher.counts.arrived()
    own_s += time.thread_time()

    async def noting(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        await send(message)

    try:
        await call(app, scope, receive, noting)
    finally:
        own_s -= time.thread_time()
        watcher.counts.answered(asked, status=status, seconds=time.perf_counter() - began_s)
        watcher.counts.spent("request", own_s + time.thread_time())
