"""A worker that mirrors runs, compares them with their mirrors, and does what peers do.

    python replaying.py <tracking uri> <folder>

Every answer has the seconds that what was asked took, and the processor time, that of W&B's own
service too; nothing is imported in them where a small run was worked on before. `mirror` and
`verify` also tell how long of it MLflow's points were read. `read` asks MLflow's own client for the
history of each key. `log` gives W&B's own client the rows of a run, with the settings our sink
uses, from `wandb.init` to the end of `finish`.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run

from benchmarks.workers import Answers, requests
from opusclip_mlops.mirror_state import MirrorState
from opusclip_mlops.mirroring import RunMirror, Source
from opusclip_mlops.points import Points
from opusclip_mlops.run_history import Cursor, History, open_history
from opusclip_mlops.targets import Target, parse_target

Told = dict[str, float]


class _Clocked:
    """A reader of points that notes how long it reads."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.read_s = 0.0

    def read(self, run: Run) -> tuple[Points, Cursor]:
        """All points of a run."""
        began_s = time.perf_counter()
        found = self._history.read(run)
        self.read_s = time.perf_counter() - began_s
        return found

    def news(self, run: Run, cursor: Cursor) -> tuple[Points, Cursor] | None:
        """What was added since."""
        return self._history.news(run, cursor)


class _Replayer:
    """Does one thing after another with the runs of one store."""

    def __init__(self, uri: str, folder: Path) -> None:
        self._client, self._folder = MlflowClient(uri), folder
        self._rows: dict[str, list[dict[str, float]]] = {}
        self._history = _Clocked(open_history(self._client))
        self._source = Source(client=self._client, history=self._history, state=MirrorState())

    def read(self, run_id: str, _kind: str, _place: str) -> Told:
        """Read every key's history with MLflow's own client."""
        keys = list(self._client.get_run(run_id).data.metrics)
        began_s = time.perf_counter()
        points = sum(len(self._client.get_metric_history(run_id, key)) for key in keys)
        return {"taken_s": time.perf_counter() - began_s, "points": points}

    def mirror(self, run_id: str, kind: str, place: str) -> Told:
        """Mirror a run to where there is nothing of it."""
        run, mirror = self._mirror(run_id, kind, place)
        began_s = time.perf_counter()
        sent = mirror.catch_up(run)
        taken_s = time.perf_counter() - began_s
        return {"taken_s": taken_s, "points": sent.points, "read_s": self._history.read_s}

    def verify(self, run_id: str, kind: str, place: str) -> Told:
        """Compare a run with its mirror, which has to be equal."""
        run, mirror = self._mirror(run_id, kind, place)
        began_s = time.perf_counter()
        found = mirror.compare(run, as_it_is=True)
        taken_s = time.perf_counter() - began_s
        if not found.difference.is_empty:
            raise RuntimeError(f"the mirror is not equal: {found.difference}")
        points = len(found.held.points)
        return {"taken_s": taken_s, "points": points, "read_s": self._history.read_s}

    def log(self, run_id: str, _kind: str, place: str) -> Told:
        """Log the run's rows with W&B's own client."""
        import wandb

        from opusclip_mlops.wandb_client import settings

        rows = self._rows[run_id]
        raw = self._folder / f"{place}-raw"
        raw.mkdir()
        began_s = time.perf_counter()
        run = wandb.init(
            project="raw", mode="offline", dir=str(raw), reinit="create_new", settings=settings()
        )
        for number, row in enumerate(rows):
            run.log(row, step=number, commit=True)
        run.finish()
        return {
            "taken_s": time.perf_counter() - began_s,
            "points": sum(map(len, rows)) - 2 * len(rows),
        }

    def make_rows(self, run_id: str) -> None:
        """Have the run's rows ready for `log`."""
        if run_id not in self._rows:
            points, _ = self._history.read(self._client.get_run(run_id))
            self._rows[run_id] = [
                {**one.values, "global_step": one.step, "_timestamp": one.timestamp_ms / 1000}
                for one in points.in_time().calls()
            ]

    def _mirror(self, run_id: str, kind: str, place: str) -> tuple[Run, RunMirror]:
        mirror = RunMirror(self._source, self._target(kind, place), run_id)
        return self._client.get_run(run_id), mirror

    def _target(self, kind: str, place: str) -> Target:
        path = str(self._folder / place)
        name = f"tensorboard:{path}" if kind == "tensorboard" else "wandb:clips"
        return parse_target(name, wandb_dir=path, wandb_mode="offline")


def main(uri: str, folder: Path) -> None:
    """Do what is asked."""
    answers = Answers()
    os.environ["OPUSCLIP_STATE_DIR"] = str(folder / "state")
    replayer = _Replayer(uri, folder)
    does: dict[str, Callable[..., Told]] = {
        name: getattr(replayer, name) for name in ("read", "mirror", "verify", "log")
    }
    answers.tell()
    for request in requests():
        if request["do"] == "log":
            replayer.make_rows(request["run_id"])
        before_s = _cpu_s()
        told = does[request["do"]](request["run_id"], request["kind"], request["place"])
        answers.tell(**told, cpu_s=_cpu_s() - before_s)


def _cpu_s() -> float:
    """The processor time of this process and of all that it has started and still runs."""
    here = psutil.Process()
    every = [one.cpu_times() for one in (here, *here.children(recursive=True))]
    return float(sum(one.user + one.system for one in every))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
