"""Where a run's time went and what limits it: rules over figures, each with its threshold.

Intervals are added up by `Totals`, in the process that trains and where a run is read from MLflow;
the same figures give the same findings.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from opusclip_mlops.loop_parts import (
    BACKWARD,
    CHECKPOINT,
    COMPUTE,
    COPY,
    DATA,
    EVALUATION,
    FORWARD,
    OPTIMIZER,
    WORKERS,
    part_of,
)

SECONDS_KEY, STEPS_KEY = "profiling/interval/seconds", "profiling/interval/steps"
TRACKER_KEY = "performance/tracker_share"
TEXT_KEY = "profiling/bottlenecks"

DATA_SHARE, COPY_SHARE, TRACKER_SHARE = 0.20, 0.10, 0.02
CHECKPOINT_SHARE, EVALUATION_SHARE = 0.10, 0.30
COMPUTE_SHARE, OPERATION_SHARE, WAIT_SHARE = 0.60, 0.50, 0.10
"""From which share of the time on a part of the loop is a finding."""

WAITS = ("tracker/run_id", "tracker/flush")
"""What a program waits for delivery in; once at its start or end, so that it limits no loop."""

GPU_BUSY_PERCENT, GPU_IDLE_PERCENT, MEMORY_PERCENT = 80.0, 50.0, 90.0
CHANGED_SHARE, CHANGED_OF_STEP = 0.10, 0.02
"""What changed, by itself and as a share of a step, before it is told."""

SUMMED = ("count", "total_ms", "self_ms")
_WORK = (FORWARD, BACKWARD, OPTIMIZER, COMPUTE)
_MOST_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one operation took over a run, in seconds; `self_s` without what was timed inside."""

    category: str
    name: str
    uses: int
    total_s: float
    self_s: float
    max_ms: float

    @property
    def called(self) -> str:
        """Category and name."""
        return f"{self.category}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured of a run.

    Attributes:
        seconds: How long was measured.
        steps: Training steps in that time, 0 where they are not known.
        spent: By operation, the longest first.
        tracker_share: The share of the time that log calls took, where it was sampled.
        machine: Percent by name: `gpu_utilization` and `gpu_memory`, of all GPUs on average, and
            `memory`, the machine's.
    """

    seconds: float
    steps: float = 0.0
    spent: tuple[Spent, ...] = ()
    tracker_share: float | None = None
    machine: Mapping[str, float] = field(default_factory=dict)

    @property
    def steps_per_s(self) -> float | None:
        """Speed, where the steps are known."""
        return self.steps / self.seconds if self.steps and self.seconds else None

    @cached_property
    def shares(self) -> Mapping[str, float]:
        """The share of the time by part of the loop."""
        found: dict[str, float] = {}
        for one in self.spent:
            if part := part_of(one.category, one.name):
                found[part] = found.get(part, 0.0) + self.share(one)
        return found

    def share(self, one: Spent) -> float:
        """The share of the time that an operation took by itself."""
        return one.self_s / self.seconds if self.seconds else 0.0

    def step_ms(self, part: str) -> float:
        """Milliseconds that a part takes of a step."""
        return 1e3 * self.shares.get(part, 0.0) * self.seconds / self.steps if self.steps else 0.0


class Totals:
    """Adds up what intervals came to."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._sums: dict[str, float] = {}
        self._tracker_seconds = 0.0

    def add(self, values: Mapping[str, float]) -> None:
        """Add the metrics of one interval; those that are no figures of it are passed over."""
        seconds = values.get(SECONDS_KEY, 0.0)
        self.seconds += seconds
        if TRACKER_KEY in values:
            self._tracker_seconds += seconds
            self._add(TRACKER_KEY, values[TRACKER_KEY] * seconds)
        for key, value in values.items():
            if key == STEPS_KEY or key.rpartition("/")[2] in SUMMED:
                self._add(key, value)
            elif key.endswith("/max_ms"):
                self._sums[key] = max(value, self._sums.get(key, value))

    def figures(self, machine: Mapping[str, float] | None = None) -> Figures:
        """What they came to."""
        tracker_s = self._sums.get(TRACKER_KEY, 0.0)
        return Figures(
            seconds=self.seconds,
            steps=self._sums.get(STEPS_KEY, 0.0),
            spent=tuple(sorted(self._spent(), key=lambda one: -one.self_s)),
            tracker_share=tracker_s / self._tracker_seconds if self._tracker_seconds else None,
            machine=machine or {},
        )

    def _add(self, key: str, value: float) -> None:
        self._sums[key] = self._sums.get(key, 0.0) + value

    def _spent(self) -> Iterator[Spent]:
        for key in self._sums:
            about, _, last = key.rpartition("/")
            _, _, called = about.partition("/")
            category, _, name = called.partition("/")
            if last == "self_ms" and name:
                yield Spent(
                    category=category,
                    name=name,
                    uses=round(self._sums.get(f"{about}/count", 0.0)),
                    total_s=self._sums.get(f"{about}/total_ms", 0.0) / 1e3,
                    self_s=self._sums[key] / 1e3,
                    max_ms=self._sums.get(f"{about}/max_ms", 0.0),
                )


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that stands out, with its figure.

    `kind` is what it says about: data, copies, compute, host, checkpoints, evaluation, tracker,
    operation, waited, memory, unmeasured, speed or changed. `weight` is the share of the time it is
    about.
    """

    kind: str
    text: str
    figure: float
    unit: str
    weight: float = 0.0


LIMITS = ("data", "copies", "host", "compute", "checkpoints", "evaluation", "tracker", "operation")
"""The kinds of which the weightiest is what limits a run."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Where the time of a run went, what limits it, and what changed against another one."""

    figures: Figures
    findings: tuple[Finding, ...]
    against: str = ""

    @property
    def limit(self) -> str:
        """What limits the run, "unknown" where nothing stands out."""
        limits = [one for one in self.findings if one.kind in LIMITS]
        return max(limits, key=lambda one: one.weight).kind if limits else "unknown"

    @property
    def columns(self) -> list[str]:
        """Names of the columns of `rows`."""
        return ["operation", "uses", "total_s", "self_s", "share_percent", "max_ms"]

    @property
    def rows(self) -> list[list[Any]]:
        """An operation each, the one that took most first."""
        return [
            [one.called, one.uses, *map(_rounded, self._numbers(one))] for one in self.figures.spent
        ]

    def _numbers(self, one: Spent) -> tuple[float, ...]:
        return one.total_s, one.self_s, 100 * self.figures.share(one), one.max_ms

    def text(self) -> str:
        """All of it for people, a finding a line."""
        lines = [f"limit: {self.limit}", *(one.text for one in self.findings), ""]
        lines.append(f"measured: {_amount(self.figures.seconds)} s{self._speed()}")
        lines += [_line(row) for row in self.rows[:_MOST_SHOWN]]
        if (more := len(self.figures.spent) - _MOST_SHOWN) > 0:
            lines.append(f"  and {more} more operations")
        return "\n".join(lines)

    def _speed(self) -> str:
        if (speed := self.figures.steps_per_s) is None:
            return ""
        return f", {self.figures.steps:,.0f} steps, {_amount(speed)} steps/s"

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "limit": self.limit,
            "against": self.against or None,
            "findings": [asdict(one) for one in self.findings],
            "seconds": self.figures.seconds,
            "steps": self.figures.steps,
            "steps_per_s": self.figures.steps_per_s,
            "shares": dict(self.figures.shares),
            "tracker_share": self.figures.tracker_share,
            "machine": dict(self.figures.machine),
            "operations": [asdict(one) for one in self.figures.spent],
        }


