"""What MLflow's own calls cannot say is asked of a guarded server by routes beside them."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from opusclip_mlops import chronicle, gated
from opusclip_mlops.deciding import GateRefused
from opusclip_mlops.errors import RegistryError
from tests.journeys import store
from tests.promoters import NAME, is_settled, make_model
from tests.server.guarding import STRICT, guarded_server, measured
from tests.servers import BIN, free_port, running

PASSWORDS = {"admin": "correct-horse-1", "lead": "battery-staple-2", "reader": "only-reading-3"}
EVERYBODY = "everybody-4"
ROUTE = "/api/2.0/opusclip/decisions"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A guarded server without a login, and a model with three versions."""
    with guarded_server(tmp_path_factory.mktemp("open")) as (address, _):
        make_model(MlflowClient(address))
        yield address


@dataclass(frozen=True)
class Login:
    """A guarded server that lets nobody in without a password."""

    url: str

    def ask(self, user: str, **asked: Any) -> requests.Response:
        """Ask for a decision as a user; "" for nobody."""
        login = (user, PASSWORDS[user]) if user else None
        body = {"name": NAME, **asked}
        return requests.post(self.url + ROUTE, json=body, auth=login, timeout=60)


@pytest.fixture(scope="module")
def login(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Login]:
    """A server with MLflow's login that denies what it does not know; the lead edits the model."""
    folder, port = tmp_path_factory.mktemp("login"), free_port()
    ini = folder / "auth.ini"
    ini.write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder}/auth.db\nadmin_username = admin\n"
        f"admin_password = {PASSWORDS['admin']}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    env = {
        "MLFLOW_AUTH_CONFIG_PATH": str(ini),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "x" * 32,
        "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    argv = [BIN / "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--workers", "1", "--app-name", "basic-auth"]
    argv += ["--backend-store-uri", f"opusclip+{store(folder)}"]
    address = f"http://127.0.0.1:{port}"
    with running(argv, env, f"{address}/health", cwd=folder):
        make_model(MlflowClient(store(folder)))
        _make_users(address)
        yield Login(address)


def _make_users(url: str) -> None:
    admin = ("admin", PASSWORDS["admin"])
    users = f"{url}/api/2.0/mlflow/users/create"
    for user in ("lead", "reader"):
        body = {"username": user, "password": PASSWORDS[user]}
        assert requests.post(users, json=body, auth=admin, timeout=60).ok
    grant = {"username": "lead", "resource_type": "registered_model", "resource_id": NAME}
    grant |= {"permission": "EDIT"}
    permissions = f"{url}/api/3.0/mlflow/users/permissions/grant"
    answer = requests.post(permissions, json=grant, auth=admin, timeout=60)
    assert answer.ok, answer.text


def test_a_server_says_that_it_has_a_guard(url: str) -> None:
    """And which version of these routes it speaks."""
    assert requests.get(f"{url}/api/2.0/opusclip/guard", timeout=60).json() == {"guard": 1}


def test_the_same_calls_work_through_the_server(url: str) -> None:
    """Promotion, rollback and policy answer as they do without a guard, verdicts included."""
    places = {"tracking_uri": url, "registry_uri": url}
    client = MlflowClient(url)
    gated.promote(NAME, 1, to="production", **places)
    made = gated.promote(NAME, 2, to="Production", reason="sharper", came_by="CLI", **places)
    back = gated.rollback(NAME, reason="flickers", **places)
    gated.set_policy(NAME, STRICT, **places)
    version = measured(client, 29.0)
    with pytest.raises(GateRefused, match="val/psnr min: 29, wanted 30") as refused:
        gated.promote(NAME, version, to="Production", **places)
    assert refused.value.verdict.to_dict()["conditions"][0]["measured"] == 29.0
    forced = gated.promote(NAME, version, to="Production", force=True, reason="demo", **places)
    assert chronicle.history(NAME, client=client)[1:3] == (made, back)
    assert (made.actor, made.came_by, made.reason) == ("anonymous", "CLI", "sharper")
    assert (forced.forced, forced.previous_holder) == (True, 1)
    assert is_settled(client)
    seen: list[gated.Sighting] = []
    gated.watch([NAME], rounds=1, show=seen.append, **places)
    assert [one.problem for one in seen if one.problem] == []


def test_nobody_approves_where_nobody_is_known(url: str) -> None:
    """Without a login an approval would be anybody's word."""
    body = {"what": "approve", "name": NAME, "version": "3", "to": "Staging"}
    answer = requests.post(url + ROUTE, json=body, timeout=60)
    assert answer.status_code == HTTPStatus.BAD_REQUEST
    assert "this server has no login" in answer.json()["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"what": "promote"}',
        b'{"what": "erase", "name": "a"}',
        b"\xff" * 9,
        b'{"a":' + b"[" * 100_000,
    ],
)
def test_rubbish_is_refused(url: str, body: bytes) -> None:
    """What is no question is told so, in one line."""
    kind = {"Content-Type": "application/json"}
    answer = requests.post(url + ROUTE, data=body, headers=kind, timeout=60)
    assert answer.status_code == HTTPStatus.BAD_REQUEST
    assert answer.json()["message"].startswith("this is no question: ")
    assert "\n" not in answer.json()["message"]


