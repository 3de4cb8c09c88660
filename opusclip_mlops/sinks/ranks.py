"""What many ranks log together: merged, and logged again as points of the run.

A merged point is appended to a journal of the run's own, so that it reaches MLflow and every mirror
by the road of all other records. What is there already is not said twice: a sink that was killed
before its position was kept is told the same again, makes the same points and passes over those
that its journal holds. What it does by the clock it decides first, and does once that is kept.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from opusclip_mlops import journal
from opusclip_mlops.accounting import totals
from opusclip_mlops.folder import Position, Progress, RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.merging_gaps import KEY
from opusclip_mlops.merging_log import Kept, MergingLog
from opusclip_mlops.rank_merging import News, fault_of
from opusclip_mlops.records import (
    Batch,
    RankMetrics,
    Record,
    RunEnded,
    Text,
    last_training_step,
    now_ms,
)
from opusclip_mlops.sessions import RANKS, Session, all_ended, sessions
from opusclip_mlops.sinks import Refusal, SinkState, Written

if TYPE_CHECKING:
    from opusclip_mlops.sinks import Sink

NAME = "+ranks"
"""Begins the names of the journals that hold what was merged; no session is called so."""

LOOK_EVERY_S = 0.2
BEGIN_WAIT_S = 10.0
_LOG = "merging"


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of it: `decided` is done next, after so many sessions all was `merged`."""

    log: Kept = Kept()
    said: Position = {}
    decided: News = News()
    sessions: int = 0
    merged: int = 0
    last_step: int = 0


