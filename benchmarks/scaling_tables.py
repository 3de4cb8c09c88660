"""Part `scaling_tables`: writing into a large table of points, whole and partitioned.

A measure of the database, not of a road to take: MLflow's migrations know nothing of partitions.
MLflow makes its tables; beside its `metrics` stands one with the same columns, indexes and foreign
key that is partitioned by hash of the run. Both are filled alike, then batches of 1000 points of 20
runs are written by turns.
"""

import random
import statistics
import time
from pathlib import Path
from typing import Any

import psycopg2

from benchmarks.figures import Figure, interval_of, paired_ratios
from tests.databases import postgres

PART = "scaling_tables"
PEER = "one table"
SIZES, QUICK_SIZES = (0, 2), (0,)
PARTITIONS, RUNS, KEYS, ROWS = 16, 20, 10, 1000
TURNS, QUICK_TURNS = 80, 10
FILLED_RUNS = 1000
SETTINGS = ("shared_buffers=256MB", "max_wal_size=4GB", "synchronous_commit=off")
TABLES = ("metrics", "parted")
INSERT = """INSERT INTO {} (run_uuid, key, timestamp, step, value, is_nan)
SELECT %s, 'train/key_' || n %% {keys}, %s + n, %s + n, random(), false
FROM generate_series(1, {rows}) n ON CONFLICT DO NOTHING"""
FILL = """INSERT INTO {} (run_uuid, key, timestamp, step, value, is_nan)
SELECT md5((n / 1000 %% {runs})::text), 'train/key_' || n %% {keys}, 1700000000000 + n, n, 0.5,
    false
FROM generate_series(%s, %s) n"""
ADD_RUN = """INSERT INTO runs (run_uuid, name, status, lifecycle_stage)
VALUES (%s, 'run', 'RUNNING', 'active') ON CONFLICT DO NOTHING"""


def measure(_: Path, *, quick: bool) -> list[Figure]:
    """Fill the tables more and more, in millions of points, and write."""
    found: list[Figure] = []
    there = 0
    with postgres(settings=SETTINGS) as uri:
        _migrate(uri)
        connection = psycopg2.connect(uri.replace("+psycopg2", ""))
        connection.autocommit = True
        with connection.cursor() as cursor:
            _make(cursor)
            for millions in QUICK_SIZES if quick else SIZES:
                _fill(cursor, there, millions)
                there = millions
                found += _compared(cursor, millions, QUICK_TURNS if quick else TURNS)
        connection.close()
    return found


def _migrate(uri: str) -> None:
    """Have MLflow make its tables."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(uri)
    _initialize_tables(engine)
    engine.dispose()


def _make(cursor: Any) -> None:
    cursor.execute("CREATE TABLE parted (LIKE metrics INCLUDING ALL) PARTITION BY HASH (run_uuid)")
    cursor.execute("ALTER TABLE parted ADD FOREIGN KEY (run_uuid) REFERENCES runs (run_uuid)")
    for n in range(PARTITIONS):
        bounds = f"WITH (MODULUS {PARTITIONS}, REMAINDER {n})"
        cursor.execute(f"CREATE TABLE parted_{n} PARTITION OF parted FOR VALUES {bounds}")
    for n in range(FILLED_RUNS):
        cursor.execute("SELECT md5(%s)", (str(n),))
        cursor.execute(ADD_RUN, cursor.fetchone())
    if len({_indexes(cursor, table) for table in TABLES}) > 1:
        raise RuntimeError("the partitioned table has not the indexes of MLflow's")


def _indexes(cursor: Any, table: str) -> int:
    cursor.execute("SELECT count(*) FROM pg_indexes WHERE tablename = %s", (table,))
    return int(cursor.fetchone()[0])


def _fill(cursor: Any, there: int, millions: int) -> None:
    # The runs are there; to look them up for each point takes longer than all the rest.
    cursor.execute("SET session_replication_role = replica")
    for table in TABLES:
        fill = FILL.format(table, runs=FILLED_RUNS, keys=KEYS)
        for million in range(there, millions):
            cursor.execute(fill, (million * 1_000_000 + 1, (million + 1) * 1_000_000))
    cursor.execute("SET session_replication_role = DEFAULT")
    for table in TABLES:
        cursor.execute(f"ANALYZE {table}")


def _compared(cursor: Any, millions: int, turns: int) -> list[Figure]:
    draw = random.Random(millions)
    runs = [f"{draw.getrandbits(128):032x}" for _ in range(RUNS)]
    for run in runs:
        cursor.execute(ADD_RUN, (run,))
    rates: dict[str, list[float]] = {table: [] for table in TABLES}
    for turn in range(turns):
        for table in sorted(TABLES, reverse=bool(turn % 2)):
            insert = INSERT.format(table, keys=KEYS, rows=ROWS)
            given = (runs[turn % RUNS], 1_800_000_000_000 + turn * ROWS, turn * ROWS)
            began_s = time.perf_counter()
            cursor.execute(insert, given)
            rates[table].append(ROWS / (time.perf_counter() - began_s))
    what = f"{millions} M points there"
    speed = Figure(
        part=PART,
        what=f"{what}, {PARTITIONS} partitions",
        ours=statistics.median(rates["parted"]),
        unit="points/s",
        peer=PEER,
        theirs=statistics.median(rates["metrics"]),
        interval=interval_of(paired_ratios(rates["parted"], rates["metrics"])),
    )
    return [speed, *_sizes(cursor, what)]


def _sizes(cursor: Any, what: str) -> list[Figure]:
    cursor.execute("SELECT pg_table_size('metrics') / 1e6, pg_indexes_size('metrics') / 1e6")
    return [
        Figure(part=PART, what=f"{what}: {name}", ours=float(value), unit="MB")
        for name, value in zip(("table", "indexes"), cursor.fetchone(), strict=True)
    ]
