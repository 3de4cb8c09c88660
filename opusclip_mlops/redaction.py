"""Takes credentials out of texts that are kept: faults, reasons, logs."""

import os
import re

_IN_URI = re.compile(r"(://[^/@\s:]*):[^/\s]+@")
_IN_QUERY = re.compile(r"(?i)\b((?:password|passwd|token|secret|api_?key)=)[^&\s'\"]+")
_SECRET_NAME = re.compile(r"(?i)(PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY)")
_SHORTEST_SECRET = 6


def redacted(text: str) -> str:
    """The text with passwords in URIs, and the values of secret variables, replaced by `***`."""
    text = _IN_URI.sub(r"\1:***@", text)
    text = _IN_QUERY.sub(r"\1***", text)
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text


def one_line(text: str, *, at_most: int = 500) -> str:
    """The text on one line, without credentials, cut to `at_most` characters."""
    return " ".join(redacted(text).split())[:at_most]
