"""A stub of W&B's server that the real client works against, and that fails as it is told to.

Runs as a process of its own: `python -m tests.wandb_server --port N --folder F`. What it was told
lies in the folder, so that a server started again goes on with the same runs.
"""

import argparse
import base64
import contextlib
import gzip
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.servers import free_port, stop, wait_until_up
from tests.wandb_graphql import ENTITY, Graphql, Refused, operation_of, state_of
from tests.wandb_store import Store

API_KEY = "stub" * 10
"""The only key that the server takes."""

_STATUSES = {"400", "429", "500", "503", "401", "403", "404", "409"}
_KINDS = _STATUSES | {"hang", "reset", "lost", "die", "drop"}
_ROOT = Path(__file__).resolve().parents[1]
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Fault:
    """What is to go wrong, and with which requests.

    Args:
        kind: A status; "hang": no answer; "reset": the connection ends before the request is
            taken, "lost": after it was; "die": the server ends in the middle of the request;
            "drop": the request is answered well, and nothing is kept.
        path: graphql, file_stream, upload, or empty for all three.
        part: Only requests with this in their path, or as their GraphQL operation.
        left: How many requests more it meets, -1 for all until it is lifted.
    """

    kind: str
    path: str = ""
    part: str = ""
    left: int = -1
    met: int = 0


class Faults:
    """The faults that are on, in the order they were asked for."""

    def __init__(self) -> None:
        self._on: list[Fault] = []
        self._met: dict[str, int] = {}
        self._lock = threading.Lock()
        self.lifted = threading.Event()

    def add(self, fault: Fault) -> None:
        assert fault.kind in _KINDS, fault.kind
        with self._lock:
            self.lifted.clear()
            self._on.append(fault)

    def lift(self) -> None:
        with self._lock:
            self._on.clear()
            self.lifted.set()

    def next(self, path: str, where: str) -> str:
        """The kind of the fault that meets this request, empty for none."""
        with self._lock:
            for fault in self._on:
                if fault.left and fault.path in ("", path) and fault.part in where:
                    fault.left -= 1
                    self._met[fault.kind] = self._met.get(fault.kind, 0) + 1
                    return fault.kind
        return ""

    def met(self) -> dict[str, int]:
        """How many requests each kind of fault has met."""
        with self._lock:
            return dict(self._met)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, folder: Path) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.store = Store(folder)
        self.graphql = Graphql(self.store, f"http://127.0.0.1:{port}")
        self.faults = Faults()
        self.requests: dict[str, int] = {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        # Without it each small answer waits for the client's acknowledgement.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path.startswith("/_control/"):
            self._control(b"")
        elif self._kind() == "upload":
            blob = self.server.store.blob(self._upload_name())
            self._answer(200, blob.read_bytes()) if blob.is_file() else self._answer(404, b"")
        else:
            self._answer(404, b"")

    def do_POST(self) -> None:
        if self.path.startswith("/_control/"):
            self._control(self._body())
        else:
            self._take()

    do_PUT = do_POST

    def _control(self, body: bytes) -> None:
        faults = self.server.faults
        match self.path.removeprefix("/_control/"):
            case "fault":
                faults.add(Fault(**json.loads(body)))
            case "lift":
                faults.lift()
        about = {"met": faults.met(), "requests": self.server.requests}
        self._answer(200, json.dumps(about).encode())

    def _kind(self) -> str:
        if self.path.startswith("/graphql"):
            return "graphql"
        return "file_stream" if self.path.endswith("/file_stream") else "upload"

    def _upload_name(self) -> str:
        return unquote(self.path.partition("?")[0].removeprefix("/upload/"))

    def _take(self) -> None:
        """Meet a request with the fault that is on for it, or do what it asks."""
        kind = self._kind()
        body = b"" if kind != "graphql" else self._body()
        where = operation_of(json.loads(body)["query"]) if body else self.path
        for name in {kind, where if kind == "graphql" else kind}:
            self.server.requests[name] = self.server.requests.get(name, 0) + 1
        fault = self.server.faults.next(kind, where)
        if fault == "die":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2 if not body else 0)
            os._exit(9)
        body = body or self._body()
        if fault == "hang":
            self.server.faults.lifted.wait()
        if fault in ("hang", "reset"):
            self._reset()
        elif fault in _STATUSES:
            self._answer(int(fault), json.dumps({"errors": [{"message": fault}]}).encode())
        elif fault == "lost":
            self._done(kind, body)
            self._reset()
        elif fault == "drop":
            self._answer(200, b"{}")
        else:
            self._answer(*self._done(kind, body))

    def _done(self, kind: str, body: bytes) -> tuple[int, bytes]:
        if kind != "upload" and not self._has_key():
            return 401, b'{"errors": [{"message": "user is not logged in"}]}'
        with self.server.store.lock:
            if kind == "graphql":
                return self._graphql(json.loads(body))
            if kind == "file_stream":
                return self._file_stream(json.loads(body))
            return self._upload(body)

    def _has_key(self) -> bool:
        kind, _, text = self.headers.get("Authorization", "").partition(" ")
        return kind == "Basic" and base64.b64decode(text).decode().endswith(f":{API_KEY}")

    def _graphql(self, asked: dict[str, Any]) -> tuple[int, bytes]:
        try:
            data = self.server.graphql.answer(asked["query"], asked.get("variables") or {})
        except Refused as refused:
            answer = {"data": None, "errors": [{"message": str(refused)}]}
            return refused.status, json.dumps(answer).encode()
        return 200, json.dumps({"data": data}).encode()

    def _file_stream(self, told: dict[str, Any]) -> tuple[int, bytes]:
        store = self.server.store
        path = self.path.removeprefix("/files/").removesuffix("/file_stream")
        run = store.get("run", path)
        if run is None:
            return 404, b'{"error": "no such run"}'
        for name, chunk in (told.get("files") or {}).items():
            store.write_lines(path, name, chunk.get("offset", 0), chunk["content"])
        run["state"] = "running"
        if told.get("complete"):
            run["exitcode"] = told.get("exitcode", 0)
            run["state"] = state_of(run["exitcode"])
        store.put("run", path, run)
        return 200, b'{"exitcode": null, "limits": {}}'

    def _upload(self, body: bytes) -> tuple[int, bytes]:
        store = self.server.store
        store.blob(self._upload_name()).write_bytes(body)
        store.put("blob", self._upload_name(), {"name": self._upload_name()})
        return 200, b""

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _chunk(self) -> bytes:
        chunk = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return chunk

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        no_goodbye = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_goodbye)
        self.close_connection = True
        # `finish` would say goodbye first.
        self.connection.close()


