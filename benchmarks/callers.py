"""A worker that makes log calls of ten floats with one library and times each.

    python callers.py <caller> <folder>

Each library logs the way its own guide shows, to local files only: `torch` and `tensorboardX` call
`add_scalar` ten times, `wandb` is offline, `trackio` writes its local database, `mlflow` and
`mlflow-async` write an SQLite store. The `floor` is the least that outlives the process: encode the
call once, checksum it, and hand it to the operating system in one write. Nothing of the package is
imported but in `ours`, which delivers to all three sinks while it is timed.
"""

import os
import sys
import time
from array import array
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.workers import Answers, requests, rss_bytes

KEYS = (
    "train/loss", "train/lr", "train/grad_norm", "train/reconstruction", "train/kl",
    "train/psnr", "train/ssim", "train/frames_per_s", "train/data_wait_ms", "train/epoch",
)  # fmt: skip
PRELOADED = 1024
Call = Callable[[dict[str, float], int], Any]


def main(name: str, folder: Path) -> None:
    """Answer requests until there are none: `calls` to make and time, `untimed` ones, `alone`."""
    answers = Answers()
    call = _CALLERS[name](folder)
    values = [{key: 0.1 + i + n / 7 for n, key in enumerate(KEYS)} for i in range(PRELOADED)]
    step = 0
    answers.tell()
    for request in requests():
        if request.get("alone"):
            _stop_children()
        step = _untimed(call, values, step, request.get("untimed", 0))
        memory = rss_bytes()
        taken_ns = _timed(call, values, step, request.get("calls", 0))
        step += len(taken_ns)
        answers.tell(taken_ns=taken_ns.tolist(), rss_bytes=memory, step=step)


def _timed(call: Call, values: list[dict[str, float]], step: int, count: int) -> "array[int]":
    taken_ns = array("q", bytes(8 * count))
    now_ns = time.perf_counter_ns
    for i in range(count):
        logged, at = values[i % PRELOADED], step + i
        began_ns = now_ns()
        call(logged, at)
        taken_ns[i] = now_ns() - began_ns
    return taken_ns


def _untimed(call: Call, values: list[dict[str, float]], step: int, count: int) -> int:
    for at in range(step, step + count):
        call(values[at % PRELOADED], at)
    return step + count


def _stop_children() -> None:
    """Stop the shipper where it is, so that nothing is delivered from here on."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        process.suspend()


def _floor(folder: Path) -> Call:
    import struct
    import zlib

    import msgspec

    class Point(msgspec.Struct, array_like=True, gc=False):
        timestamp_ms: int
        step: int
        values: dict[str, float]

    encode = msgspec.msgpack.Encoder().encode
    pack = struct.Struct("<4sII").pack
    descriptor = os.open(folder / "floor", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def call(values: dict[str, float], step: int) -> None:
        payload = encode(Point(time.time_ns() // 1_000_000, step, values))
        os.write(descriptor, pack(b"Flor", len(payload), zlib.crc32(payload)) + payload)

    return call


def _ours(folder: Path) -> Call:
    from opusclip_mlops import ExperimentTracker, TrackingConfig

    tracker = ExperimentTracker(
        TrackingConfig(
            experiment_name="cost",
            tracking_uri=f"sqlite:///{folder}/mlflow.db",
            wandb_mode="offline",
            drain_timeout_s=0,
        )
    )
    return tracker.log_metrics


def _add_scalars(writer: Any) -> Call:
    def call(values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return call


def _torch(folder: Path) -> Call:
    from torch.utils.tensorboard import SummaryWriter

    return _add_scalars(SummaryWriter(str(folder / "runs")))


def _tensorboardx(folder: Path) -> Call:
    return _add_scalars(import_module("tensorboardX").SummaryWriter(str(folder / "runs")))


def _wandb(folder: Path) -> Call:
    import wandb

    run = wandb.init(project="cost", mode="offline", dir=str(folder))
    return lambda values, step: run.log(values, step=step)


def _trackio(folder: Path) -> Call:
    os.environ["TRACKIO_DIR"] = str(folder / "trackio")
    trackio = import_module("trackio")
    trackio.init(project="cost", name="run")
    return lambda values, step: trackio.log(values, step=step)


def _mlflow(folder: Path) -> Call:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.start_run()
    return lambda values, step: mlflow.log_metrics(values, step=step)


def _mlflow_async(folder: Path) -> Call:
    import mlflow

    _mlflow(folder)
    return lambda values, step: mlflow.log_metrics(values, step=step, synchronous=False)


_CALLERS: dict[str, Callable[[Path], Call]] = {
    "floor": _floor,
    "ours": _ours,
    "torch": _torch,
    "tensorboardX": _tensorboardx,
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
    "mlflow-async": _mlflow_async,
}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
