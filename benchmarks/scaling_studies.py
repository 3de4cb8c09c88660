"""Part `scaling_studies`: what a trial costs a sweep's workers, by how many trials there were.

The trials do nothing: a worker claims one, draws three values and ends it. Ours is a claim as the
workers of `opusclip sweep` make it, the peer Optuna's own `ask` and `tell` on the same study; they
take turns. Then many processes share a study of random trials; opening it is not in their time.
"""

import contextlib
import statistics
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from benchmarks.figures import Figure
from benchmarks.processes import Worker
from opusclip_mlops.sweeps.schema import sweep_of
from opusclip_mlops.sweeps.studies import Study, begin_study
from tests.databases import postgres

PART = "scaling_studies"
SIZES, QUICK_SIZES = (0, 1000, 5000), (0, 100)
IN_DATABASE = 1000
TRIALS, TURNS = 10, 2
WORKERS = (1, 2, 8, 32)
SHARED_TRIALS, QUICK_SHARED_TRIALS = 96, 32
DURABLE = ("max_connections=200",)
NAMES = ("x", "y", "z")


def measure(folder: Path, *, quick: bool) -> list[Figure]:
    """Measure a file and a PostgreSQL."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = []
    with postgres(settings=DURABLE) as database:
        for kind, place in (("file", str(folder / "{}.journal")), ("PostgreSQL", database)):
            found += _by_size(folder, kind, place, quick)
            found += _by_workers(folder, kind, place, quick)
    return found


def _study(place: str, name: str, method: str) -> Study:
    document = {
        "method": method,
        "metric": {"name": "loss"},
        "program": "train.py",
        "parameters": {one: {"min": 0.0, "max": 1.0} for one in NAMES},
    }
    return begin_study(
        place.format(name), name, sweep_of(document), parent_run_id="p", count=1_000_000
    )


def _by_size(folder: Path, kind: str, place: str, quick: bool) -> list[Figure]:
    found = []
    for method in ("random", "bayes"):
        study, there = _study(place, f"{method}-{kind}", method), 0
        for size in QUICK_SIZES if quick else SIZES:
            if kind != "file" and size > IN_DATABASE:
                # To fill a database with more takes longer than all the rest.
                continue
            there += _fill(study, size - there)
            took_ms = _by_turns(folder, place.format(study.name), study.name)
            there += sum(map(len, took_ms.values()))
            found.append(_compared(f"{kind}, {method}, a trial after {size}", took_ms))
    return found


def _fill(study: Study, count: int) -> int:
    """Add trials that are over; how many."""
    loaded = optuna.load_study(study_name=study.name, storage=study.storage)
    apart: dict[str, BaseDistribution] = {one: FloatDistribution(0.0, 1.0) for one in NAMES}
    for n in range(max(0, count)):
        params = {
            one: (n * prime % 997) / 997 for one, prime in zip(NAMES, (7, 11, 13), strict=True)
        }
        loaded.add_trial(
            create_trial(
                state=TrialState.COMPLETE, params=params, distributions=apart, value=params["x"]
            )
        )
    return max(0, count)


def _by_turns(folder: Path, place: str, name: str) -> dict[str, list[float]]:
    took_ms: dict[str, list[float]] = {"ours": [], "optuna": []}
    with contextlib.ExitStack() as stack:
        workers = {way: stack.enter_context(_worker(folder, place, name, way)) for way in took_ms}
        for worker in workers.values():
            # The first one reads the whole study.
            worker.ask(trials=1)
        for _ in range(TURNS):
            for way, worker in workers.items():
                took_ms[way] += worker.ask(trials=TRIALS)["took_ms"]
    return took_ms


@contextlib.contextmanager
def _worker(folder: Path, place: str, name: str, way: str) -> Iterator[Worker]:
    with Worker("scaling_claimer.py", place, name, way, folder=folder) as worker:
        yield worker


def _compared(what: str, took_ms: dict[str, list[float]]) -> Figure:
    ours, theirs = took_ms["ours"], took_ms["optuna"]
    return Figure(
        part=PART,
        what=what,
        ours=statistics.median(ours),
        unit="ms",
        peer="Optuna's ask and tell",
        theirs=statistics.median(theirs),
    )


def _by_workers(folder: Path, kind: str, place: str, quick: bool) -> list[Figure]:
    found = []
    trials = QUICK_SHARED_TRIALS if quick else SHARED_TRIALS
    for workers in WORKERS:
        study = _study(place, f"{workers}-{kind}", "random")
        with _worker(folder, place.format(study.name), study.name, "ours") as worker:
            seen = worker.ask(workers=workers, trials=trials)
        found.append(
            Figure(
                part=PART,
                what=f"{kind}, {workers} workers",
                ours=len(seen["took_ms"]) / seen["wall_s"],
                unit="trials/s",
            )
        )
    return found
