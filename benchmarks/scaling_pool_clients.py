"""A worker that writes into PostgreSQL over many connections, as many servers' pools do.

    python scaling_pool_clients.py

Asked for `connections`, it opens so many and writes over each a batch of 100 points for a run of
its own; `wait_s` later it tells how many batches a second were written, how long one took, and how
many connections were refused. With `a_second` all together write no more than that.
"""

import random
import threading
import time
from typing import Any

import psycopg2

from benchmarks.workers import Answers, requests

ROWS = 100
INSERT = """INSERT INTO points (run_uuid, key, timestamp, step, value, is_nan)
SELECT %s, 'train/key_' || n %% 10, %s + n, %s + n, random(), false FROM generate_series(1, %s) n
ON CONFLICT DO NOTHING"""
TABLE = """CREATE TABLE IF NOT EXISTS points (
    key varchar(250) NOT NULL, value double precision NOT NULL, timestamp bigint NOT NULL,
    run_uuid varchar(32) NOT NULL, step bigint NOT NULL, is_nan boolean NOT NULL,
    PRIMARY KEY (key, timestamp, step, run_uuid, value, is_nan))"""


class _Crowd:
    """Connections, each of a thread."""

    def __init__(self, ask: dict[str, Any]) -> None:
        self._ask = ask
        self.took_ms: list[float] = []
        self.refused = 0
        self._counting = threading.Lock()
        self._ready = threading.Barrier(ask["connections"] + 1)
        self._end_s = 0.0

    def stay(self) -> float:
        """Write for as long as asked; when it began."""
        threads = [threading.Thread(target=self._write) for _ in range(self._ask["connections"])]
        for thread in threads:
            thread.start()
        self._end_s = float("inf")
        self._ready.wait()
        began_s = time.monotonic()
        self._end_s = began_s + self._ask["wait_s"]
        for thread in threads:
            thread.join()
        return began_s

    def _write(self) -> None:
        try:
            connection = psycopg2.connect(self._ask["uri"])
        except psycopg2.OperationalError:
            with self._counting:
                self.refused += 1
            self._ready.wait()
            return
        self._ready.wait()
        step, run = 0, f"{random.getrandbits(128):032x}"
        pause_s = self._ask["connections"] / self._ask["a_second"] if self._ask["a_second"] else 0.0
        time.sleep(random.random() * pause_s)
        while time.monotonic() < self._end_s:
            began_s, step = time.monotonic(), step + ROWS
            with connection, connection.cursor() as cursor:
                cursor.execute(INSERT, (run, time.time_ns() // 1_000_000, step, ROWS))
            self.took_ms.append((time.monotonic() - began_s) * 1000)
            time.sleep(max(0.0, min(began_s + pause_s, self._end_s) - time.monotonic()))
        connection.close()


def main() -> None:
    """Answer requests until there are none."""
    answers = Answers()
    answers.tell()
    for ask in requests():
        crowd = _Crowd(ask)
        began_s = crowd.stay()
        answers.tell(
            a_second=len(crowd.took_ms) / (time.monotonic() - began_s),
            took_ms=crowd.took_ms,
            refused=crowd.refused,
        )


if __name__ == "__main__":
    main()
