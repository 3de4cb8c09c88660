"""Facts about `opusclip_mlops.checkpoint_uploads`, with a real S3: whole, or not to be seen.

Each is told of the three roads that a checkpoint's files may take: to S3 itself, through MLflow's
server, and to S3 by parts that this server has signed.
"""

import contextlib
import functools
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import requests
import torch
from mlflow import MlflowClient
from mlflow.store.artifact import s3_artifact_repo

from opusclip_mlops import shares_elsewhere
from opusclip_mlops.checkpoint_uploads import CheckpointUploads
from opusclip_mlops.checkpoints import (
    METADATA,
    STATE,
    WEIGHTS,
    CheckpointMetadata,
    checkpoint_name,
    drop,
    finish,
    flushed,
    write_checkpoint,
)
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.faults import AwaitsOthers, attempted
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.loading import load_checkpoint
from opusclip_mlops.metadata import StoredFile
from tests.journeys import make_run, wait_until
from tests.object_store import BUCKET, ObjectStore
from tests.servers import free_port

NAME = "epoch_0001-step_000003"
ROADS = {"direct": "", "proxied": "false", "multipart": "true"}
LARGE_MB, IN_PARTS_MB = 300, 96
_LONG_S = 120.0


def written(place: Path, megabytes: int) -> Path:
    """A checkpoint with weights of a size."""
    model = torch.nn.Linear(1024, 256 * megabytes, bias=False)
    about = CheckpointMetadata(name=NAME, epoch=1, step=3)
    return write_checkpoint(place, model, metadata=about)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Checkpoints of 1 MB, and of such sizes as go in parts, made once."""
    folder = tmp_path_factory.mktemp("models")
    return {size: written(folder / f"{size}", size) for size in (1, IN_PARTS_MB, LARGE_MB)}


@dataclass(frozen=True)
class Road:
    """A run whose files take one of the roads."""

    kind: str
    uri: str
    store: ObjectStore
    folder: RunFolder
    run_id: str
    artifact_uri: str
    models: dict[int, Path]

    def uploads(self, folder: RunFolder | None = None) -> CheckpointUploads:
        """What sends its checkpoints, as a process of the shipper begins with it."""
        # The clients of another process are none of this one's.
        s3_artifact_repo._cached_get_s3_client.cache_clear()
        return CheckpointUploads(
            self.run_id,
            folder or self.folder,
            artifact_uri=self.artifact_uri,
            tracking_uri=self.uri,
        )

    def saved(self, megabytes: int, *, within: Path | None = None) -> Path:
        """A checkpoint of the run that was written just now."""
        place = (within or self.folder.checkpoints) / NAME
        shutil.copytree(self.models[megabytes], place)
        return place

    @property
    def prefix(self) -> str:
        """Where the run's files are in S3."""
        path = self.artifact_uri.removeprefix(f"s3://{BUCKET}/")
        return path.replace("mlflow-artifacts:/", "served/") + f"/checkpoints/{NAME}/"

    def keys(self) -> list[str]:
        """What is to be seen in S3 of the checkpoint."""
        return sorted(self.store.keys(self.prefix))

    def sent_at(self, file: str) -> object:
        """When a file of the checkpoint arrived."""
        return self.store.client.head_object(Bucket=BUCKET, Key=self.prefix + file)["LastModified"]

    def begun(self) -> list[str]:
        """Multipart uploads of the checkpoint that S3 knows of and that have not ended."""
        # SeaweedFS lists them by a prefix that is a folder's.
        found = self.store.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        return [one["UploadId"] for one in found if one["Key"].startswith(self.prefix)]

    def noted(self) -> list[Path]:
        """What is noted of uploads that have not ended."""
        return [*(self.folder.path / "uploads").glob("*.json")]

    def assert_whole(self, into: Path) -> None:
        """It is loaded back with the hashes it was sealed with, and nothing else is left."""
        assert self.keys() == sorted([METADATA, STATE, WEIGHTS])
        loaded = load_checkpoint(self.run_id, which=NAME, into=into, tracking_uri=self.uri)
        assert loaded.metadata.run_id == self.run_id
        assert (self.begun(), self.noted()) == ([], [])


