"""What is said of a launch to MLflow and to who reads its log: no exit code hangs on either."""

import sys
from collections.abc import Callable

from opusclip_mlops.faults import attempted
from opusclip_mlops.redaction import one_line


def say(line: str) -> None:
    """Print a line to stderr, where that has room for it."""
    attempted(lambda: print(line, file=sys.stderr))


def told(tell: Callable[[], object]) -> bool:
    """Tell MLflow something; where that fails in any way, who calls goes on without: False."""
    if fault := attempted(tell):
        say(f"opusclip: {one_line(str(fault)) or type(fault).__name__}")
    return fault is None
