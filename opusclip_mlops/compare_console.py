"""Prints runs beside each other: tables for people, JSON for scripts.

Ids and commands stand in lines that nothing wraps, so that they can be copied.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from opusclip_mlops.amounts import size_text
from opusclip_mlops.compare_words import (
    LONGEST_NAME,
    METRIC_COLUMNS,
    MOST_NAMED,
    alike_of,
    duration_text,
    metric_cells,
    said_of,
    shortened,
    steps_in_common,
)
from opusclip_mlops.comparing import Comparison, PanelBeside
from opusclip_mlops.contrasts import SECTIONS, Contrast, Facts
from opusclip_mlops.metric_rows import MetricRow
from opusclip_mlops.redaction import one_line, redacted

_MOST_ROWS = 40
_LONGEST_PATH = 4096
_ID_DIGITS = 8
_FIRST = METRIC_COLUMNS.index("first")
_TEXT_COLUMNS = 2

Line = tuple[str, str]
"""A line and how it is shown where there are colours."""


def print_comparison(found: Comparison, *, as_json: bool) -> None:
    """Print all of it, or to people as much as they can read."""
    if as_json:
        print(json.dumps(_plain(msgspec.to_builtins(found)), indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for line, style in lines_of(found):
        console.print(Text(line, style=style), soft_wrap=True)


def print_page(page: Path, size_bytes: int) -> None:
    """Print where the page of a comparison is, and its size."""
    from rich.console import Console
    from rich.text import Text

    line = f"page: {one_line(str(page), at_most=_LONGEST_PATH)}, {size_text(size_bytes)}"
    Console().print(Text(line, style="bold"), soft_wrap=True)


def _plain(content: Any) -> Any:
    """The same without credentials in its texts."""
    if isinstance(content, str):
        return redacted(content)
    if isinstance(content, dict):
        return {name: _plain(one) for name, one in content.items()}
    return [_plain(one) for one in content] if isinstance(content, list | tuple) else content


def lines_of(found: Comparison) -> Iterator[Line]:
    """What people are told, line by line."""
    for line in _aligned([_run(label, one) for label, one in found.runs.items()], 4):
        yield line, "bold"
    for section in SECTIONS:
        if found.differences[section]:
            yield from _section(section, found.differences[section], list(found.runs))
    if alike := alike_of(found.runs, found.differences):
        yield f"alike: {', '.join(alike)}", ""
    yield from _metrics(found)
    for panel in found.panels:
        yield from _samples(panel)
    for note in found.notes:
        yield f"note: {one_line(note)}", "yellow"


# What the runs are


def _run(label: str, one: Facts) -> tuple[str, ...]:
    why = f"ended because: {shortened(one.end_reason, 200)}" if one.end_reason else ""
    took = "" if one.duration_s is None else duration_text(one.duration_s)
    return (label, shortened(one.run_name), one.run_id[:_ID_DIGITS], one.status, took, why)


def _section(title: str, every: Sequence[Contrast], labels: Sequence[str]) -> Iterator[Line]:
    yield f"{title} that differ", "bold"
    rows = [("", *labels)]
    for one in every[:_MOST_ROWS]:
        values = ("-" if value is None else shortened(value) or '""' for value in one.values)
        rows.append((shortened(one.name, LONGEST_NAME), *values))
    yield from ((f"  {line}", "") for line in _aligned(rows, len(rows[0])))
    if len(every) > _MOST_ROWS:
        yield f"  … {len(every) - _MOST_ROWS} more: --json has all", ""


# How metrics went


def _metrics(found: Comparison) -> Iterator[Line]:
    if not found.metrics:
        yield "no metrics to compare", ""
        return
    counts: Counter[str] = Counter()
    for row in found.metrics:
        counts[row.key] += len(row.runs)
    rows = [row for row in found.metrics if counts[row.key] > 1]
    shown = rows[:_MOST_ROWS]
    if shown:
        unit = "steps" if found.by == "step" else "time"
        yield f"metrics (mean: area over the {unit} that all have, by their length)", "bold"
        table = [_narrow(METRIC_COLUMNS), *(cells for row in shown for cells in _cells(row))]
        yield from ((f"  {line}", "") for line in _aligned(table, _TEXT_COLUMNS))
        yield from ((f"  {line}", "yellow") for row in shown for line in said_of(row))
    if len(rows) > _MOST_ROWS:
        yield f"  … {len(rows) - _MOST_ROWS} more rows: --metric chooses, --json has all", ""
    alone = {row.key: row.runs[0].label for row in found.metrics if counts[row.key] == 1}
    for label in dict.fromkeys(alone.values()):
        yield _only(label, [key for key, one in alone.items() if one == label]), ""


def _only(label: str, keys: Sequence[str]) -> str:
    more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
    return f"only {label} has: {', '.join(shortened(key) for key in keys[:MOST_NAMED])}{more}"


def _cells(row: MetricRow) -> Iterator[tuple[str, ...]]:
    """What fits on a line of a terminal: all but the first value."""
    for cells in metric_cells(row, at_most=LONGEST_NAME):
        yield _narrow(cells)


def _narrow(cells: tuple[str, ...]) -> tuple[str, ...]:
    return cells[:_FIRST] + cells[_FIRST + 1 :]


# Samples, and how lines are laid out


def _samples(panel: PanelBeside) -> Iterator[Line]:
    yield f"samples of {panel.title}: {steps_in_common(panel.steps, panel.common)}", "bold"
    yield f"  {panel.command}", ""


def _aligned(rows: Sequence[Sequence[str]], to_the_left: int) -> Iterator[str]:
    """Rows of a table; the first columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            text.ljust(width) if place < to_the_left else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
