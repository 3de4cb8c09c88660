"""A worker that trains a small torch model on one thread, bare or with the tracker.

    python looping.py bare|tracked <folder> <repeats>

A step is `repeats` passes forward, backward and an optimizer's step. `tracked` has three sinks and
system metrics on, times each step with `profile_operation` and logs ten floats after it. A request
is how long to train (`turn_s`) and a `period_s`, which a step is filled up to by sleeping (0: flat
out). The answer holds what each step took, sleep excluded, the part of it that was not the model's,
and the processor time of all steps.
"""

import itertools
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.callers import KEYS
from benchmarks.workers import Answers, requests

BATCH, WIDTH = 32, 256


def main(kind: str, folder: Path, repeats: int) -> None:
    """Answer requests until there are none."""
    answers = Answers()
    work = _training(repeats)
    step_of = _tracked(folder, work) if kind == "tracked" else work
    numbers = itertools.count(1)
    answers.tell()
    for request in requests():
        taken_ns, own_ns, cpu_ns = array("q"), array("q"), 0
        end_s = time.monotonic() + request["turn_s"]
        while time.monotonic() < end_s:
            number = next(numbers)
            cpu_ns -= time.thread_time_ns()
            began_ns = time.perf_counter_ns()
            work_ns = step_of(number)
            taken_ns.append(time.perf_counter_ns() - began_ns)
            cpu_ns += time.thread_time_ns()
            own_ns.append(taken_ns[-1] - work_ns)
            time.sleep(max(0.0, request["period_s"] - taken_ns[-1] / 1e9))
        answers.tell(taken_ns=taken_ns.tolist(), own_ns=own_ns.tolist(), cpu_ns=cpu_ns)


def _training(repeats: int) -> Callable[[int], int]:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = (WIDTH, WIDTH, WIDTH)
    layers = [layer for size in sizes for layer in (torch.nn.Linear(WIDTH, size), torch.nn.GELU())]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters())
    given = torch.randn(BATCH, WIDTH)

    def work(_: int) -> int:
        began_ns = time.perf_counter_ns()
        for _ in range(repeats):
            optimizer.zero_grad()
            model(given).square().mean().backward()
            optimizer.step()
        return time.perf_counter_ns() - began_ns

    return work


def _tracked(folder: Path, work: Callable[[int], int]) -> Callable[[int], int]:
    from opusclip_mlops import ExperimentTracker, TrackingConfig

    tracker: Any = ExperimentTracker(
        TrackingConfig(
            experiment_name="loop",
            tracking_uri=f"sqlite:///{folder}/mlflow.db",
            wandb_mode="offline",
            drain_timeout_s=0,
        )
    )

    def step_of(number: int) -> int:
        with tracker.profile_operation("step"):
            work_ns = work(number)
        values = {key: 0.1 + number / (n + 3) for n, key in enumerate(KEYS)}
        tracker.log_metrics(values, number)
        return work_ns

    return step_of


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
