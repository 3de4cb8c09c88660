"""The file sets that a run has logged to W&B, read back out of a log or from its server."""

import gzip
import json
from typing import Any

import wandb
from wandb.proto.wandb_internal_pb2 import ArtifactRecord

from opusclip_mlops import wandb_layout


class Artifacts:
    """File sets as they are logged: of one version the last holds, an alias stands at one."""

    def __init__(self) -> None:
        self._logged: dict[tuple[str, str], tuple[dict[str, Any], dict[str, str], list[str]]] = {}

    def add_record(self, record: ArtifactRecord) -> None:
        """Take in an artifact as a log has it."""
        metadata = json.loads(record.metadata or "{}")
        if wandb_layout.ABOUT_KEY in metadata:
            self._add(record.name, metadata, _references(record), list(record.aliases))

    def add_logged(self, artifact: wandb.Artifact) -> None:
        """Take in an artifact of the server's; one that isn't ours is not asked for its files."""
        if wandb_layout.ABOUT_KEY in artifact.metadata:
            entries = artifact.manifest.entries.items()
            uris = {path: str(entry.ref) for path, entry in entries}
            name = artifact.name.rpartition(":")[0]
            self._add(name, artifact.metadata, uris, list(artifact.aliases))

    def words(self) -> dict[str, dict[str, str]]:
        """What they say, by their names."""
        found: dict[str, dict[str, str]] = {}
        for metadata, uris, aliases in self._logged.values():
            found |= wandb_layout.words_of_artifact(metadata, "", uris, aliases)
        return found

    def _add(
        self, name: str, metadata: dict[str, Any], uris: dict[str, str], aliases: list[str]
    ) -> None:
        [version] = wandb_layout.words_of_artifact(metadata, "", uris, aliases)
        self._logged.pop((name, version), None)
        for (other, _), (_, _, left) in self._logged.items():
            if other == name:
                left[:] = [alias for alias in left if alias not in aliases]
        self._logged[name, version] = (metadata, uris, aliases)


def _references(record: ArtifactRecord) -> dict[str, str]:
    """What an artifact refers to, by path; a long list of it lies in a file."""
    if not record.manifest.manifest_file_path:
        return {entry.path: entry.ref for entry in record.manifest.contents}
    with gzip.open(record.manifest.manifest_file_path, "rt") as file:
        entries = [json.loads(line) for line in file]
    return {entry["path"]: entry.get("ref", "") for entry in entries}
