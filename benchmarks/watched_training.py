"""A worker that trains a model of ten million parameters on one thread, and looks into it.

    python watched_training.py tracker|wandb.watch|add_histogram <folder> <every>

A request is how many `steps` to train; `watched` says for them whether the tracker looks into the
model, which it then does in the first. The answer holds what each step took, of it the processor
time of the whole process, its page faults, and what passed inside the tracker's own hook.

The C library is told to keep what is freed. Else the memory of the gradients goes back to the
kernel at about every second step, by what chance put behind it: with its page faults such a step
takes half as long again, and a look would be lost among them.
"""

import ctypes
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.workers import Answers, requests

WIDTH, LAYERS, BATCH = 512, 38, 8
KEPT = {-1: 2**30, -3: 2**25}
"""For `mallopt`: M_TRIM_THRESHOLD, and M_MMAP_THRESHOLD, whose highest value this is."""

Log = Callable[[float, int], None]
Turn = dict[str, list[int]]


def main(kind: str, folder: Path, every: int) -> None:
    """Answer requests until there are none."""
    import torch

    answers = Answers()
    for name, size_bytes in KEPT.items():
        ctypes.CDLL(None).mallopt(name, size_bytes)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [
        one for _ in range(LAYERS) for one in (torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU())
    ]
    training = Training(torch.nn.Sequential(*layers), _PEERS.get(kind), folder, every)
    answers.tell()
    for request in requests():
        answers.tell(**training.turn(**request))


class Training:
    """A model in training, with our tracker or a peer."""

    def __init__(
        self, model: Any, peer: Callable[[Any, Path, int], Log] | None, folder: Path, every: int
    ) -> None:
        import torch

        self._tracker = None if peer else _tracker(folder)
        self._model, self._every = model, every
        self._log = peer(model, folder, every) if peer else self._tracked
        self._optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        self._given = torch.randn(BATCH, WIDTH)
        self._number = 0

    def turn(self, steps: int, *, watched: bool = False) -> Turn:
        """Train some steps; what was logged before has arrived everywhere when they begin."""
        if self._tracker:
            self._tracker.flush(timeout_s=60)
        own = _Own(self._tracker, self._model, self._every) if watched else None
        turn: Turn = {"taken_ns": [], "cpu_ns": [], "faults": []}
        for _ in range(steps):
            before = _now()
            self._step()
            for name, was, now in zip(turn, before, _now(), strict=True):
                turn[name].append(now - was)
        return turn | {"own_ns": own.end() if own else []}

    def _step(self) -> None:
        self._number += 1
        loss = self._model(self._given).square().mean()
        loss.backward()
        self._optimizer.step()
        self._log(loss.item(), self._number)
        self._optimizer.zero_grad()

    def _tracked(self, loss: float, number: int) -> None:
        self._tracker.log_metrics({"loss": loss}, number)


class _Own:
    """Watches the model, between two hooks that time the tracker's."""

    def __init__(self, tracker: Any, model: Any, every: int) -> None:
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        self._tracker, self._model = tracker, model
        self._began_ns, self._taken_ns = 0, list[int]()
        begin = register_optimizer_step_pre_hook(self._begin)
        tracker.watch(model, every)
        self._handles = begin, register_optimizer_step_pre_hook(self._finish)

    def _begin(self, *_: Any) -> None:
        self._began_ns = time.perf_counter_ns()

    def _finish(self, *_: Any) -> None:
        self._taken_ns.append(time.perf_counter_ns() - self._began_ns)

    def end(self) -> list[int]:
        """Watch no more; what passed in the tracker's hook at each step."""
        self._tracker.unwatch(self._model)
        for handle in self._handles:
            handle.remove()
        return self._taken_ns


def _now() -> tuple[int, int, int]:
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return time.perf_counter_ns(), time.process_time_ns(), faults


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


def _wandb(model: Any, folder: Path, every: int) -> Log:
    import wandb

    run = wandb.init(project="watching", mode="offline", dir=str(folder))
    run.watch(model, log="all", log_freq=every)
    return lambda loss, number: run.log({"loss": loss}, step=number)


def _add_histogram(model: Any, folder: Path, every: int) -> Log:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "runs"))

    def log(loss: float, number: int) -> None:
        writer.add_scalar("loss", loss, number)
        if number % every == 0:
            for name, one in model.named_parameters():
                writer.add_histogram(f"weights/{name}", one, number)
                writer.add_histogram(f"gradients/{name}", one.grad, number)

    return log


_PEERS: dict[str, Callable[[Any, Path, int], Log]] = {
    "wandb.watch": _wandb,
    "add_histogram": _add_histogram,
}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
