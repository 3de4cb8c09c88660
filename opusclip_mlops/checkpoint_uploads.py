"""Sends checkpoints to a run's artifacts: hashed on the way, and none is seen before it is whole.

A checkpoint is there when its metadata is, which goes last; until then what lies in its folder is
taken for nothing. Large files go to S3 in parts, past MLflow's server where that lets them.
"""

import os
import posixpath
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

# Smaller than MLflow's own: a file of 400 MB would pass through the server's disk.
os.environ.setdefault("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", str(64 * 2**20))
os.environ.setdefault("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", str(16 * 2**20))

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

from opusclip_mlops import checkpoints, layout, object_storage
from opusclip_mlops.begun_uploads import BegunUploads, WatchedProxy
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.faults import AwaitsOthers, attempted
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.shares_elsewhere import SharesElsewhere


class CheckpointUploads:
    """Sends the checkpoints of one run.

    Args:
        run_id: The MLflow run.
        folder: The run's folder on this machine.
        artifact_uri: Where the run's artifacts lie.
        tracking_uri: The MLflow server or store.
        owns_run: Whether this machine sends the metadata; otherwise it sends the files that it has
            of another one's checkpoints, and nothing more.
    """

    def __init__(
        self,
        run_id: str,
        folder: RunFolder,
        *,
        artifact_uri: str,
        tracking_uri: str,
        owns_run: bool = True,
    ) -> None:
        self._run_id, self._owns_run = run_id, owns_run
        self._begun = BegunUploads(folder.path / "uploads")
        self._repository = _repository(artifact_uri, tracking_uri, self._begun)
        self._arrived: set[tuple[str, ...]] = set()
        self._shares = SharesElsewhere(folder)
        self.abandon()

    def abandon(self) -> None:
        """Take back the parts of files that were not sent to their end."""
        self._begun.abandon(self._repository)

    def send(self, source: Path) -> CheckpointMetadata | None:
        """Seal a checkpoint and send it, both at once; None for one that was dropped meanwhile.

        None, too, for another machine's, of which only files are sent. Sent again after a fault,
        files that arrived before are not sent twice.

        Raises:
            CheckpointError: it is none, or torn: then nothing of it stays there.
            AwaitsOthers: another machine has not sent yet what it has of it.
            Any fault of the artifact store.
        """
        if not self._owns_run:
            self._send_share(source)
            return None
        checkpoints.read_metadata(source)
        if checkpoints.is_dropped(source):
            return None
        self.abandon()
        about, fault = self._seal_and_send_data(source)
        if checkpoints.is_dropped(source):
            return None
        if fault:
            raise fault
        if absent := {name for name in about.files if not (source / name).exists()}:
            if awaited := self._not_sent(source, about, absent):
                self._wait_for(source, about, awaited)
            self._shares.has_come(source.name)
        self._send(source, source / checkpoints.METADATA)
        self._arrived = {one for one in self._arrived if one[0] != source.name}
        return about

    def _send_share(self, source: Path) -> None:
        if not checkpoints.is_dropped(source):
            self.abandon()
            self._send_data(source)

    def _wait_for(self, source: Path, about: CheckpointMetadata, absent: list[str]) -> NoReturn:
        named, sizes = ", ".join(absent[:4]), {one: about.files[one].size_bytes for one in absent}
        if not self._shares.is_vain(source.name, about.created_ms, sizes):
            raise AwaitsOthers(f"{source.name} waits for other machines' {named}")
        attempted(lambda: self._repository.delete_artifacts(_place(source)))
        self._shares.forget(source.name)
        raise CheckpointError(f"{source.name} is not whole: no machine has sent {named}")

    def _not_sent(self, source: Path, about: CheckpointMetadata, absent: set[str]) -> list[str]:
        """What of the files that other machines have they have not sent yet."""
        sent = self._repository.list_artifacts(_place(source))
        sizes = {posixpath.basename(one.path): one.file_size for one in sent}
        return sorted(one for one in absent if sizes.get(one) != about.files[one].size_bytes)

    def _seal_and_send_data(self, source: Path) -> tuple[CheckpointMetadata, Exception | None]:
        """What was sealed, and the fault of what was sent meanwhile."""
        with ThreadPoolExecutor(1) as beside:
            sealing = beside.submit(checkpoints.seal, source, run_id=self._run_id)
            fault = attempted(lambda: self._send_data(source))
            try:
                return sealing.result(), fault
            except CheckpointError:
                attempted(lambda: self._repository.delete_artifacts(_place(source)))
                raise

    def _send_data(self, source: Path) -> None:
        for path in _data_files(source):
            # Another attempt may have put another of that name there.
            about = path.stat()
            mark = source.name, str(path), f"{about.st_ino} {about.st_mtime_ns}"
            if mark not in self._arrived:
                self._send(source, path)
                self._arrived.add(mark)

    def _send(self, source: Path, path: Path) -> None:
        below = path.parent.relative_to(source).as_posix()
        folder = _place(source) if below == "." else f"{_place(source)}/{below}"
        with object_storage.waiting_for(path.stat().st_size):
            self._repository.log_artifact(str(path), folder)


def _place(source: Path) -> str:
    return f"{layout.CHECKPOINTS}/{source.name}"


def _data_files(source: Path) -> Iterator[Path]:
    """All files but the metadata; a link is no part of a checkpoint, `seal` refuses it."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and not path.is_symlink() and path != source / checkpoints.METADATA:
            yield path


def _repository(artifact_uri: str, tracking_uri: str, begun: BegunUploads) -> ArtifactRepository:
    if artifact_uri.startswith("s3:"):
        session = object_storage.session()
        begun.watch(session)
        object_storage.use(session)
    found = get_artifact_repository(artifact_uri, tracking_uri=tracking_uri)
    if type(found) is MlflowArtifactsRepository:
        return WatchedProxy(artifact_uri, tracking_uri, begun=begun)
    return found
