"""Who decides: the user whom MLflow has let in, nobody known, or who runs this process."""

from __future__ import annotations

import sys
from types import ModuleType

from opusclip_mlops.decisions import Actor, CameBy, present_actor
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.redaction import one_line

ANONYMOUS = Actor("anonymous", "no login")
_LOGIN = "MLflow login"
_LONGEST_NAME = 200
_UI_PATH = "/ajax-api/"


def deciding() -> Actor:
    """Who decides now.

    In a request it is the user whom MLflow's login let in; without a login nobody, whatever the
    request says. Outside requests it is the user of this process.
    """
    flask = _in_request()
    if flask is None:
        return present_actor()
    name = one_line(str(flask.g.get("mlflow_authenticated_user") or ""), at_most=_LONGEST_NAME)
    return Actor(name, _LOGIN) if name else ANONYMOUS


def is_known() -> bool:
    """Whether a request is answered whose user MLflow's login has let in."""
    return _in_request() is not None and deciding() != ANONYMOUS


def approving() -> Actor:
    """Who approves now.

    Raises:
        RegistryError: Nobody is logged in: an approval is somebody's word.
    """
    actor = deciding()
    if actor == ANONYMOUS:
        raise RegistryError("nobody approves here: this server has no login, start it with one")
    return actor


def came_by() -> CameBy:
    """What a request came in by: MLflow's own pages ask under a path of their own."""
    flask = _in_request()
    return "UI" if flask is not None and _UI_PATH in flask.request.path else "API"


def _in_request() -> ModuleType | None:
    """Flask, where a request is being answered; it is not loaded for this."""
    flask = sys.modules.get("flask")
    return flask if flask is not None and flask.has_request_context() else None