def report_of(figures: Figures, *, before: Figures | None = None, against: str = "") -> Report:
    """Judge a run's figures, beside those of another run where there are any."""
    found = [
        *_limits(figures), *_waits(figures), *_resources(figures), *_unmeasured(figures)
    ]  # fmt: skip
    found.sort(key=lambda one: -one.weight)
    if before is not None:
        found += _changes(figures, before, against)
    return Report(figures=figures, findings=tuple(found), against=against)


def _limits(figures: Figures) -> Iterator[Finding]:
    shares = figures.shares
    rules = (
        ("data", shares.get(DATA, 0.0), DATA_SHARE, "the loop waits for data"),
        ("copies", shares.get(COPY, 0.0), COPY_SHARE, "goes into copies between host and device"),
        ("checkpoints", shares.get(CHECKPOINT, 0.0), CHECKPOINT_SHARE, "checkpoints are saved"),
        ("evaluation", shares.get(EVALUATION, 0.0), EVALUATION_SHARE, "the model is evaluated"),
        ("tracker", figures.tracker_share or 0.0, TRACKER_SHARE, "log calls take"),
    )
    for kind, share, least, what in rules:
        if share >= least:
            yield _of_time(kind, share, what, least)
    yield from _work(figures)
    longest = next((one for one in _own(figures) if one.called not in WAITS), None)
    if longest is not None and part_of(longest.category, longest.name) is None:
        share = figures.share(longest)
        if share >= OPERATION_SHARE:
            yield _of_time("operation", share, f"goes into {longest.called}", OPERATION_SHARE)


def _waits(figures: Figures) -> Iterator[Finding]:
    for one in figures.spent:
        share = figures.share(one)
        if one.called in WAITS and share >= WAIT_SHARE:
            call, measured_s = one.called.replace("/", "."), _amount(figures.seconds)
            text = f"waited {_amount(one.self_s)} s in {call}, of the {measured_s} s measured"
            yield Finding(kind="waited", text=text, figure=one.self_s, unit="s", weight=share)


def _own(figures: Figures) -> list[Spent]:
    """Operations of the loop's own process: what its workers do does not hold it up by itself."""
    return [one for one in figures.spent if not one.called.startswith(WORKERS)]


