"""Registries with a guard: they decide themselves, and are asked instead of written to.

A guarded server keeps clients from writing histories, stages and aliases. What MLflow's own calls
cannot say, such as a reason, goes to routes beside them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import msgspec
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.rest_utils import http_request

from opusclip_mlops.deciding import GateRefused
from opusclip_mlops.decisions import CameBy, Decision
from opusclip_mlops.errors import OpusclipError, RegistryError
from opusclip_mlops.patience import WAIT_S, patiently
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import LOG_IN, reason_of
from opusclip_mlops.verdicts import Verdict

PROTOCOL = 1
GUARD_PATH = "/api/2.0/opusclip/guard"
DECISIONS_PATH = "/api/2.0/opusclip/decisions"

_LONGEST_WAIT_S = 900
_OK, _NOT_LOGGED_IN, _FORBIDDEN = 200, 401, 403
_NEEDED = "EDIT on the model is needed, and MANAGE to force a decision or to set the policy"
_known: dict[str, bool] = {}
_lock = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a guarded registry is asked to decide.

    Attributes:
        what: A promotion or demotion, a rollback, an approval, a policy to keep, or a look at what
            was changed by hand.
        name: The registered model.
        version: The version's number; empty where it is about none.
        to: The stage, however capitalised.
        reason: Why.
        force: Whatever the gate says.
        came_by: What it came in by.
        text: The policy.
    """

    what: Literal["promote", "rollback", "approve", "policy", "reconcile"]
    name: str
    version: str = ""
    to: str = ""
    reason: str = ""
    force: bool = False
    came_by: CameBy = "API"
    text: str = ""


class Guard(Protocol):
    """Decides about registered models, itself or on a server."""

    def decide(self, ask: Ask) -> tuple[Decision, ...]:
        """The records that were made, of one decision the one that stands.

        Raises:
            GateRefused: The gate does not let the version through.
            RegistryError: It was refused for another reason, or nobody answered.
        """


def guard_of(client: MlflowClient) -> Guard | None:
    """Who decides about a client's registered models; None where the client does so itself.

    Raises:
        RegistryError: The registry did not answer, or has a guard and runs are kept elsewhere.
    """
    uri = str(client._registry_uri)
    found = RemoteGuard(client) if _has_guard(client, uri) else _local(client)
    if found is not None and uri.rstrip("/") != str(client.tracking_uri).rstrip("/"):
        raise RegistryError(
            "the registry is guarded and decides by runs of its own: set tracking and registry to "
            "the same server"
        )
    return found


@dataclass(frozen=True, slots=True)
class RemoteGuard:
    """A guarded server, asked over HTTP with the credentials that MLflow has for it."""

    client: MlflowClient

    def decide(self, ask: Ask) -> tuple[Decision, ...]:
        """See `Guard`."""
        what = f"cannot decide about {ask.name!r}"
        # Asked twice, a rollback goes back by two.
        wait_s = 0.0 if ask.what == "rollback" else WAIT_S
        status, content = patiently(what, lambda: self._asked(ask), wait_s=wait_s)
        if status == _NOT_LOGGED_IN:
            raise RegistryError(f"{what}: {LOG_IN}")
        if status == _FORBIDDEN:
            raise RegistryError(f"{what}: this user may not, {_NEEDED}")
        if status != _OK:
            raise _refusal(content)
        return tuple(_decision(one) for one in content.get("records", ()))

    def _asked(self, ask: Ask) -> tuple[int, Mapping[str, Any]]:
        status, content = _answer(self.client, "POST", DECISIONS_PATH, asdict(ask))
        if status >= 500 or status == 429:
            raise MlflowException(str(content.get("message") or f"the server answered {status}"))
        return status, content


def refusal_of(error: OpusclipError) -> dict[str, Any]:
    """What a server answers where it refuses, so that `RemoteGuard` raises the same again."""
    about: dict[str, Any] = {"error_code": "INVALID_PARAMETER_VALUE", "message": str(error)}
    if isinstance(error, GateRefused):
        about["verdict"] = dict(error.verdict.to_dict())
    return about


def _refusal(content: Mapping[str, Any]) -> RegistryError:
    text = one_line(str(content.get("message") or "the server refused"), at_most=4_000)
    verdict = content.get("verdict")
    return GateRefused(text, Verdict.from_dict(verdict)) if verdict else RegistryError(text)


def _decision(content: Mapping[str, Any]) -> Decision:
    try:
        return msgspec.convert(content, Decision)
    except msgspec.ValidationError as error:
        raise RegistryError(f"the server's answer is no decision: {one_line(str(error))}") from None


def _local(client: MlflowClient) -> Guard | None:
    """The guard of a database that this process has opened itself."""
    if not str(client._registry_uri).startswith("opusclip+"):
        return None
    guard: Guard | None = getattr(client._get_registry_client().store, "guard", None)
    return _OwnGuard(guard) if guard else None


@dataclass(frozen=True, slots=True)
class _OwnGuard:
    """A guard in this process; what its database does not take is an error like any other."""

    guard: Guard

    def decide(self, ask: Ask) -> tuple[Decision, ...]:
        try:
            return self.guard.decide(ask)
        except MlflowException as error:
            raise RegistryError(reason_of(error)) from error


def _has_guard(client: MlflowClient, uri: str) -> bool:
    """Whether a server says that it has a guard; asked once of each."""
    if urlsplit(uri).scheme not in ("http", "https"):
        return False
    with _lock:
        if uri not in _known:
            what = f"cannot reach {one_line(uri)}"
            _known[uri] = patiently(what, lambda: _says_so(client))
        return _known[uri]


def _says_so(client: MlflowClient) -> bool:
    status, content = _answer(client, "GET", GUARD_PATH)
    if status >= 500 or status == 429:
        raise MlflowException(f"the server answered {status}")
    if status == _NOT_LOGGED_IN:
        raise RegistryError(LOG_IN)
    if status != _OK or not isinstance(content.get("guard"), int):
        return False
    if content["guard"] != PROTOCOL:
        raise RegistryError("the server's guard is of another version: install the same here")
    return True


def _answer(
    client: MlflowClient, method: str, path: str, body: Mapping[str, Any] | None = None
) -> tuple[int, Mapping[str, Any]]:
    credentials = client._get_registry_client().store.get_host_creds()
    more = {} if body is None else {"json": body, "timeout": _LONGEST_WAIT_S, "max_retries": 0}
    response = http_request(credentials, path, method, raise_on_status=False, **more)
    try:
        content = json.loads(response.text)
    except ValueError:
        content = {}
    return response.status_code, content if isinstance(content, dict) else {}
