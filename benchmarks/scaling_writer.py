"""A worker that logs for many ranks into one run's folder, each into a journal of its own.

    python scaling_writer.py <run folder> <ranks>

Asked for a rate, it tells when it begins, logs ten values for each rank so many times a second, and
tells at the end how many calls it made, and in which time.
"""

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.callers import KEYS
from benchmarks.workers import Answers, requests
from opusclip_mlops.folder import CONTROL, RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.records import Metrics, RankMetrics, Record, RunStarted
from opusclip_mlops.sessions import process_started_s

VALUES = {key: 0.1 + n / 7 for n, key in enumerate(KEYS)}


def main(path: str, ranks: int) -> None:
    """Answer requests until there are none."""
    answers = Answers()
    folder = RunFolder(Path(path))
    journals = [_begun(folder, rank, ranks) for rank in range(ranks)]
    answers.tell()
    for ask in requests():
        answers.tell(began_s=time.time())
        began_s = time.monotonic()
        answers.tell(calls=_logged(journals, ask), took_s=time.monotonic() - began_s)


def _begun(folder: RunFolder, rank: int, ranks: int) -> Journal:
    name = f"rank{rank}"
    control = Journal(folder.path, name + CONTROL)
    control.append(
        RunStarted(
            session=name,
            host=socket.gethostname(),
            pid=os.getpid(),
            process_started_s=process_started_s(os.getpid()),
            start_time_ms=int(time.time() * 1000),
            rank=rank,
            world_size=ranks,
        )
    )
    control.close()
    return Journal(folder.path, name)


def _logged(journals: list[Journal], ask: dict[str, Any]) -> int:
    """Log as often and for as long as asked; a step that is late is logged at once."""
    began_s, steps = time.monotonic(), int(ask["hz"] * ask["wait_s"])
    for step in range(steps):
        time.sleep(max(0.0, began_s + step / ask["hz"] - time.monotonic()))
        now_ms = time.time_ns() // 1_000_000
        for rank, journal in enumerate(journals):
            journal.append(_call(now_ms, step, rank, len(journals), ask["reduce"]))
    time.sleep(max(0.0, began_s + ask["wait_s"] - time.monotonic()))
    return steps * len(journals)


def _call(now_ms: int, step: int, rank: int, ranks: int, reduce: str) -> Record:
    if reduce:
        return RankMetrics(now_ms, step, VALUES, reduce, rank, ranks)
    return Metrics(now_ms, step, {f"{rank}/{key}": value for key, value in VALUES.items()})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
