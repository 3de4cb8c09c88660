"""Which files a server reads for a verdict, and what a model that it runs is told."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from opusclip_mlops.deciding import GateRefused
from opusclip_mlops.guarded import Ask
from opusclip_mlops.server import guard
from opusclip_mlops.server.served_artifacts import Served
from opusclip_mlops.smoke_worker import without_secrets
from tests.promoters import NAME, is_settled
from tests.server.guarding import guarded

S3 = Served("s3://bucket/served", "mlflow-artifacts:/")


def test_what_is_served_is_found_below_the_destination(tmp_path: Path) -> None:
    """Without a word over HTTP."""
    local = Served(str(tmp_path), "mlflow-artifacts:/")
    assert local.place("mlflow-artifacts:/0/a/artifacts") == f"{tmp_path}/0/a/artifacts"
    assert S3.place("mlflow-artifacts:/0/a%20b") == "s3://bucket/served/0/a%20b"
    assert S3.place("s3://bucket/served/0/a") == "s3://bucket/served/0/a"
    assert Served("", "s3://own/kept").place("s3://own/kept/0") == "s3://own/kept/0"
    assert Served("", str(tmp_path)).place(f"file://{tmp_path}/0") == f"file://{tmp_path}/0"


@pytest.mark.parametrize(
    "location",
    [
        "mlflow-artifacts:/../secret",
        "mlflow-artifacts:/a/%2e%2e/%2e%2e/secret",
        "mlflow-artifacts://elsewhere:5000/0/a",
        "s3://bucket/served/../other",
        "s3://bucket/served-not",
        "s3://other/served/0",
        "http://169.254.169.254/latest",
        "file:///etc",
        "/etc",
        "../../etc",
        "models:/other/1",
        "dbfs:/a",
        "",
    ],
)
def test_no_other_place_is_read(location: str) -> None:
    """A client that names one is told that this server does not keep it."""
    with pytest.raises(MlflowException, match="is not kept by this server"):
        S3.place(location)
    assert S3.place_or_nowhere(location).startswith("opusclip-not-served:")


def test_a_link_leads_nowhere_else(tmp_path: Path) -> None:
    """What looks as if it lay below the destination and does not."""
    (tmp_path / "served").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "served" / "link").symlink_to(tmp_path / "secret")
    served = Served(str(tmp_path / "served"), "")
    for location in ("link", "link/a"):
        with pytest.raises(MlflowException, match="is not kept by this server"):
            served.place(f"mlflow-artifacts:/{location}")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process as a server would be: it serves a folder of its own."""
    destination = tmp_path / "artifacts"
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"opusclip+sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(destination))
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/")
    return destination


def with_files(client: MlflowClient, destination: Path, files: dict[str, str], source: str) -> int:
    """A version whose files lie where the server keeps them."""
    for path, text in files.items():
        (destination / path).parent.mkdir(parents=True, exist_ok=True)
        (destination / path).write_text(text)
    return int(client.create_model_version(NAME, source=source).version)


def test_a_verdict_reads_what_the_server_keeps_and_nothing_else(
    server: Path, tmp_path: Path
) -> None:
    """Of two versions with the same file the one passes that lies below the destination."""
    registry, stock = guarded(tmp_path)
    policy = "stages: {Staging: {files: [weights.bin]}}\n"
    registry.guard.decide(Ask(what="policy", name=NAME, text=policy))
    files = {"0/m/weights.bin": "w"}
    kept = with_files(stock, server, files, "mlflow-artifacts:/0/m")
    stolen = with_files(stock, tmp_path / "private", files, str(tmp_path / "private" / "0/m"))
    with pytest.raises(GateRefused, match=r"weights\.bin"):
        registry.guard.decide(Ask(what="promote", name=NAME, version=str(stolen), to="Staging"))
    made = registry.guard.decide(Ask(what="promote", name=NAME, version=str(kept), to="Staging"))
    assert made[0].version == kept
    assert is_settled(stock)


def test_a_server_runs_no_model_unless_it_is_told_to(
    server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that asks for a smoke test refuses, and says how to start the server."""
    registry, stock = guarded(tmp_path)
    policy = "stages: {Staging: {smoke_test: {timeout_s: 60}}}\n"
    registry.guard.decide(Ask(what="policy", name=NAME, text=policy))
    version = with_files(stock, server, {"0/m/MLmodel": "flavors: {}"}, "mlflow-artifacts:/0/m")
    ask = Ask(what="promote", name=NAME, version=str(version), to="Staging")
    with pytest.raises(GateRefused, match="runs no models: start it with --smoke-tests"):
        registry.guard.decide(ask)
    monkeypatch.setenv(guard.SMOKE_TESTS, "true")
    with pytest.raises(GateRefused) as refused:
        registry.guard.decide(ask)
    assert "--smoke-tests" not in str(refused.value)


def test_a_rollback_runs_no_example_where_nobody_asks_for_it(server: Path, tmp_path: Path) -> None:
    """A version with an input example goes back to serving on a server that runs no models."""
    registry, stock = guarded(tmp_path, versions=0)
    about = "saved_input_example_info: {artifact_path: input.json}\n"
    version = with_files(stock, server, {"0/m/MLmodel": about}, "mlflow-artifacts:/0/m")
    other = with_files(stock, server, {}, "mlflow-artifacts:/0/m")
    for number in (version, other):
        registry.transition_model_version_stage(NAME, str(number), "Production", False)
    back = registry.guard.decide(
        Ask(what="rollback", name=NAME, to="Production", reason="flickers")
    )
    assert back[0].version == version


def test_a_model_is_not_told_how_to_reach_the_database() -> None:
    """Nor how to reach S3: what a server knows of them is in none of its variables."""
    secret = {
        "_MLFLOW_SERVER_FILE_STORE": "opusclip+postgresql+psycopg2://opusclip:pw@db/mlflow",
        "_MLFLOW_SERVER_REGISTRY_STORE": "postgresql://opusclip:pw@db/mlflow",
        "MLFLOW_BACKEND_STORE_URI": "opusclip+postgresql://opusclip:pw@db/mlflow",
        "PGPASSWORD": "pw",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_SESSION_TOKEN": "key",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "key",
    }
    assert without_secrets({**secret, "LANG": "C"}) == {"LANG": "C"}
