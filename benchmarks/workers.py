"""What every worker does: read requests, a JSON line each, and answer on the pipe it was given.

Imports nothing but the standard library: workers of other environments use it too.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


class Answers:
    """The pipe to who asks; what libraries print goes to the log instead."""

    def __init__(self) -> None:
        self._pipe: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def tell(self, **content: Any) -> None:
        """Answer, or say that the worker is ready."""
        self._pipe.write(json.dumps(content) + "\n")


def requests() -> Iterator[dict[str, Any]]:
    """Requests, until there are none."""
    for line in sys.stdin:
        yield json.loads(line)


def rss_bytes() -> int:
    """How much memory this process has resident."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