def test_a_form_of_another_page_is_no_question(url: str) -> None:
    """A browser sends forms to any server without asking; JSON it does not."""
    body = b'{"what": "promote", "name": "clip-generator", "version": "3", "to": "Staging"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = requests.post(url + ROUTE, data=body, headers={"Content-Type": kind}, timeout=60)
        assert answer.status_code == HTTPStatus.BAD_REQUEST


def test_who_is_not_logged_in_is_let_nowhere(login: Login) -> None:
    """Neither to the decisions nor to the question whether there are any."""
    assert login.ask("", what="promote", version="1", to="Staging").status_code == 401
    assert requests.get(f"{login.url}/api/2.0/opusclip/guard", timeout=60).status_code == 401


def test_who_may_only_read_decides_nothing(login: Login) -> None:
    """A reader is forbidden all of it, but may know that there is a guard."""
    for what in ("promote", "rollback", "approve", "policy", "reconcile"):
        assert login.ask("reader", what=what, version="1", to="Staging").status_code == 403
    known = requests.get(
        f"{login.url}/api/2.0/opusclip/guard", auth=("reader", PASSWORDS["reader"]), timeout=60
    )
    assert known.json() == {"guard": 1}


@pytest.mark.parametrize(
    "more", [b"9" * 5_000, b'"\xff"', b"[" * 100_000], ids=["a number", "no text", "a depth"]
)
def test_no_spelling_of_a_question_gets_past_the_login(login: Login, more: bytes) -> None:
    """What one reader of JSON takes and another does not is no way to decide."""
    asked = {"what": "policy", "name": NAME, "text": "", "reason": "because"}
    body = json.dumps(asked).encode().removesuffix(b"}") + b', "more": ' + more + b"}"
    answer = requests.post(
        login.url + ROUTE,
        data=body,
        headers={"Content-Type": "application/json"},
        auth=("reader", PASSWORDS["reader"]),
        timeout=60,
    )
    assert answer.status_code == HTTPStatus.FORBIDDEN, answer.text


def test_who_edits_the_model_decides_but_does_not_force(login: Login) -> None:
    """The lead approves and promotes; force and policy are for who manages the model."""
    rule = "{approvals: {roles: [boss], not_by_author: false}}"
    kept = f"roles: {{boss: [lead]}}\nstages: {{Staging: {rule}}}\n"
    assert login.ask("lead", what="policy", text=kept).status_code == 403
    assert login.ask("admin", what="policy", text=kept).ok
    refused = login.ask("lead", what="promote", version="1", to="Staging")
    assert refused.status_code == HTTPStatus.BAD_REQUEST
    forced = {"what": "promote", "version": "1", "to": "Staging", "force": True, "reason": "now"}
    assert login.ask("lead", **forced).status_code == 403
    assert login.ask("lead", what="approve", version="1", to="Staging").ok
    made = login.ask("lead", what="promote", version="1", to="Staging", came_by="UI").json()
    record = made["records"][0]
    assert (record["actor"], record["actor_known_by"]) == ("lead", "MLflow login")
    assert login.ask("admin", **forced).ok


def test_a_version_is_marked_with_who_is_logged_in(
    login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with whom a tag names: who registers a version may not approve it as somebody else's."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "lead")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS["lead"])
    client, key = MlflowClient(login.url), "opusclip.registered_by"
    run = client.create_run(client.create_experiment("films")).info
    tags = {key: "boss", "a": "b"}
    made = client.create_model_version(NAME, run.artifact_uri, run.run_id, tags=tags)
    assert client.get_model_version(NAME, made.version).tags == {key: "lead", "a": "b"}
    with pytest.raises(MlflowException, match="nobody changes it"):
        client.set_model_version_tag(NAME, made.version, key, "boss")
    client.set_model_version_tag(NAME, made.version, "a", "c")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS["admin"])
    with pytest.raises(MlflowException, match="nobody changes it"):
        client.delete_model_version_tag(NAME, made.version, key)
    assert client.get_model_version(NAME, made.version).tags == {key: "lead", "a": "c"}


def test_a_client_with_a_login_asks_with_it(login: Login, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names and passwords that MLflow knows are used, and a name claimed is no name."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "lead")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS["lead"])
    monkeypatch.setenv("LOGNAME", "boss")
    made = gated.promote(NAME, 2, to="Production", tracking_uri=login.url, registry_uri=login.url)
    assert made.actor == "lead"
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(RegistryError):
        gated.promote(NAME, 3, to="Production", tracking_uri=login.url, registry_uri=login.url)
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "lead"
