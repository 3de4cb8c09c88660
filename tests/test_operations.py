"""Facts about `opusclip_mlops.operations`: every use counts once, wherever it begins and ends."""

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from opusclip_mlops import operations as module
from opusclip_mlops.errors import RecordError
from opusclip_mlops.operation_sums import Taken
from opusclip_mlops.operations import Interval, Measured, Operation, Operations

NEVER_S = 1e6


class Log:
    """Keeps the intervals, and has operations that are logged to it."""

    def __init__(self, interval_s: float = NEVER_S) -> None:
        self.intervals: list[Interval] = []
        self.all = Operations(self.intervals.append, interval_s=interval_s)

    def named(self, name: str) -> Operation:
        """An operation by this name."""
        return self.all.named("test", name)

    def taken(self) -> dict[str, Taken]:
        """What was timed since the last call, by name."""
        self.all.flush()
        return {one.name: one for one in self.intervals[-1].taken}


@pytest.fixture
def log() -> Log:
    return Log()


def test_a_use_is_timed_however_it_is_left(log: Log) -> None:
    """Once each, also by an exception, which goes on."""
    with log.named("a"):
        time.sleep(0.02)
    with pytest.raises(ValueError, match="no"), log.named("b"):
        raise ValueError("no")
    taken = log.taken()
    assert (taken["a"].count, taken["b"].count) == (1, 1)
    assert taken["a"].total_ms >= 20
    assert log.taken() == {}


def test_what_is_nested_is_no_own_time_of_the_outer(log: Log) -> None:
    """Totals hold it, `self_ms` does not; together the own times are the outermost total."""
    with log.named("outer"):
        for _ in range(3):
            with log.named("inner"):
                time.sleep(0.005)
    taken = log.taken()
    assert taken["outer"].total_ms >= taken["inner"].total_ms >= 15
    own_ms = taken["outer"].self_ms + taken["inner"].self_ms
    assert own_ms == pytest.approx(taken["outer"].total_ms)


