"""A real S3 server on free local ports, with a key, which can be killed and come back."""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from tests.servers import BIN, free_port, mlflow_server

KEY = "opusclip-tests"
SECRET = "tr0ub4dor-and-3-staples"
BUCKET = "films"
_SERVICES = ("master", "volume", "filer", "s3", "admin")
_FRUGAL = {"GOMEMLIMIT": "300MiB"}
_BARE = (
    "-master.telemetry=false", "-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0",
    "-s3.port.lance=0", "-s3.autoCreateBucket=false",
)  # fmt: skip


@dataclass
class ObjectStore:
    """A server with one bucket; what it holds outlives it."""

    folder: Path
    ports: dict[str, int]
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.ports['s3.port']}"

    def environment(self, *, secret: str = SECRET) -> dict[str, str]:
        """What MLflow needs to go there, and nothing of whoever runs the tests."""
        return {
            "MLFLOW_S3_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            # Its own four retries would only make an outage longer.
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_CONFIG_FILE": os.devnull,
        }

    @cached_property
    def client(self) -> Any:
        """A client that is not MLflow's."""
        # Not above: most tests need no S3, and each worker would load it.
        import boto3
        import botocore.config

        return boto3.client(
            "s3",
            endpoint_url=self.address,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            config=botocore.config.Config(retries={"total_max_attempts": 1}),
        )

    def keys(self, prefix: str = "", *, bucket: str = BUCKET) -> list[str]:
        """The names of what it holds, below a prefix, without that."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [
            one["Key"].removeprefix(prefix) for page in pages for one in page.get("Contents", [])
        ]

    def up(self) -> None:
        """Serve, again with what was there."""
        places = [f"-{name}={port}" for name, port in self.ports.items()]
        places += [f"-{name}.localSocket={self.folder / name}.sock" for name in ("filer", "s3")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "weed", "mini", f"-dir={self.folder / 'data'}", "-ip=127.0.0.1",
                 "-ip.bind=127.0.0.1", *places, *_BARE, f"-bucket={BUCKET}"],
                env={**os.environ, **self.environment(), **_FRUGAL, "TMPDIR": str(self.folder)},
                stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        end = time.monotonic() + 60
        assert self.process is not None
        while self.process.poll() is None and time.monotonic() < end:
            # It answers half a second before the bucket is there.
            with contextlib.suppress(ClientError, BotoCoreError):
                self.client.head_bucket(Bucket=BUCKET)
                return
            time.sleep(0.05)
        raise RuntimeError(f"no S3: {(self.folder / 'log').read_text(errors='replace')[-2000:]}")

    def down(self) -> None:
        """Kill it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None
        for name in _SERVICES:
            socket = Path(f"/tmp/seaweedfs-{name}-grpc-{self.ports[f'{name}.port.grpc']}.sock")
            socket.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    """A store that the tests of a file share."""
    with object_store() as store:
        yield store


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory, s3: ObjectStore) -> Iterator[str]:
    """An MLflow server that keeps what it is given in S3; it alone has the keys."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment().items():
            patch.setenv(name, value)
        folder = tmp_path_factory.mktemp("server")
        with mlflow_server(folder, artifacts=f"s3://{BUCKET}/served") as address:
            patch.undo()
            yield address


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """Run a server with an empty bucket until the block ends."""
    # Not in a test's own folder: the path of a socket is short.
    with tempfile.TemporaryDirectory(prefix="s3-", ignore_cleanup_errors=True) as folder:
        store = _begun(Path(folder))
        try:
            yield store
        finally:
            store.down()


def _begun(folder: Path, *, tries: int = 5) -> ObjectStore:
    names = [f"{name}.port{kind}" for name in _SERVICES for kind in ("", ".grpc")]
    while True:
        store = ObjectStore(folder, dict(zip(names, _free_ports(len(names)), strict=True)))
        try:
            store.up()
            return store
        except RuntimeError:
            # Another process may have taken one of so many ports.
            store.down()
            tries -= 1
            if not tries:
                raise


def _free_ports(count: int) -> set[int]:
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return found
