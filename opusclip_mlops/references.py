"""Where a run's files stand in MLflow, for mirrors that refer to them instead of copying them."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from opusclip_mlops.folder import Identity
from opusclip_mlops.records import Files
from opusclip_mlops.redaction import redacted


def physical(artifact_uri: str) -> str:
    """An artifact URI with its scheme and no password; a bare path is one of this machine's."""
    if artifact_uri.startswith("/"):
        return f"file://{quote(artifact_uri)}"
    return redacted(artifact_uri)


def uri_of(artifact_uri: str, path: str) -> str:
    """Where a file below an artifact URI stands."""
    base = physical(artifact_uri).rstrip("/")
    # Object stores take a key as it is written; W&B would cut it at these two.
    name = quote(path) if base.startswith("file:") else path.replace("?", "%3F").replace("#", "%23")
    return f"{base}/{name}"


def checkpoint_files(identity: Identity, about: Mapping[str, Any]) -> Files:
    """The files of a checkpoint that stands in MLflow.

    `about` has its `name`, `step`, `epoch`, `metrics` (as text), whether it is the `best`, the
    SHA-256 of its `files` by name and, if known, their `sizes_bytes`.
    """
    base = f"checkpoints/{about['name']}"
    said = ("name", "best", "step", "epoch", "metrics", "files")
    return Files(
        name=f"checkpoint-{identity.mirror_id}",
        kind="model",
        uris={name: uri_of(identity.artifact_uri, f"{base}/{name}") for name in about["files"]},
        sizes_bytes=dict(about.get("sizes_bytes", {})),
        metadata={key: about[key] for key in said} | {"mlflow_run_id": identity.run_id},
        aliases=["latest", f"step-{about['step']}", *(["best"] if about["best"] else [])],
    )