def test_one_object_is_entered_many_times_at_once(log: Log) -> None:
    """Recursively, and by two threads: each use has its own time."""
    sleep = log.named("sleep")
    both_in = threading.Barrier(2)

    @log.named("total")
    def total(number: int) -> int:
        return number + total(number - 1) if number else 0

    within_ms: list[float] = []
    around_ms: list[float] = []

    def wait(pause_s: float) -> None:
        began_s = time.perf_counter()
        with sleep:
            entered_s = time.perf_counter()
            both_in.wait(timeout=60)
            time.sleep(pause_s)
            within_ms.append(1e3 * (time.perf_counter() - entered_s))
        around_ms.append(1e3 * (time.perf_counter() - began_s))

    threads = [threading.Thread(target=wait, args=(one,)) for one in (0.0, 0.1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total(4) == 10
    taken = log.taken()
    assert taken["total"].count == 5
    assert taken["sleep"].count == 2
    assert sum(within_ms) <= taken["sleep"].total_ms <= sum(around_ms)
    assert taken["sleep"].max_ms is not None
    assert max(within_ms) <= taken["sleep"].max_ms <= max(around_ms)


def test_no_use_is_lost_between_threads(log: Log) -> None:
    """Four threads, some thousand uses each, while a fifth ends interval after interval."""
    done = threading.Event()

    def use() -> None:
        for _ in range(5000):
            with log.named("a"):
                pass

    def flush() -> None:
        while not done.is_set():
            log.all.flush()
            time.sleep(0.001)

    threads = [threading.Thread(target=use) for _ in range(4)]
    flushing = threading.Thread(target=flush)
    for thread in (flushing, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    flushing.join()
    log.all.flush()
    assert sum(one.count for part in log.intervals for one in part.taken) == 20_000
    assert log.all.open_uses() == []


def test_tasks_on_one_thread_do_not_disturb_each_other(log: Log) -> None:
    """Each waits while the others run; the outer one's own time is not below nothing."""

    async def step(pause_s: float) -> None:
        with log.named("step"):
            await asyncio.sleep(pause_s)

    async def together() -> None:
        with log.named("all"):
            await asyncio.gather(*(step(0.01 * number) for number in range(1, 6)))

    asyncio.run(together())
    taken = log.taken()
    assert (taken["step"].count, taken["all"].count) == (5, 1)
    assert taken["step"].total_ms >= 150
    assert taken["step"].max_ms <= taken["all"].total_ms
    assert taken["all"].self_ms >= 0


def test_uses_may_end_in_another_order_than_they_began(log: Log) -> None:
    """A generator's use is left while another one is under way; nothing is kept of them."""

    def items() -> Iterator[int]:
        for number in range(200):
            with log.named("inside"):
                yield number

    with log.named("whole"):
        generator = items()
        for _ in range(200):
            with log.named("user"):
                next(generator)
        generator.close()
        with log.named("last"):
            assert [name for name, _ in log.all.open_uses()] == ["test/whole", "test/last"]
    taken = log.taken()
    assert {name: one.count for name, one in taken.items()} == {
        "whole": 1, "inside": 200, "user": 200, "last": 1,
    }  # fmt: skip
    assert log.all.open_uses() == []
    assert log.all.current.get() is None


def test_a_use_may_end_in_another_task_than_it_began(log: Log) -> None:
    """As async fixtures do: it counts once, and nothing of it is left in either."""
    operation = log.named("a")
    for _ in range(100):
        contextvars.copy_context().run(operation.__enter__)
        operation.__exit__()
    assert log.taken()["a"].count == 100
    operation.__exit__()
    assert log.taken() == {}
    assert log.all.open_uses() == []


def test_a_use_of_this_thread_ends_before_one_of_another(log: Log) -> None:
    """Where one operation is under way in both: the other thread's own end finds its own use."""
    operation = log.named("a")
    begun, done = threading.Event(), threading.Event()

    def use() -> None:
        with operation:
            begun.set()
            done.wait(timeout=60)

    thread = threading.Thread(target=use)
    thread.start()
    begun.wait(timeout=60)
    [other] = log.all.open
    contextvars.copy_context().run(operation.__enter__)
    operation.__exit__()
    assert list(log.all.open) == [other]
    done.set()
    thread.join()
    assert log.taken()["a"].count == 2


def test_a_chain_of_tasks_keeps_nothing(log: Log) -> None:
    """A task begun inside of an operation that has ended is inside of nothing."""
    depths = []

    def go_on(left: int) -> None:
        with log.named("a"):
            use, depth = log.all.current.get(), 0
            while use is not None:
                use, depth = use.outer, depth + 1
            depths.append(depth)
            context = contextvars.copy_context()
        if left:
            context.run(go_on, left - 1)

    go_on(50)
    assert set(depths) == {1}


def test_two_runs_do_not_disturb_each_other(log: Log) -> None:
    """What another run times inside of an operation is no part of it."""
    other = Log()
    with log.named("a"), other.named("b"):
        time.sleep(0.01)
    ours, theirs = log.taken(), other.taken()
    assert ours.keys() == {"a"}
    assert theirs.keys() == {"b"}
    assert ours["a"].self_ms == ours["a"].total_ms >= 10


def test_what_is_under_way_is_told() -> None:
    """By name and seconds, the first begun first; and noted, for the case that the process dies."""

    class Notes:
        """Keeps what is noted."""

        def __init__(self) -> None:
            self.cells = [0, 0, 0]
            self.names: list[str] = []

        def cell(self, name: str) -> int:
            """A number for each name."""
            self.names.append(name)
            return len(self.names) - 1

    notes = Notes()
    noted = Operations(lambda _: None, interval_s=NEVER_S, notes=notes)
    with noted.named("data", "read"), noted.named("data", "decode"):
        before_ns = time.perf_counter_ns()
        assert notes.names == ["data/read", "data/decode"]
        assert 0 < notes.cells[0] <= notes.cells[1] <= before_ns
        (first, first_s), (second, second_s) = noted.open_uses()
        assert (first, second) == ("data/read", "data/decode")
        assert first_s >= second_s >= 0
    assert notes.cells == [0, 0, 0]


def test_a_million_uses_are_a_few_points() -> None:
    """Whoever ends a use when the interval is over logs; in between the queue stays short."""
    log = Log(interval_s=0.05)
    operation = log.named("a")
    assert isinstance(operation, Measured)
    longest = 0
    began_s = time.monotonic()
    for _ in range(200_000):
        with operation:
            pass
        longest = max(longest, len(operation._ended))
    intervals = len(log.intervals)
    assert 1 <= intervals <= (time.monotonic() - began_s) / 0.05 + 1
    assert longest <= 1024
    log.all.flush()
    assert sum(one.count for part in log.intervals for one in part.taken) == 200_000


def test_a_long_use_has_its_share_in_each_interval(log: Log) -> None:
    """Never more than the whole of it; it is counted in the one in which it ends."""
    with log.named("long"):
        time.sleep(0.02)
        first = log.taken()["long"]
        with log.named("inner"):
            time.sleep(0.02)
            second = log.taken()
    third = log.taken()
    assert (first.count, second["long"].count, third["long"].count) == (0, 0, 1)
    for one in (first, second["long"], third["long"]):
        assert one.share <= 1.0
    assert second["long"].share == pytest.approx(1.0, abs=0.01)
    assert second["inner"].self_ms + second["long"].self_ms == pytest.approx(
        1e3 * log.intervals[1].seconds * second["long"].share, rel=0.01
    )
    whole_ms = 1e3 * sum(one.seconds for one in log.intervals)
    assert third["long"].total_ms <= whole_ms


def test_memory_is_that_of_the_first_use_in_an_interval(log: Log) -> None:
    """In megabytes; later ones are not asked, for that is dear."""
    kept = []
    with log.named("a"):
        kept.append(bytearray(b"x") * 60_000_000)
    with log.named("a"):
        kept.append(bytearray(b"x") * 200_000_000)
    change = log.taken()["a"].rss_change_megabytes
    assert change is not None
    assert 40 < change < 100


def test_a_name_that_is_no_key_is_refused(log: Log) -> None:
    """In the caller's line, with what may be in one."""
    for name in ("a?b", "../a", "x" * 230):
        with pytest.raises(RecordError, match="key"):
            log.named(name)
    with pytest.raises(RecordError, match="key '' is empty"):
        log.named("")
    for wrong in (None, 3, ("a", "b")):
        with pytest.raises(TypeError, match="a key must be a string"):
            log.all.named("data", wrong)


def test_names_without_end_are_counted_together(log: Log) -> None:
    """After a thousand, such as `step_1`, `step_2`, …: memory and keys stay bounded."""
    for number in range(module.MOST_OPERATIONS + 500):
        with log.named(f"step_{number}"):
            pass
    taken = log.taken()
    assert len(taken) == module.MOST_OPERATIONS + 1
    assert taken["others"].count == 500


def test_switched_off_it_times_nothing() -> None:
    """A decorated function is the function itself."""
    found: list[Interval] = []
    off = Operations(found.append, interval_s=0.1, is_on=False)

    def work() -> int:
        return 1

    operation = off.named("a", "b")
    assert operation(work) is work
    with operation:
        assert off.open_uses() == []
    assert not isinstance(operation, Measured)


def test_stopped_it_logs_no_more(log: Log) -> None:
    """A decorated function outlives the run it was timed for."""
    operation = log.named("a")
    log.all.stop()
    for _ in range(2000):
        with operation:
            pass
    log.all.flush()
    assert log.intervals == []


def test_a_forked_child_times_itself(log: Log) -> None:
    """What the parent had timed is the parent's; a use that the parent began is not counted."""
    with log.named("parent"):
        pass
    with log.named("around"):
        pid = os.fork()
        if pid == 0:
            with log.named("child"):
                pass
    if pid == 0:
        log.all.flush()
        taken = {f"{one.category}/{one.name}": one.count for one in log.intervals[-1].taken}
        os._exit(0 if taken == {"workers/test/child": 1} else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert log.taken().keys() == {"parent", "around"}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_that_ends_leaves_its_last_interval(method: str, tmp_path: object) -> None:
    """A child that multiprocessing ends, without the interpreter's own end, logs what it timed."""
    code = f"""
import multiprocessing, sys
from opusclip_mlops.operations import Operations

class Tracker:
    def __init__(self):
        self.all = Operations(self.log, interval_s=1e6)
    def log(self, interval):
        print([(one.category, one.name, one.count) for one in interval.taken], flush=True)
    def __reduce__(self):
        return Tracker, ()

def work(tracker):
    with tracker.all.named("data", "decode"):
        pass

if __name__ == "__main__":
    tracker = Tracker()
    context = multiprocessing.get_context("{method}")
    child = context.Process(target=work, args=(tracker,))
    child.start(); child.join()
    sys.exit(child.exitcode)
"""
    script = f"{tmp_path}/script.py"
    with open(script, "w") as file:
        file.write(code)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.count("data', 'decode', 1)") == 1


def test_intervals_by_the_clock_end_at_its_multiples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that begin at different moments, with counters of their own, end them together."""
    monkeypatch.setattr(module, "perf_counter_ns", lambda: 500)
    for wall_s, left_s in ((1003.0, 7.0), (1000.0, 10.0), (1009.5, 0.5)):
        wall_ns = round(wall_s * 1e9)
        monkeypatch.setattr(module, "time_ns", lambda wall_ns=wall_ns: wall_ns)
        one = Operations(lambda _: None, interval_s=10.0, by_the_clock=True)
        assert one.due_ns == 500 + round(left_s * 1e9)
        one.stop()
    free = Operations(lambda _: None, interval_s=10.0)
    assert free.due_ns == 500 + round(10e9)
    free.stop()
