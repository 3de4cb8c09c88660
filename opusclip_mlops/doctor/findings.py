"""What is looked at, and what was found: the two values that every check is about."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opusclip_mlops.errors import OpusclipError

State = Literal["ok", "note", "warning", "failed", "skipped"]
"""A note is worth knowing, a warning will hurt some day, what failed hurts now."""


LOADING = threading.RLock()
"""Held while a library is loaded: of two threads that load at once, one may see half of it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check saw, with figures, and what to do about it where there is something to do."""

    check: str = ""
    state: State
    seen: str
    todo: str = ""

    def worsened(self, other: Finding) -> Finding:
        """This, unless the other one is worse; what both saw."""
        worse = other if _RANKS[other.state] > _RANKS[self.state] else self
        return dataclasses.replace(worse, seen=f"{self.seen}; {other.seen}")


_RANKS = {"skipped": 0, "ok": 1, "note": 2, "warning": 3, "failed": 4}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is to be looked at.

    Args:
        tracking_uri: MLflow server, or database, where runs go.
        registry_uri: The registry where it is another place, empty otherwise.
        artifacts: `s3://bucket/prefix`; empty for where the server's new runs keep their files.
        backend: A database; empty for the tracking URI, where that is one.
        journal_dir: Folder of the runs' folders.
        tensorboard_dir: Folder of event files; empty where TensorBoard is switched off.
        wandb_mode: `online`, `offline` or `disabled`.
        wandb_dir: Folder in which W&B keeps its `wandb/`.
        folder: Where MLflow would be used: its own default is looked for there.
    """

    tracking_uri: str
    registry_uri: str = ""
    artifacts: str = ""
    backend: str = ""
    journal_dir: Path
    tensorboard_dir: str = ""
    wandb_mode: str = "disabled"
    wandb_dir: str = "."
    folder: Path

    @property
    def database(self) -> str:
        """The database that is looked at, empty for none."""
        return self.backend or ("" if is_web(self.tracking_uri) else self.tracking_uri)


@dataclass(frozen=True, kw_only=True)
class Check:
    """A look at one thing, which ends in time whatever it looks at.

    Args:
        name: `group.thing`.
        look: Says what it found.
        after: Another check; where that failed, or had nothing to look at, this one is skipped.
        deadline_s: How long it may take, in seconds.
        alone: Begun when all others have ended: it measures how long something takes.
    """

    name: str
    look: Callable[[Subject], Finding]
    after: str = ""
    deadline_s: float = 15.0
    alone: bool = False


class Told(OpusclipError):
    """Ends a check from anywhere inside it, with what it has found."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.seen)
        self.finding = finding


def ok(seen: str) -> Finding:
    """All is well."""
    return Finding(state="ok", seen=seen)


def note(seen: str, todo: str = "") -> Finding:
    """Worth knowing."""
    return Finding(state="note", seen=seen, todo=todo)


def warning(seen: str, todo: str) -> Finding:
    """It works, and will hurt some day."""
    return Finding(state="warning", seen=seen, todo=todo)


def failed(seen: str, todo: str) -> Finding:
    """It does not work."""
    return Finding(state="failed", seen=seen, todo=todo)


def skipped(why: str) -> Finding:
    """There is nothing to look at."""
    return Finding(state="skipped", seen=why)


def is_web(uri: str) -> bool:
    """Whether a URI is a server's address, rather than a database's or a folder's."""
    return uri.lower().startswith(("http://", "https://"))
