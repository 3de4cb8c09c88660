"""A server that asks who comes: what each may do, and what nobody may."""

import contextlib
import http.client
import os
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from mlflow import MlflowClient
from mlflow.server import get_app_client

from opusclip_mlops import chronicle, gated
from opusclip_mlops.decisions import Decision
from tests.servers import BIN, free_port, running

PASSWORDS = {
    "admin": "correct-horse-battery",
    "lead": "lead-of-the-team-1",
    "writer": "writes-all-day-22",
    "reader": "only-ever-reads-3",
}
MODEL = "clip-generator"
STRICT = "stages: {Production: {metrics: {val/psnr: {min: 30}}}}\n"
LIMIT_MB = 2
API = "/api/2.0/mlflow"
PROXY = "/api/2.0/mlflow-artifacts/artifacts"
DECISIONS = "/api/2.0/opusclip/decisions"
EVERYWHERE = [
    ("GET", "/"),
    ("GET", "/version"),
    ("GET", "/graphql"),
    ("GET", f"{API}/experiments/search?max_results=1"),
    ("GET", "/ajax-api/2.0/mlflow/experiments/search?max_results=1"),
    ("POST", f"{API}/runs/create"),
    ("POST", f"{API}/model-versions/transition-stage"),
    ("POST", f"{API}/users/create"),
    ("GET", f"{PROXY}/0/x"),
    ("PUT", f"{PROXY}/0/x"),
    ("DELETE", f"{PROXY}/0/x"),
    ("GET", "/get-artifact?path=x&run_uuid=x"),
    ("GET", "/api/2.0/opusclip/guard"),
    ("POST", DECISIONS),
]


@dataclass(frozen=True)
class Server:
    """A server of ours with its users."""

    url: str
    folder: Path
    pid: int

    def ask(self, user: str, method: str, path: str, **said: Any) -> requests.Response:
        """Ask as a user, with the right password; "" is nobody."""
        login = (user, PASSWORDS[user]) if user else None
        return requests.request(method, self.url + path, auth=login, timeout=60, **said)

    def decide(self, user: str, what: str, **about: Any) -> requests.Response:
        """Ask the guard for a decision about the model."""
        return self.ask(user, "POST", DECISIONS, json={"what": what, "name": MODEL, **about})

    def raw(self, user: str, method: str, path: str) -> int:
        """The status of the answer to a path that no client mends on its way."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        given = requests.Request("GET", self.url, auth=(user, PASSWORDS[user])).prepare()
        connection.request(
            method, path, b"pwned", {"Authorization": given.headers["Authorization"]}
        )
        return connection.getresponse().status


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server, with a model that the lead manages and the writer edits."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    (folder / "password").write_text(PASSWORDS["admin"] + "\n")
    argv = [BIN / "opusclip", "server", "--app-name", "basic-auth", "--workers", "1"]
    argv += ["--port", str(port), "--max-request-mb", str(LIMIT_MB)]
    env = {"MLFLOW_AUTH_ADMIN_PASSWORD_FILE": str(folder / "password")}
    url = f"http://127.0.0.1:{port}"
    with running(argv, env, f"{url}/health", cwd=folder) as process:
        made = Server(url, folder, process.pid)
        with pytest.MonkeyPatch.context() as patch:
            log_in(patch, "admin")
            make_users(url)
        yield made


def log_in(patch: pytest.MonkeyPatch, user: str) -> None:
    """Let MLflow's clients in this process be a user."""
    patch.setenv("MLFLOW_TRACKING_USERNAME", user)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS[user])


def make_users(url: str) -> None:
    """Everybody but the admin, by MLflow's own client, and what they may do with the model."""
    client = get_app_client("basic-auth", url)
    for user in ("lead", "writer", "reader"):
        client.create_user(user, PASSWORDS[user])
    MlflowClient(url).create_registered_model(MODEL)
    client.grant_user_permission("lead", "registered_model", MODEL, "MANAGE")
    client.grant_user_permission("writer", "registered_model", MODEL, "EDIT")
    client.grant_user_permission("writer", "experiment", "0", "EDIT")


