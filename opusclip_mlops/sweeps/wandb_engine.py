"""The engine `wandb`: W&B's server chooses, W&B's agents start, and each trial is a run in MLflow.

The sweep that W&B is given starts `wandb_trial` in place of the program, which makes the trial's
run and then starts what the file says.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.redaction import one_line
from opusclip_mlops.sweeps.outcome import TrialOutcome

SPEC_VARIABLE = "OPUSCLIP_SWEEP_SPEC"
"""Names the file that tells `wandb_trial` which sweep it is in."""

_SPEC, _LOG, _OUTCOME = "spec.json", "workers.log", ".outcome"
_COMMAND = ("${interpreter}", "-m", "opusclip_mlops.sweeps.wandb_trial", "${args_json}")
_PLACE = ("entity", "project")
_POLL_S, _STOP_WAIT_S = 0.2, 60.0


@dataclass(frozen=True)
class Spec:
    """What a trial is told of its sweep: name, run in MLflow, file, and where outcomes go."""

    name: str
    parent_run_id: str
    document: Mapping[str, Any]
    folder: str

    def write(self) -> Path:
        """Write it into its folder, for the user alone."""
        folder = Path(self.folder)
        (folder / "trials").mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / _SPEC
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(self), file)
        return path

    @classmethod
    def read(cls, path: str) -> "Spec":
        """Read what was written."""
        return cls(**json.loads(Path(path).read_text()))


def begin_at_wandb(document: Mapping[str, Any]) -> tuple[str, str, str]:
    """Make the sweep at W&B; its entity, project and id.

    Raises:
        ConfigError: W&B refused, or there is no key.
    """
    import wandb

    from opusclip_mlops.wandb_client import UNANSWERED

    given = {**document, "command": list(_COMMAND)}
    entity, project = (
        document.get(key) or os.environ.get(f"WANDB_{key.upper()}") for key in _PLACE
    )
    try:
        # It says so on stdout, which is the caller's.
        with contextlib.redirect_stdout(sys.stderr):
            made = wandb.sweep(given, entity=entity, project=project or "sweeps")
    except (*UNANSWERED, ValueError) as error:
        raise ConfigError(f"W&B made no sweep: {one_line(str(error))}") from None
    return os.environ.get("WANDB_ENTITY", ""), os.environ.get("WANDB_PROJECT", ""), made


class Agents:
    """W&B's agents on this machine, each a process with a share of the trials.

    Args:
        place: Entity, project and id of the sweep at W&B.
        spec: The file for the trials.
        tracking_uri: Where they find MLflow.
    """

    def __init__(self, place: tuple[str, str, str], spec: Path, *, tracking_uri: str) -> None:
        self._place, self._spec, self._tracking_uri = place, spec, tracking_uri
        self._processes: list[subprocess.Popen[bytes]] = []

    def work(self, shares: list[int]) -> Iterator[None]:
        """Have one agent do each share; something is yielded now and then while they do."""
        try:
            self._processes = [self._start(share) for share in shares if share]
            while any(one.poll() is None for one in self._processes):
                yield
                time.sleep(_POLL_S)
        finally:
            self._stop()

    def _start(self, share: int) -> subprocess.Popen[bytes]:
        python = str(Path(sys.executable).parent)
        environment = {**os.environ, SPEC_VARIABLE: str(self._spec)}
        environment |= {"MLFLOW_TRACKING_URI": self._tracking_uri, "WANDB_DIR": str(Path.cwd())}
        # W&B's agent starts what PATH calls `python`.
        environment["PATH"] = os.pathsep.join((python, os.environ.get("PATH", "")))
        environment.pop("MLFLOW_RUN_ID", None)
        words = ("opusclip_mlops.sweeps.wandb_agent", *self._place, str(share), str(os.getpid()))
        log = os.open(self._spec.with_name(_LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return subprocess.Popen(
                [sys.executable, "-m", *words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        finally:
            os.close(log)

    def _stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(_STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def keep_outcome(folder: Path, name: str, outcome: TrialOutcome) -> None:
    """Write how a trial ended, whole or not at all."""
    path = folder / "trials" / f"{name}{_OUTCOME}"
    path.with_suffix(".part").write_text(json.dumps(asdict(outcome)))
    path.with_suffix(".part").rename(path)


def kept_outcomes(folder: Path) -> tuple[TrialOutcome, ...]:
    """How the trials of this machine ended, in the order in which they did."""
    files = sorted(folder.glob(f"trials/*{_OUTCOME}"), key=lambda one: one.stat().st_mtime_ns)
    found = [json.loads(one.read_text()) for one in files]
    return tuple(TrialOutcome(**{**one, "number": at}) for at, one in enumerate(found))
