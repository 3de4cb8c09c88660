"""Makes run folders with records in them, and delivers them, here or in a process that dies."""

import atexit
import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opusclip_mlops.folder import CONTROL, Identity, Manifest, RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.records import Record, RunEnded, RunStarted
from opusclip_mlops.sessions import process_started_s

LOCAL_ID = "0123456789abcdef0123456789abcdef"


def store(tmp_path: Path) -> str:
    """A tracking URI of this test alone: MLflow keeps one store a URI and process."""
    if not (tmp_path / "mlflow.db").exists():
        tmp_path.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_empty_database(), tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@functools.cache
def _empty_database() -> Path:
    """A database with MLflow's tables, made once: it takes seconds."""
    # Not above: the stubs of servers come here too, and each is a process that needs no MLflow.
    from mlflow import MlflowClient

    path = Path(tempfile.mkdtemp()) / "mlflow.db"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def make_run(
    tmp_path: Path, sinks: Sequence[str] = ("mlflow",), *, name: str = LOCAL_ID, **fields: Any
) -> RunFolder:
    """A run's folder as a tracker makes it, with a session of this process under way."""
    folder = RunFolder(tmp_path / "journal" / name)
    manifest = {
        "local_id": name,
        "cwd": str(tmp_path),
        "sinks": list(sinks),
        "experiment_name": "films",
        "run_name": "a-run",
        "start_time_ms": 1_700_000_000_000,
        "tracking_uri": store(tmp_path),
        "project_name": "clips",
        "system_metrics": False,
        **fields,
    }
    folder.create(Manifest(**manifest))
    if not folder.manifest().run_id:
        folder.write_identity(Identity(mirror_id=name, experiment_name="films", run_name="a-run"))
    start = RunStarted(
        session="s1",
        host=socket.gethostname(),
        pid=os.getpid(),
        process_started_s=process_started_s(os.getpid()),
        start_time_ms=1_700_000_000_000,
        tags={"team": "true"},
    )
    append(folder, [start], journal="s1" + CONTROL)
    return folder


def append(folder: RunFolder, records: Sequence[Record], *, journal: str = "s1") -> None:
    """Log records."""
    log = Journal(folder.path, journal)
    for record in records:
        log.append(record)
    assert log.lost == 0
    log.close()


def end(folder: RunFolder, status: str = "FINISHED", reason: str = "") -> None:
    """Declare the run's end."""
    append(folder, [RunEnded("s1", status, 1_700_000_100_000, reason)], journal="s1" + CONTROL)


def deliver_and_die(folder: RunFolder, sink: str) -> None:
    """Deliver in a process that dies once its first batch was taken, but not acknowledged."""
    code = (
        "import os, sys; from pathlib import Path; from opusclip_mlops import delivery, folder\n"
        "delivery._Delivery._acknowledge = lambda *_: os._exit(9)\n"
        "delivery.deliver(folder.RunFolder(Path(sys.argv[1])), sys.argv[2])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder.path), sink], check=False)
    assert done.returncode == 9


def wait_until(is_done: Any, *, deadline_s: float = 240.0) -> None:
    """Wait for a condition; fails at the deadline."""
    deadline = time.monotonic() + deadline_s
    while not is_done():
        assert time.monotonic() < deadline, "not within the deadline"
        time.sleep(0.05)
