"""The object store as compose.yaml begins it, with the keys that secrets.sh makes."""

import contextlib
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.deploy.programs import DEPLOY
from tests.deploy.topology_parts import server_words
from tests.object_store import _SERVICES, _free_ports
from tests.servers import BIN, running

BUCKET = "made-by-the-job"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    subprocess.run([DEPLOY / "secrets.sh", "127.0.0.1", folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def address(secrets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The command of the service, on ports and in a folder of this test."""
    folder = tmp_path_factory.mktemp("weed")
    names = [f"{name}.port{kind}" for name in _SERVICES for kind in ("", ".grpc")]
    ports = dict(zip([*names, "metricsPort"], _free_ports(len(names) + 1), strict=True))
    here = {
        "-dir=/data": f"-dir={folder}",
        "-ip.bind=0.0.0.0": "-ip.bind=127.0.0.1",
        "-metricsIp=0.0.0.0": "-metricsIp=127.0.0.1",
        "-s3.config=/run/secrets/storage_identities": (
            f"-s3.config={secrets / 'storage_identities'}"
        ),
    }
    words = [
        here.get(word, word)
        for word in server_words("storage")
        if word.partition("=")[0].lstrip("-") not in ports
    ]
    words += [f"-{name}={port}" for name, port in ports.items()]
    words += [f"-{name}.localSocket={folder / name}.sock" for name in ("filer", "s3")]
    url = f"http://127.0.0.1:{ports['s3.port']}"
    env = {"GOMEMLIMIT": "300MiB", "TMPDIR": str(folder)}
    with running([BIN / "weed", *words], env, f"{url}/healthz", cwd=folder):
        yield url


def job(address: str, secrets: Path) -> None:
    """The job that makes the bucket, as compose.yaml begins it."""
    env = {
        "MLFLOW_S3_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID_FILE": str(secrets / "storage_key"),
        "AWS_SECRET_ACCESS_KEY_FILE": str(secrets / "storage_secret"),
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    line = [sys.executable, str(DEPLOY / "prepare.py"), "bucket", BUCKET]
    subprocess.run(line, env={**os.environ, **env}, check=True, capture_output=True, timeout=180)


def client(address: str, key: str, secret: str) -> Any:
    """A client with some key."""
    return boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1",
        aws_access_key_id=key, aws_secret_access_key=secret,
    )  # fmt: skip


def test_the_job_makes_the_bucket_once(address: str, secrets: Path) -> None:
    """And leaves what is in it when it runs again; all is done with the keys of the files."""
    job(address, secrets)
    names = [(secrets / name).read_text() for name in ("storage_key", "storage_secret")]
    here = client(address, *names)
    here.put_object(Bucket=BUCKET, Key="a/b", Body=b"kept")
    job(address, secrets)
    assert here.get_object(Bucket=BUCKET, Key="a/b")["Body"].read() == b"kept"


def test_nobody_else_comes_in(address: str, secrets: Path) -> None:
    """Without a key, with another one, or with a wrong secret."""
    job(address, secrets)
    key = (secrets / "storage_key").read_text()
    for pair in (("somebody", "guessed"), (key, "guessed")):
        with pytest.raises(ClientError):
            client(address, *pair).list_objects_v2(Bucket=BUCKET)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.closing(opener), pytest.raises(urllib.error.HTTPError, match="403"):
        opener.open(f"{address}/{BUCKET}", timeout=20)
