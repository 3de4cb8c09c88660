"""What is printed where nobody reads it any more, as in `opusclip status | head -1`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast


@contextlib.contextmanager
def dropped() -> Iterator[None]:
    """Drop what is printed once its reader has gone: the block goes on, and ends as it ends.

    So a verb that writes a file besides writes it, and its exit code says what it ever says.
    """
    output = _Output(sys.stdout)
    with contextlib.redirect_stdout(cast(TextIO, output)):
        try:
            yield
        finally:
            output.flush()


class _Output:
    """A text file that takes what is written to a closed pipe."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        try:
            return self._file.write(text)
        except BrokenPipeError:
            self._drop()
        return len(text)

    def flush(self) -> None:
        try:
            self._file.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        """From here on into nothing, also what Python itself flushes at its end."""
        nothing = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nothing, self._file.fileno())
        finally:
            os.close(nothing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
