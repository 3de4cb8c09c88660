"""Who decides: by MLflow's login, by nothing that a client says."""

import flask
import pytest

from opusclip_mlops.decisions import present_actor
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.server import actors

APP = flask.Flask(__name__)


def test_outside_of_requests_it_is_the_user_of_the_process() -> None:
    """A database that is opened without a server between."""
    assert actors.deciding() == actors.approving() == present_actor()
    assert actors.came_by() == "API"


def test_in_a_request_it_is_who_is_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MLflow's login says; on one line, whatever the name."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "root")
    with APP.test_request_context("/api/2.0/mlflow/x"):
        flask.g.mlflow_authenticated_user = "anna\n\x1b[1m" + "a" * 999
        actor = actors.deciding()
        assert actor.known_by == "MLflow login"
        assert actor.name.startswith("anna")
        assert len(actor.name) <= 200
        assert actor.name.isprintable()
        assert actors.approving() == actor


def test_without_a_login_it_is_nobody() -> None:
    """Headers and names that a client gives are not looked at; nobody's word is no approval."""
    claimed = {"X-User": "lead", "Authorization": "Basic bGVhZDp4"}
    with APP.test_request_context("/api/2.0/mlflow/x", headers=claimed):
        assert actors.deciding() == actors.ANONYMOUS
        with pytest.raises(RegistryError, match="start it with one"):
            actors.approving()


def test_the_pages_of_mlflow_are_told_from_clients() -> None:
    """They ask under a path of their own, behind a prefix too."""
    with APP.test_request_context("/team/ajax-api/2.0/mlflow/x"):
        assert actors.came_by() == "UI"
    with APP.test_request_context("/api/2.0/mlflow/x"):
        assert actors.came_by() == "API"
