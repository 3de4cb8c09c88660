"""Where a run is mirrored to: `tensorboard:FOLDER`, `wandb:ENTITY/PROJECT` or `wandb:PROJECT`."""

import os
import re
from pathlib import Path
from typing import Literal

import msgspec

from opusclip_mlops.errors import ConfigError

_WANDB_NAME = re.compile(r"[\w.\-]{1,128}")


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A place that runs are mirrored to.

    `folder` holds TensorBoard's event files, or W&B's logs; `mode` of W&B is "online", "offline" or
    None: online where there is a key.
    """

    kind: Literal["tensorboard", "wandb"]
    folder: str
    entity: str | None = None
    project: str = ""
    mode: str | None = None

    def __str__(self) -> str:
        if self.kind == "tensorboard":
            return f"tensorboard:{self.folder}"
        place = f"wandb:{self.entity}/{self.project}" if self.entity else f"wandb:{self.project}"
        return f"{place} offline in {self.folder}" if self.mode == "offline" else place

    def resolved(self, mode: str) -> "Target":
        """The same place, with one form whoever names it; `mode` is the one W&B is used in."""
        if self.kind == "tensorboard":
            return msgspec.structs.replace(self, folder=os.path.abspath(self.folder))
        folder = os.path.abspath(self.folder) if mode == "offline" else ""
        return msgspec.structs.replace(self, folder=folder, mode=mode)


def parse_target(text: str, *, wandb_dir: str = ".", wandb_mode: str | None = None) -> Target:
    """Read what was given to `--to`.

    Raises:
        ConfigError: it is not one of the three forms.
    """
    kind, _, place = text.partition(":")
    if kind == "tensorboard":
        return Target(kind="tensorboard", folder=place or "runs")
    entity, slash, project = place.rpartition("/")
    if (
        kind != "wandb"
        or not all(map(_WANDB_NAME.fullmatch, [project, entity or project]))
        or (slash and not entity)
    ):
        raise ConfigError(
            f"cannot mirror to {text!r}: give tensorboard:FOLDER or wandb:ENTITY/PROJECT"
        )
    return Target(
        kind="wandb", folder=wandb_dir, entity=entity or None, project=project, mode=wandb_mode
    )


def default_state_dir() -> Path:
    """Where what is remembered between runs lies: OPUSCLIP_STATE_DIR, or the user's own folder."""
    if given := os.environ.get("OPUSCLIP_STATE_DIR"):
        return Path(given)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "opusclip"
