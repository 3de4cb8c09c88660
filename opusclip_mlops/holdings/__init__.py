"""What a mirror holds, read back from the mirror itself: one file a kind of mirror.

A mirror is equal to MLflow when this says so, not when writing to it returned.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from opusclip_mlops.folder import Identity
from opusclip_mlops.points import Points
from opusclip_mlops.records import Image, Insight, Record, Table, Text, Video
from opusclip_mlops.targets import Target

_HOLDINGS = {"tensorboard": "TensorBoardHoldings", "wandb": "WandbHoldings"}
_MEDIA = {Video: "video", Image: "image", Text: "text", Table: "table"}


@dataclass(frozen=True, order=True)
class Medium:
    """A clip, picture, text, table or insight at a step and a time in Unix milliseconds.

    `kind` is video, image, text, table, or `insight/` with the insight's own kind.
    """

    kind: str
    key: str
    step: int
    timestamp_ms: int


@dataclass(frozen=True)
class Held:
    """What a mirror holds of one run.

    Args:
        points: Its points; 32-bit values in TensorBoard.
        media: How often each medium stands there.
        words: The last text of each thing without a step, as `Holdings.rendered` makes it.
        row_count: How many rows W&B has, or events with a point TensorBoard.
        end: How the run ended there, empty while it has not.
        others: How much it holds that no record can be: only who put it there knows what it is.
        lasting: What of it no making anew takes away: W&B's server keeps the first row of a run.
    """

    points: Points
    media: Mapping[Medium, int] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    row_count: int = 0
    end: str = ""
    others: int = 0
    lasting: "Held | None" = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing of the run."""
        return not (len(self.points) or self.media or self.words or self.end)


class Holdings(Protocol):
    """Reads one run's mirror back."""

    def read(self) -> Held:
        """All that the mirror holds, nothing where there is none."""

    def fingerprint(self) -> str:
        """A short text that changes when what is held changes; cheap."""

    def rendered(self, record: Record) -> dict[str, str]:
        """The words that stand in the mirror for a record without a step, by their names."""


def open_holdings(target: Target, identity: Identity) -> Holdings:
    """Find a run's mirror."""
    module = importlib.import_module(f"opusclip_mlops.holdings.{target.kind}")
    holdings: Holdings = getattr(module, _HOLDINGS[target.kind])(target, identity)
    return holdings


def medium_of(record: Record) -> Medium | None:
    """What a record with a step is to be found as in a mirror; None for metrics and the rest."""
    if not isinstance(record, Video | Image | Text | Table | Insight):
        return None
    kind = f"insight/{record.kind}" if isinstance(record, Insight) else _MEDIA[type(record)]
    return Medium(kind, record.key, record.step, record.timestamp_ms)
