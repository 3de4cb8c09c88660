"""Facts about `opusclip_mlops.server.compatibility`: what cannot be served is refused at once."""

import subprocess
from importlib import util
from pathlib import Path

import click
import mlflow.version
import pytest
from click.testing import CliRunner
from mlflow.exceptions import MlflowException

from opusclip_mlops.server import builders, compatibility
from tests.servers import BIN

SECRET = "opusclip+postgresql://kim:secret@db.example:5432/runs"


@pytest.mark.parametrize("version", ["3.16.4", "3.17.0rc1", "3.18.0", "3.18.0.dev0", "4.0.0"])
@pytest.mark.parametrize(
    "build", [lambda uri: builders.tracking_store(uri, "x"), builders.registry_store]
)
def test_another_mlflow_is_refused_in_one_line_and_leaves_no_file(
    version: str, build: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow.version, "VERSION", version)
    assert callable(build)
    with pytest.raises(
        MlflowException, match=rf"^MLflow {version} is here, .*needs mlflow>="
    ) as told:
        build(f"opusclip+sqlite:///{tmp_path}/new.db")
    assert told.value.error_code == "INVALID_PARAMETER_VALUE"
    assert "\n" not in told.value.message
    assert not (tmp_path / "new.db").exists()


@pytest.mark.parametrize("version", ["3.17.0", "3.17.2", "3.17.9"])
def test_a_supported_mlflow_passes(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow.version, "VERSION", version)
    assert compatibility.refusal("opusclip+sqlite:///x.db") is None


def test_the_mlflow_that_is_installed_here_is_supported() -> None:
    assert compatibility.refusal(SECRET) is None


def test_a_refusal_holds_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    line = compatibility.refusal(SECRET)
    assert line
    assert "secret" not in line
    assert line.startswith("opusclip+postgresql://kim@db.example:5432/runs knows no workspaces")


def test_a_missing_driver_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        assert name == "psycopg2"

    monkeypatch.setattr(util, "find_spec", absent)
    line = compatibility.refusal(SECRET)
    assert line
    assert line.endswith("needs psycopg2: pip install 'opusclip-mlops[server]'")
    assert compatibility.refusal("opusclip+sqlite:///x.db") is None


def test_a_command_ends_with_the_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow.version, "VERSION", "3.18.1")

    @click.command
    def command() -> None:
        builders.tracking_store("opusclip+sqlite:///new.db", "x")

    ended = CliRunner().invoke(command)
    assert ended.exit_code == 1
    assert ended.output.startswith("MLflow 3.18.1 is here")
    assert ended.output.count("\n") == 1


def test_mlflow_server_with_workspaces_says_one_line_and_makes_no_database(tmp_path: Path) -> None:
    uri = f"opusclip+sqlite:///{tmp_path}/new.db"
    argv = [BIN / "mlflow", "server", "--enable-workspaces", "--backend-store-uri", uri]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ended.stderr.strip().splitlines()[-1].startswith(f"{uri} knows no workspaces: unset")
    assert not (tmp_path / "new.db").exists()
