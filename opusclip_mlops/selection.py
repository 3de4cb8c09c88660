"""Decides which points are logged: priorities by key, intervals in steps, and the backlog's quota.

Every point that is left out is counted, so that a run can say exactly what it lacks.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Protocol

from opusclip_mlops.setting_values import PRIORITIES

ASK_EVERY_MS = 1000
_MAX_KEYS = 100_000

BUILT_IN = {
    "system/*": "low",
    "performance/*": "low",
    "profiling/*": "low",
    "*loss*": "high",
    "val/*": "high",
    "*/val/*": "high",
    "val_*": "high",
    "*/val_*": "high",
    "*validation*": "high",
    "eval/*": "high",
    "*/eval/*": "high",
    "lr": "high",
    "*/lr": "high",
    "lr[/_-]*": "high",
    "*/lr[/_-]*": "high",
    "*learning[_ -]rate*": "high",
}
"""Priorities of keys that no pattern of the user fits; capitals count as small letters here."""


class Counter(Protocol):
    """Where points that were left out are counted; `accounting.Account` is one."""

    def count(self, kind: str, keys: Sequence[str]) -> None:
        """Count one point of each key."""


class Selection:
    """Keeps the points that are to be logged and counts the others; safe in threads and forks.

    Args:
        priorities: `high`, `medium` or `low` by key pattern, before the built-in ones.
        intervals: Steps between two points of a key, by priority.
        level: What the backlog's quota asks for: 0 nothing, 1 no low points, 2 high ones only.
        account: Counts what is left out.
    """

    def __init__(
        self,
        *,
        priorities: Mapping[str, str],
        intervals: Mapping[str, int],
        level: Callable[[], int],
        account: Counter,
    ) -> None:
        # Between these two times everything is kept, and `kept` need not be called.
        self.free_from_ms = self.free_until_ms = 0
        self._priorities = dict(priorities)
        self._intervals = {one: intervals.get(one, 1) for one in PRIORITIES}
        self._keeps_every_step = all(steps == 1 for steps in self._intervals.values())
        self._ask_level = level
        self._account = account
        self._level = 0
        self._asked_ms: int | None = None
        self._kept_steps: dict[str, int] = {}
        self._rule_of = functools.lru_cache(maxsize=_MAX_KEYS)(self._find_rule)

    def kept(self, values: dict[str, float], *, step: int, timestamp_ms: int) -> dict[str, float]:
        """The values that are to be logged; the same dict when all are."""
        if self.free_from_ms <= timestamp_ms < self.free_until_ms:
            return values
        self._ask(timestamp_ms)
        if self._keeps_every_step and not self._level:
            return values
        return self._sifted(values, step)

    def kept_sums(self, values: dict[str, float]) -> dict[str, float]:
        """As `kept`, of sums over all steps since the last point: no interval leaves them out."""
        level = self._ask_level()
        shed = [key for key in values if self._rule_of(key)[1] < level]
        if not shed:
            return values
        self._account.count("shed", shed)
        return {key: value for key, value in values.items() if key not in shed}

    def leave_to_owner(self, keys: Sequence[str]) -> None:
        """Count one point of each key that another of many ranks logs for all."""
        self._account.count("rank", keys)

    def priority_of(self, key: str) -> str:
        """Whether a key is `high`, `medium` or `low`."""
        return self._rule_of(key)[0]

    def _ask(self, timestamp_ms: int) -> None:
        """Learn the level, once a second; at once when the clock was set."""
        # Either way: threads come here a little out of order.
        if self._asked_ms is not None and abs(timestamp_ms - self._asked_ms) < ASK_EVERY_MS:
            return
        self._asked_ms = timestamp_ms
        self.free_until_ms = 0
        self._level = self._ask_level()
        if self._keeps_every_step and not self._level:
            self.free_from_ms = timestamp_ms - ASK_EVERY_MS + 1
            self.free_until_ms = timestamp_ms + ASK_EVERY_MS

    def _sifted(self, values: dict[str, float], step: int) -> dict[str, float]:
        skipped, shed = [], []
        for key in values:
            _, rank, interval = self._rule_of(key)
            if interval > 1 and not self._is_due(key, step, interval):
                skipped.append(key)
            elif rank < self._level:
                shed.append(key)
            elif interval > 1:
                self._remember(key, step)
        if not skipped and not shed:
            return values
        self._account.count("skipped", skipped)
        self._account.count("shed", shed)
        left_out = {*skipped, *shed}
        return {key: value for key, value in values.items() if key not in left_out}

    def _is_due(self, key: str, step: int, interval: int) -> bool:
        last = self._kept_steps.get(key)
        return last is None or step < last or step - last >= interval

    def _remember(self, key: str, step: int) -> None:
        if len(self._kept_steps) >= _MAX_KEYS:
            self._kept_steps.clear()
        self._kept_steps[key] = step

    def _find_rule(self, key: str) -> tuple[str, int, int]:
        """A key's priority, its rank (0 is left out first) and its interval."""
        priority = self._find_priority(key)
        rank = len(PRIORITIES) - 1 - PRIORITIES.index(priority)
        return priority, rank, self._intervals[priority]

    def _find_priority(self, key: str) -> str:
        for pattern, priority in self._priorities.items():
            if fnmatchcase(key, pattern):
                return priority
        small = key.lower()
        return next(
            (one for pattern, one in BUILT_IN.items() if fnmatchcase(small, pattern)), "medium"
        )
