"""Part `scaling_pools`: what a PgBouncer between servers and PostgreSQL is good for.

PostgreSQL takes as many connections as it is told to; each is a process. Many connections write
batches of 100 points straight to it and through a PgBouncer that shares ten by transaction, by
turns: as fast as they can, and 50 batches a second together, which is what idle pools of many
servers do. Told are batches a second, their time, who was refused and PostgreSQL's memory. Then our
own server writes through it.
"""

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg2

from benchmarks.figures import Figure, percentile
from benchmarks.processes import Worker
from benchmarks.scaling_load import listening, together_mb
from benchmarks.scaling_pool_clients import TABLE
from benchmarks.scaling_servers import OURS, stand
from tests.databases import PASSWORD, postgres
from tests.servers import free_port

PART = "scaling_pools"
PEER = "straight to PostgreSQL"
CONNECTIONS, QUICK_CONNECTIONS = (10, 50, 200, 400), (10, 50)
A_SECOND = 50
MOST, SHARED = 300, 10
WAIT_S, QUICK_WAIT_S = 5.0, 1.5
CONFIG = """[databases]
* = host=127.0.0.1 port={database}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users.txt
pool_mode = transaction
max_client_conn = 1000
default_pool_size = {shared}
logfile = {folder}/pgbouncer.log
"""


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Measure connections by themselves, then our server; nothing where there is no PgBouncer."""
    if shutil.which("pgbouncer") is None:
        return []
    return [*_by_connections(folder, quick), *_our_server(folder, quick)]


@contextlib.contextmanager
def pgbouncer(uri: str) -> Iterator[str]:
    """Run a PgBouncer before a database; gives the URI through it."""
    database, port = int(uri.rpartition(":")[2].partition("/")[0]), free_port()
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        folder = Path(name)
        config, users = folder / "pgbouncer.ini", folder / "users.txt"
        config.write_text(CONFIG.format(database=database, port=port, folder=folder, shared=SHARED))
        users.write_text(f'"opusclip" "{PASSWORD}"\n')
        nobody = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        for path in (folder, config, users):
            os.chown(path, -1 if nobody is None else nobody, -1)
        process = subprocess.Popen(
            ["pgbouncer", "-q", str(config)], user=nobody, stderr=subprocess.DEVNULL
        )
        try:
            through = uri.replace(f":{database}/", f":{port}/")
            _wait_until_up(through)
            yield through
        finally:
            process.terminate()
            process.wait()


def _plain(uri: str) -> str:
    return uri.replace("postgresql+psycopg2", "postgresql")


def _wait_until_up(uri: str) -> None:
    deadline_s = time.monotonic() + 20
    while True:
        try:
            psycopg2.connect(_plain(uri)).close()
            return
        except psycopg2.OperationalError:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(0.1)


def _by_connections(folder: Path, quick: bool) -> list[Figure]:
    found = []
    settings = (f"max_connections={MOST}", "shared_buffers=256MB", "max_wal_size=4GB")
    with (
        postgres(settings=settings) as uri,
        pgbouncer(uri) as through,
        Worker("scaling_pool_clients.py", folder=folder) as worker,
    ):
        connection = psycopg2.connect(_plain(uri))
        with connection, connection.cursor() as cursor:
            cursor.execute(TABLE)
        connection.close()
        server = listening(urlsplit(uri).port or 0)
        for a_second in (0, A_SECOND):
            for connections in QUICK_CONNECTIONS if quick else CONNECTIONS:
                ways = {
                    way: _asked(worker, server, place, connections, a_second, quick)
                    for way, place in (("pool", through), ("straight", uri))
                }
                found += _figures(connections, a_second, ways)
    return found


def _asked(
    worker: Worker, server: psutil.Process, uri: str, connections: int, a_second: int, quick: bool
) -> dict[str, Any]:
    wait_s = QUICK_WAIT_S if quick else WAIT_S
    worker.send(uri=_plain(uri), connections=connections, a_second=a_second, wait_s=wait_s)
    time.sleep(wait_s * 0.7)
    memory_mb = together_mb(server)
    return {**worker.answer(), "memory_mb": memory_mb}


def _figures(connections: int, a_second: int, ways: dict[str, dict[str, Any]]) -> list[Figure]:
    pool, straight = ways["pool"], ways["straight"]
    how = f"{a_second} batches/s" if a_second else "as fast as they can"
    what = f"{connections} connections, {how}"
    refused = f"{pool['refused']} and {straight['refused']} refused"
    rate = Figure(
        part=PART, what=what, ours=pool["a_second"], unit="batches/s", peer=PEER,
        theirs=straight["a_second"],
        note=f"p99 {percentile(pool['took_ms'], 99):.0f} and "
        f"{percentile(straight['took_ms'], 99):.0f} ms; {refused}",
    )  # fmt: skip
    memory = Figure(
        part=PART, what=f"{what}: PostgreSQL's memory", ours=pool["memory_mb"], unit="MB",
        peer=PEER, theirs=straight["memory_mb"],
    )  # fmt: skip
    return [rate, memory]


def _our_server(folder: Path, quick: bool) -> list[Figure]:
    """The points of clients that go through our server, and whether all arrived."""
    wait_s = QUICK_WAIT_S if quick else WAIT_S
    with (
        stand(folder) as one,
        pgbouncer(one.database_of(OURS)) as through,
        one.servers(OURS, workers=2) as straight,
        one.servers(OURS, workers=2, database=through) as pooled,
    ):
        rates = [each.pressed(16, 100, wait_s).rows_a_second for each in (pooled, straight)]
        held = _held(one.database_of(OURS))
    return [
        Figure(
            part=PART, what="our server, 2 workers, 16 clients x 100 rows", ours=rates[0],
            unit="points/s", peer=PEER, theirs=rates[1], note=f"{held} connections by both",
        )
    ]  # fmt: skip


def _held(uri: str) -> int:
    connection = psycopg2.connect(_plain(uri))
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = 'ours'")
        count = int(cursor.fetchone()[0])
    connection.close()
    return count - 1
