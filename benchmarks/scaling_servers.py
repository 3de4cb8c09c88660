"""Part `scaling_servers`: points a second of a server, by clients, rows, workers and replicas.

The database is a PostgreSQL that waits for the disk, as one in production does; all is on one
machine. Clients send batches of points one after the other; told are points a second, the time of a
request, and the processor time that servers, database and clients took for one, which says what is
short. No server is measured before all of its workers have started. Nodes that have so many points
a second each, below, at and above what a server takes, are there for the simulation to be held
against. MLflow's own server is asked on the same PostgreSQL, after ours.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figures import Figure, percentile
from benchmarks.processes import Worker
from benchmarks.scaling_load import listening, watched
from tests.databases import postgres
from tests.servers import BIN, free_port, running

PART = "scaling_servers"
ROWS = (10, 100, 1000)
CLIENTS, STOCK_CLIENTS = (1, 2, 8, 32), (8,)
WARM_S, WAIT_S, QUICK_WAIT_S = 0.5, 3.5, 1.0
ARRANGEMENTS = ((1, 1), (1, 2), (2, 1), (2, 2))
TURNS, TURN_CLIENTS = 2, 16
NODES, EVERY_S, LIVE_S, QUICK_LIVE_S = 20, 1.0, 18.0, 4.0
LIVE_WARM_S = 2.0
SETTLED_S, IDLE_CORES = 60.0, 0.1
LOADS = (0.5, 0.9, 1.5)
DURABLE = (
    "max_connections=200",
    "shared_buffers=256MB",
    "max_wal_size=4GB",
    "track_wal_io_timing=on",
)
OURS, STOCK = "ours", "MLflow's server"
TIMES = ("server_ms", "database_ms", "client_ms", "sync_ms")


@dataclass(frozen=True)
class Point:
    """One load on one arrangement, and what came of it. Times are of one request."""

    rows_a_second: float
    p50_ms: float
    server_ms: float
    database_ms: float
    client_ms: float
    others_cores: float
    sync_ms: float
    errors: int
    first_error: str

    def figures(self, what: str, *names: str) -> list[Figure]:
        """Its rate, then what else is asked for."""
        told = f"{self.errors} errors: {self.first_error}" if self.errors else ""
        rate = Figure(part=PART, what=what, ours=self.rows_a_second, unit="points/s", note=told)
        return [rate, *(_named(f"{what}: {name}", getattr(self, name), name) for name in names)]


def _named(what: str, value: float, name: str) -> Figure:
    unit = name.rpartition("_")[2] if "_" in name else ""
    return Figure(part=PART, what=what, ours=value, unit=unit)


class Stand:
    """A PostgreSQL, servers on databases of it, and who sends."""

    def __init__(self, folder: Path, database: str, worker: Worker) -> None:
        self._folder, self._database, self._worker = folder, database, worker
        self._postgres = listening(int(database.rpartition(":")[2].partition("/")[0]))

    @contextlib.contextmanager
    def servers(
        self,
        kind: str,
        *,
        workers: int = 1,
        count: int = 1,
        database: str = "",
        artifacts: str = "kept",
    ) -> Iterator["Servers"]:
        """Servers of a kind, on the database of that kind, or reached by another URI."""
        uri = database or self.database_of(kind)
        with contextlib.ExitStack() as stack:
            urls, trees = [], []
            for _ in range(count):
                url = f"http://127.0.0.1:{free_port()}"
                argv = [*self._argv(kind, url, workers), "--backend-store-uri", uri]
                argv += ["--artifacts-destination", artifacts]
                env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
                server = stack.enter_context(running(argv, env, f"{url}/health", cwd=self._folder))
                urls.append(url)
                trees.append(psutil.Process(server.pid))
            found = Servers(self._worker, urls, trees, self._postgres, self.database_of(kind))
            found.settle()
            yield found

    def database_of(self, kind: str) -> str:
        """The URI of the database of a kind of server."""
        return self._database.rpartition("/")[0] + ("/ours" if kind == OURS else "/stock")

    @staticmethod
    def _argv(kind: str, url: str, workers: int) -> list[Any]:
        program = (
            ("opusclip", "server", "--state", "state") if kind == OURS else ("mlflow", "server")
        )
        where = ("--host", "127.0.0.1", "--port", url.rpartition(":")[2], "--workers", str(workers))
        return [BIN / program[0], *program[1:], *where]


@dataclass(frozen=True)
class Servers:
    """Servers that run, and all that is asked for a measurement."""

    worker: Worker
    urls: Sequence[str]
    trees: Sequence[psutil.Process]
    postgres: psutil.Process
    database: str
    made: list[tuple[str, str]] = field(default_factory=list)

    def runs(self, count: int) -> list[tuple[str, str]]:
        """So many runs, each with the server that its points go to."""
        from mlflow import MlflowClient

        for n in range(len(self.made), count):
            url = self.urls[n % len(self.urls)]
            self.made.append((url, MlflowClient(url).create_run("0").info.run_id))
        return self.made[:count]

    def settle(self) -> None:
        """Wait until all workers have started, not only the one that said so."""
        deadline_s = time.monotonic() + SETTLED_S
        while time.monotonic() < deadline_s:
            with watched(self.trees) as load:
                time.sleep(0.5)
            if load.cores() < IDLE_CORES:
                return

    def pressed(self, clients: int, rows: int, wait_s: float) -> Point:
        """Clients that send without a pause."""
        ask = {"runs": self.runs(clients), "rows": rows}
        return self._measured({**ask, "warm_s": WARM_S, "wait_s": WARM_S + wait_s})[0]

    def live(self, nodes: int, rate: float, wait_s: float) -> tuple[Point, dict[str, Any]]:
        """Nodes that have so many points a second each."""
        ask = {"runs": self.runs(nodes), "rate": rate, "every_s": EVERY_S}
        return self._measured({**ask, "warm_s": LIVE_WARM_S, "wait_s": LIVE_WARM_S + wait_s})

    def _measured(self, ask: dict[str, Any]) -> tuple[Point, dict[str, Any]]:
        syncs = _syncs(self.database)
        with watched(self.trees, (self.postgres,)) as load:
            seen = self.worker.ask(**ask)
        # What they took is for all requests, what came for those of the time that counts.
        count = max(1, seen["all_requests"])
        made, took_ms = (now - was for now, was in zip(_syncs(self.database), syncs, strict=True))
        point = Point(
            rows_a_second=seen["points"] / seen["counted_s"],
            p50_ms=percentile(seen["took_ms"] or [float("nan")], 50),
            server_ms=load.trees_s[0] * 1000 / count,
            database_ms=load.trees_s[1] * 1000 / count,
            client_ms=seen["cpu_s"] * 1000 / count,
            others_cores=max(0.0, load.others_cores - seen["cpu_s"] / load.wall_s),
            sync_ms=took_ms / max(1, made),
            errors=seen["errors"],
            first_error=seen["first_error"],
        )
        return point, seen


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Measure the servers one arrangement after the other."""
    wait_s = QUICK_WAIT_S if quick else WAIT_S
    with stand(folder) as one:
        with one.servers(OURS) as ours:
            found = _one_worker(ours, wait_s)
            found += _live(ours, wait_s, QUICK_LIVE_S if quick else LIVE_S)
        found += _by_arrangement(one, wait_s, 1 if quick else TURNS)
        return found + _stock(one, wait_s)


