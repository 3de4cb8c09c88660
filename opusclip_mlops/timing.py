"""Times a block of the training loop, at the cost of one log call."""

import functools
from collections.abc import Callable
from time import perf_counter_ns
from typing import ParamSpec, TypeVar

import msgspec

P = ParamSpec("P")
R = TypeVar("R")


class Timing(msgspec.Struct, gc=False):
    """Times a block, or each call of the function it decorates, also when that raises.

    Args:
        key: What the time is logged as.
        log: Takes the time in milliseconds under its key.
    """

    key: str
    log: Callable[[dict[str, float]], object]
    started_ns: int = 0

    def __enter__(self) -> None:
        self.started_ns = perf_counter_ns()

    def __exit__(self, *_: object) -> None:
        self.log({self.key: (perf_counter_ns() - self.started_ns) / 1e6})

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Time each call of a function; one that calls itself has a time for each call."""

        @functools.wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with type(self)(self.key, self.log):
                return function(*args, **kwargs)

        return timed
