"""Small projects to launch, and the folder and MLflow run of a launch."""

import errno
import io
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest
from mlflow import MlflowClient
from mlflow.store.db import utils as database

from opusclip_mlops.launching import workplace
from opusclip_mlops.launching.settings import LaunchConfig, checked
from opusclip_mlops.launching.workplace import Plan, Workplace, folder_for
from tests.journeys import store

MLPROJECT = """\
name: tiny
entry_points:
  main:
    parameters:
      note: {type: string, default: "it's $HOME; and \\"more\\""}
      deed: {type: string, default: nothing}
    command: python -u tiny.py --note {note} --deed {deed}
  shell:
    command: python tiny.py && rm -rf /
"""
TINY = """\
import os, pathlib, signal, sys, time
rank, deed = int(os.environ["RANK"]), sys.argv[4]
said = pathlib.Path("said")
said.mkdir(exist_ok=True)
attempt = len(list(said.glob(f"{rank}-?")))
if deed == "wait twice":
    def told(*_):
        time.sleep(4)  # longer than a Slurm that ends by force would wait
        (said / f"{rank}-{attempt}-saved").touch()
        os._exit(0)
    signal.signal(signal.SIGTERM, told)
words = [os.environ["WORLD_SIZE"], os.environ["MLFLOW_RUN_ID"], str(os.getpid()), sys.argv[2]]
(said / f"{rank}-{attempt}.part").write_text("\\n".join(words))
(said / f"{rank}-{attempt}.part").rename(said / f"{rank}-{attempt}")
if deed == "fail once" and attempt == 0:
    sys.exit(3)
if deed == "fail" and rank == 1:
    sys.exit(7)
if deed in ("wait", "fail once", "fail") or (deed == "wait twice" and attempt < 2):
    time.sleep(600)
"""


def project(tmp_path: Path) -> Path:
    """The folder of a project whose ranks say that they were there, and do what they are told."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "MLproject").write_text(MLPROJECT)
    (folder / "tiny.py").write_text(TINY)
    return folder


def said(folder: Path, rank: int = 0, attempt: int = 0) -> list[str]:
    """What a rank said: the world's size, the run, its process, the note; empty before it did."""
    file = folder / "said" / f"{rank}-{attempt}"
    return file.read_text().split("\n") if file.exists() else []


def config(**values: Any) -> LaunchConfig:
    """A configuration, with little grace."""
    return checked({"grace_s": 2, **values})


def launch(tmp_path: Path, deed: str = "nothing", **values: Any) -> tuple[Workplace, Plan]:
    """A launch's folder, and its MLflow run, which is running."""
    uri = store(tmp_path)
    folder = project(tmp_path)
    run = MlflowClient(uri).create_run("0")
    plan = Plan(
        run_id=run.info.run_id,
        experiment_id="0",
        tracking_uri=uri,
        cwd=str(folder),
        program=["tiny.py", "--note", "a 'b' $c", "--deed", deed],
        config=config(**values),
    )
    place = Workplace(folder_for(plan.config, plan.cwd, plan.run_id))
    place.create(plan)
    return place, plan


def gone_supervisor(place: Workplace) -> None:
    """Have the launch be one whose supervisor began, and is dead."""
    process = subprocess.Popen(["true"])
    process.wait()
    place.begin_attempt(f"{socket.gethostname()}:{process.pid}")


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no note of a launch find room any more; what is written over in place does."""

    def full(path: Path, _: bytes) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(workplace, "write_whole", full)


class _FullLog(io.StringIO):
    def write(self, _: str) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no line that is printed to stderr find room any more."""
    monkeypatch.setattr(sys, "stderr", _FullLog())


def without_database(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The plan with a tracking store that cannot be opened, for which MLflow does not wait."""
    monkeypatch.setattr(database, "MAX_RETRY_COUNT", 1)
    return msgspec.structs.replace(plan, tracking_uri=f"sqlite:///{plan.cwd}")


def end_of(plan: Plan) -> tuple[str, str]:
    """The status of the MLflow run, and the reason for its end."""
    run = MlflowClient(plan.tracking_uri).get_run(plan.run_id)
    return run.info.status, run.data.tags.get("opusclip.end_reason", "")
