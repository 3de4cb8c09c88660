"""Part `scaling_servers`: points a second of a server, by clients, rows, workers and replicas.

The database is a PostgreSQL that waits for the disk, as one in production does; all is on one
machine. Clients send batches of points one after the other; told are points a second, the time of a
request, and the processor time that servers, database and clients took for one, which says what is
short. MLflow's own server takes turns with ours on the same database server. At the end nodes that
have so many points a second each, below, at and above what a server takes, are measured for the
simulation to be held against.
"""

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
CLIENTS = (1, 2, 8, 32)
WAIT_S, QUICK_WAIT_S = 3.0, 1.5
ARRANGEMENTS = ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2))
TURNS, TURN_S = 3, 2.0
NODES, EVERY_S, LIVE_S, QUICK_LIVE_S = 20, 1.0, 20.0, 4.0
LOADS = (0.5, 0.9, 1.5)
DURABLE = (
    "max_connections=200",
    "shared_buffers=256MB",
    "max_wal_size=4GB",
    "track_wal_io_timing=on",
)
OURS, STOCK = "ours", "MLflow's server"
POOL = 15


@dataclass(frozen=True)
class Point:
    """One load on one arrangement, and what came of it."""

    rows_a_second: float
    requests_a_second: float
    p50_ms: float
    p99_ms: float
    server_ms: float
    database_ms: float
    client_ms: float
    others_cores: float
    syncs_a_request: float
    sync_ms: float
    errors: int
    first_error: str

    @property
    def note(self) -> str:
        """What stands beside its rate."""
        spent = f"{self.server_ms:.2f} + {self.database_ms:.2f} + {self.client_ms:.2f}"
        parts = (
            f"{self.requests_a_second:.1f} requests/s",
            f"p50 {self.p50_ms:.1f} p99 {self.p99_ms:.1f} ms",
            f"processor ms a request, server + database + client: {spent}",
            f"{self.syncs_a_request:.2f} syncs a request of {self.sync_ms:.2f} ms",
            f"others took {self.others_cores:.1f} cores",
            *([f"{self.errors} errors: {self.first_error}"] if self.errors else ()),
        )
        return "; ".join(parts)


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
            yield Servers(self._worker, urls, trees, self._postgres, self.database_of(kind))

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

    def runs(self, count: int) -> list[tuple[str, str]]:
        """So many new runs, each with the server that its points go to."""
        from mlflow import MlflowClient

        clients = [MlflowClient(url) for url in self.urls]
        return [
            (self.urls[n % len(clients)], clients[n % len(clients)].create_run("0").info.run_id)
            for n in range(count)
        ]

    def pressed(self, clients: int, rows: int, wait_s: float) -> Point:
        """Clients that send without a pause."""
        runs = self.runs(clients)
        self.worker.ask(runs=runs, rows=rows, wait_s=0.3)
        return self._measured({"runs": runs, "rows": rows, "wait_s": wait_s})[0]

    def live(self, nodes: int, rate: float, wait_s: float) -> tuple[Point, dict[str, Any]]:
        """Nodes that have so many points a second each."""
        ask = {"runs": self.runs(nodes), "rate": rate, "every_s": EVERY_S, "wait_s": wait_s}
        return self._measured(ask)

    def _measured(self, ask: dict[str, Any]) -> tuple[Point, dict[str, Any]]:
        syncs = _syncs(self.database)
        with watched(self.trees, (self.postgres,)) as load:
            seen = self.worker.ask(**ask)
        count = max(1, seen["requests"])
        made, took_ms = (now - was for now, was in zip(_syncs(self.database), syncs, strict=True))
        point = Point(
            rows_a_second=seen["points"] / seen["wall_s"],
            requests_a_second=seen["requests"] / seen["wall_s"],
            p50_ms=percentile(seen["took_ms"] or [float("nan")], 50),
            p99_ms=percentile(seen["took_ms"] or [float("nan")], 99),
            server_ms=load.trees_s[0] * 1000 / count,
            database_ms=load.trees_s[1] * 1000 / count,
            client_ms=seen["cpu_s"] * 1000 / count,
            others_cores=max(0.0, load.others_cores - seen["cpu_s"] / load.wall_s),
            syncs_a_request=made / count,
            sync_ms=took_ms / max(1, made),
            errors=seen["errors"],
            first_error=seen["first_error"],
        )
        return point, seen


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Measure the servers one arrangement after the other."""
    with stand(folder) as one:
        return [*_side_by_side(one, quick), *_by_arrangement(one, quick), *_live(one, quick)]


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


def _side_by_side(one: Stand, quick: bool) -> list[Figure]:
    found = []
    with one.servers(OURS) as ours, one.servers(STOCK) as stock:
        for rows in ROWS:
            points = []
            for clients in CLIENTS:
                mine = ours.pressed(clients, rows, QUICK_WAIT_S if quick else WAIT_S)
                points.append(mine)
                # One that has more clients than connections stands still for half a minute.
                is_too_many = clients > POOL and rows != ROWS[1]
                other = None if is_too_many else stock.pressed(clients, rows, TURN_S)
                found.append(_compared(clients, rows, mine, other))
            found += _spent(rows, points)
    return found


def _compared(clients: int, rows: int, mine: Point, other: Point | None) -> Figure:
    return Figure(
        part=PART,
        what=f"1 worker, {clients} clients x {rows} rows",
        ours=mine.rows_a_second,
        unit="points/s",
        peer=STOCK if other else "",
        theirs=other.rows_a_second if other else None,
        note=f"{mine.note}; {STOCK}: {other.note}" if other else mine.note,
    )


def _spent(rows: int, points: Sequence[Point]) -> list[Figure]:
    """What a request of so many rows takes, for the simulation."""
    return [
        Figure(
            part=PART,
            what=f"{name} of {rows} rows",
            ours=statistics.median(getattr(one, name) for one in points),
            unit="ms",
        )
        for name in ("server_ms", "database_ms", "client_ms", "sync_ms")
    ]


def _by_arrangement(one: Stand, quick: bool) -> list[Figure]:
    """The same clients at more workers and at more servers, by turns."""
    turns = 1 if quick else TURNS
    with contextlib.ExitStack() as stack:
        ways = {
            way: stack.enter_context(one.servers(OURS, count=way[0], workers=way[1]))
            for way in ARRANGEMENTS
        }
        return [
            figure
            for rows in ROWS
            for figure in _beside_one(
                {
                    way: [each.pressed(16, rows, TURN_S) for _ in range(turns)]
                    for way, each in ways.items()
                },
                rows,
            )
        ]


def _beside_one(points: dict[tuple[int, int], list[Point]], rows: int) -> list[Figure]:
    rates = {way: [one.rows_a_second for one in each] for way, each in points.items()}
    return [
        Figure(
            part=PART,
            what=f"{servers} servers x {workers} workers, 16 clients x {rows} rows",
            ours=statistics.median(rates[servers, workers]),
            unit="points/s",
            peer="1 x 1",
            theirs=statistics.median(rates[1, 1]),
            note=points[servers, workers][-1].note,
        )
        for servers, workers in points
    ]


def _alone(what: str, point: Point) -> Figure:
    return Figure(part=PART, what=what, ours=point.rows_a_second, unit="points/s", note=point.note)


def _live(one: Stand, quick: bool) -> list[Figure]:
    """Nodes below, at and above what one worker takes in its largest batches."""
    found = []
    with one.servers(OURS) as servers:
        most = servers.pressed(NODES, ROWS[-1], QUICK_WAIT_S if quick else WAIT_S)
        found.append(_alone(f"1 worker, {NODES} clients x {ROWS[-1]} rows", most))
        for load in LOADS:
            rate = round(load * most.rows_a_second / NODES)
            point, seen = servers.live(NODES, rate, QUICK_LIVE_S if quick else LIVE_S)
            found += _lived(rate, point, seen)
    return found


def _lived(rate: float, point: Point, seen: dict[str, Any]) -> list[Figure]:
    what = f"1 worker, {NODES} nodes x {rate} points/s"
    lags, left = seen["lags_s"], seen["left"]
    told = f"{seen['points'] / max(1, seen['requests']):.0f} rows a request, {left} points left"
    values = {
        "lag, median": (statistics.median(lags), "s", told),
        "lag, 99 of 100": (percentile(lags, 99), "s", ""),
        "others took": (point.others_cores, "cores", ""),
    }
    return [
        _alone(what, point),
        *(
            Figure(part=PART, what=f"{what}: {name}", ours=value, unit=unit, note=note)
            for name, (value, unit, note) in values.items()
        ),
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
