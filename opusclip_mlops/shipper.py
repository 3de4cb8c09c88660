"""Delivers a run: a supervisor without heavy imports, and a process for each sink.

    python -m opusclip_mlops.shipper <run folder>              the supervisor
    python -m opusclip_mlops.shipper <run folder> --sink NAME  one sink

The supervisor outlives the training process. It restarts a sink that died, puts the journal on the
disk every second, closes the run of a process that vanished, and removes the folder once every sink
has everything.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from opusclip_mlops.delivery import final_end, is_caught_up, sessions
from opusclip_mlops.folder import CONTROL, RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.records import RunEnded, RunStarted
from opusclip_mlops.redaction import one_line

POLL_S = 0.1
SYNC_EVERY_S = 1.0
NICENESS = 10
_RESTART_FIRST_S, _RESTART_LAST_S = 0.2, 30.0
_START_TIME_TOLERANCE_S = 2.0


def start_shipper(
    folder: RunFolder, *, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a supervisor for this run, in a session of its own so that it outlives its parent.

    `environment` is added to this process's own: what must not be written to disk goes there.
    """
    return _start(folder, own_session=True, environment=environment or {})


def _start(
    folder: RunFolder,
    *arguments: str,
    own_session: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    package = Path(__file__).resolve().parent.parent
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(package))))
    log = os.open(folder.path / "shipper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "opusclip_mlops.shipper", str(folder.path), *arguments],
            cwd=folder.manifest().cwd,
            env={**os.environ, **environment, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=own_session,
        )
    finally:
        os.close(log)


@dataclass
class _Child:
    """The process of one sink, and when it may be started again."""

    name: str
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    wait_s: float = _RESTART_FIRST_S
    not_before_s: float = field(default_factory=time.monotonic)


def supervise(folder: RunFolder) -> None:
    """Ship a run until everything is delivered; waits while another supervisor does."""
    try:
        with folder.shipping():
            if folder.path.exists():
                _supervise(folder)
    except FileNotFoundError:
        # Another supervisor has delivered everything and removed the folder.
        if folder.path.exists():
            raise


def _supervise(folder: RunFolder) -> None:
    children = [_Child(name) for name in folder.manifest().sinks]
    synced_s, told = 0.0, ""
    while folder.path.exists():
        try:
            if time.monotonic() - synced_s >= SYNC_EVERY_S:
                synced_s = time.monotonic()
                _sync(folder)
                _close_vanished(folder)
            for child in children:
                _keep_running(folder, child)
            if _is_over(folder, children):
                return
        except OSError as error:
            # A full disk, no more processes, a folder that is away: it may pass.
            if str(error) != told:
                told = str(error)
                print(f"supervisor: {one_line(told)}", flush=True)
            time.sleep(SYNC_EVERY_S)
        time.sleep(POLL_S)


def _is_over(folder: RunFolder, children: list[_Child]) -> bool:
    if any(child.process for child in children) or final_end(folder) is None:
        return False
    every = [folder.progress(child.name) for child in children]
    if not all(is_caught_up(folder, progress) for progress in every):
        return False
    refused = any(progress.rejected for progress in every)
    return refused or folder.remove_unless_held()


def _keep_running(folder: RunFolder, child: _Child) -> None:
    now_s = time.monotonic()
    if child.process and child.process.poll() is not None:
        failed = child.process.returncode != 0
        lived_long = now_s - child.started_s > _RESTART_LAST_S
        child.wait_s = _RESTART_FIRST_S if lived_long or not failed else 2 * child.wait_s
        child.not_before_s = now_s + (min(child.wait_s, _RESTART_LAST_S) if failed else 0)
        child.process = None
    if child.process or now_s < child.not_before_s:
        return
    if not is_caught_up(folder, folder.progress(child.name)):
        child.started_s = now_s
        child.process = _start(folder, "--sink", child.name)


def _sync(folder: RunFolder) -> None:
    for path in folder.segments():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)


def _close_vanished(folder: RunFolder) -> None:
    """Declare the end of every session of this host whose process is gone without doing so."""
    for session in sessions(folder):
        start = session.start
        if session.end is None and start.host == socket.gethostname() and not is_alive(start):
            reason = f"process {start.pid} vanished without closing its run"
            end_time_ms = _last_sign_of_life_ms(folder, start)
            end = RunEnded(start.session, "FAILED", end_time_ms, reason, start.owned)
            control = Journal(folder.path, f"supervisor{CONTROL}")
            control.append(end)
            control.close()


def _last_sign_of_life_ms(folder: RunFolder, start: RunStarted) -> int:
    own = [p for p in folder.segments() if p.name.startswith(start.session)]
    written_ms = [int(path.stat().st_mtime * 1000) for path in own]
    return max([start.start_time_ms, *written_ms])


def is_alive(start: RunStarted) -> bool:
    """Whether the process that began this session is still the one that runs."""
    import psutil

    try:
        process = psutil.Process(start.pid)
        same = abs(process.create_time() - start.process_started_s) < _START_TIME_TOLERANCE_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def main(arguments: list[str]) -> None:
    """Run the supervisor, or one sink."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(max(0, NICENESS - os.nice(0)))
    folder = RunFolder(Path(arguments[0]))
    if arguments[1:2] == ["--sink"]:
        from opusclip_mlops.delivery import deliver

        with folder.sinking(arguments[2]):
            sys.exit(0 if deliver(folder, arguments[2]) else 1)
    else:
        supervise(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
