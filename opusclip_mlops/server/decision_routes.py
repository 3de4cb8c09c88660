"""Routes beside MLflow's for what its own calls cannot say: reasons, force, approvals, policies.

With MLflow's login, who may edit a registered model may promote, approve and roll back; who manages
it may also force a decision and set the policy.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec
from flask import Flask, Response, request
from mlflow.server import handlers

from opusclip_mlops.decisions import Decision, to_text
from opusclip_mlops.errors import OpusclipError, RegistryError
from opusclip_mlops.guarded import DECISIONS_PATH, GUARD_PATH, PROTOCOL, Ask, refusal_of
from opusclip_mlops.server.guard import refused
from opusclip_mlops.server.models import RegistryStore

_MOST_BYTES = 4 * 2**20
_BAD_REQUEST = 400


def add_to(app: Flask) -> None:
    """Add the routes to MLflow's application; a second time is none."""
    guard, decisions = map(handlers._add_static_prefix, (GUARD_PATH, DECISIONS_PATH))
    if _tell.__name__ in app.view_functions:
        return
    app.add_url_rule(guard, _tell.__name__, _tell, methods=["GET"])
    app.add_url_rule(
        decisions, _decide.__name__, handlers.catch_mlflow_exception(_decide), methods=["POST"]
    )
    auth = sys.modules.get("mlflow.server.auth")
    if getattr(auth, "_auth_initialized", False):
        auth.BEFORE_REQUEST_VALIDATORS |= {  # type: ignore[union-attr]
            (guard, "GET"): lambda: True,
            (decisions, "POST"): _may_decide,
        }


def _tell() -> Response:
    return _json({"guard": PROTOCOL})


def _decide() -> Response:
    try:
        ask = _asked()
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return _json(refusal_of(RegistryError(f"this is no question: {error}")), _BAD_REQUEST)
    store = handlers._get_model_registry_store()
    assert isinstance(store, RegistryStore)
    try:
        return _json({"records": [_content(one) for one in store.guard.decide(ask)]})
    except OpusclipError as error:
        answer = refused(error)
        about = {**refusal_of(error), "error_code": answer.error_code}
        return _json(about, answer.get_http_status_code())


def _asked() -> Ask:
    if request.mimetype != "application/json":
        raise ValueError("send it as application/json")
    if (request.content_length or 0) > _MOST_BYTES:
        raise ValueError(f"it is longer than {_MOST_BYTES} bytes")
    return msgspec.json.decode(request.get_data(), type=Ask)


def _may_decide() -> bool:
    """Whether MLflow's login lets the user do this; what is no question is refused later."""
    auth: Any = sys.modules["mlflow.server.auth"]
    try:
        # Read as it is read later: of two readers one may see a question where the other does not.
        ask = _asked()
    except (msgspec.MsgspecError, ValueError):
        return True
    except RecursionError:
        # Further out there may be more room for it.
        return False
    permission = auth._get_registered_model_permission(ask.name)
    needs_manager = ask.force or ask.what == "policy"
    return bool(permission.can_manage if needs_manager else permission.can_update)


def _content(record: Decision) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(to_text(record))
    return content


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(content), status, mimetype="application/json")
