"""What many ranks log together: merged, and logged again as points of the run.

A merged point is appended to a journal of the run's own, so that it reaches MLflow and every mirror
by the road of all other records. What is there already is not said twice: a sink that was killed
before its position was kept is told the same again, makes the same points and passes over as many
as its journal holds.

For that, what is said behind a state that was kept begins alike, however often it is said. What
the sink does by the clock it decides first and does once that is kept: before, and apart from,
the records that come with it. So it matters not whether there were any when it was killed, and
records are given again in the batches they were given in. Of words the last hold: they may change.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from opusclip_mlops import journal
from opusclip_mlops.accounting import totals
from opusclip_mlops.deaths import TRACEBACK_TAG
from opusclip_mlops.folder import Position, Progress, RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.merging_gaps import KEY, LACKING_TAG, UNHEARD_TAG
from opusclip_mlops.merging_log import Kept, MergingLog
from opusclip_mlops.rank_merging import News, fault_of
from opusclip_mlops.records import (
    Batch,
    Metrics,
    RankMetrics,
    Record,
    RunEnded,
    Tags,
    Text,
    last_training_step,
    now_ms,
)
from opusclip_mlops.sessions import RANKS, RELAY, Session, all_ended, end_of, sessions
from opusclip_mlops.sinks import Refusal, SinkState, Written

if TYPE_CHECKING:
    from opusclip_mlops.sinks import Sink

NAME = "+ranks"
"""Begins the names of the journals that hold what was merged; no session is called so."""

NEVER_BEGAN = "these ranks never began to track"
"""Begins the line of the text `opusclip/ranks` that names them."""

LOOK_EVERY_S = 0.2
BEGIN_WAIT_S = 10.0
_SETTLED_S = 2.0
_LOG = "merging"


class _State(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of it: `decided` is done next, after so many sessions all was `merged`.

    `unheard` are the ranks that had not begun by the last end.
    """

    log: Kept = Kept()
    said: Position = {}
    decided: News = News()
    sessions: int = 0
    merged: int = 0
    last_step: int = 0
    unheard: str = ""


class _Said(Journal):
    """What was merged; where the disk is full for long, tries in vain leave one empty file."""

    def _open_next_segment(self) -> int:
        last = max(self._folder.glob(f"{self._name}-*{journal.SUFFIX}"), default=None)
        if last is None or last.stat().st_size:
            return super()._open_next_segment()
        return os.open(last, os.O_WRONLY | os.O_APPEND)


