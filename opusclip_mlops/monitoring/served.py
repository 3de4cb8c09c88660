"""Which version a process serves, and the files that watching it leaves on this machine."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_REGISTERED, _ABOUT = "registered_model_meta", "MLmodel"
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedVersion:
    """What is served.

    Attributes:
        model: The registered model's name; of a model that is not served by name, its id.
        version: The version, "" where it is not served as one.
        model_id: MLflow's id of the logged model, "" where it has none.
        run_id: The run that logged it, "" where none did.
    """

    model: str
    version: str
    model_id: str
    run_id: str

    @classmethod
    def in_folder(cls, folder: Path) -> ServedVersion:
        """What MLflow has written into the folder of a model that it fetched."""
        registered, about = _read(folder / _REGISTERED), _read(folder / _ABOUT)
        model_id = str(about.get("model_id") or "")
        return cls(
            model=str(registered.get("model_name") or model_id or folder.name),
            version=str(registered.get("model_version") or ""),
            model_id=model_id,
            run_id=str(about.get("run_id") or ""),
        )

    @property
    def title(self) -> str:
        """How people call it: clip-generator v3."""
        return f"{self.model} v{self.version}" if self.version else self.model

    def file_name(self) -> str:
        """A file name of its own, made of its name."""
        digest = hashlib.sha256(f"{self.model}\n{self.version}\n{self.model_id}".encode())
        plain = _NOT_IN_A_NAME.sub("_", self.title)[:80]
        return f"{plain}-{digest.hexdigest()[:12]}.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
