"""What lies at an artifact location: folders listed once, files fetched whole or not at all."""

import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# A bar for each file would be all that a terminal shows.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from opusclip_mlops.layout import CHECKPOINTS
from opusclip_mlops.records import Record
from opusclip_mlops.refusals import asking_faults, is_for_good, reason_of

Sizes = dict[str, int]
"""Files by their path below the listed folder; 0 bytes where MLflow does not say."""

_DEEPEST = 140  # a key may have 125 parts


@dataclass(frozen=True)
class Part:
    """A record, and the artifact of the run that its `file` is fetched from, if it has one."""

    record: Record
    artifact_path: str = ""


@dataclass(frozen=True)
class LeftOut:
    """Something of a run that a mirror can't be given, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Found:
    """What was made of some files: parts, what could not be made one, and which files went in."""

    parts: list[Part] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    used: set[str] = field(default_factory=set)

    def take(self, other: "Found") -> None:
        """Add what was made of other files."""
        self.parts.extend(other.parts)
        self.left_out.extend(other.left_out)
        self.used.update(other.used)

    def leave(self, name: str, reason: str) -> None:
        """Note something that can't be carried."""
        self.left_out.append(LeftOut(name, reason))


def list_files(
    repository: ArtifactRepository, *, at_most: int | None = None
) -> tuple[Sizes, list[LeftOut]]:
    """The files below an artifact location, and the folders that can't be listed for good.

    Raises:
        MlflowException, OSError, or S3's own: a folder can't be listed now.
    """
    sizes: Sizes = {}
    left_out: list[LeftOut] = []
    folders = [""]
    while folders:
        folder = folders.pop()
        for entry in _listing(repository, folder, left_out):
            if entry.is_dir:
                folders.append(entry.path)
            else:
                sizes[entry.path] = int(entry.file_size or 0)
        if at_most and len(sizes) > at_most:
            left_out.append(LeftOut(folder or "files", f"there are more than {at_most} files"))
            return {}, left_out
    return dict(sorted(sizes.items())), left_out


def _listing(
    repository: ArtifactRepository, folder: str, left_out: list[LeftOut]
) -> Iterator[FileInfo]:
    try:
        entries = repository.list_artifacts(folder or None)
    except asking_faults() as error:
        if not is_for_good(error):
            raise
        left_out.append(LeftOut(folder or "artifacts", reason_of(error)))
        return
    # An object store goes on listing a checkpoint that was removed.
    if folder and not entries and posixpath.dirname(folder) != CHECKPOINTS:
        left_out.append(LeftOut(folder, "MLflow lists nothing in this folder"))
    for entry in entries:
        problem = problem_with(entry, folder)
        if problem:
            left_out.append(LeftOut(entry.path, problem))
        else:
            yield entry


def problem_with(entry: FileInfo, folder: str) -> str:
    """Why an entry cannot lie in the folder that was listed, "" where it can."""
    parent, name = posixpath.split(entry.path)
    if parent != folder or name in ("", ".", "..") or "\0" in name:
        return f"the server lists it in {folder or 'the artifact root'}, where it can't be"
    if entry.is_dir and entry.path.count("/") >= _DEEPEST:
        return f"it lies more than {_DEEPEST} folders deep"
    return ""


def download(repository: ArtifactRepository, path: str, destination: Path) -> None:
    """Fetch one file of an artifact location; the destination appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".fetched-") as folder:
        if isinstance(repository, LocalArtifactRepository):
            fetched = Path(folder, "file")
            shutil.copyfile(repository.download_artifacts(path), fetched)
        else:
            fetched = Path(repository.download_artifacts(path, folder))
        fetched.replace(destination)


def is_listed(repository: ArtifactRepository, path: str) -> bool:
    """Whether an artifact location has this file now."""
    folder = posixpath.dirname(path)
    return any(entry.path == path for entry in repository.list_artifacts(folder or None))


def content(repository: ArtifactRepository, path: str) -> bytes:
    """The bytes of one small file of an artifact location."""
    with tempfile.TemporaryDirectory(prefix="opusclip-") as folder:
        download(repository, path, Path(folder, "file"))
        return Path(folder, "file").read_bytes()
