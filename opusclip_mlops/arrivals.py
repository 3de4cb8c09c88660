"""Checkpoints on their way into MLflow, for mirrors that refer to them once they stand there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from opusclip_mlops import checkpoints
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.records import Checkpoint, Files
from opusclip_mlops.references import checkpoint_files

_NEWEST = "latest"


class Arrivals:
    """What a mirror has yet to say of a run's checkpoints.

    `best` and the name of a step belong to one checkpoint at a time: who has lost one is said anew.
    """

    def __init__(self, folder: RunFolder, state: Mapping[str, Any]) -> None:
        self._folder = folder
        self._expected: list[dict[str, Any]] = list(state.get("expected", []))
        self._said = [msgspec.convert(one, Files) for one in state.get("said", [])]

    def state(self) -> dict[str, Any]:
        """What is to be given back after a restart: JSON values only."""
        return {"expected": self._expected, "said": [msgspec.to_builtins(o) for o in self._said]}

    def expect(self, record: Checkpoint) -> None:
        """Remember a checkpoint until it stands in MLflow.

        Raises:
            CheckpointError: its folder holds no whole checkpoint.
        """
        about = checkpoints.seal(self._folder.checkpoints / Path(record.name).name)
        said = {
            "metrics": {key: str(value) for key, value in record.metrics.items()},
            "files": {name: one.sha256 for name, one in about.files.items()},
            "sizes_bytes": {name: one.size_bytes for name, one in about.files.items()},
        }
        names = ("name", "best", "step", "epoch")
        self._expected.append({name: getattr(record, name) for name in names} | said)

    @property
    def is_waiting(self) -> bool:
        """Whether something is on its way that MLflow's sink may still deliver."""
        if not self._expected or "mlflow" not in self._folder.manifest().sinks:
            return False
        return not self._folder.progress("mlflow").done

    def news(self) -> list[Files]:
        """What stands in MLflow by now and was not said, and who has lost a name to it."""
        identity = self._folder.identity()
        arrived = [one for one in self._expected if self._folder.has_arrived(one["name"])]
        if identity is None or not arrived:
            return []
        self._expected = [one for one in self._expected if one not in arrived]
        return [said for one in arrived for said in self._say(checkpoint_files(identity, one))]

    def _say(self, new: Files) -> list[Files]:
        taken = set(new.aliases)
        losers = [one for one in self._said if taken & set(one.aliases) - {_NEWEST}]
        said = [new]
        for one in losers:
            left = [alias for alias in one.aliases if alias not in taken]
            said.append(msgspec.structs.replace(one, aliases=left))
        best = [one for one in self._said if "best" in one.aliases and "best" not in taken]
        self._said = [*best, new]
        return said
