"""Takes credentials out of texts that are kept: faults, reasons, logs."""

import os
import re

_IN_WEB_URI = re.compile(r"(?i)(https?://[^/@\s:'\"]*):[^/\s]+@")
_TOKEN_IN_WEB_URI = re.compile(r"(?i)(https?://)[^/@\s:'\"]+@")
# A database's password may hold a slash.
_IN_URI = re.compile(r"(?i)(?<![\w+])((?!https?:)[a-z][\w+.\-]*://[^/@\s:'\"]*):[^\s'\"]+@")
_IN_QUERY = re.compile(
    r"(?i)\b((?:password|passwd|token|secret|api_?key|sig|x-amz-signature|x-amz-credential)=)"
    r"[^&\s'\"]+"
)
_SECRET_NAME = re.compile(r"(?i)(PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY)")
_SHORTEST_SECRET = 6


def redacted(text: str) -> str:
    """The text with passwords in URIs, and the values of secret variables, replaced by `***`."""
    text = _IN_URI.sub(r"\1:***@", text)
    text = _IN_WEB_URI.sub(r"\1:***@", text)
    text = _TOKEN_IN_WEB_URI.sub(r"\1***@", text)
    text = _IN_QUERY.sub(r"\1***", text)
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text


def one_line(text: str, *, at_most: int = 500) -> str:
    """The text on one line, without credentials, cut to `at_most` characters."""
    return " ".join(redacted(text).split())[:at_most]
