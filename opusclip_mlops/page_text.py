"""Texts of pages that are one HTML file: escaped, as data of a script, and the files of pages/."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from datetime import UTC, datetime
from importlib.resources import files


def escaped(text: str) -> str:
    """A text as HTML has it, in ASCII only.

    One character of another alphabet would make each of a page's 64 MiB of clips two to four bytes.
    """
    return in_ascii(html.escape(text))


def in_ascii(markup: str) -> str:
    """HTML whose other characters are told by their numbers."""
    return markup if markup.isascii() else markup.encode("ascii", "xmlcharrefreplace").decode()


def as_json(content: object) -> str:
    """JSON in which nothing can end the script that holds it.

    Raises:
        ValueError: A number is not finite.
    """
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def part_of_page(name: str) -> str:
    """A file of the folder pages/."""
    return files("opusclip_mlops").joinpath("pages", name).read_text(encoding="utf-8")


def source_of(text: str) -> str:
    """What a page's policy calls a style or script that the page holds: its hash."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def moment_text(timestamp_ms: int) -> str:
    """A Unix time in milliseconds, in UTC to the minute; "" beyond what calendars hold."""
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return ""
