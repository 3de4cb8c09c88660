"""Prints runs beside each other: tables for people, JSON for scripts.

Ids and commands stand in lines that nothing wraps, so that they can be copied.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from opusclip_mlops.comparing import Comparison, PanelBeside
from opusclip_mlops.contrasts import SECTIONS, Contrast, Facts
from opusclip_mlops.curves import At, Difference
from opusclip_mlops.metric_rows import Measured, MetricRow
from opusclip_mlops.redaction import one_line, redacted

_MOST_ROWS = 40
_MOST_NAMED = 12
_LONGEST_VALUE = 40
_LONGEST_NAME = 80
_ID_DIGITS = 8
_HEAD = ("metric", "run", "points", "last", "at", "to A", "best", "at", "to A", "mean", "to A")
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
    if alike := [name for name in SECTIONS if _is_alike(name, found)]:
        yield f"alike: {', '.join(alike)}", ""
    yield from _metrics(found)
    for panel in found.panels:
        yield from _samples(panel)
    for note in found.notes:
        yield f"note: {one_line(note)}", "yellow"


# What the runs are


def _run(label: str, one: Facts) -> tuple[str, ...]:
    why = f"ended because: {_short(one.end_reason, 200)}" if one.end_reason else ""
    took = "" if one.duration_s is None else _duration(one.duration_s)
    return (label, _short(one.run_name), one.run_id[:_ID_DIGITS], one.status, took, why)


def _is_alike(section: str, found: Comparison) -> bool:
    is_known = any(getattr(one, section) for one in found.runs.values())
    return is_known and not found.differences[section]


def _section(title: str, every: Sequence[Contrast], labels: Sequence[str]) -> Iterator[Line]:
    yield f"{title} that differ", "bold"
    rows = [("", *labels)]
    for one in every[:_MOST_ROWS]:
        values = ("-" if value is None else _short(value) or '""' for value in one.values)
        rows.append((_short(one.name, _LONGEST_NAME), *values))
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
        yield from ((f"  {line}", "yellow") for row in shown for line in _said(row))
    if len(rows) > _MOST_ROWS:
        yield f"  … {len(rows) - _MOST_ROWS} more rows: --metric chooses, --json has all", ""
    alone = {row.key: row.runs[0].label for row in found.metrics if counts[row.key] == 1}
    for label in dict.fromkeys(alone.values()):
        yield _only(label, [key for key, one in alone.items() if one == label]), ""


def _only(label: str, keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
    return f"only {label} has: {', '.join(_short(key) for key in keys[:_MOST_NAMED])}{more}"


def _cells(row: MetricRow) -> Iterator[tuple[str, ...]]:
    """A line a run; two where the name does not say which way is better."""
    called = f"{_short(row.key, _LONGEST_NAME)}{f' ({row.better})' if row.better else ''}"
    for number, one in enumerate(row.runs):
        about = (called if not number else "", one.label, f"{one.points:,}")
        last = (*_at(one.last), _apart(one, "last", row.better))
        mean = "-" if one.mean is None else _figures(one.mean)
        means = (mean, _apart(one, "mean", row.better))
        if row.better:
            yield *about, *last, *_at(one.best), _apart(one, "best", row.better), *means
            continue
        lowest, at_lowest = _at(one.lowest, "lowest ")
        highest, at_highest = _at(one.highest, "highest ")
        yield *about, *last, lowest, at_lowest, _apart(one, "lowest", ""), *means
        yield *[""] * 6, highest, at_highest, _apart(one, "highest", ""), "", ""


def _at(point: At | None, name: str = "") -> tuple[str, str]:
    return (f"{name}{_figures(point.value)}", f"{point.step:,}") if point else ("-", "")


def _apart(one: Measured, name: str, better: str) -> str:
    found = (one.differences or {}).get(name)
    if found is None or found.absolute is None:
        return ""
    return f"{_signed(found)}{_judged(found.absolute, better)}"


def _signed(found: Difference) -> str:
    absolute = "" if found.absolute is None else f"{found.absolute:+.4g}"
    return absolute if found.relative is None else f"{absolute} ({100 * found.relative:+.3g} %)"


def _judged(absolute: float, better: str) -> str:
    if not better or not absolute:
        return ""
    return " better" if (absolute < 0) == (better == "lower") else " worse"


def _said(row: MetricRow) -> Iterator[str]:
    """What has to be known of a row."""
    key = _short(row.key, _LONGEST_NAME)
    labels = ", ".join(one.label for one in row.runs)
    if row.apart:
        yield f"{key} of {labels} was measured otherwise: {one_line('; '.join(row.apart))}"
    for one in row.runs:
        parts = [one_line(one.note)] if one.note else []
        if one.not_finite:
            ends = "" if one.ends_finite else ", the last among them"
            parts.append(f"{one.not_finite:,} NaN or infinite left out{ends}")
        if one.superseded:
            parts.append(f"{one.superseded:,} left out that training went back behind")
        if parts:
            yield f"{key} of {one.label}: {'; '.join(parts)}"


# Samples, words and numbers


def _samples(panel: PanelBeside) -> Iterator[Line]:
    yield f"samples of {panel.title}: {_steps(panel.steps, panel.common)}", "bold"
    yield f"  {panel.command}", ""


def _steps(steps: Mapping[str, Sequence[int]], common: Sequence[int]) -> str:
    counts = ", ".join(f"{label} {len(every):,}" for label, every in steps.items())
    if not common:
        return f"no step in common ({counts})"
    shown = ", ".join(map(str, common[:_MOST_NAMED]))
    more = f" and {len(common) - _MOST_NAMED} more" if len(common) > _MOST_NAMED else ""
    return f"step {shown}{more} in common (steps: {counts})"


def _aligned(rows: Sequence[Sequence[str]], to_the_left: int) -> Iterator[str]:
    """Rows of a table; the first columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            text.ljust(width) if place < to_the_left else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _figures(value: float) -> str:
    return f"{value:.5g}"


def _short(text: str, at_most: int = _LONGEST_VALUE) -> str:
    plain = one_line(text, at_most=at_most + 1)
    return plain if len(plain) <= at_most else f"{plain[: at_most - 1]}…"


def _duration(length_s: float) -> str:
    for unit_s, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if length_s >= 2 * unit_s:
            return f"{length_s / unit_s:.1f} {name}"
    return f"{length_s:.1f} s"
