"""Facts about `opusclip_mlops.refusals`: what is for good, by what real servers answer."""

from pathlib import Path

import pytest
import requests
from botocore.exceptions import ClientError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from opusclip_mlops.refusals import asking_faults, is_for_good, reason_of
from tests.faults.proxy import FaultProxy
from tests.journeys import store
from tests.servers import free_port, mlflow_server


def test_mlflow_refuses_for_good(tmp_path: Path) -> None:
    """A run that is not there, a key it does not take."""
    client = MlflowClient(store(tmp_path))
    run_id = client.create_run(client.create_experiment("x")).info.run_id
    for ask in (lambda: client.get_run("f" * 32), lambda: client.log_metric(run_id, "a//b", 1)):
        with pytest.raises(MlflowException) as caught:
            ask()
        assert is_for_good(caught.value)


def test_a_server_that_is_away_or_a_page_before_it_is_a_bad_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection, 500, and a web server's own 400 and 404, for runs and artifacts alike."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = MlflowClient(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(MlflowException) as caught:
        away.get_run("f" * 32)
    assert not is_for_good(caught.value)
    with mlflow_server(tmp_path) as address, FaultProxy(address) as proxy:
        client = MlflowClient(proxy.address)
        run = client.create_run(client.create_experiment("x"))
        files = get_artifact_repository(run.info.artifact_uri, tracking_uri=proxy.address)
        for fault in ("500", "400", "404", "reset"):
            for ask in (lambda: client.get_run(run.info.run_id), files.list_artifacts):
                proxy.fail(fault, 1)
                with pytest.raises((MlflowException, OSError)) as caught_too:
                    ask()
                assert not is_for_good(caught_too.value), fault
        with pytest.raises(requests.HTTPError) as refused:
            files.list_artifacts("a#b")
        assert is_for_good(refused.value)
        with pytest.raises(MlflowException) as missing:
            client.get_run("f" * 32)
        assert is_for_good(missing.value)


def test_a_file_that_nobody_may_read_is_for_good() -> None:
    """A full disk or a broken connection is not."""
    assert is_for_good(PermissionError(13, "no"))
    assert not is_for_good(OSError(28, "no space"))
    assert not is_for_good(ConnectionResetError())


def test_a_reason_is_one_line_without_credentials() -> None:
    """Whatever the fault was."""
    error = MlflowException("no\n  way to postgresql://ann:secret@host/db")
    assert reason_of(error) == "no way to postgresql://ann:***@host/db"
    assert reason_of(KeyError()) == "KeyError"


def test_an_object_store_that_is_away_is_a_bad_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The S3 client's own faults are among those that are expected, and told on one line."""
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    for name, value in {
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
        "MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    files = get_artifact_repository("s3://bucket/clips")
    with pytest.raises(Exception, match="Could not connect") as caught:
        files.list_artifacts()
    assert isinstance(caught.value, asking_faults())
    assert not is_for_good(caught.value)
    (tmp_path / "clip.mp4").write_bytes(b"clip")
    with pytest.raises(Exception, match="Could not connect") as caught:
        files.log_artifact(str(tmp_path / "clip.mp4"))
    assert isinstance(caught.value, asking_faults())
    assert "\n" not in reason_of(caught.value)


def test_an_object_store_refuses_for_good() -> None:
    """What nobody may read, or is not there, by S3's own codes; a slow-down passes."""
    for code, is_final in (("AccessDenied", True), ("NoSuchBucket", True), ("SlowDown", False)):
        fault = ClientError({"Error": {"Code": code, "Message": "no"}}, "ListObjectsV2")
        assert is_for_good(fault) is is_final
