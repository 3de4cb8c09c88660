"""The MLflow server: is it there, are we let in, which version, with the guard, how fast."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import statistics
import time
from urllib.parse import urlsplit

from opusclip_mlops.doctor.findings import (
    Check,
    Finding,
    Subject,
    failed,
    is_web,
    note,
    ok,
    skipped,
    warning,
)
from opusclip_mlops.doctor.web import (
    BLIND,
    CONNECT_S,
    Answer,
    Server,
    credentials,
    is_blind,
    skew_of,
)

_EXPERIMENT = "api/2.0/mlflow/experiments/get?experiment_id=0"
_GUARD = "api/2.0/opusclip/guard"
REQUESTS = 20
_SLOW_S, _NEAR_S = 0.038, 0.01
_WARM = 3
_TOLD_LATENCY_S = 0.25
_ALLOW = "on the server: MLFLOW_SERVER_ALLOWED_HOSTS={},localhost:*,127.0.0.1:*"
_OTHER_AUTH = ("MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4")


def reach(subject: Subject) -> Finding:
    """Whether the tracking server answers."""
    if not is_web(subject.tracking_uri):
        return skipped("no server: runs go to a database or a folder directly")
    return _reached(subject.tracking_uri)


def reach_registry(subject: Subject) -> Finding:
    """Whether the registry's own server answers."""
    if not is_web(subject.registry_uri):
        return skipped("no server of its own")
    return _reached(subject.registry_uri)


def _reached(uri: str) -> Finding:
    answer = Server(uri).ask("health")
    waited_ms = (answer.answered_s - answer.asked_s) * 1000
    if answer.status == 200 and answer.text.strip() == "OK":
        if uri.startswith("https:") and is_blind():
            todo = f"unset {BLIND}; MLFLOW_TRACKING_SERVER_CERT_PATH=ca.pem has it trusted"
            return warning("answers, and anybody may stand in for it: no certificate counts", todo)
        return ok(f"answers after {waited_ms:.0f} ms")
    if answer.status in (401, 403):
        return note(f"its health is for users only ({answer.status})")
    if answer.status in (502, 503, 504):
        seen = f"the web server before MLflow answers {answer.status}"
        return failed(seen, "start MLflow behind it, or look at MLflow's log")
    seen = f"something else answers {answer.status} there: {answer.reason:.80}"
    return failed(seen, "give the address of MLflow, with the path it has behind a web server")


def access(subject: Subject) -> Finding:
    """Whether the tracking server lets this machine and this user in."""
    return _let_in(subject.tracking_uri)


def access_registry(subject: Subject) -> Finding:
    """Whether the registry lets this machine and this user in."""
    return _let_in(subject.registry_uri, "api/2.0/mlflow/registered-models/search?max_results=1")


def _let_in(uri: str, path: str = _EXPERIMENT) -> Finding:
    answer = Server(uri).ask(path)
    if answer.status == 200 and (answer.content or answer.text.strip() == "{}"):
        if _is_in_clear(uri):
            return note(f"as {_who(uri)}, whose password goes in clear text", "use https")
        return ok(f"as {_who(uri)}")
    if other := next((one for one in _OTHER_AUTH if os.environ.get(one)), None):
        return note(f"{answer.status}: it wants what {other} gives, which was not tried")
    return _kept_out(answer, uri)


def _who(uri: str) -> str:
    """Whom the credentials are of, without them."""
    if "@" in urlsplit(uri).netloc:
        return "the user in its address"
    kind = credentials().get("Authorization", "").partition(" ")[0]
    return {"Basic": "the user of MLFLOW_TRACKING_USERNAME", "Bearer": "a token"}.get(
        kind, "nobody: it asks for no credentials"
    )


def _is_in_clear(uri: str) -> bool:
    """Whether credentials go over a network that others may listen to."""
    parts = urlsplit(uri)
    is_here = parts.hostname in ("localhost", "::1") or str(parts.hostname).startswith("127.")
    return parts.scheme == "http" and bool(credentials() or parts.password) and not is_here


