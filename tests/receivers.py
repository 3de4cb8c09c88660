"""A receiver of webhooks: a real HTTP server that answers as it is told, and keeps what came."""

import base64
import contextlib
import hashlib
import hmac
import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
RESET, HANG = -1, -2


@dataclass(frozen=True)
class Got:
    """One message as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.body)
        return content

    @property
    def number(self) -> int:
        return int(self.content["data"]["number"])

    def is_signed(self, secret: str = SECRET) -> bool:
        """Whether the receiver may believe it, as the specification has it checked."""
        given = [one.partition(",") for one in self.headers["webhook-signature"].split(" ")]
        said = self.headers["webhook-id"] + "." + self.headers["webhook-timestamp"] + "."
        key = base64.b64decode(secret[6:]) if secret.startswith("whsec_") else secret.encode()
        digest = hmac.new(key, said.encode() + self.body, hashlib.sha256).digest()
        wanted = ("v1", ",", base64.b64encode(digest).decode())
        return any(hmac.compare_digest(repr(one), repr(wanted)) for one in given)


@dataclass
class Receiver:
    """What came, and what is answered: the codes in their order, then 200."""

    port: int = 0
    got: list[Got] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    release: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks/a-secret-path"

    @property
    def numbers(self) -> list[int]:
        return [one.number for one in self.got]

    @property
    def counts(self) -> Counter[str]:
        return Counter(one.id for one in self.got)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver of this test alone."""
    with receiving() as found:
        yield found


@contextlib.contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    """Receive until the block ends."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.got.append(Got(self.path, headers, body))
            code = receiver.codes.pop(0) if receiver.codes else 200
            if code == HANG:
                receiver.release.wait(60)
                return
            if code == RESET:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()
                return
            self.send_response(code)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.release.set()
            server.shutdown()


def settings(folder: Path, url: str, *lines: str, name: str = "bot") -> Path:
    """A file of settings with one webhook inside one's own network."""
    folder.mkdir(exist_ok=True)
    (folder / "secret").write_text(f"{SECRET}\n")
    (folder / "secret").chmod(0o600)
    own = (f"url: {url}", "secret_file: secret", "allow_http: true", "allow_private: true", *lines)
    path = folder / "webhooks.yaml"
    path.write_text("\n".join(["webhooks:", f"  {name}:", *(f"    {one}" for one in own), ""]))
    return path
