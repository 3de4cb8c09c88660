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
}


class Waiting(OpusclipError):
    """The sink can't begin before something else is known; it is asked again soon."""


@dataclass(frozen=True)
class Refusal:
    """A record that a sink will never take, and why."""

    record: Record
    reason: str


@dataclass(frozen=True)
class Written:
    """A batch is safe at its destination, but for the records that were refused."""

    state: SinkState = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()


class Sink(Protocol):
    """A place a run is written to."""

    def open(self, state: SinkState) -> SinkState:
        """Go on behind what `state` (empty at first) says is there; return the state now."""

    def write(self, batch: Batch) -> Written:
        """Put a batch there for good, or raise; the same batch is then given again."""

    def close(self, end: RunEnded) -> None:
        """Everything was written: declare the run's end there."""


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
