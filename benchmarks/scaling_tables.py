"""Part `scaling_tables`: writing into a large table of points, whole and partitioned.

A measure of the database, not of a road to take: MLflow's migrations know nothing of partitions.
The two tables have the columns and the primary key of MLflow's `metrics`; one is partitioned by
hash of the run. Both are filled alike, then batches of 1000 points of 20 runs are written by turns.
"""

import random
import statistics
import time
from pathlib import Path
from typing import Any

import psycopg2

from benchmarks.figures import Figure, interval_of, paired_ratios
from benchmarks.scaling_pool_clients import TABLE
from tests.databases import postgres

PART = "scaling_tables"
PEER = "one table"
SIZES, QUICK_SIZES = (0, 1, 5), (0, 1)
PARTITIONS, RUNS, KEYS, ROWS = 16, 20, 10, 1000
TURNS, QUICK_TURNS = 60, 10
FILLED_RUNS = 1000
SETTINGS = ("shared_buffers=256MB", "max_wal_size=4GB", "synchronous_commit=off")
INSERT = """INSERT INTO {} (run_uuid, key, timestamp, step, value, is_nan)
SELECT %s, 'train/key_' || n %% {keys}, %s + n, %s + n, random(), false
FROM generate_series(1, {rows}) n ON CONFLICT DO NOTHING"""
FILL = """INSERT INTO {} (run_uuid, key, timestamp, step, value, is_nan)
SELECT md5((n / 1000 %% {runs})::text), 'train/key_' || n %% {keys}, 1700000000000 + n, n, 0.5,
    false
FROM generate_series(%s, %s) n"""


def measure(_: Path, *, quick: bool) -> list[Figure]:
    """Fill the tables more and more, in millions of points, and write."""
    found, there = [], 0
    with postgres(settings=SETTINGS) as uri:
        connection = psycopg2.connect(uri.replace("+psycopg2", ""))
        connection.autocommit = True
        with connection.cursor() as cursor:
            _make(cursor)
            for millions in QUICK_SIZES if quick else SIZES:
                _fill(cursor, there, millions)
                there = millions
                found.append(_compared(cursor, millions, QUICK_TURNS if quick else TURNS))
        connection.close()
    return found


def _make(cursor: Any) -> None:
    cursor.execute(TABLE)
    cursor.execute("CREATE TABLE parted (LIKE points INCLUDING ALL) PARTITION BY HASH (run_uuid)")
    for n in range(PARTITIONS):
        bounds = f"WITH (MODULUS {PARTITIONS}, REMAINDER {n})"
        cursor.execute(f"CREATE TABLE parted_{n} PARTITION OF parted FOR VALUES {bounds}")


def _fill(cursor: Any, there: int, millions: int) -> None:
    for table in ("points", "parted"):
        fill = FILL.format(table, runs=FILLED_RUNS, keys=KEYS)
        for million in range(there, millions):
            cursor.execute(fill, (million * 1_000_000 + 1, (million + 1) * 1_000_000))
        cursor.execute(f"ANALYZE {table}")


def _compared(cursor: Any, millions: int, turns: int) -> Figure:
    draw = random.Random(millions)
    runs = [f"{draw.getrandbits(128):032x}" for _ in range(RUNS)]
    rates: dict[str, list[float]] = {"points": [], "parted": []}
    for turn in range(turns):
        for table in sorted(rates, reverse=bool(turn % 2)):
            insert = INSERT.format(table, keys=KEYS, rows=ROWS)
            given = (runs[turn % RUNS], 1_800_000_000_000 + turn * ROWS, turn * ROWS)
            began_s = time.perf_counter()
            cursor.execute(insert, given)
            rates[table].append(ROWS / (time.perf_counter() - began_s))
    return Figure(
        part=PART,
        what=f"{millions} M points there, {PARTITIONS} partitions",
        ours=statistics.median(rates["parted"]),
        unit="points/s",
        peer=PEER,
        theirs=statistics.median(rates["points"]),
        interval=interval_of(paired_ratios(rates["parted"], rates["points"])),
        note=_sizes(cursor),
    )


def _sizes(cursor: Any) -> str:
    cursor.execute("SELECT pg_table_size('points') / 1e6, pg_indexes_size('points') / 1e6")
    table_mb, index_mb = cursor.fetchone()
    return f"one table {table_mb:.0f} MB, its index {index_mb:.0f} MB"
