"""A webhook: where messages go, what is sent, and how that is signed: the Standard Webhooks format.

webhook-id: msg_<what it tells>                     the same each time a message is sent
webhook-timestamp: 1767225600                       when this copy of it was sent
webhook-signature: v1,<base64>                      HMAC-SHA256 of id.timestamp.body
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import SplitResult, urlsplit

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.redaction import one_line

DAY_S = 86_400
"""How long a message is tried again unless the settings say otherwise, in seconds."""

_SHORTEST_SECRET = 16
_MOST_SECRET_BYTES = 4096
_WHSEC = "whsec_"
_SLACK = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent of one record: its id, and the body in UTF-8."""

    id: str
    body: bytes

    def headers(self, keys: Sequence[bytes], *, sent_s: int) -> dict[str, str]:
        """The headers that go with it, signed with each key.

        Args:
            keys: None of them where nobody checks.
            sent_s: When it is sent, in Unix seconds.
        """
        signed = " ".join(signature(self, key, sent_s=sent_s) for key in keys)
        return {
            "content-type": "application/json",
            "webhook-id": self.id,
            "webhook-timestamp": str(sent_s),
            **({"webhook-signature": signed} if signed else {}),
        }


def signature(message: Message, key: bytes, *, sent_s: int) -> str:
    """The signature of a message that is sent at a Unix time in seconds: `v1,` and base64."""
    content = b".".join((message.id.encode(), str(sent_s).encode(), message.body))
    digest = hmac.new(key, content, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def standard_body(kind: str, timestamp_ms: int, data: Mapping[str, object]) -> bytes:
    """A body for programs: its `type` is `opusclip.<kind>`, its time in Unix milliseconds."""
    at = datetime.fromtimestamp(timestamp_ms / 1000, UTC).isoformat(timespec="milliseconds")
    timestamp = at.replace("+00:00", "Z")
    return _json({"type": f"opusclip.{kind}", "timestamp": timestamp, "data": data})


def slack_body(line: str) -> bytes:
    """A line of text, as Slack and what is like it take it."""
    return _json({"text": line.translate(_SLACK)})


def _json(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """Where a secret is kept: in a file, or in a variable; both empty for none."""

    path: str = ""
    variable: str = ""

    def signing_keys(self) -> tuple[bytes, ...]:
        """The keys that sign, read anew each time, so that a secret can be replaced meanwhile.

        Raises:
            ConfigError: It cannot be read, is too short, or is no base64 behind `whsec_`.
        """
        if not self.path and not self.variable:
            return ()
        text = os.environ.get(self.variable, "") if self.variable else kept_in(self.path)
        keys = tuple(_key(line.strip()) for line in text.splitlines() if line.strip())
        where = self.variable or self.path
        if not keys:
            raise ConfigError(one_line(f"no secret is in {where}, which is empty or not set"))
        if any(len(key) < _SHORTEST_SECRET for key in keys):
            raise ConfigError(
                one_line(f"the secret in {where} is shorter than {_SHORTEST_SECRET} characters")
            )
        return keys


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Receiver:
    """Somebody who is sent messages.

    Attributes:
        name: What it is known by.
        url: Where messages go; it may be a secret itself.
        secret: What they are signed with.
        format: "standard" or "slack".
        give_up_after_s: How long a message is tried again, in seconds.
        allow_private: Whether the address may be inside one's own network.
    """

    name: str
    url: str
    secret: Secret = Secret()
    format: str = "standard"
    give_up_after_s: int = DAY_S
    allow_private: bool = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r} to {self.host!r})"

    @property
    def host(self) -> str:
        """The machine that messages go to; the rest of the address is said nowhere."""
        return urlsplit(self.url).hostname or ""


def fault_of_url(url: str, *, allow_http: bool) -> str:
    """Why messages can't go to an address; empty where they can."""
    parts = _parts(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        return "it is no address like https://host/path"
    if parts.username or parts.password:
        return "put no name or password into it: the receiver checks the signature"
    if parts.scheme == "http" and not allow_http:
        return "it must be https: allow_http: true lets http through"
    return ""


def kept_in(path: str) -> str:
    """The text of a file that holds a secret.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(_MOST_SECRET_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(one_line(f"{path} cannot be read ({reason})")) from error


def _parts(url: str) -> SplitResult | None:
    """The parts of an address, None where it cannot be one."""
    if not url.isprintable() or " " in url:
        return None
    try:
        parts = urlsplit(url)
        return parts if parts.port is None or parts.port > 0 else None
    except ValueError:
        return None


def _key(secret: str) -> bytes:
    if not secret.startswith(_WHSEC):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_WHSEC), validate=True)
    except binascii.Error as error:
        raise ConfigError(f"what stands behind {_WHSEC} is no base64") from error
