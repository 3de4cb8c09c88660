"""What travels from a training loop to the sinks.

Every log call makes one record. Records are appended to the journal, read back by the shipper and
given to the sinks as a `Batch`; nothing else travels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from opusclip_mlops.values import MAX_KEY_CHARACTERS as MAX_KEY_CHARACTERS
from opusclip_mlops.values import MAX_PARAM_CHARACTERS as MAX_PARAM_CHARACTERS
from opusclip_mlops.values import MAX_TAG_CHARACTERS as MAX_TAG_CHARACTERS
from opusclip_mlops.values import check_dataset as check_dataset
from opusclip_mlops.values import check_key as check_key
from opusclip_mlops.values import now_ms as now_ms
from opusclip_mlops.values import to_float as to_float
from opusclip_mlops.values import to_step as to_step
from opusclip_mlops.values import to_text_values as to_text_values
from opusclip_mlops.values import to_values as to_values


class RunStarted(msgspec.Struct, frozen=True, tag="start", array_like=True):
    """A process began to log: who it is and what its run is to be called.

    `process_started_s`, in seconds since the machine was started, tells a process from a later one
    with the same `pid`; `owned` says whether the run's end is ours to declare. `rank` is its number
    among the `world_size` that train together, None for one that is alone; `attempt` counts how
    often their launcher has started them anew.
    """

    session: str
    host: str
    pid: int
    process_started_s: float
    start_time_ms: int
    owned: bool = True
    tags: dict[str, str] = {}
    rank: int | None = None
    attempt: int = 0
    world_size: int = 1


class Metrics(msgspec.Struct, frozen=True, tag="metrics", array_like=True, gc=False):
    """One log call: values by key, at one step and one time (Unix milliseconds)."""

    timestamp_ms: int
    step: int
    values: dict[str, float]


class RankMetrics(msgspec.Struct, frozen=True, tag="rank_metrics", array_like=True, gc=False):
    """One log call of one of many ranks, to be merged with those of the others at its step.

    `reduce` says how: mean, min, max, sum, stats or each.
    """

    timestamp_ms: int
    step: int
    values: dict[str, float]
    reduce: str
    rank: int
    world_size: int
    attempt: int = 0


class Params(msgspec.Struct, frozen=True, tag="params", array_like=True):
    """Parameters, set once each."""

    values: dict[str, str]


class Tags(msgspec.Struct, frozen=True, tag="tags", array_like=True):
    """Tags, the last value of a key holds."""

    values: dict[str, str]


class Dataset(msgspec.Struct, frozen=True, tag="dataset", array_like=True):
    """A dataset the run read: `digest` names its exact content, `context` its use (training …).

    `sources`, a file in the run folder's media/, lists the films it is made of.
    """

    name: str
    digest: str
    source_type: str
    source: str
    context: str
    profile: str = ""
    schema: str = ""
    sources: str = ""


class Video(msgspec.Struct, frozen=True, tag="video", array_like=True):
    """A clip at a step; `file` lies in the run folder's media/, `fps` is frames per second.

    `origin` says where it comes from, in JSON values; it becomes a file of `codec`, h264 or vp9, of
    at most `max_bytes`, 0 for what is usual.
    """

    timestamp_ms: int
    step: int
    key: str
    file: str
    fps: float
    caption: str = ""
    origin: dict[str, Any] = {}
    codec: str = "h264"
    max_bytes: int = 0


class Samples(msgspec.Struct, frozen=True, tag="samples", array_like=True):
    """The samples of a panel at a step, its clips logged before it: by cell, in JSON values."""

    timestamp_ms: int
    step: int
    panel: dict[str, Any]
    cells: dict[str, dict[str, Any]]


class Text(msgspec.Struct, frozen=True, tag="text", array_like=True):
    """A text at a step."""

    timestamp_ms: int
    step: int
    key: str
    text: str


class Image(msgspec.Struct, frozen=True, tag="image", array_like=True):
    """A picture at a step; `file`, a PNG or WebP, lies in the run folder's media/."""

    timestamp_ms: int
    step: int
    key: str
    file: str


