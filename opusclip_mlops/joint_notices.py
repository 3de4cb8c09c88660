"""What processes that save a checkpoint together tell each other, and what each knows of it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from opusclip_mlops.keeping import Planned
from opusclip_mlops.records import Checkpoint, now_ms
from opusclip_mlops.staged_training import Staged, Training


class Begun(msgspec.Struct):
    """A checkpoint that its owner has named, and the hidden folder it is written to."""

    name: str
    folder: str
    epoch: int
    step: int

    def done(self) -> Done:
        """What is known of it that is there, without the owner's word."""
        return Done(Checkpoint(now_ms(), self.step, self.epoch, self.name), [])


class Done(msgspec.Struct):
    """A checkpoint that is there, for the machines that hold parts of it, and what it displaces."""

    record: Checkpoint
    dropped: list[str]


class Came(msgspec.Struct):
    """What another process has of a checkpoint: which tensors, and its random generators."""

    names: str
    generators: bytes


class Written(msgspec.Struct):
    """What another process says of the files it has written, and how many values they hold."""

    files: dict[str, tuple[str, int]]
    values: int = 0


@dataclass(frozen=True, eq=False)
class Save:
    """One checkpoint on its way.

    `plan` is the owner's; `is_apart` says that the owner does not see the folder; `given_up` that
    nobody waits for it any more.
    """

    key: str
    begun: Begun
    folder: Path
    staged: Staged
    generators: bytes
    plan: Planned | None = None
    is_apart: bool = False
    given_up: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Ending:
    """That this process ends, since when, and how long it waits for who has not begun."""

    since_s: float
    coming_s: float

    def is_over(self) -> bool:
        """Whether that was long enough."""
        return time.monotonic() - self.since_s > self.coming_s


@dataclass
class Calls:
    """The calls of this process so far, by which those of others are found.

    Who saves a model that all hold whole may do so where others do not: what was called for the
    same epoch and step belongs together.
    """

    shared: int = 0
    whole: int = 0
    last: tuple[str, int] = ("", 0)

    def key_of(self, training: Training) -> str:
        """What begins the keys of a call for a model that all hold whole."""
        if (place := training.place) is None:
            return f"call-{self.whole}"
        self.last = place, self.last[1] + 1 if self.last[0] == place else 1
        return f"at-{place}-{self.last[1]}"


def named(ranks: set[int]) -> str:
    """What some ranks are called: ranks 1, 3."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, sorted(ranks)))}"
