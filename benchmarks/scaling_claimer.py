"""A worker that takes part in a sweep's study, alone or as many processes.

    python scaling_claimer.py <place> <study> <ours|optuna>

Asked for `trials`, it claims and ends so many, each with a value and nothing else, and tells how
long each took. Asked for `workers` too, it forks so many, which share the trials; they begin
together once all have opened the study.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import optuna
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from benchmarks.workers import Answers, requests
from opusclip_mlops.sweeps.claims import Claims
from opusclip_mlops.sweeps.studies import open_study

Trial = Callable[[], None]
"""Claims a trial and ends it."""


def main(place: str, name: str, way: str) -> None:
    """Answer requests until there are none."""
    answers = Answers()
    answers.tell()
    for ask in requests():
        workers = ask.get("workers", 0)
        if workers:
            answers.tell(**_forked(place, name, way, workers, ask["trials"]))
        else:
            answers.tell(took_ms=_took_ms(_WAYS[way](place, name), ask["trials"]))


def _ours(place: str, name: str) -> Trial:
    study = open_study(place, name)
    claims = Claims(study.storage, study.name, study.config)

    def trial() -> None:
        claim = claims.next()
        if claim is not None:
            claims.end(claim, TrialState.COMPLETE, float(claim.values["x"]), "")

    return trial


def _optuna(place: str, name: str) -> Trial:
    shared = open_study(place, name)
    is_bayes = shared.config.method == "bayes"
    sampler = TPESampler(constant_liar=True) if is_bayes else RandomSampler()
    study = optuna.load_study(study_name=name, storage=shared.storage, sampler=sampler)

    def trial() -> None:
        asked = study.ask()
        for parameter in shared.config.parameters:
            asked.suggest_float(parameter.name, 0.0, 1.0)
        study.tell(asked, asked.params["x"])

    return trial


_WAYS: dict[str, Callable[[str, str], Trial]] = {"ours": _ours, "optuna": _optuna}


def _took_ms(trial: Trial, count: int) -> list[float]:
    found = []
    for _ in range(count):
        began_s = time.perf_counter()
        trial()
        found.append((time.perf_counter() - began_s) * 1000)
    return found


def _forked(place: str, name: str, way: str, workers: int, trials: int) -> dict[str, Any]:
    """What so many processes took for the trials together, and each trial."""
    ready, start, pipes = os.pipe(), os.pipe(), []
    for _ in range(workers):
        reading, writing = os.pipe()
        if not os.fork():
            try:
                trial = _WAYS[way](place, name)
                os.write(ready[1], b".")
                os.read(start[0], 1)
                took_ms = _took_ms(trial, max(1, trials // workers))
                os.write(writing, json.dumps(took_ms).encode())
            finally:
                # Never back into the parent's work.
                os._exit(0)
        os.close(writing)
        pipes.append(reading)
    # Without this end of it, one that fails to open the study is not waited for.
    os.close(ready[1])
    for _ in pipes:
        os.read(ready[0], 1)
    began_s = time.monotonic()
    os.write(start[1], b"." * workers)
    took_ms = [one for pipe in pipes for one in json.loads(os.fdopen(pipe, "rb").read())]
    wall_s = time.monotonic() - began_s
    for _ in range(workers):
        os.wait()
    return {"took_ms": took_ms, "wall_s": wall_s}


if __name__ == "__main__":
    main(*sys.argv[1:])
