"""Tables that `mlflow.log_table` wrote, read back row by row."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from opusclip_mlops.records import Table

TABLES_TAG = "mlflow.loggedArtifacts"
"""The tag in which MLflow notes which of a run's files are tables."""

MOST_ROWS = 10_000
"""The largest table a mirror is given: W&B keeps no more."""

MOST_BYTES = 64 * 2**20
"""The largest file of a table that is read."""


@dataclass(frozen=True, kw_only=True)
class TableRead:
    """A table's columns and rows, both None when it can't be carried; and what is left out."""

    columns: list[str] | None = None
    rows: list[list[Any]] | None = None
    left_out: tuple[str, ...] = ()

    def record(self, path: str, *, timestamp_ms: int) -> Table:
        """The record of the table: MLflow has no step for it, so its step is its length."""
        rows = self.rows or []
        key = path.removesuffix(".json")
        return Table(timestamp_ms, len(rows), key, self.columns or [], rows)


def table_paths(tags: Mapping[str, str]) -> tuple[list[str], tuple[str, str] | None]:
    """Which files MLflow calls tables; and what is wrong with its note of them, and why."""
    try:
        noted = json.loads(tags.get(TABLES_TAG, "[]"))
        paths = [str(one["path"]) for one in noted if one.get("type") == "table"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return [], (TABLES_TAG, "the tag is not what MLflow writes: its tables are mere files")
    return sorted(set(paths)), None


def read_table(path: str, size_bytes: int, fetched: Callable[[], bytes]) -> TableRead:
    """Read a table; one that is too large is not even fetched."""
    if size_bytes > MOST_BYTES:
        return TableRead(left_out=(f"it has {size_bytes} bytes: a mirror takes {MOST_BYTES}",))
    try:
        columns, rows = _decoded(path, fetched())
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        return TableRead(left_out=(f"it can't be read as a table: {reason}",))
    if len(rows) > MOST_ROWS:
        return TableRead(left_out=(f"it has {len(rows)} rows: a mirror takes {MOST_ROWS}",))
    return _without_pictures(columns, rows)


def _decoded(path: str, content: bytes) -> tuple[list[str], list[list[Any]]]:
    if path.endswith(".parquet"):
        return _of_parquet(content)
    table = json.loads(content)
    columns, rows = [str(name) for name in table["columns"]], [list(row) for row in table["data"]]
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"not every row has {len(columns)} cells")
    return columns, rows


def _of_parquet(content: bytes) -> tuple[list[str], list[list[Any]]]:
    import pandas as pd  # type: ignore[import-untyped]

    frame = pd.read_parquet(io.BytesIO(content))
    text = frame.to_json(orient="split", index=False, date_format="iso", double_precision=15)
    return _decoded("", text.encode())


def _without_pictures(columns: list[str], rows: list[list[Any]]) -> TableRead:
    """Say a picture in a cell by its path: no mirror can show it there."""
    pictured = set()
    for row in rows:
        for at, cell in enumerate(row):
            if isinstance(cell, dict) and cell.get("type") == "image" and "filepath" in cell:
                row[at] = cell["filepath"]
                pictured.add(columns[at])
    notes = (f"the pictures in column {name!r} are given as paths" for name in sorted(pictured))
    return TableRead(columns=columns, rows=rows, left_out=tuple(notes))
