"""What deploy/compose.yaml starts in containers, as processes on 127.0.0.1, from the same files."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg2
import yaml

from tests import databases, object_store
from tests.servers import BIN, stop

EXPERIMENT = "video-clips"
BUCKET = "opusclip"
SERVERS = ("server-1", "server-2")
UP_S = 150.0


@dataclass
class Part:
    """One process of the topology, which can be killed and comes back with what it had."""

    name: str
    argv: Sequence[str | Path]
    env: dict[str, str]
    is_up: Callable[[], bool]
    folder: Path
    user: str | None = None
    process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start it and wait until it answers; again if it ends, as a supervisor would."""
        end = time.monotonic() + UP_S
        while time.monotonic() < end:
            if self.process is None or self.process.poll() is not None:
                self._start()
                time.sleep(0.2)
            if self.is_up():
                return
            time.sleep(0.1)
        raise TimeoutError(f"{self.name} did not come up: {self.said()[-4000:]}")

    def _start(self) -> None:
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(part) for part in self.argv],
                env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **self.env},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self.user,
            )

    def kill(self) -> None:
        """End all its processes at once, with nothing written in order."""
        assert self.process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> None:
        """End it in order."""
        if self.process and self.process.poll() is None:
            stop(self.process)

    def said(self) -> str:
        """What it printed."""
        return (self.folder / f"{self.name}.log").read_text(errors="replace")


@dataclass
class Topology:
    """All parts by name, and what a client needs to know."""

    folder: Path
    store: object_store.ObjectStore
    parts: dict[str, Part] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The door, as people write it."""
        return f"https://127.0.0.1:{self.ports['https']}"

    @property
    def secrets(self) -> Path:
        return self.folder / "secrets"

    @property
    def mirrors(self) -> Path:
        return self.folder / "mirrors"

    def secret(self, name: str) -> str:
        """What stands in a file of the secrets."""
        return (self.secrets / name).read_text().strip()

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """Believes the certificate that secrets.sh made, and no other."""
        return ssl.create_default_context(cafile=str(self.secrets / "tls.crt"))

    def client_env(self, user: str, password: str) -> dict[str, str]:
        """What somebody's machine sets to come in."""
        return {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password,
            "REQUESTS_CA_BUNDLE": str(self.secrets / "tls.crt"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "NO_PROXY": "*",
        }

    def get(self, path: str, *, user: str = "", password: str = "") -> tuple[int, str]:
        """Ask the door; gives the status and the answer, (0, why) where nothing answers."""
        request = urllib.request.Request(self.url + path)
        if user:
            both = base64.b64encode(f"{user}:{password}".encode()).decode()
            request.add_header("Authorization", f"Basic {both}")
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.tls)
        )
        try:
            with opener.open(request, timeout=30) as answer:
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")
        except (OSError, urllib.error.URLError) as error:
            return 0, str(error)

    def connect(self, database: str = "opusclip") -> Any:
        """A connection to its PostgreSQL."""
        return connected(self.ports["postgres"], database)

    def asked(self, query: str) -> list[dict[str, Any]]:
        """What Prometheus answers to a query."""
        from urllib.parse import quote

        answer = local(
            f"http://127.0.0.1:{self.ports['prometheus']}/api/v1/query?query={quote(query)}"
        )
        return list(yaml.safe_load(answer)["data"]["result"])


def connected(port: int, database: str) -> Any:
    """A connection to a PostgreSQL of the tests."""
    return psycopg2.connect(
        host="127.0.0.1",
        port=port,
        user="opusclip",
        password=databases.PASSWORD,
        dbname=database,
        connect_timeout=5,
    )


def local(url: str) -> str:
    """What a server of this machine answers; empty where it does not."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return str(answer.read().decode())
    except (OSError, urllib.error.URLError):
        return ""
