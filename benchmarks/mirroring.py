"""Part `mirroring`: how fast a run is brought into a mirror and compared with it.

A run of ten or a hundred keys a step lies in MLflow's SQLite file and, the same, behind MLflow's
own server. A process whose libraries are loaded, and which has worked before, takes turns: it
reads the run with MLflow's client key by key, mirrors it to where there is nothing, and compares it
with its mirror; W&B's own client is given the same rows in another such process. A ratio is of two
things done in one turn. Then the command itself follows fifty runs that go on: see `following`.
"""

import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.backlog import new_store
from benchmarks.figures import Figure, interval_of, paired_ratios
from benchmarks.following import followed
from benchmarks.histories import make_run
from benchmarks.processes import Worker
from tests.servers import mlflow_server

PART = "mirroring"
POINTS, MANY_POINTS = 100_000, 1_000_000
TURNS, QUICK_TURNS = 5, 2
KEYS = (10, 100)
WARM_POINTS = 2_000
SHARE_OF_READING, SHARE_OF_RAW, SHARE_OF_BACKFILL = 0.5, 0.8, 1.0
IMPORTS = ("opusclip_mlops.mirror_worker", "opusclip_mlops.sinks.wandb")

Does = dict[str, str]
"""What a worker is asked for in a turn, by what it is called here."""

Workers = Mapping[str, Worker]
"""Who does it."""

TENSORBOARD = {"read": "tensorboard", "mirror": "tensorboard", "verify": "tensorboard"}
WANDB = {"log": "wandb", "mirror": "wandb", "verify": "wandb"}


@dataclass
class _Turns:
    """The rates in points a second of everything that was done in turns, and what it told else."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    reading: list[float] = field(default_factory=list)

    def note(self, do: str, told: Mapping[str, float], points: int) -> None:
        """Note what a worker has told.

        Raises:
            RuntimeError: it has not worked on all points.
        """
        if told["points"] != points:
            raise RuntimeError(f"{do} met {told['points']:.0f} of {points} points")
        self.rates.setdefault(do, []).append(points / told["taken_s"])
        self.cpu_s.setdefault(do, []).append(told["cpu_s"])
        if do == "mirror":
            self.reading.append(told["read_s"] / told["taken_s"])


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Mirror and compare runs out of the file and from the server; follow many at once."""
    runs = _Runs(folder / "store")
    lengths = {POINTS: QUICK_TURNS if quick else TURNS} | ({} if quick else {MANY_POINTS: 1})
    figures = [_imports()]
    with _replayer(runs.uri, folder / "file", runs, TENSORBOARD) as worker:
        figures += _tensorboard(_all_by(worker, TENSORBOARD), runs, lengths, "SQLite")
    with (
        _replayer(runs.uri, folder / "ours", runs, WANDB) as worker,
        _replayer(runs.uri, folder / "raw", runs, {"log": "wandb"}) as raw,
    ):
        figures += _wandb(_all_by(worker, WANDB) | {"log": raw}, runs, lengths)
    with (
        mlflow_server(runs.folder) as url,
        _replayer(url, folder / "server", runs, TENSORBOARD) as worker,
    ):
        figures += _tensorboard(_all_by(worker, TENSORBOARD), runs, lengths, "server")
    return [*figures, *followed(folder / "followed", quick=quick)]


class _Runs:
    """Runs of a store, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.uri = folder, new_store(folder)
        self._made: dict[tuple[int, int], str] = {}

    def of(self, keys: int, points: int) -> str:
        """The run of so many keys and points."""
        if (keys, points) not in self._made:
            database = self.folder / "mlflow.db"
            self._made[keys, points] = make_run(database, "0", keys=keys, points=points)
        return self._made[keys, points]


def _replayer(uri: str, folder: Path, runs: _Runs, does: Does) -> Worker:
    """A worker that has done everything once."""
    worker = Worker("replaying.py", uri, str(folder), folder=folder)
    _take_turns(_all_by(worker, does), does, runs, keys=min(KEYS), points=WARM_POINTS, turns=1)
    return worker


def _all_by(worker: Worker, does: Does) -> dict[str, Worker]:
    return dict.fromkeys(does, worker)


_places = itertools.count()


def _take_turns(
    workers: Workers, does: Does, runs: _Runs, *, keys: int, points: int, turns: int
) -> _Turns:
    """Do each thing once a turn; what is mirrored goes to a new place in each."""
    found, run_id = _Turns(), runs.of(keys, points)
    for _ in range(turns):
        place = f"place-{next(_places)}"
        for do, kind in does.items():
            told = workers[do].ask(do=do, run_id=run_id, kind=kind, place=place)
            found.note(do, told, points)
    return found


def _tensorboard(
    workers: Workers, runs: _Runs, lengths: Mapping[int, int], store: str
) -> Iterator[Figure]:
    for keys, (points, turns) in itertools.product(KEYS, lengths.items()):
        found = _take_turns(workers, TENSORBOARD, runs, keys=keys, points=points, turns=turns)
        where = f"{store} to TensorBoard, {keys} keys, {points:,} points"
        yield _figure(f"{where}: backfill", found, "mirror", "read", SHARE_OF_READING)
        yield _figure(f"{where}: verify", found, "verify", "mirror", SHARE_OF_BACKFILL)


def _wandb(workers: Workers, runs: _Runs, lengths: Mapping[int, int]) -> Iterator[Figure]:
    for points, turns in lengths.items():
        found = _take_turns(workers, WANDB, runs, keys=KEYS[0], points=points, turns=turns)
        where = f"SQLite to W&B offline, {KEYS[0]} keys, {points:,} points"
        yield _figure(f"{where}: backfill", found, "mirror", "log", SHARE_OF_RAW)
        yield _figure(f"{where}: verify", found, "verify", "mirror", SHARE_OF_BACKFILL)


_PEERS = {"read": "MlflowClient reading", "log": "wandb's run.log", "mirror": "backfill"}


def _figure(what: str, found: _Turns, ours: str, theirs: str, at_least: float) -> Figure:
    rates, others = found.rates[ours], found.rates[theirs]
    ratios: Sequence[float] = paired_ratios(rates, others)
    cpu = statistics.median(paired_ratios(found.cpu_s[ours], found.cpu_s[theirs]))
    reading = f"reading is {statistics.median(found.reading):.0%}, " if ours == "mirror" else ""
    return Figure(
        part=PART,
        what=what,
        ours=statistics.median(rates),
        unit="points/s",
        peer=_PEERS[theirs],
        theirs=statistics.median(others),
        at_least=at_least,
        interval=interval_of(ratios) if len(ratios) > 1 else None,
        note=f"{reading}processor time {cpu:.2f} of theirs",
    )


def _imports() -> Figure:
    """What a process has to load before it mirrors its first run."""
    taken_s = []
    for name in (IMPORTS[0], IMPORTS[0], IMPORTS[1]):
        began_s = time.perf_counter()
        subprocess.run([sys.executable, "-P", "-c", f"import {name}"], check=True)
        taken_s.append(time.perf_counter() - began_s)
    note = f"with W&B's client {taken_s[2]:.1f} s"
    return Figure(part=PART, what="loading libraries", ours=taken_s[1], unit="s", note=note)
