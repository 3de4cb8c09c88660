"""Part `scaling_pools`: what a PgBouncer between servers and PostgreSQL is good for.

PostgreSQL takes as many connections as it is told to; each is a process. Many connections write
batches of 100 points straight to it and through a PgBouncer that shares ten by transaction, by
turns that are first in half of them: as fast as they can, and 50 batches a second together, which
is what idle pools of many servers do. Told are batches a second, where they write as fast as they
can, and the memory that PostgreSQL's processes have for themselves, without what they share, which
only grows. Then more connect than PostgreSQL allows, and at last our own server writes through it.
"""

import contextlib
import os
import pwd
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg2

from benchmarks.figures import Figure
from benchmarks.processes import Worker
from benchmarks.scaling_load import listening, own_mb
from benchmarks.scaling_pool_clients import TABLE
from benchmarks.scaling_servers import OURS, stand
from tests.databases import PASSWORD, postgres
from tests.servers import free_port

PART = "scaling_pools"
PEER = "straight to PostgreSQL"
CONNECTIONS, QUICK_CONNECTIONS = (10, 200), (10,)
TOO_MANY = 400
CLIENTS, ROWS = 16, 100
A_SECOND = 50
MOST, SHARED = 300, 10
TURNS, WAIT_S, QUICK_WAIT_S = 2, 3.0, 1.0
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
        site = _Site(worker, listening(urlsplit(uri).port or 0), {"pool": through, "straight": uri})
        for a_second in (0, A_SECOND):
            for connections in QUICK_CONNECTIONS if quick else CONNECTIONS:
                found += site.by_turns(connections, a_second, QUICK_WAIT_S if quick else WAIT_S)
        found.append(site.refused())
    return found


@dataclass(frozen=True)
class _Site:
    """Who writes, PostgreSQL's process, and the ways there."""

    worker: Worker
    server: psutil.Process
    ways: Mapping[str, str]

    def by_turns(self, connections: int, a_second: int, wait_s: float) -> list[Figure]:
        """Both ways, each first in half of the turns."""
        told: dict[str, list[_Told]] = {way: [] for way in self.ways}
        for turn in range(TURNS):
            for way in sorted(told, reverse=bool(turn % 2)):
                told[way].append(self._asked(way, connections, a_second, wait_s))
        how = f"{a_second} batches/s" if a_second else "as fast as they can"
        what = f"{connections} connections, {how}"
        names = {f"{what}: memory": ("memory_mb", "MB")}
        if not a_second:
            names |= {what: ("a_second", "batches/s")}
        return [_beside(what, told, name, unit) for what, (name, unit) in names.items()]

    def refused(self) -> Figure:
        """How many of too many were refused."""
        counts = [self._asked(way, TOO_MANY, A_SECOND, 1.0)["refused"] for way in self.ways]
        return Figure(
            part=PART, what=f"refused of {TOO_MANY} where {MOST} are allowed", unit="connections",
            ours=counts[0], peer=PEER, theirs=counts[1],
        )  # fmt: skip

    def _asked(self, way: str, connections: int, a_second: int, wait_s: float) -> "_Told":
        uri = _plain(self.ways[way])
        self.worker.send(uri=uri, connections=connections, a_second=a_second, wait_s=wait_s)
        # They connect first; by then all write.
        time.sleep(wait_s * 0.9)
        memory_mb = own_mb(self.server)
        return {**self.worker.answer(), "memory_mb": memory_mb}


_Told = dict[str, Any]


def _beside(what: str, told: Mapping[str, Sequence[_Told]], name: str, unit: str) -> Figure:
    mean = {way: statistics.mean(one[name] for one in each) for way, each in told.items()}
    return Figure(
        part=PART, what=what, ours=mean["pool"], unit=unit, peer=PEER, theirs=mean["straight"]
    )


def _our_server(folder: Path, quick: bool) -> list[Figure]:
    """The points of clients that go through our server."""
    wait_s = QUICK_WAIT_S if quick else WAIT_S
    with (
        stand(folder) as one,
        pgbouncer(one.database_of(OURS)) as through,
        one.servers(OURS, workers=2) as straight,
        one.servers(OURS, workers=2, database=through) as pooled,
    ):
        order = [pooled, straight, straight, pooled]
        told = [each.pressed(CLIENTS, ROWS, wait_s) for each in order]
    what = f"our server, 2 workers, {CLIENTS} clients x {ROWS} rows"
    rates = [one.rows_a_second for one in told]
    speed = Figure(
        part=PART, what=what, ours=(rates[0] + rates[3]) / 2, unit="points/s", peer=PEER,
        theirs=(rates[1] + rates[2]) / 2,
    )  # fmt: skip
    errors = sum(one.errors for one in told)
    return [speed, Figure(part=PART, what=f"{what}: errors", ours=errors, unit="")]
