"""Registered models to promote, a gate to ask, and processes that promote at once or are killed.

    python -m tests.promoters race|die URI MODEL PROCESSES ROUNDS FOLDER

Each round begins when the file `go.<round>` is in the folder; every process then says what came of
it in `<round>.<process>`, as JSON. MLflow is loaded once; the processes are forked from there.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from opusclip_mlops import chronicle, promotion
from opusclip_mlops.deciding import Case
from opusclip_mlops.decisions import Decision
from opusclip_mlops.errors import OpusclipError
from tests.journeys import wait_until

NAME = "clip-generator"
_MANAGED = ("staging", "production")


@dataclass
class Said:
    """A verdict with one condition."""

    passed: bool
    content: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "policy_digest": "p1", **self.content}

    def lines(self) -> list[str]:
        return [f"video/psnr is {'above' if self.passed else 'below'} 24"]


@dataclass
class Gate:
    """Lets every version through but some, and remembers what it was asked."""

    refused: frozenset[int] = frozenset()
    asked: list[Case] = field(default_factory=list)
    content: dict[str, Any] = field(default_factory=dict)

    def __call__(self, case: Case) -> Said:
        self.asked.append(case)
        return Said(case.version not in self.refused, self.content)


def make_model(client: MlflowClient, name: str = NAME, *, versions: int = 3) -> str:
    """A registered model with versions that nobody has promoted."""
    client.create_registered_model(name)
    for _ in range(versions):
        client.create_model_version(name, source="s3://models/none")
    return name


def erase(client: MlflowClient, run_id: str) -> None:
    """Take a run away for good, as `mlflow gc` does."""
    client.delete_run(run_id)
    client._tracking_client.store._hard_delete_run(run_id)


def shown(client: MlflowClient, name: str = NAME) -> dict[str, object]:
    """What the registry shows: everybody in a stage, and whom the aliases name."""
    versions = [one for one in client.search_model_versions("") if one.name == name]
    aliases = client.get_registered_model(name).aliases
    stages = {
        stage: sorted(int(one.version) for one in versions if one.current_stage == stage)
        for stage in ("Staging", "Production")
    }
    return {**stages, **{alias: int(version) for alias, version in aliases.items()}}


def is_settled(client: MlflowClient, name: str = NAME) -> bool:
    """Whether each stage has the holder that the history names, alone, and its alias too."""
    now = time.time_ns() // 1_000_000 + 3_600_000
    wanted: dict[str, object] = {}
    for stage in ("Staging", "Production"):
        holder = chronicle.holder_at(name, stage, now, client=client)
        wanted[stage] = [] if holder is None else [holder]
        wanted |= {} if holder is None else {stage.lower(): holder}
    whole = chronicle.verify_history(name, client=client) == []
    seen = shown(client, name)
    return whole and {key: seen[key] for key in seen if key.lower() in _MANAGED} == wanted


def marks(client: MlflowClient, name: str = NAME) -> list[str]:
    """What processes that are settling, or died of it, have left in the history's run."""
    run_id = client.get_registered_model(name).tags["opusclip.history"]
    tags = client.get_run(run_id).data.tags
    return [tag for tag in tags if tag.startswith("opusclip.settling.")]


@dataclass
class Race:
    """Processes that wait for the next round."""

    folder: Path
    answering: int

    def run(self, number: int) -> list[dict[str, Any]]:
        """One round: what each process says of it."""
        (self.folder / f"go.{number}").touch()
        files = [self.folder / f"{number}.{index}" for index in range(self.answering)]
        wait_until(lambda: all(file.exists() for file in files), deadline_s=250)
        return [json.loads(file.read_text()) for file in files]


@contextlib.contextmanager
def racing(
    mode: str, uri: str, folder: Path, *, processes: int, rounds: int, name: str = NAME
) -> Iterator[Race]:
    """Start the processes; the block runs the rounds."""
    folder.mkdir()
    argv = [sys.executable, "-m", "tests.promoters", mode, uri, name]
    argv += [str(processes), str(rounds), str(folder)]
    root = Path(__file__).parents[1]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=root, stdout=log, stderr=log, start_new_session=True)
    try:
        yield Race(folder, processes if mode == "race" else 1)
        assert process.wait(60) == 0, (folder / "log").read_text()[-3_000:]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def promote_once(uri: str, name: str, version: int) -> dict[str, Any]:
    """Promote and say what came of it."""
    try:
        made = promotion.promote(
            name, version, to="Production", judge=Gate(), client=MlflowClient(uri)
        )
    except (OpusclipError, MlflowException, OSError):
        return {"version": version, "error": traceback.format_exc()}
    return {"version": version, "number": made.number, "hash": made.hash}


def _race(uri: str, name: str, index: int, rounds: int, folder: Path) -> None:
    """One process: in every round it promotes its own version, when all are there."""
    MlflowClient(uri).get_registered_model(name)
    for number in range(rounds):
        wait_until(Path(folder, f"go.{number}").exists, deadline_s=600)
        _tell(folder / f"{number}.{index}", promote_once(uri, name, index + 1))


def _tell(path: Path, answer: dict[str, Any]) -> None:
    partial = path.with_name(f"partial.{path.name}")
    partial.write_text(json.dumps(answer))
    partial.rename(path)


def _die(uri: str, name: str, processes: int, rounds: int, folder: Path) -> None:
    """Processes promote one version after the other, until all are killed at once."""
    for number in range(rounds):
        wait_until(Path(folder, f"go.{number}").exists, deadline_s=600)
        begun = [folder / f"begun.{number}.{index}" for index in range(processes)]
        children = [
            _forked(_promote_for_ever, uri, name, index, begun) for index in range(processes)
        ]
        wait_until(lambda files=begun: all(file.exists() for file in files))
        time.sleep(random.Random(number).uniform(0, 1.5))
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        _tell(folder / f"{number}.0", {})


def _promote_for_ever(uri: str, name: str, index: int, begun: list[Path]) -> None:
    MlflowClient(uri).get_registered_model(name)
    begun[index].touch()
    while True:
        promote_once(uri, name, index + 1)
        index = (index + 1) % len(begun)


def _forked(work: Any, *args: Any) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work(*args)
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def load_stores() -> None:
    """Load MLflow's stores here, and not in each process that is forked."""
    for kind in ("tracking", "model_registry"):
        importlib.import_module(f"mlflow.store.{kind}.sqlalchemy_store")
    gc.freeze()


def main() -> None:
    """Run the processes of all rounds."""
    load_stores()
    mode, uri, name, processes, rounds, folder = sys.argv[1:]
    if mode == "die":
        return _die(uri, name, int(processes), int(rounds), Path(folder))
    each = range(int(processes))
    children = [_forked(_race, uri, name, index, int(rounds), Path(folder)) for index in each]
    codes = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(max(codes) and 1)


def numbers(records: tuple[Decision, ...]) -> list[int]:
    """The numbers of records."""
    return [record.number for record in records]


if __name__ == "__main__":
    main()