def _work(figures: Figures) -> Iterator[Finding]:
    """Forward, backward and optimizer: the model's own work, or what launches it on a GPU."""
    share = sum(figures.shares.get(one, 0.0) for one in _WORK)
    gpu_percent = figures.machine.get("gpu_utilization")
    if gpu_percent is not None and gpu_percent >= GPU_BUSY_PERCENT:
        text = f"the GPU is busy {_percent(gpu_percent)} of the time (from {GPU_BUSY_PERCENT:g} %)"
        yield _percentage("compute", text, gpu_percent, weight=gpu_percent / 100)
    elif share >= COMPUTE_SHARE and gpu_percent is not None and gpu_percent < GPU_IDLE_PERCENT:
        text = (
            f"{_percent(100 * share)} of the time the process launches work, and the GPU is busy "
            f"{_percent(gpu_percent)} (below {GPU_IDLE_PERCENT:g} %)"
        )
        yield _percentage("host", text, 100 * share, weight=share)
    elif share >= COMPUTE_SHARE:
        parts = ", ".join(
            f"{one} {_percent(100 * figures.shares[one])}" for one in _WORK if one in figures.shares
        )
        what = f"the model computes: {parts}"
        yield _of_time("compute", share, what, COMPUTE_SHARE)


def _resources(figures: Figures) -> Iterator[Finding]:
    for name, what in (("memory", "the machine's memory"), ("gpu_memory", "the GPU's memory")):
        percent = figures.machine.get(name, 0.0)
        if percent >= MEMORY_PERCENT:
            text = f"{what} is {_percent(percent)} full (from {MEMORY_PERCENT:g} %)"
            yield _percentage("memory", text, percent)


def _unmeasured(figures: Figures) -> Iterator[Finding]:
    named = sum(figures.share(one) for one in _own(figures))
    if figures.seconds and named < 1 - OPERATION_SHARE:
        share = _percent(100 * (1 - named))
        text = f"{share} of the time belongs to no operation: {_advice(figures)}"
        yield _percentage("unmeasured", text, 100 * (1 - named))


def _advice(figures: Figures) -> str:
    """What names more of the time than is named already."""
    used = {part_of(one.category, one.name) for one in _own(figures)}
    calls = {
        "tracker.batches(loader)": {DATA},
        "tracker.time_model(model)": {FORWARD, EVALUATION, COMPUTE},
    }
    lacking = [call for call, parts in calls.items() if used.isdisjoint(parts)]
    if not lacking:
        return "tracker.profile_operation(name) around what you suspect names it"
    return f"{' and '.join(lacking)} name{'s' if len(lacking) == 1 else ''} most of it"


def _changes(figures: Figures, before: Figures, against: str) -> Iterator[Finding]:
    """What is otherwise than in the run it is compared with."""
    now, then = figures.steps_per_s, before.steps_per_s
    if now is None or then is None:
        return
    change = now / then - 1
    if abs(change) >= CHANGED_SHARE:
        text = f"{_amount(now)} steps/s, {_amount(then)} in {against} ({_signed(change)})"
        yield Finding(kind="speed", text=text, figure=100 * change, unit="%")
    least_ms = CHANGED_OF_STEP * 1e3 / then
    for part in sorted({*figures.shares, *before.shares}):
        now_ms, then_ms = figures.step_ms(part), before.step_ms(part)
        if abs(now_ms - then_ms) >= max(least_ms, CHANGED_SHARE * then_ms):
            text = f"{part}: {_amount(now_ms)} ms a step, {_amount(then_ms)} in {against}"
            yield Finding(kind="changed", text=text, figure=now_ms - then_ms, unit="ms a step")


def machine_of(points: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Means of what the machine was measured to use, `system/…` by key, as `Figures` has them."""
    endings = {
        "gpu_utilization": ("utilization_percentage", "/gpu_"),
        "gpu_memory": ("memory_usage_percentage", "/gpu_"),
        "memory": ("system_memory_usage_percentage", ""),
    }
    found = {}
    for name, (ending, sign) in endings.items():
        keys = [key for key in points if key.endswith(ending) and sign in key]
        values = [value for key in keys for value in points[key]]
        if values:
            found[name] = sum(values) / len(values)
    return found


def _of_time(kind: str, share: float, what: str, least: float) -> Finding:
    text = f"{_percent(100 * share)} of the time {what} (from {100 * least:g} %)"
    return _percentage(kind, text, 100 * share, weight=share)


def _percentage(kind: str, text: str, percent: float, *, weight: float = 0.0) -> Finding:
    return Finding(kind=kind, text=text, figure=percent, unit="%", weight=weight)


def _line(row: Sequence[Any]) -> str:
    called, uses, _, self_s, percent, _ = row
    return f"  {called:<32} {uses:>10,} uses {self_s:>12,.3f} s {percent:>7.1f} %"


def _percent(percent: float) -> str:
    return f"{percent:.1f} %"


def _signed(change: float) -> str:
    return f"{100 * change:+.1f} %"


def _amount(value: float) -> str:
    """Four figures that count."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _rounded(value: float) -> float:
    return round(value, 6)
