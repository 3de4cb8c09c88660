"""`opusclip mirror --follow`, with what Prometheus wants to know about it.

follower.py --port 9200 --to tensorboard:/mirrors --experiment NAME…

Ends when the follower ends, so that whoever started it starts both again.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prometheus_client
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from prometheus_client import Counter, Gauge

from opusclip_mlops.contents import identity_of
from opusclip_mlops.event_files import event_files, event_folder

REPORTS = Counter("opusclip_mirror_reports", "What came of runs that were looked at", ["outcome"])
POINTS = Counter("opusclip_mirror_points", "Points sent to the mirror")
BEHIND = Gauge(
    "opusclip_mirror_behind_seconds", "Age of the oldest news of a live run that TensorBoard lacks"
)
LOOKED = Gauge("opusclip_mirror_looked_timestamp_seconds", "When MLflow was last compared with it")
LOOK_EVERY_S = 15.0
AWAIT_S = 5.0
GRACE_S = 5.0


def main() -> None:
    """Follow, count, and end as the follower ends."""
    asked = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    prometheus_client.start_http_server(asked.port, addr=asked.address)
    client = MlflowClient()
    _await(client, asked.experiment)
    command = [sys.executable, "-m", "opusclip_mlops.cli", "mirror", "--follow", "--json"]
    command += [f"--to={asked.to}", *(f"--experiment={one}" for one in asked.experiment)]
    follower = subprocess.Popen(command, stdout=subprocess.PIPE)
    folder = Path(asked.to.removeprefix("tensorboard:"))
    watch = Watch(client, asked.experiment, folder)
    threading.Thread(target=_look_on, args=(watch,), daemon=True).start()
    assert follower.stdout
    try:
        for line in follower.stdout:
            _count(line)
        sys.exit(follower.wait())
    finally:
        follower.terminate()
        follower.wait()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9200)
    parser.add_argument("--address", default="0.0.0.0")
    parser.add_argument("--to", required=True)
    parser.add_argument("--experiment", action="append", required=True)
    return parser.parse_args()


def _await(client: Any, names: list[str]) -> None:
    """Wait until the experiments are there: before the first run of a team they are not."""
    missing = set(names)
    while missing:
        try:
            missing = {name for name in missing if not client.get_experiment_by_name(name)}
        except MlflowException as error:
            print(f"not looked: {error}", file=sys.stderr, flush=True)
        if missing:
            time.sleep(AWAIT_S)


def _count(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.flush()
    try:
        report = json.loads(line)
    except ValueError:
        return
    REPORTS.labels(report["outcome"]).inc()
    POINTS.inc(report.get("points", 0))


class Watch:
    """Compares when live runs last had news with when their event files were last written."""

    def __init__(
        self,
        client: Any,
        experiments: list[str],
        folder: Path,
        *,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._names = experiments
        self._folder = folder
        self._now_s = now_s
        self._since_s: dict[str, float] = {}
        self._folders: dict[str, Path] = {}

    def behind_s(self) -> float:
        """Seconds since the first look that found news of some run unwritten; 0 if none is."""
        now_s = self._now_s()
        late = {run.info.run_id for run in self._live() if self._is_late(run)}
        self._since_s = {one: self._since_s.get(one, now_s) for one in late}
        return max((now_s - since_s for since_s in self._since_s.values()), default=0.0)

    def _is_late(self, run: Run) -> bool:
        news_s = max((one.timestamp for one in run.to_proto().data.metrics), default=0) / 1000
        if not news_s:
            return False
        written_s = max((file.stat().st_mtime for file in self._files(run)), default=0.0)
        return news_s > written_s + GRACE_S

    def _files(self, run: Run) -> list[Path]:
        run_id = run.info.run_id
        if run_id not in self._folders:
            identity = identity_of(self._client, run)
            self._folders[run_id] = event_folder(self._folder, identity)
        return event_files(self._folders[run_id])

    def _live(self) -> Iterator[Run]:
        found = [self._client.get_experiment_by_name(name) for name in self._names]
        ids = [one.experiment_id for one in found if one]
        if ids:
            live = "attributes.status = 'RUNNING'"
            yield from self._client.search_runs(ids, live, max_results=1000)


def _look_on(watch: Watch) -> None:
    while True:
        try:
            BEHIND.set(watch.behind_s())
            LOOKED.set_to_current_time()
        except (MlflowException, OSError) as error:
            print(f"not looked: {error}", file=sys.stderr)
        time.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    main()
