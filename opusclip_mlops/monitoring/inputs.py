"""What a served version is asked, beside what it was asked before: the window and the reference.

The reference is what the version was registered with (`register(..., input_reference=…)`), else the
first 500 rows that were served. Those are kept in a private file beside the journals, so that
another process of the version, or the same one started anew, compares with the same rows.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opusclip_mlops.drift import (
    MOST_COLUMNS,
    REFERENCE_FILE,
    Columns,
    Drift,
    InputReference,
    Value,
    features,
)
from opusclip_mlops.errors import RecordError

WINDOW_ROWS = 500
"""So many of the latest rows are compared, and so many first ones are a reference."""

LEAST_ROWS = 100
"""Of fewer rows drift is not told: by chance alone it would be large."""

MOST_ROWS = 64
"""So many rows of a request are taken in."""

_MOST_BYTES = 16 * 2**20


class Window:
    """The latest rows, by column; a row that lacks a column has nothing there.

    Args:
        room: How many rows, 1 or more.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self.rows = 0
        self.columns: dict[str, deque[Value]] = {}

    def add(self, columns: Mapping[str, Sequence[Value]]) -> None:
        """Take in rows; the oldest make room."""
        count = max(map(len, columns.values()), default=0)
        for name in columns:
            if name not in self.columns and len(self.columns) < MOST_COLUMNS:
                self.columns[name] = deque([None] * self.rows, maxlen=self._room)
        for name, held in self.columns.items():
            held.extend(columns.get(name, [None] * count))
        self.rows = min(self._room, self.rows + count)

    @property
    def is_full(self) -> bool:
        """Whether there is no more room."""
        return self.rows == self._room

    def as_lists(self) -> Columns:
        """The rows by column, oldest first."""
        return {name: list(held) for name, held in self.columns.items()}


class InputWatch:
    """Compares the latest rows with a reference.

    Args:
        folder: Of the model, where its own reference may be.
        kept: The file in which a reference of served rows is kept.

    Attributes:
        origin: Where the reference is from: "version", "served", or "" as long as there is none.
    """

    def __init__(self, folder: Path, kept: Path) -> None:
        self._kept = kept
        self._window = Window(WINDOW_ROWS)
        self._first: Window | None = None
        self.origin = ""
        self.reference = _read(folder / REFERENCE_FILE)
        if self.reference is not None:
            self.origin = "version"
        else:
            self._use_kept()
        if self.reference is None:
            self._first = Window(WINDOW_ROWS)

    @property
    def rows(self) -> int:
        """How many rows would be compared now."""
        return self._window.rows

    def add(self, columns: Columns) -> None:
        """Take in rows of a request."""
        if self._first is None:
            self._window.add(columns)
            return
        self._first.add(columns)
        if self._first.is_full:
            reference = InputReference.of(self._first.as_lists())
            self._first = None
            self._keep(reference)

    def drift(self) -> dict[str, Drift]:
        """How far each column is from the reference; empty as long as there are too few rows."""
        if self.reference is None or self._window.rows < LEAST_ROWS:
            return {}
        return self.reference.drift(self._window.as_lists())

    def _keep(self, reference: InputReference) -> None:
        """Use this reference from now on, or one that another process kept earlier."""
        self.reference, self.origin = reference, "served"
        self._kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = self._kept.with_suffix(f".{os.getpid()}")
        with open(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(reference.as_json())
        try:
            # The first one stays: a link is refused where there is one.
            with contextlib.suppress(FileExistsError):
                os.link(own, self._kept)
        finally:
            own.unlink()
        self._use_kept()

    def _use_kept(self) -> None:
        if (reference := _read(self._kept)) is not None:
            self.reference, self.origin = reference, "served"


def snapshot(content: Any, params: Mapping[str, Any] | None = None) -> Columns:
    """What of a request's first rows is compared; empty for what is no table."""
    columns = _columns(content)
    count = max(map(len, columns.values()), default=0)
    for name, value in (params or {}).items():
        columns[f"params.{name}"] = [value] * max(count, 1)
    return features(columns)


def _columns(content: Any) -> dict[str, Sequence[Any]]:
    if hasattr(content, "to_dict") and hasattr(content, "columns"):
        # Column by column: of one row that takes a third of the time of `to_dict`.
        few = content if len(content) <= MOST_ROWS else content.iloc[:MOST_ROWS]
        return {str(name): column.tolist() for name, column in few.items()}
    if isinstance(content, dict):
        return {str(name): _listed(values) for name, values in content.items()}
    if isinstance(content, list) and content and all(isinstance(one, dict) for one in content):
        names = dict.fromkeys(name for one in content[:MOST_ROWS] for name in one)
        return {str(name): [one.get(name) for one in content[:MOST_ROWS]] for name in names}
    if isinstance(content, np.ndarray) and content.ndim == 2:
        few = content[:MOST_ROWS, :MOST_COLUMNS].T
        return {str(place): list(values) for place, values in enumerate(few)}
    return {"input": _listed(content)}


def _listed(values: Any) -> list[Any]:
    if isinstance(values, list | tuple):
        return list(values[:MOST_ROWS])
    if isinstance(values, np.ndarray) and values.ndim == 1:
        return list(values[:MOST_ROWS])
    return [values]


def _read(path: Path) -> InputReference | None:
    """The reference in a file, None where there is no such file.

    Raises:
        RecordError: It holds something else.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise RecordError(f"{path} is larger than {_MOST_BYTES // 2**20} MiB")
        return InputReference.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
