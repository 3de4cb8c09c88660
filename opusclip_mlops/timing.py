"""Times each call of a function, whatever kind of function it is."""

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

from opusclip_mlops.errors import RecordTypeError

F = TypeVar("F", bound=Callable[..., Any])
Timer = AbstractContextManager[None]


def timed(function: F, timer: Timer) -> F:
    """The same function, with the timer around each call; the timer may be entered many times.

    A coroutine function is timed from its first step to its result, with all that it waited for. Of
    a generator, plain or async, each step to the next item is timed, and not what its user does in
    between.

    Raises:
        RecordTypeError: it is no function.
    """
    if not callable(function):
        kind = type(function).__name__
        raise RecordTypeError(f"what is timed must be a function, not {kind}: decorate that")
    return cast(F, functools.wraps(function)(_kind_of(function)(function, timer)))


def _kind_of(function: Callable[..., Any]) -> Callable[..., Callable[..., Any]]:
    if inspect.isasyncgenfunction(function):
        return _of_async_generator
    if inspect.isgeneratorfunction(function):
        return _of_generator
    return _of_coroutine if inspect.iscoroutinefunction(function) else _of_function


def _of_function(function: Callable[..., Any], timer: Timer) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with timer:
            return function(*args, **kwargs)

    return call


def _of_coroutine(function: Callable[..., Any], timer: Timer) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        with timer:
            return await function(*args, **kwargs)

    return call


def _of_generator(function: Callable[..., Any], timer: Timer) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return TimedGenerator(function(*args, **kwargs), timer)

    return call


def _of_async_generator(function: Callable[..., Any], timer: Timer) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return TimedAsyncGenerator(function(*args, **kwargs), timer)

    return call


class TimedGenerator(Generator[Any, Any, Any]):
    """A generator each step of which is timed."""

    def __init__(self, generator: Generator[Any, Any, Any], timer: Timer) -> None:
        self._generator, self._timer = generator, timer

    def send(self, value: Any) -> Any:
        """Go on to the next item."""
        with self._timer:
            return self._generator.send(value)

    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        """Go on with an exception raised inside."""
        with self._timer:
            return self._generator.throw(_exception(kind, value, traceback))


class TimedAsyncGenerator(AsyncGenerator[Any, Any]):
    """An async generator each step of which is timed."""

    def __init__(self, generator: AsyncGenerator[Any, Any], timer: Timer) -> None:
        self._generator, self._timer = generator, timer

    async def asend(self, value: Any) -> Any:
        """Go on to the next item."""
        with self._timer:
            return await self._generator.asend(value)

    async def athrow(self, kind: Any, value: Any = None, traceback: Any = None) -> Any:
        """Go on with an exception raised inside."""
        with self._timer:
            return await self._generator.athrow(_exception(kind, value, traceback))


def _exception(kind: Any, value: Any, traceback: Any) -> BaseException:
    """One exception for the three that `throw` may be given."""
    error: BaseException = kind if isinstance(kind, BaseException) else value
    if not isinstance(error, BaseException):
        error = kind() if value is None else kind(value)
    return error if traceback is None else error.with_traceback(traceback)
