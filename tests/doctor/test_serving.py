"""The tracking server as the doctor sees it: a real one, and what may stand in its place."""

import importlib.metadata
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from mlflow import MlflowClient

from opusclip_mlops.doctor import bucket, served, serving
from opusclip_mlops.doctor.findings import Subject
from opusclip_mlops.ledger import EXPERIMENT
from tests.doctor.answering import Said, answering
from tests.servers import mlflow_server

Make = Callable[..., Subject]
OURS = importlib.metadata.version("mlflow")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A stock MLflow server with an experiment, and the folder it keeps everything in."""
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder) as uri:
        made = requests.post(f"{uri}/api/2.0/mlflow/experiments/create", json={"name": "films"})
        assert made.json() == {"experiment_id": "1"}
        yield uri, folder


def test_a_server_that_is_well(subject: Make, server: tuple[str, Path]) -> None:
    """It answers, lets us in, is of our version, and stock: that is a note."""
    asked = subject(tracking_uri=server[0])
    states = {
        "reach": serving.reach(asked).state,
        "access": serving.access(asked).state,
        "version": serving.version(asked).state,
        "clock": serving.clock(asked).state,
        "guard": serving.guard(asked).state,
    }
    assert states == {
        "reach": "ok", "access": "ok", "version": "ok", "clock": "ok", "guard": "note",
    }  # fmt: skip
    assert serving.version(asked).seen == f"MLflow {OURS} there, {OURS} here"
    assert "ms a request" in serving.latency(asked).seen
    registry = subject(registry_uri=server[0])
    assert serving.reach_registry(registry).state == "ok"
    assert serving.access_registry(registry).state == "ok"


def test_files_by_way_of_the_server(subject: Make, server: tuple[str, Path]) -> None:
    """A file is written, read, listed and deleted, and none is left behind."""
    uri, folder = server
    asked = subject(tracking_uri=uri)
    place = bucket.place(asked)
    assert (place.state, place.seen) == (
        "ok", "files go by way of the server to mlflow-artifacts:/1",
    )  # fmt: skip
    found = served.artifacts(asked)
    assert found.state == "ok", found
    assert [path for path in (folder / "artifacts").rglob("*") if path.is_file()] == []


def test_the_place_of_the_histories_is_not_that_of_files(
    subject: Make, server: tuple[str, Path]
) -> None:
    """The experiment of decisions is the newest of many a server, and nobody writes there."""
    asked = subject(tracking_uri=server[0])
    before = bucket.place(asked)
    client = MlflowClient(server[0])
    made = client.create_experiment(EXPERIMENT)
    try:
        assert bucket.place(asked) == before
        assert bucket.HISTORIES == EXPERIMENT
    finally:
        client.delete_experiment(made)


def test_a_host_that_the_server_does_not_know(subject: Make, server: tuple[str, Path]) -> None:
    """MLflow answers 403 to a name it is not told of; the finding names the setting."""
    port = urlsplit(server[0]).port
    found = serving.access(subject(tracking_uri=f"http://2130706433:{port}"))
    assert (found.state, found.seen) == (
        "failed", f"403: it takes no requests for 2130706433:{port}",
    )  # fmt: skip
    assert f"MLFLOW_SERVER_ALLOWED_HOSTS=2130706433:{port}," in found.todo


def test_a_database_has_no_server(subject: Make) -> None:
    """There is nothing to look at, and no registry beside it."""
    assert serving.reach(subject()).state == "skipped"
    assert serving.reach_registry(subject()).state == "skipped"
    assert bucket.place(subject()).state == "skipped"


@pytest.mark.parametrize(
    ("said", "state", "part"),
    [
        (Said(502, "<h1>Bad Gateway</h1>"), "failed", "the web server before MLflow answers 502"),
        (Said(200, "<h1>Hello</h1>"), "failed", "something else answers 200"),
        (Said(404, "no"), "failed", "something else answers 404"),
        (Said(401), "note", "for users only"),
    ],
)
def test_what_stands_in_its_place(subject: Make, said: Said, state: str, part: str) -> None:
    """A web server before it, or another one at its address."""
    with answering({"health": said}) as uri:
        found = serving.reach(subject(tracking_uri=uri))
    assert found.state == state
    assert part in found.seen


@pytest.mark.parametrize(
    ("said", "variables", "seen", "todo"),
    [
        (Said(401), {}, "401: it asks for", "set MLFLOW_TRACKING_USERNAME and"),
        (
            Said(401),
            {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "correct-horse"},
            "401: it does not know",
            "compare MLFLOW_TRACKING_USERNAME",
        ),
        (Said(403, '{"message": "Permission denied"}'), {}, "403: this user", "ask its admin"),
        (Said(200, "<form>Sign in</form>"), {}, "a page, not MLflow's answer", "set what it logs"),
        (Said(500, '{"message": "its disk is full"}'), {}, "500: its disk is full", "look at"),
    ],
)
def test_who_is_kept_out_is_told_why(
    subject: Make,
    monkeypatch: pytest.MonkeyPatch,
    said: Said,
    variables: dict[str, str],
    seen: str,
    todo: str,
) -> None:
    """Which variable is to be set, and never what is in it."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with answering({"api": said}) as uri:
        found = serving.access(subject(tracking_uri=uri))
    assert found.state == "failed"
    assert found.seen.startswith(seen)
    assert found.todo.startswith(todo)
    assert "horse" not in f"{found}"


