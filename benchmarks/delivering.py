"""A worker that delivers a backlog with one of our sinks, or writes the same with a raw client.

    python delivering.py ours <sink> <run folder>
    python delivering.py raw <sink> <folder> <records>

All imports are done, and for a raw client the run is made and all rows stand in memory in the form
it takes, before the worker says it is ready. A raw client answers with the seconds from its first
row to its last being durable: MLflow's `log_batch` with 1000 metrics a call, TensorBoard's
`RecordWriter` flushed, W&B's `run.log` with its default batching and the flush interval our sink
uses, timed by the size of its log (`first_byte_s` … are on the machine's monotonic clock).
"""

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import backlog
from benchmarks.workers import Answers, requests

METRICS_PER_CALL = 1000


def main(kind: str, sink: str, folder: Path, *count: str) -> None:
    """Prepare, say so, and do it once when asked."""
    answers = Answers()
    ready = _ours(sink, folder) if kind == "ours" else _RAW[sink](folder, int(*count))
    answers.tell()
    for _ in requests():
        answers.tell(**ready())


def _ours(sink: str, folder: Path) -> Callable[[], dict[str, Any]]:
    from opusclip_mlops.delivery import deliver
    from opusclip_mlops.folder import RunFolder

    importlib.import_module(f"opusclip_mlops.sinks.{sink}")
    run = RunFolder(folder)
    return lambda: {"delivered": deliver(run, sink)}


def _raw_mlflow(folder: Path, count: int) -> Callable[[], dict[str, Any]]:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(backlog.new_store(folder))
    run_id = client.create_run("0").info.run_id
    metrics = [
        Metric(key, value, point.timestamp_ms, point.step)
        for point in backlog.points(count)
        for key, value in point.values.items()
    ]

    def write() -> dict[str, Any]:
        began_s = time.monotonic()
        for at in range(0, len(metrics), METRICS_PER_CALL):
            client.log_batch(run_id, metrics=metrics[at : at + METRICS_PER_CALL])
        return {"taken_s": time.monotonic() - began_s}

    return write


def _raw_tensorboard(folder: Path, count: int) -> Callable[[], dict[str, Any]]:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    def event(point: Any) -> Any:
        values = [Summary.Value(tag=key, simple_value=one) for key, one in point.values.items()]
        return Event(
            wall_time=point.timestamp_ms / 1000, step=point.step, summary=Summary(value=values)
        )

    events = [event(point) for point in backlog.points(count)]
    writer = RecordWriter((folder / "events.out.tfevents.1.raw").open("wb"))

    def write() -> dict[str, Any]:
        began_s = time.monotonic()
        for one in events:
            writer.write(one.SerializeToString())
        writer.flush()
        return {"taken_s": time.monotonic() - began_s}

    return write


def _raw_wandb(folder: Path, count: int) -> Callable[[], dict[str, Any]]:
    import wandb

    settings = wandb.Settings(
        console="off", silent=True, disable_code=True, disable_git=True, x_disable_stats=True,
        x_disable_meta=True, x_save_requirements=False, x_transaction_log_flush_interval=0.5,
    )  # fmt: skip
    run = wandb.init(project="backlog", mode="offline", dir=str(folder), settings=settings)
    rows = [
        {**one.values, "global_step": one.step, "_timestamp": one.timestamp_ms / 1000}
        for one in backlog.points(count)
    ]

    def write() -> dict[str, Any]:
        began_s = time.monotonic()
        for step, row in enumerate(rows):
            run.log(row, step=step, commit=True)
        log = Path(run.settings.sync_file)
        return {"taken_s": _readable_s(log, len(rows)) - began_s}

    return write


def _readable_s(log: Path, count: int) -> float:
    """When the last row could be read from a W&B log that is still being written."""
    seen = [(time.monotonic(), log.stat().st_size)]
    unchanged_s = 3.0
    while time.monotonic() - seen[-1][0] < unchanged_s:
        time.sleep(0.01)
        size_bytes = log.stat().st_size
        if size_bytes != seen[-1][1]:
            seen.append((time.monotonic(), size_bytes))
    end_bytes = _end_of_row(log, count)
    return next(at_s for at_s, size_bytes in seen if size_bytes >= end_bytes)


def _end_of_row(log: Path, count: int) -> int:
    from opusclip_mlops import wandb_log

    reader, rows = wandb_log.LogReader(log), 0
    for record in reader.new_records():
        rows += record.HasField("history")
        if rows == count:
            return reader._at_bytes
    raise RuntimeError(f"{log} holds {rows} of {count} rows")


_RAW: dict[str, Callable[[Path, int], Callable[[], dict[str, Any]]]] = {
    "mlflow": _raw_mlflow,
    "tensorboard": _raw_tensorboard,
    "wandb": _raw_wandb,
}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
