"""Facts about `opusclip_mlops.timing`: each call of a function is timed, of whatever kind it is."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from opusclip_mlops.errors import RecordError
from opusclip_mlops.timing import timed


class Timer:
    """Counts how often it was entered and left, and notes what happens inside."""

    def __init__(self) -> None:
        self.entered = self.left = 0

    def __enter__(self) -> None:
        self.entered += 1

    def __exit__(self, *_: object) -> None:
        self.left += 1

    @property
    def is_in(self) -> bool:
        """Whether something is being timed."""
        return self.entered > self.left


@pytest.fixture
def timer() -> Timer:
    return Timer()


@pytest.mark.parametrize("given", [None, 5, "a", classmethod(len)])
def test_what_is_no_function_is_refused(timer: Timer, given: Any) -> None:
    """Where it is decorated, and not at the first call."""
    with pytest.raises(RecordError, match="what is timed must be a function, not "):
        timed(given, timer)


def test_each_call_of_a_function_is_timed(timer: Timer) -> None:
    """It takes and returns what it did, and keeps its name and words."""

    def double(number: int, *, plus: int = 0) -> int:
        """Twice."""
        assert timer.is_in
        return 2 * number + plus

    call = timed(double, timer)
    assert [call(2), call(3, plus=1)] == [4, 7]
    assert (timer.entered, timer.left) == (2, 2)
    assert (call.__name__, call.__doc__) == ("double", "Twice.")


def test_what_raises_is_timed(timer: Timer) -> None:
    """Its exception reaches the caller."""

    def fail() -> None:
        raise KeyError("k")

    with pytest.raises(KeyError):
        timed(fail, timer)()
    assert (timer.entered, timer.left) == (1, 1)


def test_a_coroutine_is_timed_to_its_result(timer: Timer) -> None:
    """Not when it is called, but while it runs and waits; it stays a coroutine function."""

    async def wait(number: int) -> int:
        await asyncio.sleep(0)
        assert timer.is_in
        return number

    call = timed(wait, timer)
    assert inspect.iscoroutinefunction(call)
    coroutine = call(4)
    assert timer.entered == 0
    assert asyncio.run(coroutine) == 4
    assert (timer.entered, timer.left) == (1, 1)


def test_of_a_generator_each_step_is_timed(timer: Timer) -> None:
    """What its user does with an item is not; what is sent, thrown and returned goes through."""
    seen: list[Any] = []

    def items() -> Iterator[int]:
        assert timer.is_in
        seen.append((yield 1))
        try:
            yield 2
        except KeyError as error:
            seen.append(error.args)
        return "end"  # type: ignore[return-value]

    def user() -> Iterator[int]:
        seen.append((yield from timed(items, timer)()))  # type: ignore[func-returns-value]

    generator: Any = user()
    assert next(generator) == 1
    assert not timer.is_in
    assert generator.send("sent") == 2
    with pytest.raises(StopIteration):
        generator.throw(KeyError("k"))
    assert seen == ["sent", ("k",), "end"]
    assert (timer.entered, timer.left) == (3, 3)


def test_a_generator_that_is_closed_ends(timer: Timer) -> None:
    """Its `finally` runs, also when it is only let go."""
    ended = []

    def items() -> Iterator[int]:
        try:
            yield 1
        finally:
            ended.append(True)

    generator: Any = timed(items, timer)()
    next(generator)
    generator.close()
    another = timed(items, timer)()
    next(another)
    del another
    assert ended == [True, True]
    assert not timer.is_in


def test_of_an_async_generator_each_step_is_timed(timer: Timer) -> None:
    """`async for` and `aclose` work as before."""
    ended = []

    async def items() -> AsyncIterator[int]:
        try:
            for number in range(3):
                await asyncio.sleep(0)
                assert timer.is_in
                yield number
        finally:
            ended.append(True)

    async def use() -> list[int]:
        found = []
        async for item in timed(items, timer)():
            assert not timer.is_in
            found.append(item)
        generator: Any = timed(items, timer)()
        await anext(generator)
        await generator.aclose()
        return found

    assert asyncio.run(use()) == [0, 1, 2]
    assert ended == [True, True]
    assert (timer.entered, timer.left) == (6, 6)
