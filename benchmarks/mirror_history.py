"""Part `mirror_history`: what it costs a mirror to ask a run for news, however long its history.

Runs of a hundred keys and of ten thousand to a million points lie in one SQLite file, with MLflow's
own server in front. A poll fetches the run and asks for what is new since the last: nothing, or ten
points of each key. The lengths are polled in turns, so that what else the machine does falls on
all; a ratio is of two polls of one turn.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from benchmarks.figures import Figure, interval_of, number, paired_ratios
from benchmarks.histories import add_steps, make_run, names
from opusclip_mlops.run_history import Cursor, History, open_history
from opusclip_mlops.run_history.by_key import HistoryByKey
from opusclip_mlops.run_history.sql import SqlRows
from tests.servers import mlflow_server

PART = "mirror_history"
LENGTHS, QUICK_LENGTHS = (10_000, 100_000, 1_000_000), (1_000, 10_000, 20_000)
TURNS, QUICK_TURNS = 12, 3
KEYS = 100
NEW_A_KEY = 10
WHOLE = 100_000
FLAT = {"server": 2.0, "SQLite": 1.5}
"""How much a hundred times the history may cost; a server counts its way to a page."""


@dataclass
class _Watched:
    """A run that is polled by one kind of reader."""

    client: MlflowClient
    history: History
    run_id: str
    cursor: Cursor

    def poll_s(self, expected: int) -> float:
        """Poll once; the seconds it took."""
        began_s = time.perf_counter()
        found = self.history.news(self.client.get_run(self.run_id), self.cursor)
        taken_s = time.perf_counter() - began_s
        if found is None or len(found[0]) != expected:
            raise RuntimeError(f"{expected} points are new, and {found} was found")
        self.cursor = found[1]
        return taken_s


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Poll runs of all lengths in turns, and read one whole."""
    lengths, turns = (QUICK_LENGTHS, QUICK_TURNS) if quick else (LENGTHS, TURNS)
    database_uri = f"sqlite:///{folder / 'mlflow.db'}"
    database = folder / "mlflow.db"
    runs = {length: make_run(database, "0", keys=KEYS, points=length) for length in lengths}
    with mlflow_server(folder) as url:
        client = MlflowClient(url)
        readers = {
            "server": open_history(client),
            "SQLite": open_history(client, database_uri=database_uri),
        }
        figures = [_whole(client, readers, runs[min(WHOLE, max(lengths))])]
        log = _logger(database)
        for name, history in readers.items():
            watched = list(_watched(client, history, runs, database_uri))
            figures += _polls(name, watched, log, turns)
    return figures


def _whole(client: MlflowClient, readers: dict[str, History], run_id: str) -> Figure:
    run = client.get_run(run_id)
    taken_s = {}
    for name, history in readers.items():
        began_s = time.perf_counter()
        count = len(history.read(run)[0])
        taken_s[name] = time.perf_counter() - began_s
    return Figure(
        part=PART,
        what=f"reading {count:,} points whole, out of the file",
        ours=taken_s["SQLite"],
        unit="s",
        peer="server",
        theirs=taken_s["server"],
        at_most=0.5,
    )


def _watched(
    client: MlflowClient, history: History, runs: dict[int, str], database_uri: str
) -> Iterator[_Watched]:
    """Every run with its cursor; for the server's reader too it is made out of the file: faster."""
    by_key = isinstance(history, HistoryByKey)
    reader = HistoryByKey(SqlRows(database_uri)) if by_key else history
    for run_id in runs.values():
        _, cursor = reader.read(client.get_run(run_id))
        yield _Watched(client, history, run_id, cursor)


def _polls(
    name: str, watched: Sequence[_Watched], log: Callable[[str, int], None], turns: int
) -> Iterator[Figure]:
    """What a poll costs by the length of what is there already."""
    for one in watched:
        one.poll_s(0)
    for what, new in (("no news", 0), (f"{NEW_A_KEY * KEYS:,} new points", NEW_A_KEY)):
        taken_s: list[list[float]] = [[] for _ in watched]
        for _ in range(turns):
            for one, taken in zip(watched, taken_s, strict=True):
                log(one.run_id, new)
                taken.append(one.poll_s(new * KEYS))
        yield _figure(name, f"a poll with {what}", taken_s)


def _figure(name: str, what: str, taken_s: Sequence[Sequence[float]]) -> Figure:
    middle_ms = [1_000 * statistics.median(taken) for taken in taken_s]
    return Figure(
        part=PART,
        what=f"{name}: {what}, the longest history by the shortest",
        ours=middle_ms[-1],
        unit="ms",
        peer="shortest",
        theirs=middle_ms[0],
        at_most=FLAT[name],
        interval=interval_of(paired_ratios(taken_s[-1], taken_s[0])),
        note=f"in between {number(middle_ms[1])} ms",
    )


def _logger(database: Path) -> Callable[[str, int], None]:
    """Adds so many points of each key, each time later ones."""
    step = 10_000_000

    def log(run_id: str, count: int) -> None:
        nonlocal step
        if count:
            add_steps(database, [run_id], range(step, step + count), keys=names(KEYS))
            step += count

    return log
