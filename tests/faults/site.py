"""A folder in which trainers run, each a script in a process of its own, and what they leave."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops import journal
from opusclip_mlops.folder import CONTROL, RunFolder
from opusclip_mlops.records import RunEnded
from tests.faults.ledger import RETURNED, Call, calls_in, words_in
from tests.journeys import wait_until
from tests.servers import BIN

ROOT = Path(__file__).resolve().parents[2]
SOAK = os.environ.get("OPUSCLIP_SOAK") == "1"
"""Whether the long variants run."""

_OURS = ("MLFLOW_", "WANDB_", "OPUSCLIP_")
_PRELUDE = """\
import ctypes, logging, os, signal, sys, threading, time
from opusclip_mlops import ExperimentTracker, TrackingConfig
from tests.faults.ledger import Ledger

ledger = Ledger()
"""


@dataclass(frozen=True)
class Trainer:
    """A training script that runs, or has run."""

    process: subprocess.Popen[bytes]
    ledger: Path
    errors: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def calls(self) -> list[Call]:
        """What it has logged so far."""
        return calls_in(self.ledger)

    @property
    def stderr(self) -> str:
        """What it has printed on stderr so far."""
        return self.errors.read_text(errors="replace")

    def wait(self, *, deadline_s: float = 300.0) -> int:
        """Wait until it has ended; its exit code, negative for a signal."""
        return self.process.wait(timeout=deadline_s)

    def kill(self) -> None:
        """Kill -9."""
        self.process.kill()
        self.process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def has_returned(self, count: int) -> bool:
        """Whether so many calls have come back."""
        return self.ledger.exists() and self.ledger.read_bytes().count(RETURNED) >= count

    def await_calls(self, count: int) -> None:
        """Wait until so many calls have come back."""
        self._await(lambda: self.has_returned(count))

    def await_word(self, word: str) -> None:
        """Wait until the script has said a word."""
        self._await(lambda: word in words_in(self.ledger))

    def _await(self, is_done: Any) -> None:
        def is_done_or_dead() -> bool:
            return bool(is_done()) or self.process.poll() is not None

        wait_until(is_done_or_dead)
        assert is_done(), f"the trainer ended before: {self.stderr}"


@dataclass(frozen=True)
class Site:
    """A folder of its own, and an experiment of its own on an MLflow server.

    `address` is what the trainers use; `server` is the server itself, where a proxy lies between.
    """

    folder: Path
    server: str
    address: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    experiment: str = field(default_factory=lambda: f"faults-{uuid.uuid4().hex[:8]}")
    trainers: list[Trainer] = field(default_factory=list)
    _numbers: Any = field(default_factory=itertools.count)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the trainers: nobody's settings, and no key for W&B."""
        own = {
            "HOME": str(self.folder / "home"),
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": self.address or self.server,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "WANDB_ERROR_REPORTING": "false",
            "OPUSCLIP_EXPERIMENT_NAME": self.experiment,
            "OPUSCLIP_DRAIN_TIMEOUT_S": "120",
            "OPUSCLIP_PROFILE_INTERVAL_S": "3600",
            "OPUSCLIP_TAGS": "team=film,faulty",
        }
        kept = {name: text for name, text in os.environ.items() if not name.startswith(_OURS)}
        return {**kept, **own, **self.settings}

    def start(self, body: str, **settings: str) -> Trainer:
        """Start a script; `settings` are further variables of its environment."""
        (self.folder / "home").mkdir(parents=True, exist_ok=True)
        name = f"train{next(self._numbers)}"
        script = self.folder / f"{name}.py"
        script.write_text(_PRELUDE + textwrap.dedent(body))
        ledger, errors = self.folder / f"{name}.ledger", self.folder / f"{name}.stderr"
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, str(script)],
                env={**self.environment, "LEDGER": str(ledger), **settings},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        self.trainers.append(Trainer(process, ledger, errors))
        return self.trainers[-1]

    def train(self, body: str, **settings: str) -> Trainer:
        """Run a script to its end, and wait until all has arrived."""
        trainer = self.start(body, **settings)
        trainer.wait()
        self.await_delivery()
        return trainer

    @property
    def calls(self) -> list[Call]:
        """What all trainers have logged."""
        return [call for trainer in self.trainers for call in trainer.calls]

    @property
    def client(self) -> MlflowClient:
        """A client of the server itself."""
        return MlflowClient(self.server)

    def runs(self) -> list[Run]:
        """The runs of the experiment."""
        experiment = self.client.get_experiment_by_name(self.experiment)
        return list(self.client.search_runs([experiment.experiment_id])) if experiment else []

    def run(self) -> Run:
        """The one run."""
        [run] = self.runs()
        return run

    @property
    def tensorboard_dir(self) -> Path:
        """Where the event files of the experiment lie."""
        return self.folder / self.settings.get("OPUSCLIP_TENSORBOARD_DIR", "runs") / self.experiment

    @property
    def wandb_dir(self) -> Path:
        """Where W&B keeps its folder."""
        return self.folder / self.settings.get("OPUSCLIP_WANDB_DIR", "")

    @property
    def journals(self) -> list[RunFolder]:
        """The folders of runs that are still to be delivered."""
        place = self.folder / self.settings.get("OPUSCLIP_JOURNAL_DIR", ".opusclip/journal")
        return [RunFolder(path.parent) for path in sorted(place.glob("[!.]*/manifest.json"))]

    def await_journal(self) -> RunFolder:
        """Wait for the folder of the first run."""
        wait_until(lambda: self.journals or all(t.process.poll() for t in self.trainers))
        assert self.journals, "; ".join(trainer.stderr for trainer in self.trainers)
        return self.journals[0]

    def await_delivery(self, *, deadline_s: float = 300.0) -> None:
        """Wait until every run has ended and every sink has everything, nothing refused."""
        deadline = time.monotonic() + deadline_s
        while self.journals and self._goes_on() and time.monotonic() < deadline:
            time.sleep(0.2)
        left = [_state_of(folder) for folder in self.journals]
        assert left == [], "\n".join(left)

    def _goes_on(self) -> bool:
        """Whether anybody is left to deliver."""
        return bool(self.processes()) or any(t.process.poll() is None for t in self.trainers)

    def processes(self) -> dict[psutil.Process, list[str]]:
        """The shipper's processes of this site, with their command lines."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                own = any(str(self.folder) in word for word in line)
                if own and "opusclip_mlops.shipper" in line:
                    found[process] = line
        return found

    def await_process(self, name: str) -> psutil.Process:
        """Wait until a sink's process runs, or one called supervisor; that process."""
        found: list[psutil.Process] = []

        def is_there() -> bool:
            found.extend(self.supervisors() if name == "supervisor" else self.sinks(name))
            return bool(found)

        wait_until(is_there)
        return found[0]

    def supervisors(self) -> list[psutil.Process]:
        """The supervisors: one, and those that wait for their turn."""
        return [process for process, line in self.processes().items() if "--sink" not in line]

    def sinks(self, name: str) -> list[psutil.Process]:
        """The processes of a sink."""
        return [process for process, line in self.processes().items() if line[-1] == name]

    def await_arrival(self, sink: str) -> None:
        """Wait until a sink has acknowledged all that is in the journal now."""
        [folder] = self.journals
        goal = folder.size_bytes()

        def has_arrived() -> bool:
            position = folder.progress(sink).position
            return all(position.get(name, 0) >= size for name, size in goal.items())

        wait_until(has_arrived)

    def reboot(self) -> None:
        """Kill every process of the site, as a machine that goes down does."""
        self.close()

    def opusclip(self, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run the command line, as a person would in the site's folder."""
        return subprocess.run(
            [BIN / "opusclip", *words],
            env={**self.environment, **settings},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def close(self) -> None:
        """End whatever still runs; what was not delivered is shown where a test fails."""
        for folder in self.journals:
            print(_state_of(folder))
        for trainer in self.trainers:
            if trainer.process.poll() is None:
                trainer.kill()
        left = list(self.processes())
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                left += process.children(recursive=True)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)


def has_ended(folder: RunFolder) -> bool:
    """Whether a trainer has declared the end of its part."""
    segments = (path for path in folder.segments() if CONTROL in path.name)
    items = (item for path in segments for item in journal.read(path))
    return any(isinstance(getattr(item, "record", None), RunEnded) for item in items)


def _state_of(folder: RunFolder) -> str:
    """Where a run's delivery stands, for a test that failed."""
    lines = [f"{folder.path.name}: {folder.size_bytes()}"]
    with contextlib.suppress(Exception):
        lines += [f"{name}: {folder.progress(name)}" for name in folder.manifest().sinks]
        lines.append((folder.path / "shipper.log").read_text()[-2000:])
        lines.append(folder.rejected.read_text()[:2000])
    return "\n".join(lines)