def test_a_password_in_clear_text_is_a_note(subject: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where it leaves this machine; whose it is is told, wherever it stands."""
    with answering({"api": Said(body="{}")}) as uri:
        inside = uri.replace("//", "//me:correct-horse@")
        assert serving.access(subject(tracking_uri=inside)).seen == "as the user in its address"
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")
        assert serving.access(subject(tracking_uri=uri)).seen == "as a token"
        away = uri.replace("127.0.0.1", "2130706433")
        found = serving.access(subject(tracking_uri=away))
    assert (found.state, found.todo) == ("note", "use https")


def test_credentials_of_another_kind_are_not_judged(
    subject: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a plugin signs requests with is not tried."""
    monkeypatch.setenv("MLFLOW_TRACKING_AWS_SIGV4", "true")
    with answering({"api": Said(403)}) as uri:
        found = serving.access(subject(tracking_uri=uri))
    assert found.state == "note"
    assert "MLFLOW_TRACKING_AWS_SIGV4" in found.seen


@pytest.mark.parametrize(
    ("version", "state"),
    [(OURS, "ok"), ("3.1.0", "warning"), ("2.22.0", "failed"), ("<html>", "note")],
)
def test_versions_that_differ(subject: Make, version: str, state: str) -> None:
    """A minor version is warned of, a major one fails."""
    with answering({"version": Said(body=version)}) as uri:
        assert serving.version(subject(tracking_uri=uri)).state == state


def test_a_server_with_the_guard(subject: Make) -> None:
    """It says so itself; a page that answers 200 to everything does not."""
    with answering({"api": Said(body='{"guard": 1}')}) as uri:
        assert serving.guard(subject(tracking_uri=uri)).state == "ok"
    with answering({"api": Said(body="<html>")}) as uri:
        assert serving.guard(subject(tracking_uri=uri)).state == "note"


def test_a_server_whose_clock_is_off(subject: Make) -> None:
    """By an hour: it fails."""
    date = formatdate(1_700_000_000, usegmt=True)
    with answering({"health": Said(headers={"Date": date})}) as uri:
        found = serving.clock(subject(tracking_uri=uri))
    assert found.state == "failed"
    assert "behind this machine" in found.seen


def test_the_trap_of_the_event_loop_is_named() -> None:
    """No request below 40 ms, once the connection is warm, on a network that takes none."""
    trapped = serving.judged([0.005] * 3 + [0.046] * 17, connect_s=0.0002)
    assert (trapped.state, "uvloop" in trapped.todo) == ("warning", True)
    loaded = serving.judged([0.006, 0.07] * 4 + [0.09] * 12, connect_s=0.0002)
    assert (loaded.state, "overloaded" in loaded.todo) == ("warning", True)
    assert serving.judged([0.005] * 20, connect_s=0.0002).state == "ok"
    assert serving.judged([0.09] * 20, connect_s=0.08).state == "ok"
    assert serving.judged([0.4] * 20, connect_s=0.08).state == "warning"


@pytest.mark.parametrize(
    ("said", "state", "part"),
    [
        (Said(403, '{"message": "no"}'), "failed", "ask its administrator"),
        (Said(403, "Permission denied"), "warning", "ask its administrator"),
        (Said(413, "<h1>Too large</h1>"), "failed", "client_max_body_size"),
        (Said(500, "boom"), "failed", "its key, bucket or disk"),
    ],
)
def test_files_that_the_server_refuses(subject: Make, said: Said, state: str, part: str) -> None:
    """With what to do; that somebody else's experiment is closed is no failure of anything."""
    root = Said(body='{"experiments": [{"artifact_location": "mlflow-artifacts:/0"}]}')
    with answering({"api/2.0/mlflow/": root, "api/2.0/mlflow-artifacts": said}) as uri:
        found = served.artifacts(subject(tracking_uri=uri))
    assert found.state == state
    assert part in found.todo


def test_files_on_a_path_of_the_server(subject: Make) -> None:
    """A folder that both must share is a note."""
    root = Said(body='{"experiments": [{"artifact_location": "/srv/mlruns/0"}]}')
    with answering({"api": root}) as uri:
        found = bucket.place(subject(tracking_uri=uri))
        assert served.artifacts(subject(tracking_uri=uri)).state == "skipped"
    assert found.state == "note"
    assert "this machine and the server must share" in found.seen
