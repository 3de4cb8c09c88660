"""Where a run is written: one file a sink.

A sink is given batches in order and says what it keeps; reading the journal, retrying, backing off
and remembering positions is done around it, once, by `delivery.py`.
"""

import importlib
from dataclasses import dataclass, field
from typing import Any, Protocol

from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.records import Batch, Record, RunEnded

SinkState = dict[str, Any]
"""What a sink wants back when it is opened again: JSON values only."""

_SINKS = {
    "mlflow": "MlflowSink",
    "tensorboard": "TensorBoardSink",
    "wandb": "WandbSink",
    "alerts": "AlertsSink",
    "ranks": "RanksSink",
    "relay": "RelaySink",
}

NEEDS_NEW_PROCESS = frozenset({"wandb"})
"""Sinks whose client library leaves behind, after a fault, what only a new process escapes."""


class Waiting(OpusclipError):
    """The sink can't begin before something else is known; it is asked again soon."""


class Spoilt(OpusclipError):
    """The client library can't begin this run any more; another process can."""


class KeepsAll(OpusclipError):
    """The place does not let go of what it has of a run, now or later; nothing was changed."""


@dataclass(frozen=True)
class Refusal:
    """A record that a sink will never take, and why."""

    record: Record
    reason: str


@dataclass(frozen=True)
class Written:
    """A batch was taken.

    Args:
        state: What the sink wants back when it is opened again.
        refused: Records of this batch, or of one before it, that the sink will never take.
        safe_rows: The ordinal just behind the last row that no crash can lose any more; None when
            that is all that was given.
        unfinished: Something that was taken is still on its way: an empty batch asks again.
        fault: Why that is, where it could not be sent, on one line; empty otherwise.
        faults: How often something could not be sent since the last batch.
    """

    state: SinkState = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()
    safe_rows: int | None = None
    unfinished: bool = False
    fault: str = ""
    faults: int = 0


class Sink(Protocol):
    """A place a run is written to."""

    def open(self, state: SinkState) -> SinkState:
        """Go on behind what `state` (empty at first) says is there; return the state now."""

    def write(self, batch: Batch) -> Written:
        """Take a batch, or raise; what was not safe yet is then given again, in the same batches.

        An empty batch asks how what was taken before is getting on.
        """

    def close(self, end: RunEnded | None) -> None:
        """Everything was written: declare the run's end there; None says that it goes on."""


def open_sink(name: str, folder: RunFolder) -> Sink:
    """Make the sink of this name for a run.

    Raises:
        OpusclipError: no sink has this name.
    """
    if name not in _SINKS:
        raise OpusclipError(f"no sink is called {name!r}: known are {', '.join(_SINKS)}")
    module = importlib.import_module(f"opusclip_mlops.sinks.{name}")
    sink: Sink = getattr(module, _SINKS[name])(folder)
    return sink
