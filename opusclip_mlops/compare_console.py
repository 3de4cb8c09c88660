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
    MOST_NAMED,
    alike_of,
    apart,
    duration_text,
    figures,
    said_of,
    shortened,
    steps_in_common,
)
from opusclip_mlops.comparing import Comparison, PanelBeside
from opusclip_mlops.contrasts import SECTIONS, Contrast, Facts
from opusclip_mlops.curves import At
from opusclip_mlops.metric_rows import MetricRow
from opusclip_mlops.redaction import one_line, redacted

_MOST_ROWS = 40
_ID_DIGITS = 8
_HEAD = ("metric", "run", "points", "last", "at", "to A", "best", "at", "to A", "mean", "to A")
_TEXT_COLUMNS = 2

Line = tuple[str, str]
"""A line and how it is shown where there are colours."""


def print_comparison(found: Comparison, *, as_json: bool, page: Path | None = None) -> None:
    """Print all of it, or to people as much as they can read, and where a page of it is."""
    if as_json:
        print(json.dumps(_plain(msgspec.to_builtins(found)), indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for line, style in lines_of(found):
        console.print(Text(line, style=style), soft_wrap=True)
    if page is not None:
        size = size_text(page.stat().st_size)
        console.print(Text(f"page: {page}, {size}", style="bold"), soft_wrap=True)


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
        table = [_HEAD, *(cells for row in shown for cells in _cells(row))]
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
    """A line a run; two where the name does not say which way is better."""
    called = f"{shortened(row.key, LONGEST_NAME)}{f' ({row.better})' if row.better else ''}"
    for number, one in enumerate(row.runs):
        about = (called if not number else "", one.label, f"{one.points:,}")
        last = (*_at(one.last), apart(one, "last", row.better))
        mean = "-" if one.mean is None else figures(one.mean)
        means = (mean, apart(one, "mean", row.better))
        if row.better:
            yield *about, *last, *_at(one.best), apart(one, "best", row.better), *means
            continue
        lowest, at_lowest = _at(one.lowest, "lowest ")
        highest, at_highest = _at(one.highest, "highest ")
        yield *about, *last, lowest, at_lowest, apart(one, "lowest", ""), *means
        yield *[""] * 6, highest, at_highest, apart(one, "highest", ""), "", ""


def _at(point: At | None, name: str = "") -> tuple[str, str]:
    return (f"{name}{figures(point.value)}", f"{point.step:,}") if point else ("-", "")


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
