"""Where a sample comes from, completed on its way by what is known of its checkpoint by then."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.metadata import CheckpointMetadata

_OF_EVERY_CLIP = {"step", "git_commit"}


def completed(folder: RunFolder, origin: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with the hash of the weights where the checkpoint is of this run and sealed."""
    name = str(origin.get("checkpoint", ""))
    if not name or origin.get("weights_sha256"):
        return dict(origin)
    sha256 = _weights_sha256(folder.checkpoints / Path(name).name / "metadata.json")
    return {**origin, **({"weights_sha256": sha256} if sha256 else {})}


def is_told(origin: Mapping[str, Any]) -> bool:
    """Whether a clip by itself says more of where it comes from than step and commit."""
    return "panel" not in origin and bool(origin.keys() - _OF_EVERY_CLIP)


def _weights_sha256(path: Path) -> str:
    """The hash that a checkpoint's metadata names, "" where it is gone or not sealed yet."""
    try:
        return CheckpointMetadata.from_dict(json.loads(path.read_bytes())).weights_sha256
    except (OSError, ValueError, AttributeError, CheckpointError):
        return ""
