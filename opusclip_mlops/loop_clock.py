"""Looks at a loop every second that something is logged in, and says what each interval came to."""

from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Any

from opusclip_mlops.bottlenecks import SECONDS_KEY, TRACKER_KEY, Report, Totals, report_of
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.efficiency import UNASKED, Efficiency
from opusclip_mlops.loop_parts import WORKERS
from opusclip_mlops.operations import Interval, Notes, Operations

LOOK_EVERY_MS = 1000


class LoopClock:
    """The time of one training loop, and of what is timed in it.

    Without being asked it measures speed, optimizer steps, checkpoints and the share of log calls,
    where the run measures the machine too; in a run shorter than an interval, only what was asked.

    Args:
        log: Takes the metrics of an interval.
        config: Says whether and how often.
        step: Tells the step that is reached.
        log_calls: Samples the time of log calls.
        notes: Where it is noted what is under way.
        is_worker: Whether this process is another than the one that trains.
        by_the_clock: Whether other processes are measured in the same intervals.
    """

    def __init__(
        self,
        log: Callable[[Mapping[str, float]], object],
        config: TrackingConfig,
        *,
        step: Callable[[], int],
        log_calls: "LogCalls",
        notes: Notes | None = None,
        is_worker: bool = False,
        by_the_clock: bool = False,
    ) -> None:
        self.operations = Operations(
            self._end_interval,
            interval_s=config.profile_interval_s,
            prefix=WORKERS if is_worker else "",
            is_on=config.profile_operations,
            by_the_clock=by_the_clock,
            notes=notes,
        )
        batch_size = config.batch_size if "batch_size" in config.given else None
        self.efficiency = Efficiency(self.operations, batch_size=batch_size)
        self._log, self._step, self._log_calls = log, step, log_calls
        self._interval_s = config.profile_interval_s
        self._is_unasked = config.profile_operations and config.system_metrics
        self._totals = Totals()
        self._looked_ms = -LOOK_EVERY_MS
        if self._is_unasked and not is_worker:
            self.efficiency.hooks.time_optimizers()

    def look(self, step: int, timestamp_ms: int) -> None:
        """Say that something is logged at a step; does something once a second only."""
        if abs(timestamp_ms - self._looked_ms) < LOOK_EVERY_MS:
            return
        self._looked_ms = timestamp_ms
        if self.operations.prefix:
            # A forked child may have begun while they were sampled.
            self._log_calls.stop()
        else:
            self.efficiency.note_step(step)
            if self._is_unasked:
                self.efficiency.hooks.time_optimizers()
                self._log_calls.turn()
        self.operations.look(perf_counter_ns())

    def flush(self) -> None:
        """End the interval now, if the run is longer than one or something was asked for."""
        if self._totals.seconds or self.operations.known.keys() - UNASKED:
            self.operations.flush()

    def stop(self) -> Report | None:
        """End the last interval and the measuring; a report if that was longer than an interval."""
        self.flush()
        self.operations.stop()
        self.efficiency.hooks.release()
        self._log_calls.stop()
        figures = self._totals.figures()
        is_long = figures.seconds >= self._interval_s
        return report_of(figures) if is_long and figures.spent else None

    def _end_interval(self, interval: Interval) -> None:
        values: dict[str, float] = {}
        for one in interval.taken:
            values |= one.as_metrics()
        if not self.operations.prefix:
            values |= self._of_loop(interval)
            self._totals.add(values)
        if values:
            self._log(values)

    def _of_loop(self, interval: Interval) -> dict[str, float]:
        values = self.efficiency.values(interval, self._step())
        share = self._log_calls.take()
        if not self._is_unasked and not interval.taken:
            return {}
        if share is not None:
            values[TRACKER_KEY] = share
        return {**values, SECONDS_KEY: interval.seconds} if values or interval.taken else {}


class LogCalls:
    """Samples which share of the time a method of an object takes: for a while all its calls.

    In between the method is called as ever, and costs what it does.
    """

    def __init__(self, owner: Any, method: str) -> None:
        self._owner, self._method = owner, method
        self._taken_ns = 0
        self._began_ns: int | None = None
        self._share: float | None = None

    def turn(self) -> None:
        """Begin to sample, or end it; once an interval is enough."""
        # Another thread may stop it at any moment.
        began_ns = self._began_ns
        if began_ns is not None:
            seconds_ns = max(1, perf_counter_ns() - began_ns)
            self._share = self._taken_ns / seconds_ns
            self.stop()
        elif self._share is None:
            self._taken_ns = 0
            # In the object itself it stands before the method of its class.
            vars(self._owner)[self._method] = self._timed()
            self._began_ns = perf_counter_ns()

    def take(self) -> float | None:
        """The share that was sampled since the last call, None where that is not known."""
        share, self._share = self._share, None
        return share

    def stop(self) -> None:
        """Let the method be called as ever."""
        self._began_ns = None
        vars(self._owner).pop(self._method, None)

    def _timed(self) -> Callable[..., None]:
        method = getattr(type(self._owner), self._method)

        def call(*args: Any, **kwargs: Any) -> None:
            began_ns = perf_counter_ns()
            method(self._owner, *args, **kwargs)
            # Two threads may lose one of thousands; to keep each call takes megabytes.
            self._taken_ns += perf_counter_ns() - began_ns

        return call
