"""Times a block of the training loop, at the cost of one log call."""

import contextlib
import time
from collections.abc import Callable
from typing import Any, Self


class Timing(contextlib.ContextDecorator):
    """Times a block, or each call of the function it decorates, also when that raises.

    Args:
        key: What the time is logged as.
        log: Takes the key and the time in milliseconds.
    """

    __slots__ = ("_key", "_log", "_started_ns")

    def __init__(self, key: str, log: Callable[[str, float], None]) -> None:
        self._key = key
        self._log = log

    def __enter__(self) -> None:
        self._started_ns = time.perf_counter_ns()

    def __exit__(self, *_: object) -> None:
        self._log(self._key, (time.perf_counter_ns() - self._started_ns) / 1e6)

    def _recreate_cm(self: Self) -> Any:
        # A decorated function may call itself: each call has its own time.
        return type(self)(self._key, self._log)
