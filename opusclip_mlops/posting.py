"""Sends one message to a webhook, and says what came of it in words that hold no secret."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal

import requests
from mlflow.webhooks.ssrf import SSRFProtectedHTTPAdapter, SSRFProtectionError
from requests.adapters import HTTPAdapter

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.webhooks import Message, Receiver

CONNECT_S, ANSWER_S = 5.0, 10.0
"""How long a connection may take, and each wait for the answer, in seconds."""
WHOLE_S = 25.0
"""How long all of it may take: who answers byte by byte has each wait anew, in seconds."""

_PASSING = frozenset({408, 425, 429})
_LONGEST_WAIT_S = 3600.0
_FAULTS = (
    (SSRFProtectionError, "its address is not public: allow_private: true lets it through"),
    (requests.exceptions.SSLError, "its certificate is not one that is trusted"),
    (requests.exceptions.ProxyError, "the proxy does not let it through"),
    (requests.exceptions.ConnectTimeout, f"no connection in {CONNECT_S:g} s"),
    (requests.exceptions.Timeout, f"no answer in {ANSWER_S:g} s"),
    (requests.exceptions.ConnectionError, "no connection, or it broke off"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of sending.

    Attributes:
        result: "told", "later" where it may be better another time, "refused" where not.
        error: What was wrong, empty where it was told.
        wait_s: How long the receiver asked to be left alone, in seconds; None: it said nothing.
        is_about_all: Whether the receiver would have answered any other message the same.
    """

    result: Literal["told", "later", "refused"]
    error: str = ""
    wait_s: float | None = None
    is_about_all: bool = False


def post(webhook: Receiver, message: Message) -> Outcome:
    """Send a message once; redirects are not followed, and what is answered is not read."""
    try:
        headers = message.headers(webhook.secret.signing_keys(), sent_s=int(time.time()))
    except ConfigError as error:
        return Outcome("later", str(error), is_about_all=True)
    return _within_time(webhook, lambda: _answered(webhook, message, headers))


def _within_time(webhook: Receiver, send: Callable[[], Outcome]) -> Outcome:
    """What came of it, or that nothing did in time; then nothing else is sent there meanwhile."""
    found: list[Outcome] = []
    thread = threading.Thread(
        target=lambda: found.append(send()), name=f"opusclip-webhook-{webhook.name}", daemon=True
    )
    before = _late.get(webhook.url)
    if before is None or not before.is_alive():
        thread.start()
        thread.join(WHOLE_S)
        if thread.is_alive():
            _late[webhook.url] = thread
    late = Outcome("later", f"{webhook.host}: no whole answer in {WHOLE_S:g} s", is_about_all=True)
    return found[0] if found else late


_late: dict[str, threading.Thread] = {}


def _answered(webhook: Receiver, message: Message, headers: dict[str, str]) -> Outcome:
    try:
        with _session(webhook) as session, _posted(session, webhook, message, headers) as answer:
            return _outcome(answer)
    except (requests.RequestException, SSRFProtectionError, OSError, ValueError) as error:
        said = next((text for kind, text in _FAULTS if isinstance(error, kind)), "")
        return Outcome(
            "later", f"{webhook.host}: {said or type(error).__name__}", is_about_all=True
        )


def _session(webhook: Receiver) -> requests.Session:
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter() if webhook.allow_private else _public_only())
    # With it nothing is looked up in a .netrc.
    session.auth = _unchanged
    return session


def _public_only() -> HTTPAdapter:
    return SSRFProtectedHTTPAdapter()


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _posted(
    session: requests.Session, webhook: Receiver, message: Message, headers: dict[str, str]
) -> requests.Response:
    return session.post(
        webhook.url,
        data=message.body,
        headers={"user-agent": "opusclip-webhooks", **headers},
        timeout=(CONNECT_S, ANSWER_S),
        allow_redirects=False,
        stream=True,
    )


def _outcome(answer: requests.Response) -> Outcome:
    code = answer.status_code
    if 200 <= code < 300:
        return Outcome("told")
    error = f"answered {code}"
    if code in _PASSING or code >= 500:
        wait_s = _asked_to_wait_s(answer.headers.get("retry-after", ""))
        return Outcome("later", error, wait_s, is_about_all=code in (429, 503))
    if 300 <= code < 400:
        error += ": redirects are not followed"
    return Outcome("refused", error)


def _asked_to_wait_s(value: str) -> float | None:
    """The seconds that `Retry-After` asks for, an hour at most; it is a number or a date."""
    try:
        wait_s = float(value) if value.strip().isdigit() else _until_s(value)
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, wait_s), _LONGEST_WAIT_S) if math.isfinite(wait_s) else None


def _until_s(date: str) -> float:
    return parsedate_to_datetime(date).timestamp() - time.time()
