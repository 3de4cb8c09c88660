"""Stands between a client and `mlflow server`: notes what is asked, and may change it."""

import contextlib
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlencode, urlsplit

_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_HISTORY = "/api/2.0/mlflow/metrics/get-history"


class Proxy:
    """What was asked for of metric histories, and what is done with such a request.

    Args:
        server_url: Of the real server.
        hidden: Parameters that the server does not get to see, as if it did not know them.

    What is to be done `before` a request is given by the request's number.
    """

    def __init__(self, server_url: str, *, hidden: tuple[str, ...] = ()) -> None:
        self.server_url, self.hidden = server_url, hidden
        self.asked: list[dict[str, str]] = []
        self.rows_given = 0
        self.before: dict[int, Callable[[], object]] = {}
        self.url = ""

    def forget(self) -> None:
        """Count from zero again."""
        self.asked, self.rows_given = [], 0

    def forward(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Ask the real server."""
        parts = urlsplit(path)
        asked = dict(parse_qsl(parts.query))
        if parts.path == _HISTORY:
            self.asked.append(asked)
            self.before.get(len(self.asked), dict)()
            kept = {name: value for name, value in asked.items() if name not in self.hidden}
            path = f"{parts.path}?{urlencode(kept)}"
        request = urllib.request.Request(self.server_url + path, body, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with _LOCAL.open(request, timeout=60) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        if parts.path == _HISTORY:
            self.rows_given += content.count(b'"timestamp"')
        return status, content


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else None
            status, content = proxy.forward(self.command, self.path, body)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            return

    return Handler


@contextlib.contextmanager
def in_front_of(server_url: str, *, hidden: tuple[str, ...] = ()) -> Iterator[Proxy]:
    """Run a proxy until the block ends."""
    proxy = Proxy(server_url, hidden=hidden)
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(proxy)) as server:
        proxy.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
