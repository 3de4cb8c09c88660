"""Real servers on free local ports, each stopped with all the processes it started."""

import atexit
import contextlib
import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from tests.journeys import store

BIN = Path(sys.executable).parent
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Process(Protocol):
    """What is asked of a server's process, which leads a group of its own."""

    @property
    def pid(self) -> int:
        """Its id."""

    def poll(self) -> int | None:
        """None while it runs."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on, and no test beside this one is given."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    while True:
        # Below the ports that the kernel gives to clients.
        port = 10_000 + worker * 2_000 + random.randrange(2_000)
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port


def wait_until_up(url: str, deadline_s: float, process: Process | None = None) -> None:
    """Return when `url` answers 200; raise when time is up or `process` has ended."""
    end = time.monotonic() + deadline_s
    while process is None or process.poll() is None:
        with contextlib.suppress(OSError), _LOCAL.open(url, timeout=5) as answer:
            if answer.status == 200:
                return
        if time.monotonic() > end:
            raise TimeoutError(f"{url} did not answer within {deadline_s} s")
        time.sleep(0.1)
    raise RuntimeError(f"the server for {url} ended with code {process.poll()}")


@contextlib.contextmanager
def running(
    argv: Sequence[str | Path],
    env: Mapping[str, str],
    url: str,
    *,
    cwd: Path | None = None,
    deadline_s: float = 120,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; `url` answers when the block begins.

    `env` is added to this process's own. What the server printed is shown when it does not start.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [str(part) for part in argv],
            env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **env},
            cwd=cwd,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with _stopped_after(process, url, output, deadline_s=deadline_s):
            yield process


@contextlib.contextmanager
def _stopped_after(
    process: Process, url: str, output: IO[bytes], *, deadline_s: float = 120
) -> Iterator[None]:
    """Wait for a server, and stop it after the block; `output` is what it prints."""
    try:
        wait_until_up(url, deadline_s, process)
        yield
    except (TimeoutError, RuntimeError) as error:
        output.seek(0)
        error.add_note(output.read().decode(errors="replace")[-4_000:])
        raise
    finally:
        stop(process)


def stop(process: Process, *, wait_s: float = 10) -> None:
    """End the process group of a server, and wait for all of it."""
    end = time.monotonic() + wait_s
    sent = signal.SIGTERM
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(process.pid, sent)
            process.poll()
            time.sleep(0.05)
            sent = signal.SIGKILL if time.monotonic() > end else 0


@contextlib.contextmanager
def mlflow_server(folder: Path, *, port: int | None = None, artifacts: str = "") -> Iterator[str]:
    """Run `mlflow server` on a database and artifacts inside `folder`; gives its URL.

    Called again with the same folder it serves the same runs. `artifacts` is another place for
    what it is given to keep, such as `s3://bucket/served`.
    """
    url = f"http://127.0.0.1:{port or free_port()}"
    argv = [
        *("server", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]),
        *("--workers", "1", "--backend-store-uri", store(folder)),
        *("--artifacts-destination", artifacts or str(folder / "artifacts")),
    ]
    with tempfile.NamedTemporaryFile() as output:
        server = _loaded_mlflow().serve(argv, folder, output.name)
        with _stopped_after(server, f"{url}/health", output):
            yield url


@dataclass(frozen=True)
class _Forked:
    """A process that is another one's child."""

    pid: int

    def poll(self) -> int | None:
        """None while it runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, 0)
            return None
        return -1


class _LoadedMlflow:
    """The process that has MLflow's server loaded, and forks all servers of this process."""

    def __init__(self) -> None:
        program = Path(__file__).with_name("loaded_mlflow.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
        )

    def serve(self, argv: Sequence[str], folder: Path, output: str) -> _Forked:
        """Begin a server; what it prints is appended to `output`."""
        own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        env = {**os.environ, **own}
        told = {"argv": argv, "env": env, "cwd": str(folder), "output": output}
        asked, answers = self._process.stdin, self._process.stdout
        assert asked
        assert answers
        asked.write(json.dumps(told).encode() + b"\n")
        asked.flush()
        return _Forked(int(answers.readline()))

    def end(self) -> None:
        """End it; its servers go on."""
        self._process.communicate()


@functools.cache
def _loaded_mlflow() -> _LoadedMlflow:
    loaded = _LoadedMlflow()
    atexit.register(loaded.end)
    return loaded
