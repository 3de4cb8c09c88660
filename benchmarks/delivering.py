"""A worker that delivers a run with one of our sinks, or writes the same with a raw client.

    python delivering.py ours <sink> <run folder>
    python delivering.py raw <sink> <folder>

Ours is asked once and never answers: it delivers whatever is logged to the run. A raw client is
asked to write a `count` of log calls of ten values and answers with the seconds from the first row
to the last being durable. Imports, the run and the rows, in the form the client takes, are made
before the clock runs. MLflow: `log_batch` with 1000 metrics a call. TensorBoard: prebuilt events
through `RecordWriter`, flushed. W&B: `run.log` with step and `_timestamp`, with the settings our
sink uses, until the last row can be read in its log; the time is that of the log's growth past it.
"""

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import backlog
from benchmarks.workers import Answers, requests

METRICS_PER_CALL = 1000
UNCHANGED_S = 1.5
Points = list[Any]
Write = Callable[[Points], float]
"""Writes log calls; gives the seconds it took."""


def main(kind: str, sink: str, folder: Path) -> None:
    """Get ready, say so, and do what is asked."""
    answers = Answers()
    if kind == "ours":
        _deliver_when_asked(sink, folder, answers)
    write = _RAW[sink](folder)
    answers.tell()
    steps = itertools.count()
    for request in requests():
        points = [backlog.point(step) for step in itertools.islice(steps, request["count"])]
        answers.tell(taken_s=write(points))


def _deliver_when_asked(sink: str, folder: Path, answers: Answers) -> None:
    from opusclip_mlops.delivery import deliver
    from opusclip_mlops.folder import RunFolder

    answers.tell()
    next(requests())
    deliver(RunFolder(folder), sink)


def _raw_mlflow(folder: Path) -> Write:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(backlog.new_store(folder))
    run_id = client.create_run("0").info.run_id

    def write(points: Points) -> float:
        metrics = [
            Metric(key, value, one.timestamp_ms, one.step)
            for one in points
            for key, value in one.values.items()
        ]
        began_s = time.monotonic()
        for at in range(0, len(metrics), METRICS_PER_CALL):
            client.log_batch(run_id, metrics=metrics[at : at + METRICS_PER_CALL])
        return time.monotonic() - began_s

    return write


def _raw_tensorboard(folder: Path) -> Write:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    writer = RecordWriter((folder / "events.out.tfevents.1.raw").open("wb"))

    def event(point: Any) -> Any:
        values = [Summary.Value(tag=key, simple_value=one) for key, one in point.values.items()]
        return Event(
            wall_time=point.timestamp_ms / 1000, step=point.step, summary=Summary(value=values)
        )

    def write(points: Points) -> float:
        events = [event(point) for point in points]
        began_s = time.monotonic()
        for one in events:
            writer.write(one.SerializeToString())
        writer.flush()
        return time.monotonic() - began_s

    return write


def _raw_wandb(folder: Path) -> Write:
    import wandb

    from opusclip_mlops.wandb_log import LogReader

    settings = wandb.Settings(
        console="off", silent=True, disable_code=True, disable_git=True, x_disable_stats=True,
        x_disable_meta=True, x_save_requirements=False, x_transaction_log_flush_interval=0.5,
    )  # fmt: skip
    run = wandb.init(project="backlog", mode="offline", dir=str(folder), settings=settings)
    log = Path(run.settings.sync_file)
    reader = LogReader(log)

    def write(points: Points) -> float:
        rows = [
            {**one.values, "global_step": one.step, "_timestamp": one.timestamp_ms / 1000}
            for one in points
        ]
        began_s = time.monotonic()
        for row in rows:
            run.log(row, step=row["global_step"], commit=True)
        return _readable_s(log, reader, len(rows)) - began_s

    return write


def _readable_s(log: Path, reader: Any, count: int) -> float:
    """When the last of so many new rows could be read from a log that is still being written."""
    seen = [(time.monotonic(), log.stat().st_size)]
    while time.monotonic() - seen[-1][0] < UNCHANGED_S:
        time.sleep(0.01)
        size_bytes = log.stat().st_size
        if size_bytes != seen[-1][1]:
            seen.append((time.monotonic(), size_bytes))
    end_bytes = _end_of_rows(reader, count)
    return next(at_s for at_s, size_bytes in seen if size_bytes >= end_bytes)


def _end_of_rows(reader: Any, count: int) -> int:
    rows = 0
    for record in reader.new_records():
        rows += record.HasField("history")
        if rows == count:
            return int(reader._at_bytes)
    raise RuntimeError(f"W&B's log holds {rows} of {count} rows")


_RAW: dict[str, Callable[[Path], Write]] = {
    "mlflow": _raw_mlflow,
    "tensorboard": _raw_tensorboard,
    "wandb": _raw_wandb,
}

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
