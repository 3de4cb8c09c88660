"""Multipart uploads that were begun and not ended: none stays in S3, paid for and unseen.

Each is noted in the run's folder before its first part is sent, and the note goes with its end.
What a killed process, or an S3 that died, has left is taken back before the file is sent again.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
from mlflow.entities.multipart_upload import MultipartUploadCredential, MultipartUploadPart
from mlflow.environment_variables import MLFLOW_S3_IGNORE_TLS
from mlflow.exceptions import _UnsupportedMultipartUploadException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.utils.file_utils import read_chunk

from opusclip_mlops import object_storage
from opusclip_mlops.faults import attempted
from opusclip_mlops.folder import write_whole
from opusclip_mlops.redaction import one_line

_GONE = "NoSuchUpload"
_FORBIDDEN = frozenset({"AccessDenied", "403"})
_PART_S = 2 * object_storage.READ_S
_OF_CONTEXT = "opusclip_upload"


class BegunUploads:
    """Notes of multipart uploads, one file each.

    Args:
        folder: Where they lie; it is made with the first one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, upload_id: str, **where: str) -> None:
        """Note an upload that begins now; on a full disk it goes on without."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self._path(upload_id), json.dumps({"id": upload_id, **where}).encode())

    def forget(self, upload_id: str) -> None:
        """Its upload has ended, or nothing more can be done about it."""
        with contextlib.suppress(OSError):
            self._path(upload_id).unlink()

    def __iter__(self) -> Iterator[dict[str, str]]:
        """Those that are noted: `id`, and where the upload goes to."""
        for path in sorted(self._folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                noted = json.loads(path.read_text())
                if isinstance(noted, dict) and isinstance(noted.get("id"), str):
                    yield noted

    def _path(self, upload_id: str) -> Path:
        return self._folder / f"{hashlib.sha256(upload_id.encode()).hexdigest()[:32]}.json"

    def watch(self, session: Any) -> None:
        """Note what clients of a boto3 session, made from now on, begin and end."""
        events = session.events
        events.register("after-call.s3.CreateMultipartUpload", self._begun)
        for ending in ("CompleteMultipartUpload", "AbortMultipartUpload"):
            events.register(f"provide-client-params.s3.{ending}", _remember)
            events.register(f"after-call.s3.{ending}", self._ended)

    def _begun(self, parsed: dict[str, Any], **_: Any) -> None:
        if "UploadId" in parsed:
            self.note(parsed["UploadId"], bucket=parsed["Bucket"], key=parsed["Key"])

    def _ended(self, http_response: Any, parsed: Any, context: dict[str, Any], **_: Any) -> None:
        is_done = http_response.status_code < 300 and "Error" not in (parsed or {})
        if is_done and _OF_CONTEXT in context:
            self.forget(context[_OF_CONTEXT])

    def abandon(self, repository: ArtifactRepository) -> None:
        """Take back what was begun and not ended; what does not answer now stays noted."""
        for noted in self:
            fault = attempted(lambda noted=noted: _take_back(noted, repository))  # type: ignore[misc]
            code = object_storage.code_of(fault)
            if fault is None or code == _GONE or _GONE in str(fault):
                self.forget(noted["id"])
            elif code in _FORBIDDEN:
                print(f"an unfinished upload stays in S3: {one_line(str(fault))}", flush=True)
                self.forget(noted["id"])


def _remember(params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
    context[_OF_CONTEXT] = params.get("UploadId", "")


def _take_back(noted: dict[str, str], repository: ArtifactRepository) -> None:
    if "bucket" in noted:
        object_storage.client().abort_multipart_upload(
            Bucket=noted["bucket"], Key=noted["key"], UploadId=noted["id"]
        )
    elif isinstance(repository, MlflowArtifactsRepository):
        repository.abort_multipart_upload(noted["file"], noted["id"], noted["folder"])


class WatchedProxy(MlflowArtifactsRepository):
    """An MLflow server's artifacts; which multipart uploads were begun there is noted.

    Where the S3 that it signs for is not to be reached from here, files go through the server.

    Args:
        artifact_uri: The location, which begins with mlflow-artifacts:.
        tracking_uri: The server.
        begun: Where they are noted.
    """

    def __init__(self, artifact_uri: str, tracking_uri: str, *, begun: BegunUploads) -> None:
        super().__init__(artifact_uri, tracking_uri)
        self._begun = begun

    def create_multipart_upload(
        self, local_file: str, num_parts: int = 1, artifact_path: str | None = None
    ) -> Any:
        """Begin one, and note it.

        Raises:
            _UnsupportedMultipartUploadException: S3 is out of reach; MLflow then sends the file to
                its server.
        """
        made = super().create_multipart_upload(local_file, num_parts, artifact_path)  # type: ignore[no-untyped-call]
        self._begun.note(made.upload_id, file=local_file, folder=artifact_path or "")
        if not object_storage.is_reachable(made.credentials[0].url):
            attempted(
                lambda: self.abort_multipart_upload(local_file, made.upload_id, artifact_path)
            )
            print("S3 is out of reach: a large file goes through the MLflow server", flush=True)
            raise _UnsupportedMultipartUploadException
        return made

    def complete_multipart_upload(
        self,
        local_file: str,
        upload_id: str,
        parts: Any = None,
        artifact_path: str | None = None,
    ) -> None:
        """End one well."""
        super().complete_multipart_upload(local_file, upload_id, parts, artifact_path)  # type: ignore[no-untyped-call]
        self._begun.forget(upload_id)

    def abort_multipart_upload(
        self, local_file: str, upload_id: str, artifact_path: str | None = None
    ) -> None:
        """Take one back."""
        super().abort_multipart_upload(local_file, upload_id, artifact_path)  # type: ignore[no-untyped-call]
        self._begun.forget(upload_id)

    @staticmethod
    def _upload_part(
        credential: MultipartUploadCredential, local_file: str, size: int, start_byte: int
    ) -> MultipartUploadPart:
        """MLflow's own would wait for ever on an S3 that does not answer."""
        answer = requests.put(
            credential.url,
            data=read_chunk(Path(local_file), size, start_byte),
            headers=credential.headers,
            verify=not MLFLOW_S3_IGNORE_TLS.get(),
            timeout=(object_storage.CONNECT_S, _PART_S),
        )
        answer.raise_for_status()
        return MultipartUploadPart(credential.part_number, answer.headers.get("ETag", ""))
