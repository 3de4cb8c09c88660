"""Merges what many ranks log together: their values in, points of the run out.

The n-th value that a rank logs of a key at a step belongs to the n-th of every other rank. A point
is made once all have come, or without those that will not come any more; then that is noted. All
of it follows from what came and in which order: the same again makes the same points.
"""

from collections.abc import Iterator

import msgspec

from opusclip_mlops.merging_gaps import Gaps
from opusclip_mlops.open_points import (
    KeptPoint,
    OpenPoints,
    Point,
    Together,
    bits_of,
    ranks_of,
)
from opusclip_mlops.records import Metrics, RankMetrics
from opusclip_mlops.reductions import EACH, REDUCTIONS, STATS, key_of_rank, reduced, turn_of

MOST_RANKS = 65_536
MOST_OPEN_BYTES = 128 * 1024 * 1024
"""What may wait for ranks that lag behind; of more, the oldest is merged without them."""

PASSED_AFTER_MS = 600_000
"""How long after a step a rank has to be at a later one, for what it has not logged to be given up.

Ranks that are further apart than this do not train together: torch's collectives end by then.
"""

_VALUES_AT_ONCE = 500
"""Of a record: MLflow takes no more than 1000 in a request."""

_TURNS = "turns"
_FEW = 1000
_Series = tuple[int, int, str, str]
"""Attempt, world size, kind and key: what a rank logs at rising steps."""


