"""Real servers on free local ports, each stopped with all the processes it started."""

import contextlib
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
from pathlib import Path

from tests.journeys import store

BIN = Path(sys.executable).parent
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on, and no test beside this one is given."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    while True:
        # Below the ports that the kernel gives to clients.
        port = 10_000 + worker * 2_000 + random.randrange(2_000)
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port


def wait_until_up(
    url: str, deadline_s: float, process: subprocess.Popen[bytes] | None = None
) -> None:
    """Return when `url` answers 200; raise when time is up or `process` has ended."""
    end = time.monotonic() + deadline_s
    while process is None or process.poll() is None:
        with contextlib.suppress(OSError), _LOCAL.open(url, timeout=5) as answer:
            if answer.status == 200:
                return
        if time.monotonic() > end:
            raise TimeoutError(f"{url} did not answer within {deadline_s} s")
        time.sleep(0.1)
    raise RuntimeError(f"the server for {url} ended with code {process.returncode}")


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
        try:
            wait_until_up(url, deadline_s, process)
            yield process
        except (TimeoutError, RuntimeError) as error:
            output.seek(0)
            error.add_note(output.read().decode(errors="replace")[-4_000:])
            raise
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes], *, wait_s: float = 10) -> None:
    """End the process group of a process started by `running`, and wait for all of it."""
    end = time.monotonic() + wait_s
    sent = signal.SIGTERM
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(process.pid, sent)
            process.poll()
            time.sleep(0.05)
            sent = signal.SIGKILL if time.monotonic() > end else 0


@contextlib.contextmanager
def mlflow_server(folder: Path, *, port: int | None = None) -> Iterator[str]:
    """Run `mlflow server` on a database and artifacts inside `folder`; gives its URL.

    Called again with the same folder it serves the same runs.
    """
    url = f"http://127.0.0.1:{port or free_port()}"
    argv = [
        *(BIN / "mlflow", "server", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]),
        *("--workers", "1", "--backend-store-uri", store(folder)),
        *("--artifacts-destination", folder / "artifacts"),
    ]
    env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with running(argv, env, f"{url}/health", cwd=folder):
        yield url