@pytest.fixture
def as_writer(server: Server, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """MLflow's own client of the writer."""
    log_in(monkeypatch, "writer")
    return MlflowClient(server.url)


def version(client: MlflowClient, psnr: float, **tags: str) -> str:
    """A version of a run that measured something."""
    run = client.create_run("0")
    client.log_metric(run.info.run_id, "val/psnr", psnr)
    source = run.info.artifact_uri
    return str(
        client.create_model_version(MODEL, source, run_id=run.info.run_id, tags=tags).version
    )


def last_decision(server: Server) -> Decision:
    """The newest record of the model's history, as the admin reads it."""
    with pytest.MonkeyPatch.context() as patch:
        log_in(patch, "admin")
        return chronicle.history(MODEL, client=MlflowClient(server.url))[-1]


@pytest.mark.parametrize(("method", "path"), EVERYWHERE)
def test_who_does_not_say_who_he_is_gets_nowhere(server: Server, method: str, path: str) -> None:
    """Without a password or with a wrong one: pages, REST, artifacts and the guard's routes."""
    assert server.ask("", method, path).status_code == 401
    for login in (("admin", "wrong-password-1"), ("nobody", PASSWORDS["admin"]), ("", "")):
        answer = requests.request(method, server.url + path, auth=login, timeout=60)
        assert answer.status_code == 401
    claims = {"X-Forwarded-User": "admin", "Remote-User": "admin", "X-Forwarded-For": "127.0.0.1"}
    assert (
        requests.request(method, server.url + path, headers=claims, timeout=60).status_code == 401
    )


def test_health_is_all_that_is_told_to_everybody(server: Server) -> None:
    """A load balancer has no password."""
    assert server.ask("", "GET", "/health").text == "OK"


def test_a_reader_reads_and_changes_nothing(server: Server, as_writer: MlflowClient) -> None:
    """Runs, models, artifacts, stages, aliases and tags are for others."""
    number = version(as_writer, 40)
    run_id = as_writer.get_model_version(MODEL, number).run_id
    assert server.ask("reader", "GET", f"{API}/runs/get?run_id={run_id}").ok
    about = {"name": MODEL, "version": number}
    for path, asked in {
        "runs/log-metric": {"run_id": run_id, "key": "a", "value": 1, "timestamp": 1},
        "runs/set-tag": {"run_id": run_id, "key": "a", "value": "b"},
        "runs/create": {"experiment_id": "0"},
        "model-versions/transition-stage": {**about, "stage": "Staging"},
        "model-versions/set-tag": {**about, "key": "a", "value": "b"},
        "registered-models/alias": {**about, "alias": "production"},
        "model-versions/create": {"name": MODEL, "source": "s3://x/y"},
    }.items():
        assert server.ask("reader", "POST", f"{API}/{path}", json=asked).status_code == 403, path
    deleted = server.ask("reader", "DELETE", f"{API}/model-versions/delete", json=about)
    assert deleted.status_code == 403
    assert (
        server.ask("reader", "PUT", f"{PROXY}/0/{run_id}/artifacts/x", data=b"1").status_code == 403
    )
    for what in ("promote", "policy", "rollback", "approve"):
        assert server.decide("reader", what, version=number, to="Staging").status_code == 403


def test_who_edits_a_model_promotes_past_its_gate_alone(
    server: Server, as_writer: MlflowClient
) -> None:
    """By MLflow's own call: 400 with the reason below the bar; the history has the user's name."""
    assert server.decide("writer", "policy", text=STRICT).status_code == 403
    assert server.decide("lead", "policy", text=STRICT).ok
    bad, good = version(as_writer, 29), version(as_writer, 31)
    path = f"{API}/model-versions/transition-stage"
    about = {"name": MODEL, "stage": "Production"}
    refused = server.ask("writer", "POST", path, json={**about, "version": bad})
    assert refused.status_code == HTTPStatus.BAD_REQUEST
    assert "val/psnr min: 29, wanted 30" in refused.json()["message"]
    forced = server.decide(
        "writer", "promote", version=bad, to="Production", force=True, reason="x"
    )
    assert forced.status_code == 403
    claims = {"X-Forwarded-User": "boss", "X-Remote-User": "boss"}
    made = server.ask("writer", "POST", path, json={**about, "version": good}, headers=claims)
    assert made.ok
    assert (last_decision(server).version, last_decision(server).actor) == (int(good), "writer")


def test_who_decided_cannot_be_claimed(server: Server, as_writer: MlflowClient) -> None:
    """Tags, parameters and headers that name another make no other the author of a decision."""
    claimed = {"opusclip.registered_by": "boss", "mlflow.user": "boss", "user": "boss"}
    number = version(as_writer, 50, **claimed)
    run_id = as_writer.get_model_version(MODEL, number).run_id
    as_writer.set_tag(run_id, "mlflow.user", "boss")
    asked = {"what": "promote", "name": MODEL, "version": number, "to": "Staging"}
    for extra in ({"actor": "boss"}, {"user": "boss", "actor_known_by": "MLflow login"}):
        server.ask("writer", "POST", DECISIONS, json={**asked, **extra})
    as_writer.transition_model_version_stage(MODEL, number, "Staging")
    made = last_decision(server)
    assert (made.version, made.actor, made.actor_known_by) == (
        int(number),
        "writer",
        "MLflow login",
    )


def test_the_history_is_written_by_the_guard_alone(
    server: Server, as_writer: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even who may manage everything adds to it, changes or deletes it."""
    as_writer.transition_model_version_stage(MODEL, version(as_writer, 45), "Staging")
    log_in(monkeypatch, "admin")
    client = MlflowClient(server.url)
    ids = [one.experiment_id for one in client.search_experiments() if one.name != "Default"]
    runs = client.search_runs(ids)
    assert runs
    run_id = runs[0].info.run_id
    for path, asked in {
        "runs/set-tag": {"run_id": run_id, "key": "a", "value": "b"},
        "runs/log-parameter": {"run_id": run_id, "key": "a", "value": "b"},
        "runs/delete": {"run_id": run_id},
        "experiments/delete": {"experiment_id": runs[0].info.experiment_id},
    }.items():
        assert server.ask("admin", "POST", f"{API}/{path}", json=asked).status_code == 400, path


def test_those_whom_the_policy_names_approve(server: Server, as_writer: MlflowClient) -> None:
    """Roles hold users of MLflow: two of them, and not the one who made the version."""
    rule = "{approvals: {count: 2, roles: [bosses]}}"
    policy = f"roles: {{bosses: [lead, admin]}}\nstages: {{Staging: {rule}}}\n"
    assert server.decide("lead", "policy", text=policy).ok
    number = version(as_writer, 41, **{"opusclip.registered_by": "writer"})
    wanted = {"version": number, "to": "Staging"}
    assert server.decide("writer", "promote", **wanted).status_code == 400
    server.decide("writer", "approve", **wanted)
    assert server.decide("lead", "approve", **wanted).ok
    server.decide("lead", "approve", **wanted)
    assert server.decide("writer", "promote", **wanted).status_code == 400
    assert server.decide("admin", "approve", **wanted).ok
    made = server.decide("writer", "promote", **wanted)
    assert made.ok, made.text
    assert server.decide("lead", "policy", text=STRICT).ok


OUTSIDE = (
    "../password", "%2e%2e/password", "..%2fpassword", "0/../../password", ".%2e/password",
    "%252e%252e/password", "0/%252e%252e/%252e%252e/password", "{folder}/password",
    "/{folder}/password", "%2f{folder}/password", "file://{folder}/password", "..\\password",
    "..%5cpassword", "0/..%5c..%5cpassword", "....//password", "0/..%00/password",
)  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_outside_of_the_artifacts_is_read_or_written(server: Server, path: str) -> None:
    """However the way out is written, and whoever asks."""
    before = (server.folder / "password").read_bytes()
    asked = f"{PROXY}/{path.format(folder=server.folder)}"
    assert server.raw("admin", "GET", asked) in (400, 404)
    server.raw("admin", "PUT", asked)
    server.raw("admin", "DELETE", asked)
    assert (server.folder / "password").read_bytes() == before
    outside = [one for one in server.folder.rglob("*") if one.is_file() and b"pwned" in head(one)]
    assert [one for one in outside if server.folder / "mlartifacts" not in one.parents] == []


def head(file: Path) -> bytes:
    """The beginning of a file."""
    with file.open("rb") as opened:
        return opened.read(16)


@pytest.mark.parametrize("path", ["..", "/etc", "%2e%2e", "..%2f..", "%252e%252e", "file:///etc"])
def test_nothing_outside_of_the_artifacts_is_listed(server: Server, path: str) -> None:
    """Neither by the proxy."""
    assert server.raw("admin", "GET", f"{PROXY}?path={path}") == 400


def memory_mb(pid: int) -> float:
    """The most memory that a process below one has held."""
    lines = [
        Path(f"/proc/{one.pid}/status").read_text() for one in psutil.Process(pid).children(True)
    ]
    peaks = [int(text.partition("VmHWM:")[2].split()[0]) for text in lines if "VmHWM:" in text]
    return max(peaks) / 1024


@pytest.mark.parametrize(("user", "is_chunked"), [("", True), ("writer", False)])
def test_a_request_of_100_mb_is_refused_and_not_kept(
    server: Server, user: str, is_chunked: bool
) -> None:
    """With its length said or not, with a password or without; the server goes on as before."""
    before_mb = memory_mb(server.pid)
    body: Any = (b"0" * 2**20 for _ in range(100)) if is_chunked else b"0" * (100 * 2**20)
    # A client that is still sending may find that it was hung up on.
    with contextlib.suppress(requests.ConnectionError):
        answer = server.ask(user, "POST", f"{API}/runs/log-batch", data=body)
        assert answer.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        assert f"larger than {LIMIT_MB} MB" in answer.json()["message"]
    assert memory_mb(server.pid) - before_mb < 50
    assert server.ask("reader", "GET", f"{API}/experiments/get?experiment_id=0").ok


def test_a_batch_above_mlflows_limits_is_refused(server: Server, as_writer: MlflowClient) -> None:
    """1000 points at a time, as MLflow says."""
    run_id = as_writer.create_run("0").info.run_id
    points = [{"key": f"k{n}", "value": 1, "timestamp": 1, "step": 0} for n in range(1001)]
    asked = {"run_id": run_id, "metrics": points}
    answer = server.ask("writer", "POST", f"{API}/runs/log-batch", json=asked)
    assert answer.status_code == HTTPStatus.BAD_REQUEST
    assert as_writer.get_run(run_id).data.metrics == {}


def test_an_artifact_may_be_larger_than_other_requests(
    as_writer: MlflowClient, tmp_path: Path
) -> None:
    """It is written as it comes, and read back by who may read."""
    run_id = as_writer.create_run("0").info.run_id
    (tmp_path / "clip.bin").write_bytes(os.urandom(LIMIT_MB * 3_000_000))
    as_writer.log_artifact(run_id, str(tmp_path / "clip.bin"))
    back = as_writer.download_artifacts(run_id, "clip.bin", str(tmp_path / "home"))
    assert Path(back).read_bytes() == (tmp_path / "clip.bin").read_bytes()


def test_the_password_is_neither_in_the_command_nor_in_what_is_kept(server: Server) -> None:
    """`ps` shows no secret, and the configuration of users holds none."""
    everyone = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    shown = " ".join(" ".join(one.cmdline()) for one in everyone)
    assert PASSWORDS["admin"] not in shown
    assert "mlflow.db" not in shown
    state = server.folder / ".opusclip" / "server"
    assert PASSWORDS["admin"] not in (state / "basic_auth.ini").read_text()
    assert [one for one in state.iterdir() if one.stat().st_mode & 0o077] == []


def test_the_library_decides_as_the_user_whose_password_it_has(
    server: Server, as_writer: MlflowClient
) -> None:
    """Through `opusclip promote` too, the history's name is the login's."""
    number = int(version(as_writer, 60))
    places = {"tracking_uri": server.url, "registry_uri": server.url}
    made = gated.promote(MODEL, number, to="Production", reason="sharper", **places)
    assert (made.actor, made.reason) == ("writer", "sharper")
