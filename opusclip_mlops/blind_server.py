"""Serves the page of blind votes to the browser of this machine's user, and takes the votes.

It listens on 127.0.0.1 alone. Only who knows the token in the page's address is answered, and only
under the address that was given: another site's page that finds the port can neither read nor vote.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

import msgspec

from opusclip_mlops.blind_votes import Choice

_MOST_BYTES = 4096
_SILENT_S = 30.0
_CHUNK_BYTES = 1 << 20
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Voted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the page sends: a vote on a pair, by its number."""

    pair: int
    choice: Choice


class Box(Protocol):
    """Takes what is voted."""

    def vote(self, pair: int, choice: Choice) -> bool:
        """Keep a vote; False where there is no such pair."""

    def finish(self) -> None:
        """The voter is done."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, page: Path, box: Box) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.page, self.box, self.lock = page, box, threading.Lock()
        self.token = secrets.token_urlsafe(24)
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away in the middle is no fault."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/?token={self.token}"


@contextlib.contextmanager
def serving(page: Path, box: Box, *, port: int = 0) -> Iterator[str]:
    """Serve a page while the block runs, at the address that it gets.

    Args:
        page: The page's file.
        box: Takes the votes, one at a time.
        port: Where to listen; 0 for any that is free.

    Raises:
        OSError: The port is taken.
    """
    with _Server(port, page, box) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield server.address
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _SILENT_S
    server_version, sys_version = "opusclip", ""

    def do_GET(self) -> None:
        if self._is_welcome() and self._is_path("/"):
            self._begin(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page.stat().st_size)
            with self.server.page.open("rb") as page:
                while piece := page.read(_CHUNK_BYTES):
                    self.wfile.write(piece)

    def do_POST(self) -> None:
        if not self._is_welcome() or not self._is_from_page():
            return
        if urlsplit(self.path).path == "/finish":
            self._answer(HTTPStatus.OK)
            self.server.box.finish()
        elif self._is_path("/vote"):
            self._vote()

    def _vote(self) -> None:
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 < length <= _MOST_BYTES:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        try:
            voted = msgspec.json.decode(self.rfile.read(length), type=Voted)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._answer(HTTPStatus.BAD_REQUEST)
            return
        with self.server.lock:
            is_taken = self.server.box.vote(voted.pair, voted.choice)
        self._answer(HTTPStatus.OK if is_taken else HTTPStatus.BAD_REQUEST)

    def _is_path(self, path: str) -> bool:
        is_path = urlsplit(self.path).path == path
        if not is_path:
            self._answer(HTTPStatus.NOT_FOUND)
        return is_path

    def _is_welcome(self) -> bool:
        """Whether the address is the one that was given; who has another name for it is refused."""
        try:
            query = urlsplit(self.path).query
        except ValueError:
            self._answer(HTTPStatus.BAD_REQUEST)
            return False
        given = parse_qs(query).get("token", [""])[0]
        knows = secrets.compare_digest(given.encode(), self.server.token.encode())
        if knows and self.headers.get("Host") in self.server.hosts:
            return True
        self._answer(HTTPStatus.FORBIDDEN)
        return False

    def _is_from_page(self) -> bool:
        """Whether our own page asks, and not one of another site."""
        is_ours = self.headers.get("Origin") == f"http://{self.headers.get('Host')}"
        is_json = self.headers.get("Content-Type") == "application/json"
        if not (is_ours and is_json):
            self._answer(HTTPStatus.FORBIDDEN)
        return is_ours and is_json

    def _answer(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self._begin(status, "text/plain; charset=utf-8", 0)

    def _begin(self, status: HTTPStatus, kind: str, length: int) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing: an address holds the token."""
