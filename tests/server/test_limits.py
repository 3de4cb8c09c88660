"""Requests of a limited size, without a server."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from opusclip_mlops.server.limits import LimitedBodies, limit_bytes
from opusclip_mlops.server.settings import BODY_LIMIT

ROUTE = "/api/2.0/mlflow/runs/log-batch"
ARTIFACT = "/api/2.0/mlflow-artifacts/artifacts/0/clip.mp4"


def asked(
    body: Sequence[bytes],
    *,
    length_bytes: int | None,
    path: str = ROUTE,
    method: str = "POST",
) -> tuple[int, bytes | None]:
    """The status of the answer, and the body that the application got, if it was asked."""
    got: list[bytes] = []
    answers: list[Any] = []
    parts: Iterator[bytes] = iter(body)
    read = 0

    async def receive() -> Any:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": next(parts), "more_body": read < len(body)}

    async def send(message: Any) -> None:
        answers.append(message)

    async def application(_: Any, receive: Any, send: Any) -> None:
        message = {"more_body": True}
        while message["more_body"]:
            message = await receive()
            got.append(message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    header = (
        (b"transfer-encoding", b"chunked")
        if length_bytes is None
        else (b"content-length", str(length_bytes).encode())
    )
    scope = {"type": "http", "method": method, "path": path, "headers": [header]}
    asyncio.run(LimitedBodies(application, limit_bytes=10)(scope, receive, send))
    return answers[0]["status"], b"".join(got) if got else None


def test_a_body_within_the_limit_arrives_whole() -> None:
    """Whether its length is said before or not."""
    assert asked([b"12345", b"67890"], length_bytes=10) == (200, b"1234567890")
    assert asked([b"12345", b"67890"], length_bytes=None) == (200, b"1234567890")
    assert asked([b""], length_bytes=None) == (200, b"")


def test_a_larger_body_never_reaches_the_application() -> None:
    """Not when its length is said, and not when it comes in parts without."""
    assert asked([b"12345", b"678901"], length_bytes=11) == (413, None)
    assert asked([b"12345", b"678901", b"more"], length_bytes=None) == (413, None)


def test_artifacts_are_not_limited() -> None:
    """They are written as they come; other methods on the same path are limited."""
    sent = asked([b"1" * 100], length_bytes=100, path=ARTIFACT, method="PUT")
    assert sent == (200, b"1" * 100)
    assert asked([b"1" * 100], length_bytes=100, path=ARTIFACT, method="POST") == (413, None)


def test_artifacts_are_not_limited_below_a_static_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's paths begin with it then, those of artifacts too."""
    monkeypatch.setenv("_MLFLOW_STATIC_PREFIX", "/m/")
    sent = asked([b"1" * 100], length_bytes=100, path=f"/m{ARTIFACT}", method="PUT")
    assert sent == (200, b"1" * 100)
    elsewhere = asked([b"1" * 100], length_bytes=100, path=f"/n{ARTIFACT}", method="PUT")
    assert elsewhere == (413, None)


def test_a_length_that_is_no_number_is_counted() -> None:
    """What a header says is not believed when it cannot be read."""

    async def nothing(*_: Any) -> None: ...

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"1" * 11, "more_body": False}

    scope = {
        "type": "http",
        "method": "POST",
        "path": ROUTE,
        "headers": [(b"content-length", b"-")],
    }
    asyncio.run(LimitedBodies(nothing, limit_bytes=10)(scope, receive, send))
    assert sent[0]["status"] == 413
    assert "larger than" in json.loads(sent[1]["body"])["message"]


@pytest.mark.parametrize(
    ("said", "meant_bytes"),
    [
        ("1", 1_000_000),
        ("0.5", 500_000),
        ("x", 32_000_000),
        ("-1", 32_000_000),
        ("nan", 32_000_000),
    ],
)
def test_the_limit_is_a_setting(
    monkeypatch: pytest.MonkeyPatch, said: str, meant_bytes: int
) -> None:
    """In megabytes; what is no size is the default."""
    monkeypatch.setenv(BODY_LIMIT, said)
    assert limit_bytes() == meant_bytes
