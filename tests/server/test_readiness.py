"""What keeps a server from starting."""

import os
import socket
from pathlib import Path

import pytest

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.server import readiness
from opusclip_mlops.server.settings import Wanted
from tests.servers import free_port


def wanted(folder: Path, **changed: object) -> Wanted:
    """A server in a folder, which could start."""
    told = {"backend": f"sqlite:///{folder}/m.db", "artifacts": f"{folder}/artifacts"}
    return Wanted(**{**told, "port": free_port(), **changed})  # type: ignore[arg-type]


def test_a_server_that_can_start_gets_a_private_folder_for_its_artifacts(tmp_path: Path) -> None:
    """Nobody else reads what others keep there."""
    readiness.check(wanted(tmp_path), tell=pytest.fail)
    assert (tmp_path / "artifacts").stat().st_mode & 0o777 == 0o700


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    """Before anything is started."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: something listens there"):
            readiness.check(wanted(tmp_path, port=port), tell=print)


@pytest.mark.parametrize("host", ["8.8.8.8", "no-such.invalid"])
def test_an_address_that_is_not_ours_is_refused(tmp_path: Path, host: str) -> None:
    """In one line."""
    with pytest.raises(ConfigError, match=host):
        readiness.check(wanted(tmp_path, host=host), tell=print)


def test_folders_that_cannot_be_made_are_named_by_their_option(tmp_path: Path) -> None:
    """The database's and the artifacts'."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--artifacts: .*cannot be made"):
        readiness.check(wanted(tmp_path, artifacts=f"{tmp_path}/file/x"), tell=print)
    with pytest.raises(ConfigError, match=r"--backend: .*cannot be made"):
        readiness.check(wanted(tmp_path, backend=f"sqlite:///{tmp_path}/file/x/m.db"), tell=print)


def test_what_is_no_file_is_no_database(tmp_path: Path) -> None:
    """A device or a pipe would be replaced by one."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"--backend: .*pipe is there and is no file"):
        readiness.check(wanted(tmp_path, backend=f"sqlite:///{tmp_path}/pipe"), tell=print)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    """It is there, but not for this user."""
    (tmp_path / "artifacts").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="may not write"):
        readiness.check(wanted(tmp_path), tell=print)


def test_s3_needs_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says where they are looked for."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    asked = wanted(tmp_path, artifacts="s3://films/runs")
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID_FILE"):
        readiness.check(asked, tell=print)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    readiness.check(asked, tell=print)


def test_a_bucket_that_takes_nothing_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server starts all the same: runs are tracked without it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "anything")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    told: list[str] = []
    readiness.check(wanted(tmp_path, artifacts="s3://films/runs"), tell=told.append)
    [line] = told
    assert line.startswith("artifacts will not arrive in s3://films now: S3 does not answer")
