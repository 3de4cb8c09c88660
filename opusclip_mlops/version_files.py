"""What a registered version holds: its files, and the checkpoint among them."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from opusclip_mlops.checkpoints import METADATA, WEIGHTS, verify
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.listing import Sizes, content, download, list_files
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import is_for_good, reason_of

WEIGHTS_TAG = "opusclip.weights_sha256"
METADATA_TAG = "opusclip.metadata_sha256"

_MODEL_FILE = "MLmodel"
_MOST_FILES = 10_000
_MOST_BYTES = 16 * 2**20
_LOGGED_MODEL_URI = re.compile(r"models:/(m-[^/@]+)")


@dataclass(frozen=True)
class VersionFiles:
    """The files of a version, and the checkpoint among them.

    Attributes:
        repository: Where they are fetched from, None where nobody can look.
        location: Where they are, "" when nobody knows.
        sizes: Bytes by path, empty where nothing can be listed.
        folder: The checkpoint's folder among them.
        metadata: The checkpoint's, None when there is none.
        metadata_sha256: Of the file that it was read from, "" when there is none.
        problem: Why there is none, "" when there is one.
    """

    repository: ArtifactRepository | None
    location: str
    sizes: Sizes
    folder: str
    metadata: CheckpointMetadata | None
    problem: str
    metadata_sha256: str = ""

    @classmethod
    def of(cls, client: MlflowClient, version: ModelVersion) -> VersionFiles:
        """List the files, and read the checkpoint's metadata.

        Raises:
            MlflowException, OSError: MLflow does not answer now.
        """
        location, why = _location(client, version)
        repository, why = _repository(client, location) if location else (None, why)
        if repository is None:
            return cls(None, location, {}, "", None, f"its files can't be looked at: {why}")
        sizes, left_out = list_files(repository, at_most=_MOST_FILES)
        if not sizes:
            why = left_out[0].reason if left_out else "it holds no files"
            return cls(repository, location, {}, "", None, why)
        folder = _checkpoint_folder(sizes)
        if folder is None:
            return cls(
                repository, location, sizes, "", None, f"it holds no {WEIGHTS} beside a {METADATA}"
            )
        path = posixpath.join(folder, METADATA)
        try:
            metadata, sha256 = _metadata(repository, path, sizes[path])
            return cls(repository, location, sizes, folder, metadata, "", sha256)
        except CheckpointError as error:
            return cls(repository, location, sizes, folder, None, one_line(f"{path}: {error}"))

    def has_signature(self) -> bool:
        """Whether the model's own file has one."""
        return bool(self._model().get("signature"))

    def has_example(self) -> bool:
        """Whether an input example is kept with it, as the model's own file says."""
        return bool(self._model().get("saved_input_example_info"))

    def _model(self) -> Mapping[str, Any]:
        """What the model's own file says; empty where there is none that can be read."""
        if self.repository is None or not 0 < self.sizes.get(_MODEL_FILE, 0) <= _MOST_BYTES:
            return {}
        try:
            about = yaml.safe_load(content(self.repository, _MODEL_FILE))
        except (yaml.YAMLError, ValueError, RecursionError):
            return {}
        return about if isinstance(about, Mapping) else {}

    def hash_problem(self, tags: Mapping[str, str]) -> str:
        """Fetch all that the checkpoint has a hash of; what is wrong with it, "" for nothing.

        `tags` are the version's: they say which weights and which metadata were registered.

        Raises:
            MlflowException, OSError: MLflow does not answer now, or the disk is full.
        """
        if self.repository is None or self.metadata is None:
            return self.problem
        if absent := [tag for tag in (WEIGHTS_TAG, METADATA_TAG) if not tags.get(tag)]:
            return f"not known: it was registered without the tag {' and '.join(absent)}"
        if self.metadata_sha256 != tags[METADATA_TAG]:
            return _not_registered(METADATA, METADATA_TAG)
        sealed, problem = self._as_sealed()
        if sealed is None or sealed.files[WEIGHTS].sha256 != tags[WEIGHTS_TAG]:
            return problem or _not_registered(WEIGHTS, WEIGHTS_TAG)
        return ""

    def _as_sealed(self) -> tuple[CheckpointMetadata | None, str]:
        """What the checkpoint was sealed with, or why it is not as it was then."""
        assert self.repository is not None
        assert self.metadata is not None
        held = [WEIGHTS, *(one for one in self.metadata.files if one != WEIGHTS)]
        paths = {one: posixpath.join(self.folder, one) for one in held}
        names = [one for one, path in paths.items() if path in self.sizes]
        with tempfile.TemporaryDirectory(prefix="opusclip-") as temporary:
            for name in (METADATA, *names):
                target = Path(temporary, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                download(self.repository, posixpath.join(self.folder, name), target)
            try:
                return verify(Path(temporary), only=names), ""
            except CheckpointError as error:
                return None, one_line(str(error).replace(f"{temporary}/", ""))


def _not_registered(name: str, tag: str) -> str:
    return f"{name} is not the one that was registered: the tag {tag} has another sha256"


def _location(client: MlflowClient, version: ModelVersion) -> tuple[str, str]:
    """Where the version's files are, or "" and why nobody knows."""
    logged = _LOGGED_MODEL_URI.fullmatch(version.source or "")
    try:
        if logged:
            return str(client.get_logged_model(logged[1]).artifact_location), ""
        number = str(version.version)
        return str(client.get_model_version_download_uri(version.name, number)), ""
    except MlflowException as error:
        if not is_for_good(error):
            raise
        return "", reason_of(error)


def _repository(client: MlflowClient, location: str) -> tuple[ArtifactRepository | None, str]:
    try:
        return get_artifact_repository(location, tracking_uri=client.tracking_uri), ""
    except MlflowException as error:
        return None, reason_of(error)


def _checkpoint_folder(sizes: Sizes) -> str | None:
    """The folder nearest to the root that holds weights and their metadata."""
    folders = [
        posixpath.dirname(path)
        for path in sizes
        if posixpath.basename(path) == METADATA
        and posixpath.join(posixpath.dirname(path), WEIGHTS) in sizes
    ]
    return min(folders, key=lambda one: (one.count("/"), one), default=None)


def _metadata(
    repository: ArtifactRepository, path: str, size_bytes: int
) -> tuple[CheckpointMetadata, str]:
    """What a metadata.json says, and its sha256."""
    if size_bytes > _MOST_BYTES:
        raise CheckpointError(f"it has {size_bytes} bytes, which no checkpoint's metadata has")
    try:
        text = content(repository, path)
        about: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError("it is no JSON") from error
    if not isinstance(about, dict):
        raise CheckpointError("it holds no JSON object")
    return CheckpointMetadata.from_dict(about), hashlib.sha256(text).hexdigest()
