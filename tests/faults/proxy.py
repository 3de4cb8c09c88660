"""A proxy before a real MLflow server, whose faults are switched while it runs."""

import contextlib
import http.client
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

from tests.servers import free_port

FAULTS = ("reset", "500", "429", "429 later", "400", "404", "page", "slow", "hang", "cut", "half")
"""What can be wrong with an answer.

reset: the connection is reset once the request was read. 500, 429: such answers, `429 later` with a
Retry-After. 400, 404, page: a page with this status, or 200, such as a web server before MLflow
gives while that is away. slow: answered after `delay_s`. hang: never answered. cut, half: the
server has done what was asked, and the connection is reset before its answer, or midway.
"""

_PAGE = b"<html><h1>Down for maintenance</h1></html>"
_ABORT = struct.pack("ii", 1, 0)  # close() sends a reset


class FaultProxy:
    """Forwards to a server; `fault` is what goes wrong with the next `times` requests."""

    def __init__(self, server: str, *, delay_s: float = 1.0) -> None:
        self.met: Counter[str] = Counter()
        self.passed = 0
        self.delay_s = delay_s
        self._target = urlsplit(server).netloc
        self._port = free_port()
        self._lock = threading.Lock()
        self._fault, self._times = "", 0
        self._method = self._part = ""
        self._released = threading.Event()
        self._listener: ThreadingHTTPServer | None = None

    @property
    def address(self) -> str:
        """The URL that stands for the server's."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *error: object) -> None:
        self.down()

    def up(self) -> None:
        """Listen, again on the same port."""
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._released.clear()
        self._listener = _Listener(("127.0.0.1", self._port), handler)
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections."""
        self._released.set()
        if self._listener:
            self._listener.shutdown()
            self._listener.server_close()
        self._listener = None

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Refuse connections until the block ends."""
        self.down()
        yield
        self.up()

    def fail(self, fault: str, times: int, *, method: str = "", part: str = "") -> None:
        """Let the next requests meet a fault: those of a method, with a part in their path."""
        assert fault in FAULTS
        with self._lock:
            self._fault, self._times = fault, times
            self._method, self._part = method, part

    def next_fault(self, method: str, path: str) -> str:
        """What goes wrong with this request; nothing where it is empty."""
        with self._lock:
            is_meant = self._method in ("", method) and self._part in path
            if self._times <= 0 or not is_meant:
                self.passed += 1
                return ""
            self._times -= 1
            self.met[self._fault] += 1
            return self._fault

    def hang(self) -> None:
        """Return only when the proxy goes down."""
        self._released.wait()

    def forwarded(self, method: str, path: str, headers: Any, body: bytes) -> tuple[Any, bytes]:
        """The server's answer, read to its end."""
        connection = http.client.HTTPConnection(self._target, timeout=60)
        try:
            own = ("accept-encoding", "connection", "host")
            names = {k: v for k, v in headers.items() if k.lower() not in own}
            connection.request(method, path, body or None, names)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.next_fault(self.command, self.path)
        if fault == "hang":
            self.proxy.hang()
        elif fault in ("400", "404", "page"):
            status = 200 if fault == "page" else int(fault)
            self._answer(status, {"Content-Type": "text/html"}, _PAGE)
        elif fault[:3] in ("500", "429"):
            self._answer(int(fault[:3]), {"Retry-After": "1"} if "later" in fault else {}, b"")
        elif fault != "reset":
            self._forward(fault, body)
        if fault in ("hang", "reset", "cut", "half"):
            self._reset()

    def _forward(self, fault: str, body: bytes) -> None:
        time.sleep(self.proxy.delay_s if fault == "slow" else 0)
        answer, content = self.proxy.forwarded(self.command, self.path, self.headers, body)
        if fault != "cut":
            kind = {"Content-Type": answer.getheader("Content-Type") or "text/plain"}
            sent = content[: len(content) // 2] if fault == "half" else content
            self._answer(answer.status, kind, sent, size_bytes=len(content))

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes, *, size_bytes: int | None = None
    ) -> None:
        length = len(content) if size_bytes is None else size_bytes
        self.send_response(status)
        for name, text in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        # The server's own shutdown() would end the connection politely.
        os.close(self.connection.detach())

    def log_message(self, *words: object) -> None:
        """Print nothing."""
