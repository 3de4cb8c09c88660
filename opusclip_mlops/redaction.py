"""Takes credentials out of texts that are kept: faults, reasons, logs."""

import os
import re

_IN_WEB_URI = re.compile(r"(?i)(https?://[^/@\s:'\"]*):[^/\s]+@")
_TOKEN_IN_WEB_URI = re.compile(r"(?i)(https?://)[^/@\s:'\"]+@")
# A database's password may hold a slash.
_IN_URI = re.compile(r"(?i)(?<![\w+])((?!https?:)[a-z][\w+.\-]*://[^/@\s:'\"]*):[^\s'\"]+@")
_SECRET = r"password|passwd|token|secret(?:[_-]?access)?(?:[_-]?key)?|api[_-]?key"
_NAMED = re.compile(
    rf"(?i)(?<![a-z])((?:[\w\-]*[_-])?(?:{_SECRET}|sig|x-amz-signature|x-amz-credential)=)[^&\s'\"]+"
)
_SAID = re.compile(rf"(?i)((?:--(?:[\w\-]*-)?(?:{_SECRET})|(?<![a-z])(?:{_SECRET}):)\s+)[^\s'\"]+")
_IN_HEADER = re.compile(r"(?i)\b((?:Bearer|Basic)\s+)[\w.~+/\-]{6,}=*")
_SECRET_NAME = re.compile(r"(?i)(PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY)")
_SHORTEST_SECRET = 6


def redacted(text: str) -> str:
    """The text with `***` for what is secret: in URIs, behind a name that says so, in variables."""
    text = _IN_URI.sub(r"\1:***@", text)
    text = _IN_WEB_URI.sub(r"\1:***@", text)
    text = _TOKEN_IN_WEB_URI.sub(r"\1***@", text)
    for named in (_NAMED, _SAID, _IN_HEADER):
        text = named.sub(r"\1***", text)
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text


def one_line(text: str, *, at_most: int = 500) -> str:
    """The text on one line, without credentials, cut to `at_most` characters.

    What would move a terminal's cursor, or turn its writing round, is left out.
    """
    words = " ".join(redacted(text).split())
    return "".join(one for one in words if one.isprintable())[:at_most]
