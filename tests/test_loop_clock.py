"""Facts about `opusclip_mlops.loop_clock`: what an ordinary loop says of itself."""

import time
import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest

from opusclip_mlops import loop_clock
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.loop_clock import LogCalls, LoopClock


class Owner:
    """Has a method that takes its time."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, pause_s: float) -> None:
        """Take so long."""
        self.calls += 1
        time.sleep(pause_s)


class Clock:
    """A loop's clock and what it logs."""

    def __init__(self, **settings: Any) -> None:
        self.logged: list[Mapping[str, float]] = []
        self.step = 0
        self.owner = Owner()
        settings = {"profile_interval_s": 1000.0, **settings}
        self.clock = LoopClock(
            self.logged.append,
            TrackingConfig(**settings),
            step=lambda: self.step,
            log_calls=LogCalls(self.owner, "log"),
        )
        self._now_ms = 0

    def run(self, steps: int, *, pause_s: float = 0.0) -> None:
        """Log so many steps, a second apart by the records' times."""
        for _ in range(steps):
            self._now_ms += 1000
            self.clock.look(self.step, self._now_ms)
            self.owner.log(pause_s)
            self.step += 1


def test_the_share_of_log_calls_is_sampled() -> None:
    """For one look all calls are timed, then none is; the method is what it was."""
    owner, plain = Owner(), Owner.log
    calls = LogCalls(owner, "log")
    began_s = time.perf_counter()
    calls.turn()
    owner.log(0.02)
    time.sleep(0.02)
    calls.turn()
    elapsed_s = time.perf_counter() - began_s
    assert "log" not in vars(owner)
    assert owner.log.__func__ is plain  # type: ignore[attr-defined]
    share = calls.take()
    assert share is not None
    assert 0.02 / elapsed_s <= share <= 1 - 0.02 / elapsed_s
    assert calls.take() is None
    calls.turn()
    calls.stop()
    owner.log(0)
    assert (calls.take(), owner.calls) == (None, 2)


def test_what_is_sampled_is_not_kept_call_by_call() -> None:
    """Twenty thousand log calls in one second take no more memory than one."""
    owner = Owner()
    calls = LogCalls(owner, "log")
    calls.turn()
    owner.log(0)
    tracemalloc.start()
    for _ in range(20_000):
        owner.log(0)
    grown_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    calls.stop()
    assert grown_bytes < 10_000


def test_sampling_that_ends_meanwhile_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may stop it at any moment, such as while this one looks at the clock."""
    calls = LogCalls(Owner(), "log")
    calls.turn()

    def stop_meanwhile() -> int:
        calls.stop()
        return time.perf_counter_ns()

    monkeypatch.setattr(loop_clock, "perf_counter_ns", stop_meanwhile)
    calls.turn()
    assert calls.take() == 0.0


def test_an_ordinary_loop_is_measured_without_being_asked() -> None:
    """Speed and the share of log calls, once the run is longer than an interval."""
    one = Clock(profile_interval_s=0.1, batch_size=4)
    one.run(30, pause_s=0.01)
    one.clock.stop()
    assert one.logged
    every = {key: value for values in one.logged for key, value in values.items()}
    assert {
        "performance/steps_per_s", "performance/samples_per_s", "performance/tracker_share",
        "profiling/interval/seconds", "profiling/interval/steps",
    } <= every.keys()  # fmt: skip
    assert every["performance/steps_per_s"] <= 100
    assert 0 < every["performance/tracker_share"] <= 1


def test_a_short_run_that_asked_for_nothing_says_nothing() -> None:
    """Nothing is added to the points of a run of a second."""
    one = Clock()
    one.run(3)
    one.clock.flush()
    assert one.clock.stop() is None
    assert one.logged == []


@pytest.mark.parametrize("settings", [{"system_metrics": False}, {"profile_operations": False}])
def test_it_is_switched_off(settings: dict[str, Any]) -> None:
    """With the machine's metrics, or with all profiling."""
    one = Clock(profile_interval_s=0.1, **settings)
    one.run(15, pause_s=0.01)
    assert one.clock.stop() is None
    assert one.logged == []


def test_what_was_asked_for_is_logged_however_short_the_run() -> None:
    """The last part of an interval too, with how long it was."""
    one = Clock(system_metrics=False)
    with one.clock.operations.named("operation", "a"):
        pass
    assert one.clock.stop() is None
    [values] = one.logged
    assert values["profiling/operation/a/count"] == 1
    assert 0 < values["profiling/interval/seconds"] < 60


def test_a_long_run_ends_with_a_report() -> None:
    """Of all its intervals."""
    one = Clock(profile_interval_s=0.1)
    began_s = time.perf_counter()
    while time.perf_counter() - began_s < 0.25:
        with one.clock.operations.named("loop", "data"):
            time.sleep(0.01)
        one.run(1)
    report = one.clock.stop()
    assert report is not None
    assert report.limit == "data"
    assert report.figures.seconds == pytest.approx(
        sum(one["profiling/interval/seconds"] for one in one.logged)
    )


def test_another_process_than_the_loops_tells_of_its_own_operations_only() -> None:
    """Under a category of its own, without speed: it does not hold the loop up."""
    logged: list[Mapping[str, float]] = []
    owner = Owner()
    clock = LoopClock(
        logged.append,
        TrackingConfig(),
        step=lambda: 9,
        log_calls=LogCalls(owner, "log"),
        is_worker=True,
    )
    clock.look(1, 5000)
    with clock.operations.named("data", "decode"):
        pass
    clock.stop()
    [values] = logged
    assert {key.rpartition("/")[0] for key in values} == {"profiling/workers/data/decode"}
    assert "log" not in vars(owner)