def _kept_out(answer: Answer, uri: str) -> Finding:
    host = urlsplit(uri).netloc.rpartition("@")[2]
    if answer.status == 403 and "Invalid Host header" in answer.text:
        return failed(f"403: it takes no requests for {host}", _ALLOW.format(host))
    if answer.status == 401 and not credentials() and "@" not in uri:
        todo = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        return failed("401: it asks for a user and a password", todo)
    if answer.status == 401:
        todo = "compare MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return failed("401: it does not know this user, password or token", todo)
    if answer.status == 403:
        todo = "ask its administrator for a permission on the default experiment"
        return failed(f"403: this user may not read there: {answer.reason}", todo)
    if answer.status == 200:
        seen = "a page, not MLflow's answer: a login page or another web server stands before it"
        return failed(seen, "set what it logs in by, such as MLFLOW_TRACKING_TOKEN")
    if answer.status == 404 and answer.content.get("error_code") == "RESOURCE_DOES_NOT_EXIST":
        return note("it lets us in, and has no default experiment")
    return failed(f"{answer.status}: {answer.reason}", "look at the server's log")


def version(subject: Subject) -> Finding:
    """Which MLflow the server is, beside the one here."""
    answer = Server(subject.tracking_uri).ask("version")
    theirs, ours = answer.text.strip(), importlib.metadata.version("mlflow")
    if answer.status != 200 or not theirs[:1].isdigit():
        return note(f"it does not tell its version ({answer.status}); here is {ours}")
    seen = f"MLflow {theirs} there, {ours} here"
    if theirs.split(".")[:1] != ours.split(".")[:1]:
        return failed(seen, f"use MLflow {theirs.split('.')[0]} on both sides")
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        return warning(seen, "upgrade the older one: the server first, the clients after it")
    return ok(seen)


def guard(subject: Subject) -> Finding:
    """Whether the server itself keeps versions from passing their gate."""
    answer = Server(subject.tracking_uri).ask(_GUARD)
    if answer.status == 200 and isinstance(answer.content.get("guard"), int):
        return ok("it guards stages, aliases and versions for every client")
    seen = f"a stock server ({answer.status}): who uses plain MLflow can pass a gate by"
    return note(seen, "serve by opusclip server, or --backend-store-uri opusclip+…")


def latency(subject: Subject) -> Finding:
    """How long a small request takes on a connection that is kept."""
    server = Server(subject.tracking_uri)
    connect_s = _connect_s(subject.tracking_uri)
    waits_s = []
    for _ in range(REQUESTS):
        began_s = time.monotonic()
        server.ask("version")
        waits_s.append(time.monotonic() - began_s)
    return judged(waits_s, connect_s=connect_s)


def judged(waits_s: list[float], *, connect_s: float) -> Finding:
    """What to think of these waits, where a connection is made in `connect_s` seconds."""
    middle_s = statistics.median(waits_s)
    seen = (
        f"{middle_s * 1000:.1f} ms a request, {max(waits_s) * 1000:.0f} ms at most of "
        f"{len(waits_s)}; the network takes {connect_s * 1000:.1f} ms"
    )
    is_slow = middle_s >= _SLOW_S and connect_s < _NEAR_S
    # A kernel that waits for an acknowledgement does so each time: no request is faster.
    if is_slow and min(waits_s[_WARM:]) >= _SLOW_S:
        todo = "pip install uvloop on the server: without it several workers cost 45 ms a request"
        return warning(seen, todo)
    if is_slow:
        return warning(seen, "look at the server's processors and database: it is overloaded")
    if middle_s > _TOLD_LATENCY_S:
        return warning(seen, "put the server nearer; pages load slowly, training does not wait")
    return ok(seen)


def _connect_s(uri: str) -> float:
    parts = urlsplit(uri)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    began_s = time.monotonic()
    socket.create_connection((parts.hostname or "", port), CONNECT_S).close()
    return time.monotonic() - began_s


def clock(subject: Subject) -> Finding:
    """How far the server's clock is off this machine's."""
    answer = Server(subject.tracking_uri).ask("health")
    return skew_of(
        answer.headers.get("Date"),
        asked_s=answer.asked_s,
        answered_s=answer.answered_s,
        whose="the server's clock",
    )


CHECKS = (
    Check(name="server.reach", look=reach),
    Check(name="server.access", look=access, after="server.reach"),
    Check(name="server.version", look=version, after="server.access"),
    Check(name="server.clock", look=clock, after="server.reach"),
    Check(name="server.guard", look=guard, after="server.access"),
    Check(name="server.latency", look=latency, after="server.access", alone=True),
    Check(name="registry.reach", look=reach_registry),
    Check(name="registry.access", look=access_registry, after="registry.reach"),
)
"""In the order they are told in."""