class RanksSink:
    """Merges what ranks log together."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._files = contextlib.ExitStack()
        self._journal: Journal | None = None

    def open(self, state: SinkState) -> SinkState:
        """Go on with the points that wait for ranks."""
        self._state = msgspec.convert(state, _State, str_keys=True)
        with self._letting_go():
            place = self._folder.path / "sinks" / f"{RANKS}.{_LOG}"
            self._log = MergingLog(place, self._state.log)
            self._files.callback(self._log.close)
            self._merger = self._log.merger()
            ahead = self._said_since()
        self._points_ahead = sum(isinstance(one, Metrics) for one in ahead)
        self._words_ahead = [_content(one) for one in ahead if not isinstance(one, Metrics)]
        self._ended_at: dict[tuple[int, int], Position] = {}
        self._gone: set[tuple[int, int]] = set()
        self._look_s, self._is_over = 0.0, False
        self._last_end_s = time.monotonic()
        self._state = msgspec.structs.replace(self._state, log=self._log.kept)
        return self._encoded()

    def write(self, batch: Batch) -> Written:
        """Do what was decided, merge the batch, and decide what follows from who has ended."""
        with self._letting_go():
            return self._written(batch)

    def _written(self, batch: Batch) -> Written:
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
        told = [one for one in (decided, News(records)) if not one.is_empty]
        # What is remembered is what is said: a rank may begin in between.
        unheard = self._unheard() if decided.finish else state.unheard
        for one in told:
            self._say(self._merger.advance(one))
            if one.finish:
                self._say_last(self._last_words(unheard))
        if told:
            self._log.append(self._merger, *told)
        merged = state.sessions if decided.finish else state.merged
        if records:
            # What comes behind an end, from a machine that was silent, is merged as well.
            merged = 0
        self._state = msgspec.structs.replace(state, decided=News(), merged=merged, unheard=unheard)

    def close(self, end: RunEnded | None) -> None:
        """Let go of the files: nothing waits any more."""
        assert end is None or self._is_over
        self._files.close()

    @contextlib.contextmanager
    def _letting_go(self) -> Iterator[None]:
        """Leave no file open at a fault: another sink goes on then, maybe in this process."""
        with contextlib.ExitStack() as files:
            files.push(self._files)
            yield
            files.pop_all()

    def _kept(self) -> SinkState:
        """What is to be kept now that all that was told is done."""
        self._points_ahead, self._words_ahead = 0, []
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
        if is_end and self._has_read(read, sizes):
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
        left = {one for one, goal in seen.items() if self._has_read(read, goal)}
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

    def _has_read(self, read: Progress, goal: Position) -> bool:
        """Whether all of that was read, but for what its process died in the midst of writing."""
        behind = {name: size for name, size in goal.items() if read.position.get(name, -1) < size}
        return all(self._is_torn(name, read.position.get(name, 0)) for name in behind)

    def _is_torn(self, name: str, start_bytes: int) -> bool:
        """Whether nothing whole is behind there, and nobody writes any more."""
        path = self._folder.path / name
        if abs(time.time() - path.stat().st_mtime) < _SETTLED_S:
            return False
        items = journal.read(path, start_bytes)
        return not any(isinstance(item, journal.Entry) for item in items)

    def _read_until(self, batch: Batch) -> Position:
        """Up to where this sink was given the journals, with this batch."""
        progress = self._folder.progress(RANKS)
        return progress.given[0] if batch.records and progress.given else progress.position

    def _last_words(self, unheard: str) -> Iterator[Record]:
        """What was not merged as it was meant, and what all processes left out."""
        step, timestamp_ms = max(0, self._state.last_step), now_ms()
        never = f"{NEVER_BEGAN}: {unheard}" if unheard else ""
        if text := "\n".join(filter(None, [never, self._merger.gaps.text()])):
            yield Text(timestamp_ms, step, KEY, text)
        # What was named before a kill is known by its words alone.
        ahead = (one.values for one in self._words_ahead if isinstance(one, Tags))
        if unheard or self._state.unheard or any(UNHEARD_TAG in one for one in ahead):
            yield Tags({UNHEARD_TAG: unheard or "none: all have begun since"})
        if lacking := self._merger.gaps.points_lacking:
            yield Tags({LACKING_TAG: str(lacking)})
        end = end_of(sessions(self._folder))
        if end and end.traceback:
            yield Tags({TRACEBACK_TAG: end.traceback})
        # An account that can't be read: then nothing is claimed.
        with contextlib.suppress(OSError):
            yield from totals(self._folder.path).records(timestamp_ms=timestamp_ms, step=step)

    def _unheard(self) -> str:
        """The ranks that never began; of other machines those say it who listen to them."""
        is_told = RELAY in self._folder.manifest().sinks
        return "" if is_told else ", ".join(map(str, _absent(sessions(self._folder))))

    def _say(self, points: Iterable[Metrics]) -> None:
        """Append the points that were not said before a crash.

        Raises:
            OSError: the disk cannot take it.
        """
        for point in points:
            if self._points_ahead:
                self._points_ahead -= 1
            else:
                self._append(point)

    def _say_last(self, words: Iterable[Record]) -> None:
        """Append the words that were not said before a crash, or have changed since."""
        for record in words:
            if _content(record) not in self._words_ahead:
                self._append(record)

    def _append(self, record: Record) -> None:
        if self._journal is None:
            self._journal = _Said(self._folder.path, NAME)
            self._files.callback(self._journal.close)
        self._journal.append(record)
        if self._journal.lost:
            raise OSError(f"merged points cannot be written down: {self._journal.fault}")

    def _said_in(self) -> list[Path]:
        return sorted(self._folder.path.glob(f"{NAME}-*{journal.SUFFIX}"))

    def _said_since(self) -> list[Record]:
        """What was said that the state does not know of."""
        items = (
            i for p in self._said_in() for i in journal.read(p, self._state.said.get(p.name, 0))
        )
        return [item.record for item in items if isinstance(item, journal.Entry)]


def _content(record: Record) -> object:
    """What words say, whenever they are said."""
    return (record.key, record.text) if isinstance(record, Text) else record


def _all_began(every: list[Session]) -> bool:
    """Whether each rank of the latest attempt has begun, or none will any more: one has failed."""
    has_failed = any(one.end and one.end.status != "FINISHED" for one in _latest(every))
    return has_failed or not _absent(every)


def _absent(every: list[Session]) -> list[int]:
    """The ranks of the latest attempt that have not begun."""
    ranked = _latest(every)
    world_size = max((one.start.world_size for one in ranked), default=0)
    return sorted(set(range(world_size)) - {one.start.rank for one in ranked})


def _latest(every: list[Session]) -> list[Session]:
    latest = max((one.start.attempt for one in every), default=0)
    return [one for one in every if one.start.attempt == latest and one.start.rank is not None]


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
