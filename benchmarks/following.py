"""Fifty runs that go on, each with ten new points a second, followed by one command.

The command's processes are looked at each second: RSS counts memory they share with each other once
for each, PSS shares it out. Some of the mirrors are read as they grow, and a point's age is that of
the moment it can first be read there.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from mlflow import MlflowClient

from benchmarks.backlog import new_store
from benchmarks.figures import Figure, number, percentile
from benchmarks.histories import add_steps, names
from benchmarks.memory import held_mb
from benchmarks.processes import QUIET, end_tree
from opusclip_mlops import event_files, wandb_log

PART = "mirroring"
RUNS, KEYS = 50, names(10)
WATCHED_RUNS = 5
WATCHED_S, QUICK_WATCHED_S = 60.0, 15.0
DEADLINE_S = 300.0
TOGETHER_MB = 500.0
LOG_EVERY_S, READ_EVERY_S = 1.0, 0.1
TURNS_A_SECOND = 10

Ages = Callable[[], Iterator[float]]
"""The ages in seconds of the points that can be read in a mirror since the last call."""


@dataclass
class Seen:
    """What was seen of the command and of its mirrors.

    `behind_s` is second by second how old the newest point of each mirror that is read is.
    """

    rss_mb: list[float] = field(default_factory=list)
    pss_mb: list[float] = field(default_factory=list)
    ages_s: dict[str, list[float]] = field(default_factory=dict)
    parts: str = ""
    cpu_s: float = 0.0
    watched_s: float = 0.0
    steps: float = 0.0
    behind_s: dict[str, list[list[float]]] = field(default_factory=dict)


def followed(folder: Path, *, quick: bool) -> list[Figure]:
    """Follow fifty runs to TensorBoard and W&B offline."""
    return _figures(follow(folder, runs=RUNS, watched_s=QUICK_WATCHED_S if quick else WATCHED_S))


def follow(
    folder: Path, *, runs: int, watched_s: float, read: int = WATCHED_RUNS, is_level: bool = False
) -> Seen:
    """Look at the command, and at the mirrors of some runs, for so long while all runs go on.

    With `is_level` every run has one step and nothing more until all mirrors of all runs have it.
    """
    folder.mkdir()
    uri = new_store(folder)
    client = MlflowClient(uri)
    experiment = client.create_experiment("films")
    run_ids = [client.create_run(experiment).info.run_id for _ in range(runs)]
    log = _Logger(folder / "mlflow.db", run_ids)
    with _following(folder, uri) as command:
        if is_level:
            log.log_a_step()
            _wait_for_mirrors(lambda: None, _readers(folder, run_ids))
            log.begin_anew()
        readers = _readers(folder, run_ids[:: max(1, runs // read)])
        _wait_for_mirrors(log.log_what_is_due, readers)
        return _watch(command, log, readers, watched_s)


class _Logger:
    """Gives every run a step a second, a tenth of the runs at a time."""

    def __init__(self, database: Path, runs: Sequence[str]) -> None:
        self._database, self._runs = database, runs
        self._turn = 0
        self._began_s = time.monotonic()

    def log_what_is_due(self) -> None:
        """Log to the runs whose turn it is."""
        while time.monotonic() - self._began_s > self._turn / TURNS_A_SECOND:
            step, part = divmod(self._turn, TURNS_A_SECOND)
            some = self._runs[part::TURNS_A_SECOND]
            at_ms = time.time_ns() // 1_000_000
            add_steps(self._database, some, range(step, step + 1), keys=KEYS, at_ms=at_ms)
            self._turn += 1

    def log_a_step(self) -> None:
        """Log the first step to every run."""
        self._began_s -= 1.0 - 0.5 / TURNS_A_SECOND
        self.log_what_is_due()

    def begin_anew(self) -> None:
        """Take the next step for due now, however long that was ago."""
        self._began_s = time.monotonic() - self._turn / TURNS_A_SECOND

    @property
    def steps(self) -> float:
        """How many steps every run has got."""
        return self._turn / TURNS_A_SECOND


@contextlib.contextmanager
def _following(folder: Path, uri: str) -> Iterator[psutil.Process]:
    """The command at work."""
    argv = [
        *(sys.executable, "-P", "-m", "opusclip_mlops.cli", "mirror", "--experiment", "films"),
        *("--to", f"tensorboard:{folder / 'runs'}", "--to", "wandb:films", "--follow"),
    ]
    env = {
        **os.environ,
        **QUIET,
        "MLFLOW_TRACKING_URI": uri,
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "OPUSCLIP_STATE_DIR": str(folder / "state"),
    }
    with (folder / "command.log").open("wb") as output:
        process = subprocess.Popen(argv, cwd=folder, env=env, stdout=output, stderr=output)
        try:
            yield psutil.Process(process.pid)
        finally:
            end_tree(process.pid)
            process.wait()


def _watch(
    command: psutil.Process, log: _Logger, readers: dict[str, list[Ages]], watched_s: float
) -> Seen:
    """Log, and look at everything."""
    seen = Seen(ages_s={kind: [] for kind in readers}, behind_s={kind: [] for kind in readers})
    newest_s = {kind: [time.time()] * len(of_kind) for kind, of_kind in readers.items()}
    began_s, cpu_s, steps = time.monotonic(), _cpu_s(command), log.steps
    while time.monotonic() < began_s + watched_s:
        next_look_s = time.monotonic() + LOG_EVERY_S
        _look(command, seen)
        while time.monotonic() < next_look_s:
            log.log_what_is_due()
            for kind, of_kind in readers.items():
                for n, ages in enumerate(of_kind):
                    found = list(ages())
                    seen.ages_s[kind] += found
                    newest_s[kind][n] = max(
                        newest_s[kind][n], time.time() - min(found, default=9e9)
                    )
            time.sleep(READ_EVERY_S)
        for kind, of_kind_s in newest_s.items():
            seen.behind_s[kind].append([time.time() - one for one in of_kind_s])
    seen.watched_s = time.monotonic() - began_s
    seen.cpu_s = _cpu_s(command) - cpu_s
    seen.steps = log.steps - steps
    return seen


def _wait_for_mirrors(go_on: Callable[[], None], readers: dict[str, list[Ages]]) -> None:
    """Wait until every mirror that is read has a point."""
    deadline_s = time.monotonic() + DEADLINE_S
    silent = [ages for of_kind in readers.values() for ages in of_kind]
    while silent:
        go_on()
        silent = [ages for ages in silent if not list(ages())]
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"{len(silent)} mirrors have got nothing")
        time.sleep(0.1)


def _look(command: psutil.Process, seen: Seen) -> None:
    """Add what the command and all it has started hold now."""
    rss_mb: dict[str, float] = {}
    pss_mb = 0.0
    for process in (command, *command.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            held = held_mb(process.pid)
            rss_mb[f"{_role(process)} {process.pid}"] = held["Rss"]
            pss_mb += held["Pss"]
    seen.rss_mb.append(sum(rss_mb.values()))
    seen.pss_mb.append(pss_mb)
    if seen.rss_mb[-1] == max(seen.rss_mb):
        parts = sorted(rss_mb.items())
        seen.parts = ", ".join(f"{role.rpartition(' ')[0]} {mb:.0f}" for role, mb in parts)


def _role(process: psutil.Process) -> str:
    words = process.cmdline()
    if "opusclip_mlops.mirror_worker" in words:
        return "worker"
    return "command" if "opusclip_mlops.cli" in words else "W&B's service"


def _cpu_s(command: psutil.Process) -> float:
    every = [one.cpu_times() for one in (command, *command.children(recursive=True))]
    return float(sum(one.user + one.system for one in every))


def _readers(folder: Path, run_ids: Sequence[str]) -> dict[str, list[Ages]]:
    kinds = {"TensorBoard": _event_times, "W&B": _row_times}
    return {
        kind: [_ages(times_s(folder, run_id)) for run_id in run_ids]
        for kind, times_s in kinds.items()
    }


def _ages(times_s: Iterator[float]) -> Ages:
    """The ages of what an iterator gives until it gives 0: nothing more to read yet."""

    def ages() -> Iterator[float]:
        while at_s := next(times_s):
            yield time.time() - at_s

    return ages


def _event_times(folder: Path, run_id: str) -> Iterator[float]:
    from tensorboard.compat.proto.event_pb2 import Event

    read_bytes: dict[Path, int] = {}
    while True:
        for path in event_files.event_files(folder / "runs" / "films" / run_id):
            for content, end in event_files.frames(path, from_bytes=read_bytes.get(path, 0)):
                read_bytes[path] = end
                event = Event.FromString(content or b"")
                if any(value.tag == KEYS[0] for value in event.summary.value):
                    yield event.wall_time
        yield 0.0


def _row_times(folder: Path, run_id: str) -> Iterator[float]:
    logs: dict[Path, wandb_log.LogReader] = {}
    while True:
        for path in folder.glob(f"wandb/*run-*-{run_id}*/*.wandb"):
            for record in logs.setdefault(path, wandb_log.LogReader(path)).new_records():
                row = wandb_log.row(record) if record.HasField("history") else {}
                if KEYS[0] in row:
                    yield float(row["_timestamp"])
        yield 0.0


def _figures(seen: Seen) -> list[Figure]:
    what = f"{RUNS} runs followed to two places"
    busy = seen.cpu_s / seen.watched_s
    rss = Figure(
        part=PART,
        what=f"{what}: together, most RSS",
        ours=max(seen.rss_mb),
        unit="MB",
        at_most=TOGETHER_MB,
        note=seen.parts,
    )
    pss = Figure(
        part=PART,
        what=f"{what}: together, most PSS",
        ours=max(seen.pss_mb),
        unit="MB",
        at_most=TOGETHER_MB,
        note=f"{busy:.2f} of a core",
    )
    return [rss, pss, *(_age(kind, ages_s) for kind, ages_s in seen.ages_s.items())]


def _age(kind: str, ages_s: Sequence[float]) -> Figure:
    return Figure(
        part=PART,
        what=f"{RUNS} runs followed: age of a point in {kind}, 99 of 100",
        ours=percentile(ages_s, 99),
        unit="s",
        note=f"median {number(percentile(ages_s, 50))} s, {len(ages_s)} seen",
    )
