"""A worker that stands for many shippers: each is a thread that sends its points to one server.

    python scaling_nodes.py

What goes out is what MLflow's client sends for `log_batch`: JSON, over a connection that is kept.
Asked for batches of so many `rows`, each sends one as soon as the last one is answered. Asked for a
`rate` of points a second, each sends all that wait once in `every_s` seconds, 1000 at most a
request, and the rest at once; a point's lag is the time from its making to the answer. That is the
way of a shipper and of the simulation, and not a shipper. What is answered in the first `warm_s`
seconds, or after `wait_s`, is not counted. Imports nothing but the standard library.
"""

import http.client
import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from benchmarks.workers import Answers, requests

MOST_ROWS = 1000
KEYS = 10
TIMEOUT_S = 60.0
_SERIAL = itertools.count()


@dataclass
class Seen:
    """What the threads of one measurement saw; appending is safe between them."""

    began_s: float
    end_s: float
    rows: list[int] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)
    all_requests: list[int] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def is_counted(self) -> bool:
        """Whether what is answered now counts."""
        return self.began_s <= time.monotonic() < self.end_s


class Sender:
    """One connection, for one run."""

    def __init__(self, url: str, run_id: str, seen: Seen) -> None:
        place = urlsplit(url)
        self._connection = http.client.HTTPConnection(
            place.hostname or "", place.port, timeout=TIMEOUT_S
        )
        self._run_id, self._seen = run_id, seen

    def send(self, rows: int) -> None:
        """Send so many new points, and note how long it took."""
        body = _body(self._run_id, rows)
        began_s = time.perf_counter()
        try:
            self._connection.request(
                "POST", "/api/2.0/mlflow/runs/log-batch", body, {"Content-Type": "application/json"}
            )
            answer = self._connection.getresponse()
            told = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self._seen.errors.append(f"{type(error).__name__}: {error}")
            return
        if answer.status != http.client.OK:
            self._seen.errors.append(told[:200].decode(errors="replace"))
            return
        self._seen.all_requests.append(rows)
        if self._seen.is_counted():
            self._seen.rows.append(rows)
            self._seen.took_ms.append((time.perf_counter() - began_s) * 1000)


def _body(run_id: str, rows: int) -> str:
    serial, now_ms = next(_SERIAL) * MOST_ROWS, time.time_ns() // 1_000_000
    points = (
        f'{{"key":"train/key_{i % KEYS}","value":0.{serial + i},"timestamp":{now_ms},'
        f'"step":{serial + i}}}'
        for i in range(rows)
    )
    return f'{{"run_id":"{run_id}","metrics":[{",".join(points)}]}}'


def _press(sender: Sender, rows: int, end_s: float) -> None:
    """Send, one batch after the other."""
    while time.monotonic() < end_s:
        sender.send(rows)


def _live(sender: Sender, seen: Seen, ask: dict[str, Any], first_s: float, end_s: float) -> None:
    """Make points and send them, as a shipper does."""
    sent, began_s, rate = 0, first_s, ask["rate"]
    time.sleep(max(0.0, first_s - time.monotonic()))
    while (now_s := time.monotonic()) < end_s:
        rows = min(MOST_ROWS, int((now_s - began_s) * rate) - sent)
        if rows > 0:
            sender.send(rows)
            if seen.is_counted():
                # The middle one of those that were sent.
                seen.lags_s.append(time.monotonic() - began_s - (sent + rows / 2) / rate)
            sent += rows
        waiting = int((time.monotonic() - began_s) * rate) - sent
        if waiting < MOST_ROWS:
            time.sleep(max(0.0, now_s + ask["every_s"] - time.monotonic()))
    seen.left.append(int((end_s - began_s) * rate) - sent)


def _measured(ask: dict[str, Any]) -> Seen:
    began_s = time.monotonic()
    end_s = began_s + ask["wait_s"]
    seen = Seen(began_s + ask["warm_s"], end_s)
    senders = [Sender(url, run, seen) for url, run in ask["runs"]]
    threads = [
        threading.Thread(target=_press, args=(one, ask["rows"], end_s))
        if "rows" in ask
        else threading.Thread(
            target=_live,
            args=(one, seen, ask, began_s + ask["every_s"] * n / len(senders), end_s),
        )
        for n, one in enumerate(senders)
    ]
    _run(threads)
    return seen


def _run(threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Answer requests until there are none."""
    answers = Answers()
    answers.tell()
    for ask in requests():
        cpu_s = time.process_time()
        seen = _measured(ask)
        answers.tell(
            points=sum(seen.rows),
            requests=len(seen.rows),
            all_requests=len(seen.all_requests),
            took_ms=seen.took_ms,
            lags_s=seen.lags_s,
            left=sum(seen.left),
            errors=len(seen.errors),
            first_error=next(iter(seen.errors), "")[:160],
            counted_s=seen.end_s - seen.began_s,
            cpu_s=time.process_time() - cpu_s,
        )


if __name__ == "__main__":
    main()
