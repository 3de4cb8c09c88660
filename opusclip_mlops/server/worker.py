"""What uvicorn loads into each of its workers, by the variable UVICORN_HTTP.

UVICORN_HTTP=opusclip_mlops.server.worker:Protocol mlflow server …
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from typing import TYPE_CHECKING, Any

import psutil
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from opusclip_mlops.server.limits import LimitedBodies, limit_bytes
from opusclip_mlops.server.settings import SERVER_PID

if TYPE_CHECKING:
    from starlette.types import ASGIApp


class Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """HTTP as uvicorn speaks it, with requests of a limited size."""

    app: ASGIApp

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app = LimitedBodies(self.app, limit_bytes=limit_bytes())


def end_with(server_pid: int) -> bool:
    """End uvicorn when the process of the server is gone: it would keep the port to itself.

    Returns:
        Whether this is a worker of that server; nothing is done elsewhere.
    """
    uvicorn = _uvicorn_of(server_pid)
    if uvicorn is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        server = os.pidfd_open(server_pid)
        threading.Thread(target=_end_after, args=(server, uvicorn), daemon=True).start()
    return True


def _uvicorn_of(server_pid: int) -> int | None:
    """The process that the server started: this one, or with several workers its parent."""
    parent = os.getppid()
    if parent == server_pid:
        return os.getpid()
    with contextlib.suppress(psutil.Error):
        return parent if psutil.Process(parent).ppid() == server_pid else None
    return None


def _end_after(server: int, uvicorn: int) -> None:
    # Readable once the process has ended, however it did.
    select.select([server], [], [])
    os.kill(uvicorn, signal.SIGTERM)


if _server_pid := os.environ.get(SERVER_PID):
    end_with(int(_server_pid))
