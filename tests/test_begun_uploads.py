"""Facts about `opusclip_mlops.begun_uploads`: what is noted, and what becomes of it.

That S3 keeps nothing is shown in tests/test_checkpoint_uploads.py.
"""

from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from opusclip_mlops import object_storage
from opusclip_mlops.begun_uploads import BegunUploads
from tests.object_store import BUCKET, ObjectStore

WHERE = {"bucket": BUCKET, "key": "runs/weights"}


@pytest.fixture
def here(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The store, with its keys in the environment."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    return s3


def client_of(begun: BegunUploads, store: ObjectStore) -> Any:
    """A client of a session that is watched."""
    session = object_storage.session()
    begun.watch(session)
    return session.client("s3", endpoint_url=store.address)


def test_a_note_is_private_and_goes_with_its_upload(tmp_path: Path) -> None:
    """It says where the upload goes, and nothing that opens it."""
    begun = BegunUploads(tmp_path / "uploads")
    assert list(begun) == []
    begun.note("up/../1", **WHERE)
    begun.note("up2", file="weights", folder="checkpoints/a")
    assert {one["id"] for one in begun} == {"up/../1", "up2"}
    paths = [*(tmp_path / "uploads").iterdir()]
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}
    assert (tmp_path / "uploads").stat().st_mode & 0o777 == 0o700
    begun.forget("up/../1")
    begun.forget("never")
    assert [one["id"] for one in begun] == ["up2"]


def test_what_is_no_note_is_passed_over(tmp_path: Path) -> None:
    """A power cut may leave an empty one."""
    for name, text in {"a": "", "b": "[]", "c": '{"id": 1}', "d": "{"}.items():
        (tmp_path / f"{name}.json").write_text(text)
    assert list(BegunUploads(tmp_path)) == []


def test_where_none_can_be_noted_the_upload_goes_on(tmp_path: Path) -> None:
    """On a full disk, or in a run's folder that was removed."""
    (tmp_path / "uploads").write_text("no folder")
    begun = BegunUploads(tmp_path / "uploads")
    begun.note("up", **WHERE)
    begun.forget("up")
    assert list(begun) == []


def test_a_client_that_is_watched_notes_what_it_begins(here: ObjectStore, tmp_path: Path) -> None:
    """Ended well, or taken back: then there is no note any more."""
    begun = BegunUploads(tmp_path)
    client = client_of(begun, here)
    first, second = (client.create_multipart_upload(Bucket=BUCKET, Key=k) for k in ("a", "b"))
    assert {one["id"]: one["key"] for one in begun} == {
        first["UploadId"]: "a", second["UploadId"]: "b"
    }  # fmt: skip
    part = {"Bucket": BUCKET, "Key": "a", "UploadId": first["UploadId"]}
    sent = client.upload_part(**part, PartNumber=1, Body=b"frames")
    parts = {"Parts": [{"PartNumber": 1, "ETag": sent["ETag"]}]}
    client.complete_multipart_upload(**part, MultipartUpload=parts)
    assert [one["key"] for one in begun] == ["b"]
    client.abort_multipart_upload(Bucket=BUCKET, Key="b", UploadId=second["UploadId"])
    assert list(begun) == []


def test_what_cannot_be_taken_back_now_stays_noted(
    here: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a wrong key, or while the store is away; what S3 knows no more is forgotten."""
    begun, repository = BegunUploads(tmp_path), get_artifact_repository(str(tmp_path))
    made = client_of(begun, here).create_multipart_upload(Bucket=BUCKET, Key="c")
    begun.note("ffffffff_unknown", **WHERE)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wr0ng-horse-batteries")
        begun.abandon(repository)
        patch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:1")
        begun.abandon(repository)
    assert made["UploadId"] in {one["id"] for one in begun}
    begun.abandon(repository)
    assert list(begun) == []
    with pytest.raises(ClientError):
        here.client.list_parts(Bucket=BUCKET, Key="c", UploadId=made["UploadId"])