class News(msgspec.Struct, frozen=True, array_like=True):
    """What a merger is told: which ranks have left, whether all have, and what was logged since.

    `left` holds ranks by attempt; with `finish` all that waits is merged, before the `records`.
    """

    records: list[RankMetrics] = []
    left: dict[int, list[int]] = {}
    finish: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing new."""
        return not (self.records or self.left or self.finish)


class Reached(msgspec.Struct, array_like=True):
    """How far a rank has come: its last step and time, and its last turn."""

    step: int = -(2**63)
    timestamp_ms: int = 0
    turn: int = -1


class MergerState(msgspec.Struct, array_like=True):
    """All that a merger knows beside its open points.

    `reached` is by attempt, world size and rank; `gone` are bits of ranks by attempt; `given_up`
    is by series and rank the last place of which a value of the rank is not waited for any more.
    """

    reached: dict[tuple[int, int, int], Reached] = {}
    gone: dict[int, set[int]] = {}
    given_up: dict[_Series, dict[int, int]] = {}
    taken: int = 0
    gaps: Gaps = msgspec.field(default_factory=Gaps)


class Snapshot(msgspec.Struct, array_like=True):
    """A merger as it is written down."""

    state: MergerState
    points: list[KeptPoint]


def fault_of(record: RankMetrics) -> str:
    """Why a record cannot be merged, empty where it can."""
    if not 1 <= record.world_size <= MOST_RANKS or not 0 <= record.rank < record.world_size:
        return f"rank {record.rank} of {record.world_size} ranks is none"
    if record.reduce not in REDUCTIONS and turn_of(record.reduce) is None:
        return f"no reduction is called {record.reduce!r:.60}"
    return ""


class RankMerger:
    """Merges the values of ranks.

    Args:
        snapshot: What an earlier one knew.
        most_open_bytes: What may wait for ranks that lag behind.
    """

    def __init__(
        self, snapshot: Snapshot | None = None, *, most_open_bytes: int = MOST_OPEN_BYTES
    ) -> None:
        self._state = snapshot.state if snapshot else MergerState()
        self._most_open_bytes = most_open_bytes
        self._open = OpenPoints()
        for kept in snapshot.points if snapshot else ():
            self._open.take_back(kept)
        self._gone = {attempt: bits_of([*gone]) for attempt, gone in self._state.gone.items()}

    @property
    def gaps(self) -> Gaps:
        """What was not merged as it was meant, so far."""
        return self._state.gaps

    @property
    def open_bytes(self) -> int:
        """About how much memory holds what waits for ranks."""
        return self._open.size_bytes

    def snapshot(self) -> Snapshot:
        """All that it knows."""
        self._state.gone = {attempt: set(ranks_of(bits)) for attempt, bits in self._gone.items()}
        return Snapshot(self._state, [*self._open.kept()])

    def advance(self, news: News) -> Iterator[Metrics]:
        """The points that are made by what is told; all of them are to be taken."""
        for attempt, ranks in news.left.items():
            yield from self._leave(attempt, bits_of(ranks))
        if news.finish:
            yield from self._give_up(list(self._open.groups))
        for record in news.records:
            yield from self._take(record)
        # Now and then only: with many that wait, to look at all of them takes time.
        if _FEW + self._state.taken >= self._open.count:
            self._state.taken = 0
            yield from self._give_up(list(self._passed()))

    def _take(self, record: RankMetrics) -> Iterator[Metrics]:
        if record.reduce == EACH:
            own = {key_of_rank(key, record.rank): one for key, one in record.values.items()}
            yield Metrics(record.timestamp_ms, record.step, own)
            return
        self._state.taken += len(record.values)
        together = self._note(record)
        yield from self._made(together, self._whole_with(record, together))
        while self._open.size_bytes > self._most_open_bytes:
            yield from self._give_up([next(iter(self._open.groups))])

    def _note(self, record: RankMetrics) -> Together:
        """Note how far a rank is, and say what its record belongs to."""
        attempt, size, rank = record.attempt, record.world_size, record.rank
        if (gone := self._gone.get(attempt, 0)) >> rank & 1:
            self._gone[attempt] = gone ^ (1 << rank)
        if (attempt, size, rank) not in self._state.reached:
            self._forget_all_gone(attempt)
        reached = self._state.reached.setdefault((attempt, size, rank), Reached())
        reached.timestamp_ms = record.timestamp_ms
        if (number := turn_of(record.reduce)) is not None:
            reached.turn = number
            return Together(attempt, size, _TURNS, number)
        reached.step = record.step
        self.gaps.note_reduction(record.values, record.reduce)
        return Together(attempt, size, record.reduce, record.step)

    def _forget_all_gone(self, now: int) -> None:
        """Forget of earlier attempts what only those of their ranks need that may still log."""
        sizes = {(attempt, size) for attempt, size, _ in self._state.reached if attempt < now}
        over = {one for one in sizes if not ~self._gone.get(one[0], 0) & ((1 << one[1]) - 1)}
        if over:
            state = self._state
            state.reached = {k: v for k, v in state.reached.items() if k[:2] not in over}
            state.given_up = {k: v for k, v in state.given_up.items() if k[:2] not in over}

    def _whole_with(self, record: RankMetrics, together: Together) -> list[str]:
        """Put a record's values in; the keys of which a point is whole now."""
        whole, put = [], self._open.put
        gone = self._gone.get(together.attempt, 0)
        every = (1 << together.world_size) - 1
        for key in record.values:
            if self._is_late(record.rank, together, key):
                self.gaps.note_late(key)
            elif (put(record, together, key).present | gone) & every == every:
                whole.append(key)
        return whole

    def _is_late(self, rank: int, together: Together, key: str) -> bool:
        """Whether a value's point was made without it: none waits, and none is to be begun."""
        given_up = self._state.given_up
        if not given_up or self._open.first(together, key) is not None:
            return False
        return together.at <= given_up.get(_series(together, key), {}).get(rank, -(2**63) - 1)

    def _is_whole(self, together: Together, key: str) -> bool:
        point = self._open.first(together, key)
        if point is None:
            return False
        every = (1 << together.world_size) - 1
        return (point.present | self._gone.get(together.attempt, 0)) & every == every

    def _made(self, together: Together, keys: list[str]) -> Iterator[Metrics]:
        """The next points of these keys, and those behind them that are whole."""
        while keys:
            made: dict[tuple[int, int], dict[str, float]] = {}
            for key in keys:
                point = self._open.pop(together, key)
                at = (point.timestamp_ms, point.step)
                made.setdefault(at, {}).update(self._merged(together, key, point))
            for (timestamp_ms, step), values in made.items():
                yield from _records(timestamp_ms, step, values)
            keys = [key for key in keys if self._is_whole(together, key)]

    def _merged(self, together: Together, key: str, point: Point) -> dict[str, float]:
        """What a point comes to; ranks that it lacks are noted."""
        there = ranks_of(point.present)
        reduce = STATS if together.kind == _TURNS else together.kind
        if len(there) < together.world_size:
            missing = set(range(together.world_size)).difference(there)
            given_up = self._state.given_up.setdefault(_series(together, key), {})
            for rank in missing:
                given_up[rank] = max(together.at, given_up.get(rank, together.at))
            if together.kind != _TURNS:
                self.gaps.note_lack(key, reduce, point.step, sorted(missing))
        return reduced(key, [point.values[rank] for rank in there], reduce, ranks=there)

    def _leave(self, attempt: int, ranks: int) -> Iterator[Metrics]:
        """Wait for these ranks no longer."""
        self._gone[attempt] = self._gone.get(attempt, 0) | ranks
        for together in list(self._open.groups):
            if together.attempt == attempt:
                keys = self._open.groups[together]
                yield from self._made(together, [k for k in keys if self._is_whole(together, k)])

    def _give_up(self, groups: list[Together]) -> Iterator[Metrics]:
        """Make all points of these groups of those that are there."""
        for together in groups:
            while keys := list(self._open.groups.get(together, ())):
                yield from self._made(together, keys)

    def _passed(self) -> Iterator[Together]:
        """What all missing ranks have passed without logging it."""
        for together, points in self._open.groups.items():
            present = (1 << together.world_size) - 1
            for point in points.values():
                present &= point.present
            latest_ms = max(point.timestamp_ms for point in points.values())
            missing = set(range(together.world_size)).difference(ranks_of(present))
            if all(self._has_passed(rank, together, latest_ms) for rank in missing):
                yield together

    def _has_passed(self, rank: int, together: Together, latest_ms: int) -> bool:
        if self._gone.get(together.attempt, 0) >> rank & 1:
            return True
        reached = self._state.reached.get((together.attempt, together.world_size, rank))
        if reached is None:
            return False
        if together.kind == _TURNS:
            return reached.turn > together.at
        return reached.step > together.at and reached.timestamp_ms > latest_ms + PASSED_AFTER_MS


def _series(together: Together, key: str) -> _Series:
    return together.attempt, together.world_size, together.kind, key


def _records(timestamp_ms: int, step: int, values: dict[str, float]) -> Iterator[Metrics]:
    items = list(values.items())
    for at in range(0, len(items), _VALUES_AT_ONCE):
        yield Metrics(timestamp_ms, step, dict(items[at : at + _VALUES_AT_ONCE]))
