"""Ranks that log, leave and are started anew, an act at a time; and what is to be merged of it."""

import math
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from opusclip_mlops.folder import RunFolder
from opusclip_mlops.journal import Journal, framed
from opusclip_mlops.records import RankMetrics, Record
from opusclip_mlops.reductions import EACH, STATS, key_of_rank, reduced, turn, turn_of
from tests.journeys import end
from tests.reading import Point
from tests.sinks.test_ranks import begin, leave

Act = Callable[[], object]
_REDUCTIONS = ("mean", "min", "sum", STATS, EACH, "turn")
_KEYS = ("loss", "acc", "rare")


class World:
    """Some ranks of one or two attempts; `acts` is what they have yet to do."""

    def __init__(self, folder: RunFolder, chance: random.Random, *, steps: int = 6) -> None:
        self.logged: list[RankMetrics] = []
        self._folder, self._chance, self._steps = folder, chance, steps
        self._step_ms = chance.choice([1000, 700_000])
        end(folder)
        self.acts: list[Act] = []
        for attempt in range(chance.choice([1, 1, 2])):
            self.acts += self._attempt(attempt, chance.randrange(2, 5))

    def go_on(self, acts: int) -> None:
        """Do the next acts."""
        for act in self.acts[:acts]:
            act()
        del self.acts[:acts]

    def pass_time(self) -> None:
        """Do some acts, or none."""
        self.go_on(self._chance.choice([0, 1, 3, 9]))

    def _attempt(self, attempt: int, size: int) -> list[Act]:
        """All of its ranks begin; then each does its own, in its own order."""
        folder, chance = self._folder, self._chance
        ranks = [_Rank(folder, rank, size, attempt) for rank in range(size)]
        lines = [self._line(rank) for rank in ranks]
        mixed = [rank.begin for rank in ranks]
        while lines := [line for line in lines if line]:
            line, some = chance.choice(lines), chance.randrange(1, 4)
            mixed += line[:some]
            del line[:some]
        return mixed

    def _line(self, rank: "_Rank") -> list[Act]:
        chance = self._chance
        acts: list[Act] = []
        for step in range(chance.randrange(self._steps + 1)):
            for _ in range(chance.choice([0, 1, 1, 2])):
                acts.append(self._log(rank, step))
        torn = [rank.tear] if chance.random() < 0.2 else []
        return [*acts, *torn, rank.leave]

    def _log(self, rank: "_Rank", step: int) -> Act:
        chance = self._chance
        keys = chance.sample(_KEYS, chance.randrange(1, 3))
        values = {key: chance.choice([chance.random(), 1e300, math.nan]) for key in keys}
        how = chance.choice(_REDUCTIONS)
        reduce = turn(step // 2) if how == "turn" else how
        at = (self._step_ms * step + rank.rank, step)
        record = RankMetrics(*at, values, reduce, rank.rank, rank.size, rank.attempt)
        self.logged.append(record)
        return lambda: rank.append(record)


@dataclass
class _Rank:
    folder: RunFolder
    rank: int
    size: int
    attempt: int

    def begin(self) -> None:
        self.name = begin(self.folder, self.rank, of=self.size, attempt=self.attempt)
        self._journal = Journal(self.folder.path, self.name)

    def append(self, record: Record) -> None:
        self._journal.append(record)

    def tear(self) -> None:
        """Die in the midst of a write, some time ago."""
        path = self.folder.path / f"{self.name}-000000.journal"
        with path.open("ab") as file:
            file.write(framed(RankMetrics(0, 0, {"loss": 1.0}, "mean", 0, 2))[:-3])
        os.utime(path, (0, 0))

    def leave(self) -> None:
        self._journal.close()
        leave(self.folder, self.name, "FINISHED" if self.rank else "KILLED")


def to_be_merged(logged: list[RankMetrics]) -> list[Point]:
    """The points of the whole list: the n-th value of each rank belongs to those of the others."""
    together: dict[tuple[object, ...], list[RankMetrics]] = {}
    seen: Counter[tuple[object, ...]] = Counter()
    found = [point for one in logged if one.reduce == EACH for point in _own(one)]
    for one in logged:
        for key in () if one.reduce == EACH else one.values:
            number = turn_of(one.reduce)
            place = ("turns", number) if number is not None else (one.reduce, one.step)
            series = (one.attempt, one.world_size, *place, key)
            together.setdefault((*series, seen[*series, one.rank]), []).append(one)
            seen[*series, one.rank] += 1
    for (*_, key, _), calls in together.items():
        found += _merged(str(key), sorted(calls, key=lambda one: one.rank))
    return sorted(found)


def lacking(logged: list[RankMetrics]) -> int:
    """How many of these points lack a rank; intervals of a clock are not counted."""
    counted = [one for one in logged if one.reduce != EACH and turn_of(one.reduce) is None]
    seen: Counter[tuple[object, ...]] = Counter()
    there: Counter[tuple[object, ...]] = Counter()
    for one in counted:
        for key in one.values:
            series = (one.attempt, one.world_size, one.reduce, one.step, key)
            there[(*series, seen[*series, one.rank])] += 1
            seen[*series, one.rank] += 1
    return sum(count < int(str(point[1])) for point, count in there.items())


def _own(one: RankMetrics) -> list[Point]:
    return [
        Point(key_of_rank(key, one.rank), one.step, one.timestamp_ms, repr(value))
        for key, value in one.values.items()
    ]


def _merged(key: str, calls: list[RankMetrics]) -> list[Point]:
    reduce = STATS if turn_of(calls[0].reduce) is not None else calls[0].reduce
    values = [one.values[key] for one in calls]
    made = reduced(key, values, reduce, ranks=[one.rank for one in calls])
    step, timestamp_ms = max(one.step for one in calls), max(one.timestamp_ms for one in calls)
    return [Point(name, step, timestamp_ms, repr(float(value))) for name, value in made.items()]
