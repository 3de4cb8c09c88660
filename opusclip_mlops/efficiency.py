"""What a training loop gets done a second, and what share of its time each of its parts takes.

The parts are operations of the category `loop`. On a GPU work is only launched where it is timed:
its time shows where the process waits for it.
"""

import functools
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from time import perf_counter_ns
from typing import Any, Generic, ParamSpec, TypeVar, cast

from opusclip_mlops.errors import RecordError, RecordTypeError
from opusclip_mlops.loop_hooks import LoopHooks
from opusclip_mlops.loop_parts import CHECKPOINT, DATA, LOOP, OPTIMIZER, part_of
from opusclip_mlops.operations import Interval, Operation, Operations

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

RUN_ID, FLUSH = ("tracker", "run_id"), ("tracker", "flush")
"""Category and name of what is timed where the loop waits for delivery."""

UNASKED = frozenset({(LOOP, CHECKPOINT), (LOOP, OPTIMIZER), RUN_ID, FLUSH})
"""What is timed without anybody asking for it."""

_END: Any = object()


def timed_as(part: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Time each call of a tracker's method as a part of its loop."""

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            tracker: Any = args[0]
            with tracker._operations.named(LOOP, part):
                return method(*args, **kwargs)

        return call

    return decorate


class Efficiency:
    """Measures one loop.

    Args:
        operations: Where its parts are timed.
        batch_size: Samples in a step, where that is known; else the batches tell.
    """

    def __init__(self, operations: Operations, *, batch_size: int | None = None) -> None:
        self.hooks = LoopHooks(operations)
        self._operations = operations
        self._batch_size = batch_size
        self._samples = self._frames = 0
        self._counts_samples = self._counts_frames = False
        self._from: tuple[int, int] | None = None

    def batches(
        self, loader: Iterable[T], *, samples: int | None, frames: int | None
    ) -> "Batches[T]":
        """The batches of a loader, each wait for one timed, and their samples counted.

        Raises:
            RecordTypeError: the loader cannot be gone through.
            RecordError: samples or frames are no whole number of 1 or more.
        """
        if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
            raise RecordTypeError(f"loader must give batches one by one, not {loader!r:.60}")
        _check_count("samples", samples)
        _check_count("frames", frames)

        def count(batch: T) -> None:
            found = samples if samples is not None else samples_in(batch)
            if found is not None:
                self._counts_samples = True
                self._samples += found
                self._counts_frames |= frames is not None
                self._frames += found * (frames or 0)

        return Batches(loader, self._operations.named(LOOP, DATA), count)

    def note_step(self, step: int) -> None:
        """Say which step is reached; from the first one told the speed is counted."""
        if self._from is None or step < self._from[0]:
            self._from = step, perf_counter_ns()

    def values(self, interval: Interval, step: int) -> dict[str, float]:
        """What the loop did in an interval that ends now, at this step, as metrics."""
        rates = {**self._counted(interval.seconds), **self._speed(step)}
        if "steps_per_s" in rates and self._batch_size and "samples_per_s" not in rates:
            rates["samples_per_s"] = rates["steps_per_s"] * self._batch_size
        values = {f"performance/{name}": value for name, value in rates.items() if name != "steps"}
        if "steps" in rates:
            values["profiling/interval/steps"] = rates["steps"]
        return {**values, **_shares(interval)}

    def _speed(self, step: int) -> dict[str, float]:
        """Steps since the last call, how many a second, and how long each; empty for none."""
        begun, now_ns = self._from, perf_counter_ns()
        self._from = None if begun is None else (step, now_ns)
        if begun is None or step <= begun[0]:
            return {}
        steps, elapsed_ns = step - begun[0], max(1, now_ns - begun[1])
        speed = {"steps_per_s": 1e9 * steps / elapsed_ns, "step_ms": elapsed_ns / 1e6 / steps}
        return {"steps": float(steps), **speed}

    def _counted(self, seconds: float) -> dict[str, float]:
        samples, frames = self._samples, self._frames
        self._samples = self._frames = 0
        found = {"samples_per_s": samples / seconds} if self._counts_samples else {}
        return {**found, "frames_per_s": frames / seconds} if self._counts_frames else found


def _shares(interval: Interval) -> dict[str, float]:
    """The share of the time that each part took, without what was timed inside of it."""
    found: dict[str, float] = {}
    for one in interval.taken:
        if (part := part_of(one.category, one.name)) is not None:
            key = f"performance/{part}_share"
            found[key] = found.get(key, 0.0) + one.self_ms / 1e3 / interval.seconds
    return found


class Batches(Generic[T]):
    """The batches of a loader, the wait for each of them timed; as many as the loader has.

    Anything else asked of it, such as `dataset`, `sampler` or `batch_size`, the loader answers.
    """

    def __init__(
        self, loader: Iterable[T], operation: Operation, count: Callable[[T], object]
    ) -> None:
        self._loader, self._operation, self._count = loader, operation, count

    def __len__(self) -> int:
        return len(cast(Sized, self._loader))

    def __getattr__(self, name: str) -> Any:
        # What begins so is its own: a copy has nothing of it at first.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[T]:
        with self._operation:
            batches = iter(self._loader)
        while True:
            with self._operation:
                batch = next(batches, _END)
            if batch is _END:
                return
            self._count(batch)
            yield batch
            # Else it is held while the next one is made.
            del batch


def samples_in(batch: Any) -> int | None:
    """How many samples a batch holds, by the first array or list in it; None where none is."""
    shape = getattr(batch, "shape", None)
    if shape is not None:
        return int(shape[0]) if len(shape) else None
    if isinstance(batch, Mapping):
        return next((n for one in batch.values() if (n := samples_in(one)) is not None), None)
    if isinstance(batch, tuple | list):
        inner = (samples_in(one) for one in batch if not isinstance(one, str | bytes | int | float))
        found = next((n for n in inner if n is not None), None)
        return found if found is not None or isinstance(batch, tuple) else len(batch)
    return None


def _check_count(name: str, value: Any) -> None:
    is_count = (
        isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1
    )
    if value is not None and not is_count:
        raise RecordError(f"{name} must be a whole number, 1 or more, not {value!r:.60}")