class RanksSink:
    """Merges what ranks log together."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._journal: Journal | None = None

    def open(self, state: SinkState) -> SinkState:
        """Go on with the points that wait for ranks."""
        self._state = msgspec.convert(state, _State)
        self._log = MergingLog(self._folder.path / "sinks" / f"{RANKS}.{_LOG}", self._state.log)
        self._merger = self._log.merger()
        self._ahead = self._count_ahead()
        self._ended_at: dict[tuple[int, int], Position] = {}
        self._gone: set[tuple[int, int]] = set()
        self._look_s, self._is_over = 0.0, False
        self._last_end_s = time.monotonic()
        self._state = msgspec.structs.replace(self._state, log=self._log.kept)
        return self._encoded()

    def write(self, batch: Batch) -> Written:
        """Do what was decided, merge the batch, and decide what follows from who has ended."""
        ranked = [one for one in batch.records if isinstance(one, RankMetrics)]
        refused = tuple(Refusal(one, why) for one in ranked if (why := fault_of(one)))
        self._merge([one for one in ranked if not fault_of(one)])
        last_step = max(self._state.last_step, last_training_step(batch.records))
        self._state = msgspec.structs.replace(self._state, last_step=last_step)
        is_over = self._decide(batch)
        return Written(self._kept(), refused, unfinished=not is_over)

    def _merge(self, records: list[RankMetrics]) -> None:
        """Do what was decided, then merge what was logged since."""
        decided, state = self._state.decided, self._state
        news = msgspec.structs.replace(decided, records=records)
        self._state = msgspec.structs.replace(state, decided=News())
        if not news.is_empty:
            self._say(self._merger.advance(news))
            self._log.append(news, self._merger)
        if decided.finish:
            self._say(self._last_words())
            self._state = msgspec.structs.replace(self._state, merged=state.sessions)

    def close(self, end: RunEnded | None) -> None:
        """Let go of the files: nothing waits any more."""
        assert end is None or self._is_over
        self._log.close()
        if self._journal:
            self._journal.close()

    def _kept(self) -> SinkState:
        """What is to be kept now that all that was told is done."""
        self._ahead = 0
        said = {path.name: path.stat().st_size for path in self._said_in()}
        self._state = msgspec.structs.replace(self._state, log=self._log.kept, said=said)
        return self._encoded()

    def _encoded(self) -> SinkState:
        state: SinkState = msgspec.to_builtins(self._state, str_keys=True)
        return state

    def _decide(self, batch: Batch) -> bool:
        """Note who has left, or that all have; whether nothing is left to be merged."""
        if not batch.records and time.monotonic() < self._look_s:
            return self._is_over
        self._look_s = time.monotonic() + LOOK_EVERY_S
        every = sessions(self._folder)
        is_end = self._have_all_been(every) and all_ended(self._folder)
        self._is_over = self._state.merged == len(every)
        if self._is_over:
            return True
        # Behind the ends: all that was logged before them is in these sizes.
        sizes = self._sizes()
        read = Progress(position=self._read_until(batch))
        if is_end and read.has_all(sizes):
            decided = News(finish=True)
        else:
            decided = News(left=self._left(_ended_ranks(every), sizes, read))
        self._state = msgspec.structs.replace(self._state, decided=decided, sessions=len(every))
        return False

    def _have_all_been(self, every: list[Session]) -> bool:
        """Whether all have ended; one that has not begun by then is waited for, but not long."""
        if not all(one.end for one in every):
            self._last_end_s = time.monotonic()
            return False
        return _all_began(every) or time.monotonic() - self._last_end_s > BEGIN_WAIT_S

    def _left(
        self, ended: set[tuple[int, int]], sizes: Position, read: Progress
    ) -> dict[int, list[int]]:
        """Ranks, by attempt, that have ended and of which everything is read by now."""
        self._gone &= ended
        seen = {one: self._ended_at.get(one, sizes) for one in ended - self._gone}
        left = {one for one, goal in seen.items() if read.has_all(goal)}
        self._ended_at = {one: goal for one, goal in seen.items() if one not in left}
        self._gone |= left
        return {
            attempt: sorted(rank for one, rank in left if one == attempt)
            for attempt in sorted({attempt for attempt, _ in left})
        }

    def _sizes(self) -> Position:
        """How long the journals are, but for what this sink itself says."""
        sizes = self._folder.size_bytes().items()
        return {name: size for name, size in sizes if not name.startswith(NAME)}

    def _read_until(self, batch: Batch) -> Position:
        """Up to where this sink was given the journals, with this batch."""
        progress = self._folder.progress(RANKS)
        return progress.given[0] if batch.records and progress.given else progress.position

    def _last_words(self) -> Iterator[Record]:
        """What was not merged as it was meant, and what all processes left out."""
        step, timestamp_ms = max(0, self._state.last_step), now_ms()
        if text := self._merger.gaps.text():
            yield Text(timestamp_ms, step, KEY, text)
        # An account that can't be read: then nothing is claimed.
        with contextlib.suppress(OSError):
            yield from totals(self._folder.path).records(timestamp_ms=timestamp_ms, step=step)

    def _say(self, records: Iterable[Record]) -> None:
        """Append what was not said before a crash.

        Raises:
            OSError: the disk cannot take it.
        """
        for record in records:
            if self._ahead:
                self._ahead -= 1
                continue
            if self._journal is None:
                self._journal = Journal(self._folder.path, NAME)
            self._journal.append(record)
            if self._journal.lost:
                raise OSError(f"merged points cannot be written down: {self._journal.fault}")

    def _said_in(self) -> list[Path]:
        return sorted(self._folder.path.glob(f"{NAME}-*{journal.SUFFIX}"))

    def _count_ahead(self) -> int:
        """How many records were said that the state does not know of."""
        items = (
            i for p in self._said_in() for i in journal.read(p, self._state.said.get(p.name, 0))
        )
        return sum(isinstance(item, journal.Entry) for item in items)


def _all_began(every: list[Session]) -> bool:
    """Whether each rank of the latest attempt has begun, or none will any more: one has failed."""
    latest = max((one.start.attempt for one in every), default=0)
    ranked = [one for one in every if one.start.attempt == latest and one.start.rank is not None]
    if any(one.end and one.end.status != "FINISHED" for one in ranked):
        return True
    world_size = max((one.start.world_size for one in ranked), default=0)
    return {one.start.rank for one in ranked} >= set(range(world_size))


def _ended_ranks(every: list[Session]) -> set[tuple[int, int]]:
    """Attempt and rank of whom no process goes on."""
    going_on = {_rank_of(one) for one in every if one.end is None}
    return {name for one in every if (name := _rank_of(one)) and name not in going_on}


def _rank_of(session: Session) -> tuple[int, int] | None:
    rank = session.start.rank
    return None if rank is None else (session.start.attempt, rank)


if TYPE_CHECKING:

    def _conforms(folder: RunFolder) -> Sink:
        return RanksSink(folder)
