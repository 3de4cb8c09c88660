"""What one of many ranks adds to the run they share: what is merged, what the owner alone logs."""

import sys
from collections.abc import Mapping
from typing import Protocol

from opusclip_mlops import records
from opusclip_mlops.bottlenecks import TRACKER_KEY
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.loop_parts import EVALUATION
from opusclip_mlops.ranks import Place
from opusclip_mlops.reductions import REDUCTIONS, STATS, check_reduction, reduced, turn
from opusclip_mlops.selection import Selection

_OF_THE_OWNER = records.Params | records.Tags | records.Dataset
"""What is the same on all ranks by its nature."""

_SHOWN = records.Video | records.Image | records.Text | records.Table | records.Insight
_OWN_KEYS = "opusclip/"
PERFORMANCE_PREFIX = "performance/"
"""Begins the keys of speed, memory and what share of the time each part of the loop takes."""

_OF_ONE_RANK = {f"{PERFORMANCE_PREFIX}{EVALUATION}_share", TRACKER_KEY}


class Part(Protocol):
    """A process's part in a run; `session.Session` is one."""

    place: Place | None
    is_owner: bool

    def append(self, record: records.Record) -> None:
        """Take a record."""


class RankShare:
    """A process's share in its run; of a process that is alone that is all of it.

    `append` takes what it logs. What only the owner's processes log is left out elsewhere, counted
    by key, and told once.

    Args:
        part: The process's own.
        folder: The run's.
        selection: Counts what is left out.
        interval_s: How long the intervals are that all ranks measure.
    """

    def __init__(
        self, part: Part, folder: RunFolder, selection: Selection, *, interval_s: float
    ) -> None:
        place = part.place
        self._place = place if place and (place.world_size > 1 or place.was_many) else None
        self._take, self._folder, self._selection = part.append, folder, selection
        self._interval_s, self._is_told = interval_s, False
        self.is_owner = part.is_owner
        self.append = part.append if part.is_owner else self._append_merged

    @property
    def is_one_of_many(self) -> bool:
        """Whether other processes log to the run beside this one, or did before a restart."""
        return self._place is not None

    def check(self, reduce: str | None, keys: Mapping[str, float]) -> None:
        """Accept a known reduction of keys that stay legal with it, or None.

        Raises:
            RecordError: it is none, or a key becomes too long.
        """
        if reduce is not None:
            check_reduction(reduce, keys, rank=self._place.rank if self._place else 0)

    def record(
        self, values: dict[str, float], timestamp_ms: int, step: int, reduce: str
    ) -> records.Metrics | records.RankMetrics:
        """What is logged of values that the ranks have in common."""
        place = self._place
        if place is None:
            return records.Metrics(timestamp_ms, step, _alone(values, reduce))
        at = (place.rank, place.world_size, place.attempt)
        return records.RankMetrics(timestamp_ms, step, values, reduce, *at)

    def of_interval(
        self, values: dict[str, float], timestamp_ms: int, step: int
    ) -> list[records.Metrics | records.RankMetrics]:
        """What is logged of an interval that all ranks measure by the same clock.

        Of many ranks that is what tells them apart, to be merged; the rest is the owner's own.
        """
        if self._place is None:
            return [records.Metrics(timestamp_ms, step, values)]
        own = {key: value for key, value in values.items() if not _tells_apart(key)}
        merged = {key: value for key, value in values.items() if _tells_apart(key)}
        reduce = turn(int(timestamp_ms / 1000 // self._interval_s))
        found = [records.Metrics(timestamp_ms, step, own)] if own and self.is_owner else []
        return [*found, *([self.record(merged, timestamp_ms, step, reduce)] if merged else [])]

    def _append_merged(self, record: records.Record) -> None:
        """Append what is merged or told of this process; the rest is for the owner to log."""
        if isinstance(record, records.Metrics):
            self._leave_out(list(record.values))
        elif isinstance(record, _SHOWN):
            self._leave_out([record.key])
            self._remove_files(record)
        elif not isinstance(record, _OF_THE_OWNER | records.Samples):
            self._take(record)

    def _leave_out(self, keys: list[str]) -> None:
        self._selection.leave_to_owner(keys)
        told = next((key for key in keys if not key.startswith(_OWN_KEYS)), None)
        if told and not self._is_told and self._place:
            self._is_told = True
            print(
                f"opusclip: rank {self._place.rank} logs {told!r}, but another rank's points make"
                " the run: this is left out and counted, and so is what follows; to merge all"
                f" ranks' values, pass log_metrics a reduce: {', '.join(REDUCTIONS)}",
                file=sys.stderr,
                flush=True,
            )

    def _remove_files(self, record: records.Record) -> None:
        """Remove what was staged for a record that is not logged."""
        if isinstance(record, records.Video | records.Image):
            files = [record.file]
        else:
            files = list(record.files.values()) if isinstance(record, records.Insight) else []
        for file in files:
            (self._folder.media / file).unlink(missing_ok=True)


def _tells_apart(key: str) -> bool:
    """Whether a figure of the loop is worth its five keys: not what the owner alone does."""
    return key.startswith(PERFORMANCE_PREFIX) and key not in _OF_ONE_RANK


def _alone(values: dict[str, float], reduce: str) -> dict[str, float]:
    """Values of one rank under the keys that many would give them."""
    if reduce != STATS:
        return values
    found = (reduced(key, [value], reduce, ranks=[0]) for key, value in values.items())
    return {key: value for one in found for key, value in one.items()}