@contextlib.contextmanager
def stand(folder: Path) -> Iterator[Stand]:
    """Start a PostgreSQL with a database for each kind of server, and a worker that sends."""
    from sqlalchemy import create_engine, text

    with postgres(settings=DURABLE) as uri, Worker("scaling_nodes.py", folder=folder) as worker:
        engine = create_engine(uri, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for name in ("ours", "stock"):
                connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        yield Stand(folder, uri, worker)


def _one_worker(ours: Servers, wait_s: float) -> list[Figure]:
    found = []
    told = ("p50_ms", "server_ms", "database_ms", "client_ms", "others_cores")
    for rows in ROWS:
        points = []
        for clients in CLIENTS:
            points.append(ours.pressed(clients, rows, wait_s))
            found += points[-1].figures(f"1 worker, {clients} clients x {rows} rows", *told)
        found += _spent(rows, points)
    return found


def _stock(one: Stand, wait_s: float) -> list[Figure]:
    """MLflow's own server on the same PostgreSQL."""
    with one.servers(STOCK) as stock:
        return [
            figure
            for rows in ROWS
            for clients in STOCK_CLIENTS
            for figure in stock.pressed(clients, rows, wait_s).figures(
                f"{STOCK}, {clients} clients x {rows} rows", "others_cores"
            )
        ]


def _spent(rows: int, points: Sequence[Point]) -> list[Figure]:
    """What a request of so many rows takes, for the simulation."""
    return [
        _named(f"{name} of {rows} rows", statistics.median(getattr(p, name) for p in points), name)
        for name in TIMES
    ]


def _by_arrangement(one: Stand, wait_s: float, turns: int) -> list[Figure]:
    """The same clients at more workers and at more servers, by turns."""
    with contextlib.ExitStack() as stack:
        ways = {
            way: stack.enter_context(one.servers(OURS, count=way[0], workers=way[1]))
            for way in ARRANGEMENTS
        }
        return [figure for rows in ROWS for figure in _in_turns(ways, rows, wait_s, turns)]


def _in_turns(
    ways: Mapping[tuple[int, int], Servers], rows: int, wait_s: float, turns: int
) -> Iterator[Figure]:
    points: dict[tuple[int, int], list[Point]] = {way: [] for way in ways}
    for turn in range(turns):
        for way in sorted(ways, reverse=bool(turn % 2)):
            points[way].append(ways[way].pressed(TURN_CLIENTS, rows, wait_s))
    for (servers, workers), each in points.items():
        what = f"{servers} servers x {workers} workers, {TURN_CLIENTS} clients x {rows} rows"
        yield from _middle(each).figures(what, "others_cores")


def _middle(points: Sequence[Point]) -> Point:
    """The mean of their rates, and of what others took."""
    means = {
        name: statistics.mean(getattr(point, name) for point in points)
        for name in ("rows_a_second", "others_cores")
    }
    return replace(points[0], **means)


def _live(ours: Servers, wait_s: float, live_s: float) -> list[Figure]:
    """Nodes below, at and above what one worker takes in its largest batches."""
    most = ours.pressed(NODES, ROWS[-1], wait_s)
    found = most.figures(f"1 worker, {NODES} clients x {ROWS[-1]} rows", "others_cores")
    for load in LOADS:
        rate = round(load * most.rows_a_second / NODES)
        point, seen = ours.live(NODES, rate, live_s)
        found += _lived(rate, point, seen["lags_s"])
    return found


def _lived(rate: float, point: Point, lags_s: Sequence[float]) -> list[Figure]:
    what = f"1 worker, {NODES} nodes x {rate} points/s"
    return [
        *point.figures(what, "others_cores"),
        Figure(part=PART, what=f"{what}: lag, median", ours=percentile(lags_s, 50), unit="s"),
        Figure(part=PART, what=f"{what}: lag, 99 of 100", ours=percentile(lags_s, 99), unit="s"),
    ]


def _syncs(database: str) -> tuple[float, float]:
    """How often the database has brought its log to the disk, and how many ms that took."""
    from sqlalchemy import create_engine, text

    engine = create_engine(database, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        sums = "coalesce(sum(fsyncs), 0), coalesce(sum(fsync_time), 0)"
        found = connection.execute(text(f"SELECT {sums} FROM pg_stat_io WHERE object = 'wal'"))
        syncs, took_ms = found.one()
    engine.dispose()
    return float(syncs), float(took_ms)
