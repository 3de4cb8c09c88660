"""Part `storing`: how fast points are written into MLflow's database, beside MLflow's own store.

Both stores have a database of their own of the same kind, and take turns with the same batches of
1000 points; judged is the interval of the median of the turns' ratios. PostgreSQL runs without
waiting for the disk, for both alike. Through HTTP each has a server with one worker. Under the load
of 32 clients the two are measured one after the other, and errors of any client are counted.
"""

import contextlib
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, interval_of, paired_ratios, percentile
from opusclip_mlops.faults import attempted

PART = "storing"
PEER = "MLflow's store"
POINTS = 1000
TURNS, QUICK_TURNS = 21, 5
REPLAYS, QUICK_REPLAYS = 5, 3
CLIENTS = 32
LOAD_S, QUICK_LOAD_S = 30, 8
AT_LEAST, THROUGH_HTTP, REPLAYED = 4, 2, 5
_WAYS = ("ours", "stock")
_PREFIXES = {"ours": "opusclip+", "stock": ""}


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Measure the stores by themselves and behind servers, on sqlite and PostgreSQL."""
    found = []
    with _databases(folder) as kinds:
        for kind, uris in kinds.items():
            found += _stores(kind, uris, quick)
            with _servers(folder, kind, uris) as urls:
                found += _through_http(kind, urls, quick)
                found += _crowded(kind, urls, QUICK_LOAD_S if quick else LOAD_S)
    return found


@contextlib.contextmanager
def _databases(folder: Path) -> Iterator[dict[str, dict[str, str]]]:
    """The URIs of two empty databases of each kind."""
    from sqlalchemy import create_engine, text

    from tests.databases import postgres

    with postgres() as server:
        engine = create_engine(server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for way in _WAYS:
                connection.execute(text(f"CREATE DATABASE {way}"))
        engine.dispose()
        yield {
            "sqlite": {way: f"sqlite:///{folder}/{way}.db" for way in _WAYS},
            "PostgreSQL": {way: f"{server.rpartition('/')[0]}/{way}" for way in _WAYS},
        }


def _stores(kind: str, uris: dict[str, str], quick: bool) -> list[Figure]:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    from opusclip_mlops.server.tracking import TrackingStore

    stores = {
        "ours": TrackingStore(uris["ours"], "file:///nowhere"),
        "stock": SqlAlchemyStore(uris["stock"], "file:///nowhere"),
    }
    runs = {way: one.create_run("0", "u", 1, [], "r").info.run_id for way, one in stores.items()}

    def write(way: str, batch: Any) -> None:
        stores[way].log_batch(runs[way], batch, [], [])

    found = []
    for keys in (10, POINTS):
        batches = [_batch(keys, turn) for turn in range(QUICK_TURNS if quick else TURNS)]
        what = f"log_batch, {keys} keys x {POINTS // keys}, {kind}"
        found.append(_compared(what, write, batches, AT_LEAST))
        again = batches[: QUICK_REPLAYS if quick else REPLAYS]
        found.append(_compared(f"the same again, {keys} keys, {kind}", write, again, REPLAYED))
    return found


def _batch(keys: int, turn: int) -> list[Any]:
    from mlflow.entities import Metric

    draw = random.Random(turn)
    began_ms = 1_700_000_000_000 + turn * POINTS
    return [
        Metric(f"train/key_{keys}_{i % keys}", draw.random(), began_ms + i, turn * POINTS + i)
        for i in range(POINTS)
    ]


def _compared(
    what: str, write: Callable[[str, Any], None], batches: Sequence[Any], at_least: float
) -> Figure:
    rates: dict[str, list[float]] = {way: [] for way in _WAYS}
    for turn, batch in enumerate(batches):
        for way in _WAYS if turn % 2 else _WAYS[::-1]:
            began_s = time.perf_counter()
            write(way, batch)
            rates[way].append(POINTS / (time.perf_counter() - began_s))
    return Figure(
        part=PART,
        what=what,
        ours=statistics.median(rates["ours"]),
        unit="points/s",
        peer=PEER,
        theirs=statistics.median(rates["stock"]),
        at_least=at_least,
        interval=interval_of(paired_ratios(rates["ours"], rates["stock"])),
    )


@contextlib.contextmanager
def _servers(folder: Path, kind: str, uris: dict[str, str]) -> Iterator[dict[str, str]]:
    from tests.servers import BIN, free_port, running

    env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with contextlib.ExitStack() as stack:
        urls = {}
        for way in _WAYS:
            url = urls[way] = f"http://127.0.0.1:{free_port()}"
            where = ("--host", "127.0.0.1", "--port", url.rpartition(":")[2], "--workers", "1")
            argv = [BIN / "mlflow", "server", *where]
            argv += ["--backend-store-uri", _PREFIXES[way] + uris[way]]
            argv += ["--artifacts-destination", str(folder / kind / way)]
            stack.enter_context(running(argv, env, f"{url}/health", cwd=folder))
        yield urls


def _through_http(kind: str, urls: dict[str, str], quick: bool) -> list[Figure]:
    from mlflow import MlflowClient

    clients = {way: MlflowClient(url) for way, url in urls.items()}
    runs = {way: one.create_run("0").info.run_id for way, one in clients.items()}

    def write(way: str, batch: Any) -> None:
        clients[way].log_batch(runs[way], batch)

    batches = [_batch(10, 1000 + turn) for turn in range(QUICK_TURNS if quick else TURNS)]
    return [_compared(f"log_batch through HTTP, {kind}", write, batches, THROUGH_HTTP)]


def _crowded(kind: str, urls: dict[str, str], wait_s: float) -> list[Figure]:
    """32 clients write for a while, and the calls of the UI are timed meanwhile."""
    seen = {way: _Crowd(url).stay(wait_s) for way, url in urls.items()}
    ours, stock = seen["ours"], seen["stock"]
    named = f"{CLIENTS} clients at once, {kind}"
    errors = Figure(
        part=PART, what=f"errors of {named}", ours=ours.errors, unit="errors", at_most=0,
        note=f"{stock.errors} of MLflow's own",
    )  # fmt: skip
    written = Figure(
        part=PART, what=named, ours=ours.batches * 100 / wait_s, unit="points/s", peer=PEER,
        theirs=stock.batches * 100 / wait_s,
    )  # fmt: skip
    calls = [
        Figure(
            part=PART, what=f"p99 of {call} under that load, {kind}", unit="ms", peer=PEER,
            ours=percentile(ours.calls_ms[call], 99), theirs=percentile(stock.calls_ms[call], 99),
            at_most=1, note=f"{len(ours.calls_ms[call])} and {len(stock.calls_ms[call])} calls",
        )
        for call in ours.calls_ms
    ]  # fmt: skip
    return [errors, written, *calls]


class _Crowd:
    """Clients of one server, each in a thread with batches of 100 points for a run of its own."""

    def __init__(self, url: str) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(url)
        self._experiment = self._client.create_experiment(f"crowd {time.time_ns()}")
        self._over = threading.Event()
        self.batches = self.errors = 0
        self._counting = threading.Lock()
        self.calls_ms: dict[str, list[float]] = {"search_runs": [], "metric history": []}

    def stay(self, wait_s: float) -> "_Crowd":
        """Write and look for so long."""
        watched, *runs = (
            self._client.create_run(self._experiment).info.run_id for _ in range(1 + CLIENTS)
        )
        self._client.log_batch(watched, _batch(10, 0))
        threads = [threading.Thread(target=self._write, args=(run,)) for run in runs]
        for thread in threads:
            thread.start()
        self._look(watched, time.monotonic() + wait_s)
        self._over.set()
        for thread in threads:
            thread.join()
        return self

    def _write(self, run: str) -> None:
        turn = 0
        while not self._over.is_set():
            batch, turn = _batch(10, turn)[:100], turn + 1
            failed = attempted(lambda batch=batch: self._client.log_batch(run, batch))
            self._count(failed)
            with self._counting:
                self.batches += failed is None

    def _count(self, failed: Exception | None) -> None:
        with self._counting:
            self.errors += failed is not None

    def _look(self, run: str, end: float) -> None:
        calls: dict[str, Callable[[], Any]] = {
            "search_runs": lambda: self._client.search_runs([self._experiment]),
            "metric history": lambda: self._client.get_metric_history(run, "train/key_10_1"),
        }
        while time.monotonic() < end:
            for name, call in calls.items():
                began_s = time.perf_counter()
                self._count(attempted(call))
                self.calls_ms[name].append((time.perf_counter() - began_s) * 1000)