@pytest.fixture(params=ROADS)
def road(
    request: pytest.FixtureRequest,
    s3: ObjectStore,
    s3_server: str,
    models: dict[int, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Road:
    """Each road, with the keys where it needs them and nothing else of S3's."""
    kind: str = request.param
    for name in [one for one in os.environ if one.startswith(("AWS_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", str(64 * 2**20))
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", str(16 * 2**20))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    if kind == "direct":
        for name, value in s3.environment().items():
            monkeypatch.setenv(name, value)
    else:
        monkeypatch.setenv("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", ROADS[kind])
    client = MlflowClient(s3_server, s3_server)
    name = f"{kind}-{tmp_path.name}"
    root = f"s3://{BUCKET}/{name}" if kind == "direct" else None
    run = client.create_run(client.create_experiment(name, artifact_location=root))
    folder = make_run(tmp_path, tracking_uri=s3_server, run_id=run.info.run_id)
    return Road(kind, s3_server, s3, folder, run.info.run_id, run.info.artifact_uri, models)


only = functools.partial(pytest.mark.parametrize, "road", indirect=True)


@contextlib.contextmanager
def away(store: ObjectStore) -> Iterator[None]:
    """Kill the store, and have it back after the block."""
    store.down()
    try:
        yield
    finally:
        store.up()


def test_a_large_checkpoint_arrives_whole(road: Road, tmp_path: Path) -> None:
    """300 MB, sealed on the way; sent again it is the same, and nothing is left behind."""
    about = road.uploads().send(road.saved(LARGE_MB))
    assert about is not None
    assert about.sealed
    road.assert_whole(tmp_path / "back")


@only(["direct", "multipart"])
def test_a_store_that_dies_in_the_middle_leaves_nothing(road: Road, tmp_path: Path) -> None:
    """It is not there meanwhile; once S3 is back, only what had not arrived is sent again."""
    uploads, place = road.uploads(), road.saved(IN_PARTS_MB)
    with ThreadPoolExecutor(1) as beside:
        sending = beside.submit(attempted, lambda: uploads.send(place))
        wait_until(lambda: bool(road.noted()) or sending.done(), deadline_s=_LONG_S)
        with away(road.store):
            assert sending.result() is not None
            assert road.noted()
    assert road.keys() == [STATE]
    first = road.sent_at(STATE)
    assert uploads.send(place) is not None
    road.assert_whole(tmp_path / "back")
    assert road.sent_at(STATE) == first


@only(["proxied"])
def test_a_store_that_is_away_behind_the_server_is_no_end(road: Road, tmp_path: Path) -> None:
    """The server says that it cannot; the same process sends it again."""
    uploads, place = road.uploads(), road.saved(1)
    with away(road.store):
        assert attempted(lambda: uploads.send(place)) is not None
    assert uploads.send(place) is not None
    road.assert_whole(tmp_path / "back")


@only(["direct", "multipart"])
def test_what_a_killed_process_began_is_taken_back(road: Road) -> None:
    """By the next one, before it sends the file; what another has begun is none of its own."""
    uploads = road.uploads()
    other = road.store.client.create_multipart_upload(Bucket=BUCKET, Key=f"{road.prefix}other")
    begin_and_die(road, uploads)
    assert len(road.begun()) == 2
    assert len(road.noted()) == 1
    road.uploads()
    assert road.begun() == [other["UploadId"]]
    assert road.noted() == []
    road.store.client.abort_multipart_upload(
        Bucket=BUCKET, Key=f"{road.prefix}other", UploadId=other["UploadId"]
    )


def begin_and_die(road: Road, uploads: CheckpointUploads) -> None:
    """Begin to send the weights, as a process does that is killed before the first part."""
    if road.kind == "direct":
        client = boto3.client("s3", endpoint_url=road.store.address)
        client.create_multipart_upload(Bucket=BUCKET, Key=f"{road.prefix}{WEIGHTS}")
        return
    repository: Any = uploads._repository
    repository.create_multipart_upload(WEIGHTS, 2, f"checkpoints/{NAME}")


def test_two_may_send_the_same_at_once(road: Road, tmp_path: Path) -> None:
    """Each to its end: whoever comes last has the last word, and both say the same."""
    second = make_run(tmp_path / "second", tracking_uri=road.uri, run_id=road.run_id)
    senders = [road.uploads(), road.uploads(second)]
    places = [road.saved(1), road.saved(1, within=second.checkpoints)]
    both = threading.Barrier(2)

    def send(which: int) -> object:
        both.wait()
        return senders[which].send(places[which])

    with ThreadPoolExecutor(2) as beside:
        assert all(one is not None for one in beside.map(send, range(2)))
    road.assert_whole(tmp_path / "back")


@only(["direct"])
def test_of_a_torn_checkpoint_nothing_stays(road: Road) -> None:
    """It is found out while it is sent, and taken back."""
    place = road.saved(1)
    torn = bytearray((place / WEIGHTS).read_bytes())
    torn[-5:] = bytes(5)
    (place / WEIGHTS).write_bytes(torn)
    with pytest.raises(CheckpointError, match="is torn"):
        road.uploads().send(place)
    assert road.keys() == []


SHARE = "weights-00001-of-00002.safetensors"


def of_two_machines(folder: RunFolder, step: int) -> Path:
    """A checkpoint of which another machine has a share of seven bytes."""
    hidden = folder.checkpoints / f".{step}"
    hidden.mkdir()
    (hidden / STATE).write_bytes(b"state")
    files = {STATE: flushed(hidden / STATE), SHARE: StoredFile("0" * 64, 7)}
    name = checkpoint_name(0, step)
    about = CheckpointMetadata(name=name, epoch=0, step=step, files=files, world_size=2)
    finish(hidden, folder.checkpoints / name, about)
    return folder.checkpoints / name


def test_what_comes_of_one_checkpoint_gives_the_others_their_time_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole it is sent; what another machine sends next is not refused meanwhile."""
    folder, now_s = make_run(tmp_path), [100.0]
    clock = SimpleNamespace(monotonic=lambda: now_s[0])
    monkeypatch.setattr(shares_elsewhere, "time", clock)
    artifacts = tmp_path / "artifacts"
    uploads = CheckpointUploads(
        "0" * 32, folder, artifact_uri=artifacts.as_uri(), tracking_uri="unused"
    )
    first, second, third = (of_two_machines(folder, step) for step in range(3))
    for number, whole in enumerate((first, second)):
        for _ in range(59):
            for place in (second, third) if number else (first, third):
                with pytest.raises(AwaitsOthers):
                    uploads.send(place)
            now_s[0] += 60
        (artifacts / "checkpoints" / whole.name / SHARE).parent.mkdir(parents=True, exist_ok=True)
        (artifacts / "checkpoints" / whole.name / SHARE).write_bytes(b"a share")
        assert uploads.send(whole) is not None
    for _ in range(59):
        with pytest.raises(AwaitsOthers):
            uploads.send(third)
        now_s[0] += 60
        # As after a fault: nothing of it is new.
        assert uploads.send(first) is not None
    now_s[0] += 60
    with pytest.raises(CheckpointError, match="is not whole: no machine has sent weights-00001"):
        uploads.send(third)
    assert sorted(one.name for one in (artifacts / "checkpoints").iterdir()) == [
        first.name, second.name
    ]  # fmt: skip


@only(["direct"])
def test_what_was_dropped_is_not_sent(road: Road) -> None:
    """Before it was begun: nothing goes."""
    place = road.saved(1)
    drop(place)
    assert road.uploads().send(place) is None
    assert road.keys() == []


def test_a_signed_address_is_read_without_a_key_for_a_while(road: Road) -> None:
    """Of one file: another one, or another request, it does not open."""
    assert road.uploads().send(road.saved(1)) is not None
    path = f"checkpoints/{NAME}/{METADATA}"
    if road.kind == "direct":
        asked = f"{road.uri}/api/2.0/mlflow/artifacts/presigned-download-url"
        answer = requests.post(asked, json={"run_id": road.run_id, "path": path}, timeout=60)
        signed = answer.json()["presigned_url"]
    else:
        below = road.artifact_uri.removeprefix("mlflow-artifacts:/")
        asked = f"{road.uri}/api/2.0/mlflow-artifacts/presigned/{below}/{path}"
        signed = requests.get(asked, timeout=60).json()["url"]
    assert requests.get(signed, timeout=60).json()["name"] == NAME
    assert requests.get(signed.replace(METADATA, WEIGHTS), timeout=60).status_code == 403
    assert requests.delete(signed, timeout=60).status_code == 403
    assert requests.get(signed.partition("?")[0], timeout=60).status_code == 403


@only(["multipart"])
def test_where_s3_is_out_of_reach_files_go_through_the_server(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And come back so: only the server needs to reach it. Here a proxy that is none is before."""
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", str(2**20))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "localhost")
    road = replace(road, uri=road.uri.replace("127.0.0.1", "localhost"))
    uploads, place = road.uploads(), road.saved(1)
    assert uploads.send(place) is not None
    assert "goes through the MLflow server" in capsys.readouterr().out
    road.assert_whole(tmp_path / "back")
