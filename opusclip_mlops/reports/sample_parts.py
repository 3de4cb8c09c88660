"""What is seen of a run: its last samples, clips, pictures and tables."""

from __future__ import annotations

import html
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from opusclip_mlops.bottlenecks import TEXT_KEY
from opusclip_mlops.page_charts import notes_of, table
from opusclip_mlops.page_media import Embedder, hole
from opusclip_mlops.records import Image, Insight, Table, Video
from opusclip_mlops.reports.run_read import Fetched, RunRead
from opusclip_mlops.reports.wording import figures, plain
from opusclip_mlops.wall_page import Column, Sample, Wall

_MOST_ROWS, _MOST_COLUMNS = 20, 12
_CELL_CHARACTERS = 80
_SIGNS = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\x1aE\xdf\xa3", "video/webm"),
    (4, b"ftyp", "video/mp4"),
    (8, b"WEBP", "image/webp"),
)


def samples_html(read: RunRead, page: Embedder) -> str:
    """The last samples of each panel, as they play; "" where the run has none."""
    said = notes_of(read.more.get("samples", ()))
    return said + "".join(_wall(wall, read, page) for wall in read.walls)


def media_html(read: RunRead, page: Embedder) -> str:
    """The newest clip and picture of each key; "" for none."""
    shown = "".join(_shown(one, read, page) for one in read.media)
    row = f'<div class="media-row">{shown}</div>\n' if shown else ""
    return notes_of(read.more.get("media", ())) + row


def tables_html(read: RunRead) -> str:
    """The first rows of the newest table of each key, and which insights there are."""
    tables = [one.record for one in read.media if isinstance(one.record, Table)]
    shown = "".join(_table(one) for one in tables if one.key != TEXT_KEY)
    return shown + notes_of(read.more.get("insights", ())) + _insights(read)


def content_type_of(path: Path) -> str:
    """What kind of clip or picture a file is by its first bytes, "" for none that a page shows."""
    with path.open("rb") as file:
        head = file.read(16)
    return next((kind for at, sign, kind in _SIGNS if head[at : at + len(sign)] == sign), "")


def _wall(wall: Wall, read: RunRead, page: Embedder) -> str:
    name, run_id = plain(wall.panel.name), read.run.info.run_id
    words = ["opusclip", "wall", str(run_id), "--panel", wall.panel.title, "--steps", "last"]
    command = shlex.join([*words, *read.place])
    parts = [f"<h3>{html.escape(name)}</h3>\n"]
    for column in wall.columns:
        about = ", ".join([f"step {column.step:,}", *column.marks, *column.about])
        cells = "".join(_cells(wall, column, page, command))
        parts.append(f'<p>{html.escape(about)}</p><div class="media-row">{cells}</div>\n')
    return "".join(parts) + notes_of(plain(one) for one in wall.notes)


def _cells(wall: Wall, column: Column, page: Embedder, command: str) -> Iterator[str]:
    for cell in wall.panel.cells:
        sample = column.samples.get(cell.name, Sample(missing="no clip was logged"))
        values = [f"{plain(one.name)} {figures(one.value)}" for one in sample.scores]
        caption = ", ".join([plain(cell.prompt), f"seed {cell.seed}", *values])
        film = sample.film
        kind = content_type_of(film.path) if film else ""
        if film and kind:
            yield page.clip(film.path, content_type=kind, caption=caption, command=command)
        else:
            yield hole(f"{caption}: {plain(sample.missing or 'no clip that a page shows')}")


def _shown(one: Fetched, read: RunRead, page: Embedder) -> str:
    record, path = one.record, one.path
    if not isinstance(record, Video | Image):
        return ""
    said = plain(record.caption) if isinstance(record, Video) and record.caption else ""
    caption = ", ".join(filter(None, (plain(record.key), f"step {record.step:,}", said)))
    command = _download(one, read)
    if path is None:
        return page.left(one.left_bytes, caption=caption, command=command)
    kind = content_type_of(path)
    if not kind:
        return hole(f"{caption}: no clip or picture that a page shows")
    return page.clip(path, content_type=kind, caption=caption, command=command)


def _download(one: Fetched, read: RunRead) -> str:
    """What fetches a file; "" for a path that a terminal would not show as it is."""
    path = one.artifact_path
    words = ["mlflow", "artifacts", "download", "--run-id", str(read.run.info.run_id)]
    return shlex.join([*words, "--artifact-path", path]) if path.isprintable() else ""


def _table(one: Table) -> str:
    columns = [plain(name, at_most=_CELL_CHARACTERS) for name in one.columns[:_MOST_COLUMNS]]
    rows = [[_cell(cell) for cell in row[:_MOST_COLUMNS]] for row in one.rows[:_MOST_ROWS]]
    notes = []
    if len(one.rows) > _MOST_ROWS:
        notes.append(f"the first {_MOST_ROWS} of {len(one.rows):,} rows")
    if len(one.columns) > _MOST_COLUMNS:
        notes.append(f"the first {_MOST_COLUMNS} of {len(one.columns):,} columns")
    title = html.escape(f"{plain(one.key)}, step {one.step:,}")
    return f"<h3>{title}</h3>\n{table(columns, rows)}{notes_of(notes)}"


def _cell(value: Any) -> str:
    return figures(value) if isinstance(value, float) else plain(value, at_most=_CELL_CHARACTERS)


def _insights(read: RunRead) -> str:
    found: dict[tuple[str, str], list[int]] = {}
    for one in read.records(Insight):
        found.setdefault((one.kind, one.key), []).append(one.step)
    rows: Sequence[Sequence[str]] = [
        (plain(kind), plain(key), f"{len(steps):,}", f"{max(steps):,}")
        for (kind, key), steps in sorted(found.items())
    ]
    heads = ("insight", "key", "how many", "last step")
    return f"<h3>Insights</h3>\n{table(heads, rows)}" if rows else ""
