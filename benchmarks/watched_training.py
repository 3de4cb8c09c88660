"""A worker that trains a model of ten million parameters on one thread, watched or not.

    python watched_training.py unwatched|control|watched|wandb.watch|add_histogram <folder> <every>

A request is how many `steps` to train. The answer holds what each took, of it the processor's time,
and of `watched` what passed in each between two hooks round the tracker's own.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.workers import Answers, requests

WIDTH, LAYERS, BATCH = 512, 38, 8


def main(kind: str, folder: Path, every: int) -> None:
    """Answer requests until there are none."""
    import torch

    answers = Answers()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [
        one for _ in range(LAYERS) for one in (torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU())
    ]
    model = torch.nn.Sequential(*layers)
    own_ns: list[int] = []
    log = _LOGS[kind](model, folder, every, own_ns)
    optimizer, given = torch.optim.SGD(model.parameters(), lr=1e-3), torch.randn(BATCH, WIDTH)
    number = 0
    answers.tell()
    for request in requests():
        taken_ns, cpu_ns = [], []
        own_ns.clear()
        for _ in range(request["steps"]):
            number += 1
            began_ns, began_cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
            loss = model(given).square().mean()
            loss.backward()
            optimizer.step()
            log(loss.item(), number)
            optimizer.zero_grad()
            taken_ns.append(time.perf_counter_ns() - began_ns)
            cpu_ns.append(time.thread_time_ns() - began_cpu_ns)
        answers.tell(taken_ns=taken_ns, cpu_ns=cpu_ns, own_ns=own_ns)


Log = Callable[[float, int], None]


def _tracker(folder: Path) -> Any:
    from opusclip_mlops import ExperimentTracker, TrackingConfig

    return ExperimentTracker(
        TrackingConfig(
            experiment_name="watching",
            tracking_uri=f"sqlite:///{folder}/mlflow.db",
            wandb_mode="offline",
            drain_timeout_s=0,
        )
    )


def _unwatched(_: Any, folder: Path, __: int, ___: list[int]) -> Log:
    tracker = _tracker(folder)
    return lambda loss, number: tracker.log_metrics({"loss": loss}, number)


def _watched(model: Any, folder: Path, every: int, own_ns: list[int]) -> Log:
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    tracker, began_ns = _tracker(folder), 0

    def begin(*_: Any) -> None:
        nonlocal began_ns
        began_ns = time.perf_counter_ns()

    register_optimizer_step_pre_hook(begin)
    tracker.watch(model, every)
    register_optimizer_step_pre_hook(lambda *_: own_ns.append(time.perf_counter_ns() - began_ns))
    return lambda loss, number: tracker.log_metrics({"loss": loss}, number)


def _wandb(model: Any, folder: Path, every: int, _: list[int]) -> Log:
    import wandb

    run = wandb.init(project="watching", mode="offline", dir=str(folder))
    run.watch(model, log="all", log_freq=every)
    return lambda loss, number: run.log({"loss": loss}, step=number)


def _add_histogram(model: Any, folder: Path, every: int, _: list[int]) -> Log:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "runs"))

    def log(loss: float, number: int) -> None:
        writer.add_scalar("loss", loss, number)
        if number % every == 0:
            for name, one in model.named_parameters():
                writer.add_histogram(f"weights/{name}", one, number)
                writer.add_histogram(f"gradients/{name}", one.grad, number)

    return log


_LOGS: dict[str, Callable[[Any, Path, int, list[int]], Log]] = {
    "unwatched": _unwatched,
    "control": _unwatched,
    "watched": _watched,
    "wandb.watch": _wandb,
    "add_histogram": _add_histogram,
}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
