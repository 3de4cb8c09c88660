"""What `opusclip server` becomes, up to the moment when it does."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.server import command, opening, users
from opusclip_mlops.server.settings import Wanted
from tests.servers import free_port


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """A server changes its process for good; this one goes on."""
    before, umask = dict(os.environ), os.umask(0o022)
    yield
    os.umask(umask)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a database that has its tables."""
    file = tmp_path_factory.mktemp("ready") / "mlflow.db"
    opening.open_database(Wanted(backend=f"sqlite:///{file}"), {})
    return f"sqlite:///{file}"


def test_a_server_is_told_its_database_keys_and_artifacts(ready: str, tmp_path: Path) -> None:
    """The command is MLflow's own; its secrets are in the environment and in private files."""
    told: list[str] = []
    artifacts = str(tmp_path / "artifacts")
    wanted = Wanted(backend=ready, artifacts=artifacts, port=free_port())
    made = command.prepare(wanted, dict(os.environ), tell=told.append)
    assert made.argv[:5] == [sys.executable, "-P", "-m", "mlflow", "server"]
    assert made.argv[made.argv.index("--artifacts-destination") + 1] == artifacts
    assert made.env["MLFLOW_BACKEND_STORE_URI"] == f"opusclip+{ready}"
    assert made.env["MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY"] not in " ".join([*made.argv, *told])
    assert len(told) == 1
    assert made.env["OPUSCLIP_SERVER_PID"] == str(os.getpid())
    again = command.prepare(wanted, made.env, tell=pytest.fail)
    assert again == made


def test_what_a_server_makes_is_nobody_elses(tmp_path: Path) -> None:
    """The database, its keys and artifacts: for their owner alone."""
    wanted = Wanted(backend=f"sqlite:///{tmp_path}/new/mlflow.db", port=free_port())
    command.prepare(wanted, dict(os.environ), tell=str)
    made = [*(tmp_path / "new").rglob("*"), tmp_path / "mlartifacts"]
    assert len(made) > 4
    assert [one for one in made if one.stat().st_mode & 0o077] == []


def test_users_need_a_first_password_and_nothing_is_made_without(
    ready: str, tmp_path: Path
) -> None:
    """It is said how to give it, before a key or a user is made."""
    wanted = Wanted(backend=ready, port=free_port(), app_name="basic-auth", state=tmp_path / "s")
    with pytest.raises(ConfigError, match="MLFLOW_AUTH_ADMIN_PASSWORD_FILE"):
        command.prepare(wanted, dict(os.environ), tell=pytest.fail)
    assert [one.name for one in (tmp_path / "s").iterdir()] == ["basic_auth.ini"]
    assert users.database_uri(os.environ | {users.CONFIG: f"{tmp_path}/s/basic_auth.ini"})


def test_one_address_of_s3_is_enough(
    ready: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own variable is set from it; an address that is none is told of."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    wanted = Wanted(backend=ready, artifacts="s3://films/runs", port=free_port())
    env = {**os.environ, "OPUSCLIP_S3_ENDPOINT_URL": "http://s3.example:9000"}
    made = command.prepare(wanted, env, tell=str)
    assert made.env["MLFLOW_S3_ENDPOINT_URL"] == "http://s3.example:9000"
    assert not (tmp_path / "s3:").exists()


def test_webhooks_that_cannot_be_read_keep_a_server_from_starting(
    ready: str, tmp_path: Path
) -> None:
    """The file and the line are named."""
    (tmp_path / "hooks.yaml").write_text("Not A Name: {}\n")
    wanted = Wanted(backend=ready, port=free_port(), webhooks=tmp_path / "hooks.yaml")
    with pytest.raises(ConfigError, match=r"hooks\.yaml"):
        command.prepare(wanted, dict(os.environ), tell=pytest.fail)