class Table(msgspec.Struct, frozen=True, tag="table", array_like=True):
    """A table at a step; `rows` hold JSON values, as many each as there are columns."""

    timestamp_ms: int
    step: int
    key: str
    columns: list[str]
    rows: list[list[Any]]


class Insight(msgspec.Struct, frozen=True, tag="insight", array_like=True):
    """What a model looks like at a step: histograms, a graph, an embedding …, by its `kind`.

    `content` holds JSON values; `files`, by the name that each has beside it, are names in the run
    folder's media/.
    """

    timestamp_ms: int
    step: int
    key: str
    kind: str
    content: dict[str, Any]
    files: dict[str, str] = {}


class Files(msgspec.Struct, frozen=True, tag="files", array_like=True):
    """Files that stand in MLflow, referred to and not copied: a checkpoint, a model, all others.

    `uris` and `sizes_bytes` are by path below the files' common folder; `kind` is "model" or
    "files". Of one name the last holds; `aliases` are what points at it now.
    """

    name: str
    kind: str
    uris: dict[str, str]
    sizes_bytes: dict[str, int] = {}
    metadata: dict[str, Any] = {}
    aliases: list[str] = []


class About(msgspec.Struct, frozen=True, tag="about", array_like=True):
    """What MLflow itself knows of the run under a name ("mlflow", "registry/…"); the last holds."""

    name: str
    values: dict[str, str]
    timestamp_ms: int = 0


class Checkpoint(msgspec.Struct, frozen=True, tag="checkpoint", array_like=True):
    """A checkpoint folder in the run folder's checkpoints/; `best` when it beat all before it."""

    timestamp_ms: int
    step: int
    epoch: int
    name: str
    metrics: dict[str, float] = {}
    best: bool = False


class CheckpointDropped(msgspec.Struct, frozen=True, tag="dropped", array_like=True):
    """A checkpoint that is to be kept no longer, neither here nor in MLflow."""

    name: str


class Crash(msgspec.Struct, frozen=True, tag="crash", array_like=True):
    """How a process died: the files of its report in the run folder's media/, by their names."""

    session: str
    files: dict[str, str]


class RunEnded(msgspec.Struct, frozen=True, tag="end", array_like=True):
    """A process stopped logging: FINISHED, FAILED or KILLED, at `end_time_ms`, and why.

    `at_exit` says that nobody closed the run: then the exit code has the last word. `traceback` is
    that of one of many ranks: only the first failure's becomes a tag of the run.
    """

    session: str
    status: str
    end_time_ms: int
    reason: str = ""
    owned: bool = True
    at_exit: bool = False
    traceback: str = ""


Record = (
    RunStarted
    | Metrics
    | RankMetrics
    | Params
    | Tags
    | Dataset
    | Video
    | Samples
    | Text
    | Image
    | Table
    | Insight
    | Files
    | About
    | Checkpoint
    | CheckpointDropped
    | Crash
    | RunEnded
)

Row = Metrics | Video | Text | Image | Table | Insight
"""The records that carry a step: each is one point in time, in order."""

SYSTEM_PREFIX = "system/"
"""Begins the keys of what the machine uses; their steps are not the training's."""


def last_training_step(records: Iterable[Record]) -> int:
    """The highest step that the training has logged, -1 where there is none."""
    rows = (one for one in records if isinstance(one, Row) and not _is_of_machine(one))
    return max((row.step for row in rows), default=-1)


def _is_of_machine(row: Row) -> bool:
    return isinstance(row, Metrics) and all(key.startswith(SYSTEM_PREFIX) for key in row.values)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Records in the order they were logged, as a sink is given them.

    `first_row` is the ordinal, within the run's journal, of the batch's first `Row`.
    """

    records: tuple[Record, ...]
    first_row: int = 0

    @property
    def row_count(self) -> int:
        """How many of the records are rows."""
        return sum(isinstance(record, Row) for record in self.records)
