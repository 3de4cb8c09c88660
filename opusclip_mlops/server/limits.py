"""A limit for the size of a request: MLflow holds whole ones in memory before it asks who sends.

Artifacts are not limited: they are written as they come.
"""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING

from opusclip_mlops.server.settings import BODY_LIMIT

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

DEFAULT_MB = 32.0
_STREAMED = (
    "/api/2.0/mlflow-artifacts/artifacts/",
    "/ajax-api/2.0/mlflow-artifacts/artifacts/",
)


class LimitedBodies:
    """An application that is given no body above a limit, and asked nothing with one."""

    def __init__(self, app: ASGIApp, *, limit_bytes: int) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: 413 for one that is too large."""
        if scope["type"] != "http" or _is_streamed(scope):
            return await self._app(scope, receive, send)
        length_bytes = _content_length(scope)
        if length_bytes is None:
            whole = await _body(receive, self._limit_bytes)
            if whole is not None:
                return await self._app(scope, _replayed(whole, receive), send)
        elif length_bytes <= self._limit_bytes:
            return await self._app(scope, receive, send)
        return await self._refuse(send)

    async def _refuse(self, send: Send) -> None:
        text = (
            f"the request is larger than {self._limit_bytes / 1e6:g} MB; send less at once, or "
            "files as artifacts"
        )
        body = json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": text}).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def limit_bytes() -> int:
    """How large a request may be, by its setting; a setting that is no size is the default."""
    try:
        said_mb = float(os.environ.get(BODY_LIMIT, DEFAULT_MB))
    except ValueError:
        said_mb = DEFAULT_MB
    return int((said_mb if math.isfinite(said_mb) and said_mb > 0 else DEFAULT_MB) * 1e6)


def _is_streamed(scope: Scope) -> bool:
    path: str = scope["path"]
    prefix = os.environ.get("_MLFLOW_STATIC_PREFIX", "").rstrip("/")
    is_ours = path.startswith(prefix)
    return scope["method"] == "PUT" and is_ours and path.removeprefix(prefix).startswith(_STREAMED)


def _content_length(scope: Scope) -> int | None:
    """What the request says of its length; 0 when it has no body, None when it will be seen."""
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return None
    said = headers.get(b"content-length", b"0")
    return int(said) if said.isdigit() else None


async def _body(receive: Receive, limit_bytes: int) -> list[Message] | None:
    """The whole of a body in messages; None when it is too large."""
    messages: list[Message] = []
    size_bytes = 0
    while True:
        message = await receive()
        messages.append(message)
        size_bytes += len(message.get("body", b""))
        if size_bytes > limit_bytes:
            return None
        if not message.get("more_body", False):
            return messages


def _replayed(messages: list[Message], receive: Receive) -> Receive:
    """What was read already, and then what comes."""
    waiting = iter(messages)

    async def again() -> Message:
        return next(waiting, None) or await receive()

    return again
