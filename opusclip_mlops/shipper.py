"""Delivers a run: a supervisor without heavy imports, and a process for each sink.

    python -m opusclip_mlops.shipper <run folder>              the supervisor
    python -m opusclip_mlops.shipper <run folder> --sink NAME  one sink

The supervisor outlives the training process. It restarts a sink that died or was stopped, puts the
journal on the disk every second, measures the machine, closes the run of a process that vanished,
and removes the folder once every sink has everything.
"""

import functools
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from opusclip_mlops.delivery import deliver, is_caught_up
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.launch import HUNG_S, NICENESS, children_of, start_process, yield_to_training
from opusclip_mlops.lean_mlflow import load_mlflow
from opusclip_mlops.redaction import one_line
from opusclip_mlops.rendezvous import note_run
from opusclip_mlops.sessions import final_end
from opusclip_mlops.vain_waiting import has_waited_in_vain, wait_anew
from opusclip_mlops.watching import Watch

POLL_S = 0.1
WATCH_EVERY_S = 1.0
_TAKE_OVER_S = 2.0
_RESTART_FIRST_S, _RESTART_LAST_S = 0.2, 30.0


def supervise(folder: RunFolder) -> None:
    """Ship a run until everything is delivered, unless another supervisor does."""
    try:
        with folder.shipping(wait_s=_TAKE_OVER_S) as is_ours:
            if is_ours and folder.path.exists():
                _Supervisor(folder).run()
    except FileNotFoundError:
        # Another supervisor has delivered everything and removed the folder.
        if folder.path.exists():
            raise


@dataclass
class _Child:
    """The process of one sink, and when it may be started again."""

    name: str
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    looked_s: float = 0.0
    stopped_s: float | None = None
    wait_s: float = _RESTART_FIRST_S
    not_before_s: float = field(default_factory=time.monotonic)


class _Supervisor:
    """Keeps a process for each sink, and watches over the run, until all is delivered."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._children = [_Child(name) for name in folder.manifest().sinks]
        self._watch = Watch(folder)
        self._told = ""

    def run(self) -> None:
        """Return when everything is delivered, the folder is gone, or its run was never made."""
        if not any(self._folder.size_bytes().values()) and self._folder.remove_empty():
            # Left by a process that died before its first record.
            return
        wait_anew(self._folder)
        watched_s = 0.0
        while self._folder.path.exists():
            if time.monotonic() - watched_s >= WATCH_EVERY_S:
                watched_s = time.monotonic()
                self._outlast(self._watch.look)
            for child in self._children:
                self._outlast(functools.partial(self._keep_running, child))
            if self._outlast(self._is_over) or self._is_in_vain():
                return
            time.sleep(POLL_S)

    def _outlast(self, action: Callable[[], object]) -> object:
        """Do something that a full disk, or a machine without processes, may forbid for now."""
        try:
            return action()
        except (OSError, OpusclipError) as error:
            self._tell(one_line(str(error)))
            return None

    def _tell(self, fault: str) -> None:
        if fault != self._told:
            self._told = fault
            print(f"supervisor: {fault}", flush=True)

    def _is_over(self) -> bool:
        if any(child.process for child in self._children) or final_end(self._folder) is None:
            return False
        every = [self._folder.progress(child.name) for child in self._children]
        if not all(is_caught_up(self._folder, progress) for progress in every):
            return False
        if not self._watch.may_end() or final_end(self._folder) is None:
            return False
        refused = any(progress.rejected for progress in every)
        note_run(self._folder)
        return refused or self._folder.remove_unless_held()

    def _is_in_vain(self) -> bool:
        """End all sinks once nobody waits any longer for the run to be made; whether that is so."""
        if not has_waited_in_vain(self._folder):
            return False
        for child in self._children:
            if child.process:
                end_with_children(child.process.pid)
                child.process.wait()
        return True

    def _keep_running(self, child: _Child) -> None:
        now_s = time.monotonic()
        if child.process and child.process.poll() is not None:
            _note_end(child, now_s)
        if child.process:
            if now_s - child.looked_s >= WATCH_EVERY_S:
                child.looked_s = now_s
                self._end_if_stopped(child, now_s)
        elif now_s >= child.not_before_s and not self._is_caught_up(child):
            child.started_s, child.stopped_s = now_s, None
            child.not_before_s = now_s + WATCH_EVERY_S
            child.process = start_process(self._folder, "--sink", child.name)

    def _is_caught_up(self, child: _Child) -> bool:
        return is_caught_up(self._folder, self._folder.progress(child.name))

    def _end_if_stopped(self, child: _Child, now_s: float) -> None:
        """Kill a sink's process that somebody has stopped and nobody lets go on."""
        assert child.process is not None
        if not any(is_stopped(pid) for pid in (child.process.pid, *children_of(child.process.pid))):
            child.stopped_s = None
        elif child.stopped_s is None:
            child.stopped_s = now_s
        elif now_s - child.stopped_s >= HUNG_S:
            self._tell(f"{child.name} stood stopped for {HUNG_S:g} s and is started again")
            end_with_children(child.process.pid)


def _note_end(child: _Child, now_s: float) -> None:
    assert child.process is not None
    failed = child.process.returncode != 0
    lived_long = now_s - child.started_s > _RESTART_LAST_S
    child.wait_s = _RESTART_FIRST_S if lived_long or not failed else 2 * child.wait_s
    child.not_before_s = now_s + (min(child.wait_s, _RESTART_LAST_S) if failed else 0)
    child.process = None


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal and not let go on."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in ("T", "t")


def end_with_children(pid: int) -> None:
    """Kill a process and all that it started, stopped ones too."""
    import psutil

    try:
        every = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    except psutil.Error:
        return
    for process in every:
        try:
            process.kill()
        except psutil.Error:
            continue


def _run_sink(folder: RunFolder, name: str) -> None:
    if name in ("mlflow", "relay"):
        load_mlflow()
    with folder.sinking(name):
        if deliver(folder, name):
            # Python's last search for garbage takes a fifth of a second, and finds what is no harm.
            gc.freeze()
            return
    # What the client library would do at a normal exit may hang; its children may be stopped.
    sys.stdout.flush()
    end_with_children(os.getpid())


def main(arguments: list[str]) -> None:
    """Run the supervisor, or one sink."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(max(0, NICENESS - os.nice(0)))
    yield_to_training(os.getpid())
    folder = RunFolder(Path(arguments[0]))
    if arguments[1:2] == ["--sink"]:
        _run_sink(folder, arguments[2])
    else:
        supervise(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
