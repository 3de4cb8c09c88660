"""Starts the shipper of a run, and starts it again when it was killed."""

import contextlib
import os
import site
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.folder import Manifest, RunFolder

NICENESS = 10
"""About a tenth of a core where the training wants them all: it keeps up and does not hurt."""

HUNG_S = 30.0
with contextlib.suppress(KeyError, ValueError):
    HUNG_S = float(os.environ["OPUSCLIP_HUNG_S"])
"""How long a sink's process may stand stopped before it is replaced, in seconds."""

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.5, 5.0
_LIVED_LONG_S = 10.0


def start_shipper(
    folder: RunFolder, *, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a supervisor for this run, in a session of its own so that it outlives its parent.

    It ends at once where another one ships the run. `environment` is added to this process's own:
    what must not be written to disk goes there.
    """
    return start_process(folder, own_session=True, environment=environment or {})


def start_process(
    folder: RunFolder,
    *arguments: str,
    own_session: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    """Start a process of the shipper in the folder the run was begun in; it writes to shipper.log.

    Raises:
        OSError: no process can be started, or that folder is away.
        OpusclipError: the run's folder is gone.
    """
    log = os.open(folder.path / "shipper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        manifest = folder.manifest()
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "opusclip_mlops.shipper", str(folder.path), *arguments],
            cwd=manifest.cwd,
            env={**_inherited(manifest), **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=own_session,
        )
    finally:
        os.close(log)


def _inherited(manifest: Manifest) -> dict[str, str]:
    """The environment of a shipper: this process's, with what it needs to find the package."""
    inherited = dict(os.environ)
    package = str(Path(__file__).resolve().parent.parent)
    # Where it is installed it is found; before the standard library that folder has no place.
    if package not in site.getsitepackages():
        path = filter(None, (os.environ.get("PYTHONPATH"), package))
        inherited["PYTHONPATH"] = os.pathsep.join(path)
    if manifest.tracking_uri is None and not manifest.tracking_uri_is_secret:
        # It was not set when the run was begun: another shell's must not send it elsewhere.
        inherited.pop("MLFLOW_TRACKING_URI", None)
    return inherited


def yield_to_training(pid: int) -> None:
    """Let a process's session have a small share of a core that others want too.

    Linux gives each session a group of its own, and groups equal shares of a core: `nice` alone
    counts inside a group only, see "The autogroup feature" in sched(7).
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(NICENESS))


def yield_alike(pid: int) -> None:
    """Let a process's session have the share of a core that this process's own has."""
    with contextlib.suppress(OSError):
        # What init starts in its own session is in no group: the file is there, and empty.
        if own := Path("/proc/self/autogroup").read_text().split()[-1:]:
            Path(f"/proc/{pid}/autogroup").write_text(own[0])


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


class ShipperGuard:
    """Keeps a shipper running for a run while this process trains.

    Its thread sleeps in the kernel until the shipper's lock is free: it takes no turn of the
    interpreter, and a log call knows nothing of it.
    """

    def __init__(self, folder: RunFolder, *, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._released = threading.Event()
        self._process = start_shipper(folder, environment=environment)
        thread = threading.Thread(target=self._watch, name="opusclip-shipper-guard", daemon=True)
        thread.start()

    def release(self) -> None:
        """Let the shipper be: what is left is its own to end."""
        self._released.set()

    def _watch(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._released.wait(pause_s):
            started_s = time.monotonic()
            try:
                self._folder.wait_until_unshipped()
            except FileNotFoundError:
                return
            except OSError:
                continue
            if self._released.is_set():
                return
            lived_long = time.monotonic() - started_s > _LIVED_LONG_S
            pause_s = _FIRST_PAUSE_S if lived_long else min(2 * pause_s, _LAST_PAUSE_S)
            self._start_again()

    def _start_again(self) -> None:
        # No process to be had now, or the folder is gone: that is no fault of the training.
        with contextlib.suppress(OSError, OpusclipError):
            self._process.poll()
            self._process = start_shipper(self._folder, environment=self._environment)
