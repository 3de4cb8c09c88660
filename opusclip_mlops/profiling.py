"""The calls of a tracker that say where the time goes."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from opusclip_mlops import records, torch_traces, trace_events
from opusclip_mlops.bottlenecks import TEXT_KEY
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.efficiency import Batches
from opusclip_mlops.errors import ConfigError, OpusclipError, RecordTypeError
from opusclip_mlops.insights import InsightCalls
from opusclip_mlops.loop_clock import LogCalls, LoopClock
from opusclip_mlops.operation_sums import memory_bytes
from opusclip_mlops.operations import Operation, Operations
from opusclip_mlops.rank_share import RankShare
from opusclip_mlops.redaction import one_line
from opusclip_mlops.selection import Selection
from opusclip_mlops.session import JoinedSession
from opusclip_mlops.setting_values import RULES, STEPS, UNSET, converted
from opusclip_mlops.torch_traces import StepProfiler, Trace

if TYPE_CHECKING:
    from torch.nn import Module

T = TypeVar("T")

_VALUES_AT_ONCE = 500
"""Of a record: MLflow takes no more than 1000 in a request."""


class ProfilingCalls(InsightCalls):
    """What a training loop calls about its time; a part of `ExperimentTracker`."""

    config: TrackingConfig
    _log_now: Callable[..., None]
    _loop_clock: LoopClock
    _operations: Operations
    _profiler: StepProfiler | None
    _profilers: list[StepProfiler]
    _selection: Selection
    _share: RankShare

    _step: int

    if TYPE_CHECKING:

        def _log_beside(self, metrics: Mapping[str, Any], step: int | None) -> None: ...

    def _begin_profiling(self) -> None:
        self._loop_clock = LoopClock(
            self._log_interval,
            self.config,
            step=lambda: self._step,
            log_calls=LogCalls(self, "_log_now"),
            notes=self._session.operations,
            is_worker=isinstance(self._session, JoinedSession),
            by_the_clock=self._share.is_one_of_many,
        )
        self._operations = self._loop_clock.operations
        self._profiler, self._profilers = None, []

    def log_profiling_data(self, data: Mapping[str, Any], step: int | None = None) -> None:
        """Log `profiling/…`: numbers, and mappings of names to numbers, as metrics.

        `bottlenecks` and any other list or text becomes one text.

        Raises:
            RecordTypeError: no mapping, or a value that is none of these; then nothing is logged.
            RecordError: a key MLflow would refuse.
        """
        at = self._current_step(step)
        numbers, texts = _sorted_out(data)
        for values in numbers:
            self._log_beside(values, at)
        for key, text in texts.items():
            self.log_text(text, key, at)

    def profile_operation(self, name: str, category: str = "operation") -> Operation:
        """Time a block or each call of a function: added up, and logged every some seconds.

        Each interval becomes `profiling/<category>/<name>/…`: `count`, `total_ms`, `self_ms`, which
        leaves out timed operations inside, `p50_ms`, `p95_ms` (within 1.6 %), `max_ms`, `share` of
        the time by the clock, and memory's change in the first use. The same object can be entered
        many times at once: in threads, tasks and recursively.

        Args:
            name: Of what is timed.
            category: What it belongs to; `evaluation`, `data`, `copy`, `forward`, `backward` and
                `optimizer` are parts of the loop that reports name.

        Raises:
            RecordTypeError: a name that is no text.
            RecordError: a name that is no legal key.
        """
        try:
            known = self._operations.known.get((category, name))
        except TypeError:
            records.check_key(category)
            records.check_key(name)
            raise
        return self._operations.named(category, name) if known is None else known

    def batches(
        self, loader: Iterable[T], *, samples: int | None = None, frames: int | None = None
    ) -> Batches[T]:
        """Go through a loader's batches, the wait for each of them timed.

        Args:
            loader: What gives the batches.
            samples: How many samples a batch holds; otherwise as its first array says.
            frames: How many frames a sample holds; then frames a second are logged.

        Raises:
            RecordTypeError: the loader cannot be gone through.
            RecordError: samples or frames are no whole number of 1 or more.
        """
        return self._loop_clock.efficiency.batches(loader, samples=samples, frames=frames)

    def time_model(self, model: "Module") -> None:
        """Time a model's forward and backward passes from now on, by hooks that `close` takes off.

        Give the model that the loop calls: the compiled one, or the one in its wrapper. On a GPU
        this is the time to launch the work.

        Raises:
            RecordTypeError: it is no module of torch.
        """
        self._loop_clock.efficiency.hooks.time_model(model)

    def _log_interval(self, values: Mapping[str, float]) -> None:
        """Log what an interval came to; no part of it is left out for the steps between points.

        Of many ranks, speed, memory and the loop's parts are merged; the rest is the owner's.
        """
        is_worker = isinstance(self._session, JoinedSession)
        if is_worker and not self._share.is_owner:
            return
        timestamp_ms, step = max(records.now_ms(), self._since_ms), self._current_step(None)
        found = dict(values) if is_worker else {**values, **self._memory_of_rank()}
        kept = list(self._selection.kept_sums(found).items())
        for at in range(0, len(kept), _VALUES_AT_ONCE):
            part = dict(kept[at : at + _VALUES_AT_ONCE])
            if is_worker:
                self._append(records.Metrics(timestamp_ms, step, part))
            else:
                for record in self._share.of_interval(part, timestamp_ms, step):
                    self._append(record)

    def _memory_of_rank(self) -> dict[str, float]:
        """What one of many ranks holds now; of one that is alone the machine's meter tells."""
        if not (self._share.is_one_of_many and self.config.system_metrics):
            return {}
        resident, on_gpu = memory_bytes()
        found = {"performance/rss_megabytes": resident / 1e6}
        return (
            found
            if on_gpu is None
            else {**found, "performance/gpu_allocated_megabytes": on_gpu / 1e6}
        )

    def profiled(self, steps: tuple[int, int] = (0, 100)) -> StepProfiler:
        """Profile steps of a block with torch.profiler: `with tracker.profiled((2, 5)) as block:`.

        Steps count from 0 as the block begins, and each ends with `block.step()`; without it all of
        the block is one step. `TrackingConfig(profile_steps=…)` does it without a block, by the
        steps that are logged.

        Args:
            steps: The first to profile, and that after the last, at most 100 later.

        Raises:
            ConfigError: the steps are no such pair.
        """
        pair, (is_legal, rule) = converted(steps, STEPS), RULES["profile_steps"]
        if pair in (None, UNSET) or not is_legal(pair):
            raise ConfigError(f"steps must be {rule}, not {steps!r:.80}")
        return self._step_profiler(*pair)

    def _step_profiler(self, first: int, end: int) -> StepProfiler:
        media = self._session.folder.media
        made = StepProfiler(
            first, end, folder=media, keep=self._keep_trace, tell=self._not_profiled
        )
        self._profilers = [*(one for one in self._profilers if not one.is_done), made]
        return made

    def _profile_on_schedule(self, steps: tuple[int, int] | None, *, step: int) -> None:
        """Watch for the steps that are to be profiled; `step` is about to begin."""
        if steps is not None and self._share.is_owner:
            self._profiler = self._step_profiler(*steps)
            self._profile_from(step)

    def _profile_from(self, step: int) -> None:
        """Go on to a step; a profiler that is done is let go."""
        # Another thread may let it go meanwhile.
        profiler = self._profiler
        if profiler is not None:
            profiler.begin(step)
            if profiler.is_done:
                self._profiler = None

    def _end_profiling(self) -> None:
        self._profiler = None
        for profiler in self._profilers:
            profiler.stop()
        report = self._loop_clock.stop()
        if report is not None and self._share.is_owner:
            at, timestamp_ms = self._current_step(None), max(records.now_ms(), self._since_ms)
            self._append(records.Text(timestamp_ms, at, TEXT_KEY, report.text()))
            self._append(records.Table(timestamp_ms, at, TEXT_KEY, report.columns, report.rows))

    def _keep_trace(self, trace: Trace) -> None:
        """Log a trace, and its slowest operators as a table, at the last step."""
        kept = self._kept({torch_traces.TRACE_FILE: trace.document})
        at = self._current_step(None)
        if kept:
            self._log_insight(torch_traces.TRACE_KEY, "trace", at, trace.content(), kept)
        table = (torch_traces.OPERATORS_KEY, trace_events.COLUMNS, trace.operators)
        self._append(records.Table(self._shown_ms(), at, *table))

    def _not_profiled(self, fault: Exception) -> None:
        """Say once why steps are not profiled; training goes on."""
        if isinstance(fault, OSError):
            self._session.count_lost(fault)
        kind = "" if isinstance(fault, OpusclipError) else f"{type(fault).__name__}: "
        print(f"opusclip: {one_line(f'profiling: {kind}{fault}')}", file=sys.stderr, flush=True)


def _sorted_out(data: Any) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Profiling data as metrics, those of a part together, and as texts by key; all of it legal."""
    if not isinstance(data, Mapping):
        kind = type(data).__name__
        raise RecordTypeError(f"profiling data must be a mapping of names to values, not {kind}")
    numbers: list[dict[str, Any]] = []
    texts: dict[str, str] = {}
    for part, content in data.items():
        key = f"profiling/{part}"
        if isinstance(content, Mapping):
            numbers.append(prefixed(key, content))
        elif isinstance(content, str | Sequence):
            records.check_key(key)
            texts[key] = content if isinstance(content, str) else "\n".join(map(str, content))
        else:
            numbers.append({key: content})
    for values in numbers:
        records.to_values(values)
    return numbers, texts


def prefixed(prefix: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The same values, each under `<prefix>/<key>`."""
    return {f"{prefix}/{key}": value for key, value in metrics.items()}
