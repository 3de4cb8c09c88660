"""A worker that times blocks of nothing, again and again, in one way, and says what a use took.

    python timing_uses.py <way> <folder>

`ours` and `reused` name the operation at each use or once, in a run that is delivered to MLflow;
`off` is the same with `profile_operations=False`. `record_function` is what torch has for its
profiler, with no profiler at work. The `floor` reads the clock twice and keeps the sum. A request
is how many `uses` to make; the answer is nanoseconds of processor time a use, with the loop.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.workers import Answers, requests

Uses = Callable[[int], None]


def main(way: str, folder: Path) -> None:
    """Answer requests until there are none."""
    answers = Answers()
    use = _WAYS[way](folder)
    answers.tell()
    for request in requests():
        began_ns = time.thread_time_ns()
        use(request["uses"])
        answers.tell(use_ns=(time.thread_time_ns() - began_ns) / request["uses"])


def _floor(_: Path) -> Uses:
    now_ns = time.perf_counter_ns

    def use(count: int) -> None:
        total_ns = 0
        for _ in range(count):
            began_ns = now_ns()
            total_ns += now_ns() - began_ns

    return use


def _tracker(folder: Path, **settings: Any) -> Any:
    from opusclip_mlops import ExperimentTracker, TrackingConfig

    return ExperimentTracker(
        TrackingConfig(
            experiment_name="uses",
            tracking_uri=f"sqlite:///{folder}/mlflow.db",
            use_wandb=False,
            use_tensorboard=False,
            profile_interval_s=1.0,
            drain_timeout_s=0,
            **settings,
        )
    )


def _ours(folder: Path, **settings: Any) -> Uses:
    tracker = _tracker(folder, **settings)

    def use(count: int) -> None:
        for _ in range(count):
            with tracker.profile_operation("step"):
                pass

    return use


def _off(folder: Path) -> Uses:
    return _ours(folder, profile_operations=False)


def _reused(folder: Path) -> Uses:
    operation = _tracker(folder).profile_operation("step")

    def use(count: int) -> None:
        for _ in range(count):
            with operation:
                pass

    return use


def _record_function(_: Path) -> Uses:
    from torch.profiler import record_function

    def use(count: int) -> None:
        for _ in range(count):
            with record_function("step"):
                pass

    return use


_WAYS: dict[str, Callable[[Path], Uses]] = {
    "floor": _floor,
    "ours": _ours,
    "reused": _reused,
    "off": _off,
    "record_function": _record_function,
}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
