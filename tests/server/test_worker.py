"""What uvicorn loads into its workers."""

import os
import select
import signal
import subprocess
import sys

import pytest

from opusclip_mlops.server import worker

START = (
    "import os, subprocess, sys, time;"
    "subprocess.Popen([sys.executable, '-c', {below!r}, *(sys.argv[1:] or [str(os.getpid())])]);"
    "time.sleep(600)"
)
WORKER = (
    "import os, sys, time; from opusclip_mlops.server import worker;"
    "print(worker.end_with(int(sys.argv[1])), {uvicorn}, flush=True); time.sleep(600)"
)


@pytest.mark.parametrize("has_supervisor", [False, True])
def test_uvicorn_ends_when_the_server_was_killed(has_supervisor: bool) -> None:
    """Nothing is left that would keep the port: of several workers the process above is ended."""
    uvicorn = "os.getppid()" if has_supervisor else "os.getpid()"
    below = WORKER.format(uvicorn=uvicorn)
    if has_supervisor:
        below = START.format(below=below)
    argv = [sys.executable, "-c", START.format(below=below)]
    server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    follows, pid = server.stdout.readline().split()
    assert follows == "True"
    watched = os.pidfd_open(int(pid))
    server.send_signal(signal.SIGKILL)
    server.wait()
    assert ended(watched)
    os.close(watched)


def ended(pidfd: int) -> bool:
    """Whether a process ends; waited for as long as a slow machine may need."""
    return bool(select.select([pidfd], [], [], 60)[0])


def test_a_process_that_no_server_started_is_left_alone() -> None:
    """The variable may be inherited by whatever a server's user starts."""
    assert not worker.end_with(os.getpid())
    assert not worker.end_with(2**22 - 1)
