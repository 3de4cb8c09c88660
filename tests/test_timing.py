"""Facts about `opusclip_mlops.timing`: what a block took is logged, however it is left."""

import threading
import time

import pytest

from opusclip_mlops.timing import Timing


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, float]] = []

    def __call__(self, values: dict[str, float]) -> None:
        self.taken += values.items()

    @property
    def keys(self) -> list[str]:
        """The keys, in the order they were logged in."""
        return [key for key, _ in self.taken]


@pytest.fixture
def log() -> Log:
    return Log()


def test_a_block_is_timed_in_milliseconds(log: Log) -> None:
    """Once, when it is left."""
    with Timing("step/ms", log):
        assert log.taken == []
        time.sleep(0.02)
    [(key, elapsed_ms)] = log.taken
    assert key == "step/ms"
    assert elapsed_ms >= 20


def test_an_inner_block_takes_no_longer_than_the_outer(log: Log) -> None:
    """The inner one is logged first."""
    with Timing("outer", log), Timing("inner", log):
        time.sleep(0.001)
    assert log.keys == ["inner", "outer"]
    times = dict(log.taken)
    assert 1 <= times["inner"] <= times["outer"]


def test_an_exception_is_timed_and_goes_on(log: Log) -> None:
    """The block that raised is logged, and nothing is swallowed."""
    with pytest.raises(ValueError, match="no"), Timing("step", log):
        raise ValueError("no")
    assert log.keys == ["step"]


def test_each_call_of_a_function_is_timed(log: Log) -> None:
    """It takes and returns what it did, and keeps its name and words."""

    @Timing("double", log)
    def double(number: int, *, plus: int = 0) -> int:
        """Twice."""
        return 2 * number + plus

    assert [double(2), double(3, plus=1)] == [4, 7]
    assert log.keys == ["double"] * 2
    assert (double.__name__, double.__doc__) == ("double", "Twice.")


def test_a_function_that_raises_is_timed(log: Log) -> None:
    """Its exception reaches the caller."""

    @Timing("fail", log)
    def fail() -> None:
        raise KeyError("k")

    with pytest.raises(KeyError):
        fail()
    assert log.keys == ["fail"]


def test_a_function_that_calls_itself_has_a_time_for_each_call(log: Log) -> None:
    """The outermost call takes longest: the inner ones don't begin its time anew."""

    @Timing("sum", log)
    def total(n: int) -> int:
        time.sleep(0.001)
        return n + total(n - 1) if n else 0

    assert total(4) == 10
    times_ms = [elapsed_ms for _, elapsed_ms in log.taken]
    assert times_ms == sorted(times_ms)
    assert times_ms[-1] >= 5


def test_threads_do_not_disturb_each_other(log: Log) -> None:
    """One decorated function, called by two threads at once."""
    both_in = threading.Barrier(2)

    @Timing("wait", log)
    def wait(pause_s: float) -> None:
        both_in.wait(timeout=30)
        time.sleep(pause_s)

    threads = [threading.Thread(target=wait, args=(pause_s,)) for pause_s in (0.0, 0.03)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.taken[-1][1] >= 30
    assert len(log.taken) == 2


def test_one_timing_times_one_block_after_the_other(log: Log) -> None:
    """It may be kept and used again; each block has its own time."""
    timing = Timing("step", log)
    with timing:
        time.sleep(0.01)
    with timing:
        pass
    assert len(log.taken) == 2
    assert log.taken[0][1] >= 10
