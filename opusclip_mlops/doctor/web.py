"""Asking a server by HTTP, with the credentials MLflow would use, and never for long."""

from __future__ import annotations

import base64
import configparser
import datetime
import email.utils
import json
import os
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from opusclip_mlops.doctor.findings import Finding, Told, failed, note, ok, warning
from opusclip_mlops.redaction import one_line

CONNECT_S, READ_S = 4.0, 8.0
BLIND = "MLFLOW_TRACKING_INSECURE_TLS"

_UNANSWERED = (requests.RequestException, UnicodeError, ValueError)
_TOLD_SKEW_S, _WORST_SKEW_S = 2.0, 60.0
_DATE_STEP_S = 0.5  # the header's seconds are cut off: half of one either way
_MOST_TEXT = 200


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a server said; `asked_s` and `answered_s` are this machine's clock."""

    status: int
    text: str
    headers: Mapping[str, str]
    asked_s: float
    answered_s: float

    @property
    def content(self) -> dict[str, Any]:
        """The JSON object that it said, empty where it said anything else."""
        with suppress(ValueError):
            content = json.loads(self.text)
            return content if isinstance(content, dict) else {}
        return {}

    @property
    def reason(self) -> str:
        """What it said in words, on a short line."""
        told = self.content.get("message") or self.content.get("detail") or self.text
        return one_line(str(told), at_most=_MOST_TEXT)


class Server:
    """A server that is asked over one connection, which is kept."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._session = requests.Session()
        self._certificates = _certificates()
        self._session.headers.update(credentials())

    def ask(self, path: str, *, method: str = "GET", **content: Any) -> Answer:
        """Ask once, without trying again.

        Raises:
            Told: Nobody answers.
        """
        asked_s = time.time()
        try:
            said = self._session.request(
                method,
                f"{self.uri}/{path}",
                timeout=(CONNECT_S, READ_S),
                **self._certificates,
                **content,
            )
        except _UNANSWERED as error:
            raise Told(unreached(error, self.uri)) from error
        return Answer(
            status=said.status_code,
            text=said.text,
            headers=said.headers,
            asked_s=asked_s,
            answered_s=time.time(),
        )


def _certificates() -> dict[str, Any]:
    """Whose certificates are trusted, and our own, by MLflow's variables."""
    if is_blind():
        # Told as a finding, once, and not by each request.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    trusted = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True
    own = os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH") or None
    return {"verify": False if is_blind() else trusted, "cert": own}


def is_blind() -> bool:
    """Whether MLflow is told to take any certificate for a server's."""
    return os.environ.get(BLIND, "").lower() in ("1", "true")


def credentials() -> dict[str, str]:
    """The header with the user's credentials, as MLflow takes them from variables or its file."""
    name, password = (
        os.environ.get(variable) or _from_file(variable)
        for variable in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    )
    if name and password:
        text = base64.b64encode(f"{name}:{password}".encode()).decode()
        return {"Authorization": f"Basic {text}"}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _from_file(variable: str) -> str:
    parser = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error, OSError, UnicodeDecodeError):
        parser.read(Path("~/.mlflow/credentials").expanduser())
    return parser.get("mlflow", variable.lower(), fallback="")


def unreached(error: Exception, uri: str) -> Finding:
    """Why a server was not reached, in plain words."""
    place = _place(uri)
    if isinstance(error, requests.exceptions.SSLError):
        todo = "give its authority's certificate: MLFLOW_TRACKING_SERVER_CERT_PATH=ca.pem"
        return failed(f"{place} shows a certificate that is not trusted: {_inner(error)}", todo)
    if isinstance(error, requests.exceptions.ConnectTimeout):
        todo = "compare the address; a firewall, or a machine that is off, answers like this"
        return failed(f"{place} does not answer within {CONNECT_S:.0f} s", todo)
    if isinstance(error, requests.exceptions.Timeout):
        seen = f"{place} takes the connection and says nothing within {READ_S:.0f} s"
        return failed(seen, "look at the server's log: it hangs, or its database does")
    if isinstance(error, requests.exceptions.ProxyError):
        return failed(f"the proxy before {place} does not answer", "compare HTTPS_PROXY, NO_PROXY")
    if isinstance(error, requests.exceptions.ConnectionError):
        return _unconnected(error, place)
    return failed(f"{place} cannot be asked: {_inner(error)}", "compare the address")


def _unconnected(error: Exception, place: str) -> Finding:
    told = str(error)
    if "NameResolution" in told or "Name or service not known" in told:
        return failed(f"no machine is called {place}", "compare the name; ask DNS for it")
    if "refused" in told:
        return failed(f"nothing listens on {place}", "start the server, or compare the port")
    return failed(f"{place} ended the connection", "http for https? see the server's log")


def _place(uri: str) -> str:
    with suppress(ValueError):
        return urlsplit(uri).netloc.rpartition("@")[2] or uri
    return uri


def _inner(error: BaseException) -> str:
    """What the fault at the bottom says, without the layers round it."""
    at: BaseException = error
    for _ in range(10):
        inner = getattr(at, "reason", None) or at.__cause__ or at.__context__
        if not isinstance(inner, BaseException):
            break
        at = inner
    told = getattr(at, "verify_message", "") if isinstance(at, ssl.SSLError) else ""
    return one_line(told or str(at) or type(at).__name__, at_most=_MOST_TEXT)


def skew_of(date: str | None, *, asked_s: float, answered_s: float, whose: str) -> Finding:
    """How far another machine's clock is off, by the date it gave between two times of ours."""
    try:
        told = email.utils.parsedate_to_datetime(date or "")
    except (ValueError, TypeError):
        return note(f"{whose} says no date")
    if told.tzinfo is None:
        told = told.replace(tzinfo=datetime.UTC)
    ahead_s = told.timestamp() + _DATE_STEP_S - (asked_s + answered_s) / 2
    return skew(ahead_s, doubt_s=_DATE_STEP_S + (answered_s - asked_s) / 2, whose=whose)


def skew(ahead_s: float, *, doubt_s: float, whose: str) -> Finding:
    """What to think of a clock that is this far ahead, give or take a doubt; both in seconds."""
    sure_s = max(0.0, abs(ahead_s) - doubt_s)
    direction = "ahead of" if ahead_s > 0 else "behind"
    seen = f"{whose} is {abs(ahead_s):.1f} s {direction} this machine (±{doubt_s:.1f} s)"
    todo = "set both by NTP: timedatectl set-ntp true"
    if sure_s > _WORST_SKEW_S:
        return failed(seen, todo)
    return warning(seen, todo) if sure_s > _TOLD_SKEW_S else ok(seen)