@dataclass
class WandbServer:
    """A server under test; `env` is what a client needs to find it."""

    folder: Path
    port: int
    _process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY}

    def start(self) -> None:
        """Serve what lies in the folder, on the same port each time."""
        argv = [sys.executable, "-m", "tests.wandb_server", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [*argv, "--folder", str(self.folder)], cwd=_ROOT, start_new_session=True
        )
        wait_until_up(f"{self.url}/_control/health", 60, self._process)

    def stop(self) -> None:
        """End the server, alive or not; what it was told stays in the folder."""
        if self._process:
            stop(self._process)
        self._process = None

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def fault(self, kind: str, path: str = "", *, part: str = "", count: int = -1) -> None:
        """Let requests fail: see `Fault`; `count` is how many, -1 for all until `lift`."""
        self._control("fault", asdict(Fault(kind, path, part, count)))

    def lift(self) -> None:
        """End all faults; what hangs is reset."""
        self._control("lift", {})

    def met(self, kind: str) -> int:
        """How many requests were met by a fault of this kind since the server started."""
        return int(self._control("health")["met"].get(kind, 0))

    def requests(self, path: str) -> int:
        """How many requests there were since the server started.

        Of a kind (graphql, file_stream, upload), or of one GraphQL operation.
        """
        return int(self._control("health")["requests"].get(path, 0))

    def state(self) -> dict[str, Any]:
        """All that the server keeps: `runs` by path, `artifacts`, `alerts`, `unknown`."""
        with contextlib.closing(Store(self.folder)) as store:
            return store.state()

    def run(self, run_id: str, project: str = "clips", entity: str = ENTITY) -> dict[str, Any]:
        """What the server keeps of a run: history, config, summary, state, exitcode and more."""
        return dict(self.state()["runs"][f"{entity}/{project}/{run_id}"])

    @property
    def unknown_operations(self) -> list[str]:
        """The GraphQL operations that the stub met and has no answer to."""
        return list(self.state()["unknown"])

    def _control(self, what: str, told: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if told is None else json.dumps(told).encode()
        request = urllib.request.Request(f"{self.url}/_control/{what}", data=data)
        with _LOCAL.open(request, timeout=10) as answer:
            return dict(json.load(answer))


@contextlib.contextmanager
def wandb_server(folder: Path, *, port: int | None = None) -> Iterator[WandbServer]:
    """Run a stub of W&B's server; one that met an operation it does not know fails the test."""
    folder.mkdir(parents=True, exist_ok=True)
    server = WandbServer(folder, port or free_port())
    server.start()
    try:
        yield server
    finally:
        server.stop()
    assert server.unknown_operations == [], "the stub has no answer to these"


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    _Server(args.port, args.folder).serve_forever()


if __name__ == "__main__":
    main()
