"""Runs beside each other as one page that needs no network: tables, curves, clips."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from opusclip_mlops.asking import client_of
from opusclip_mlops.compare_charts import charts_of, ordered
from opusclip_mlops.compare_samples import samples_html
from opusclip_mlops.compare_words import (
    alike_of,
    apart,
    duration_text,
    figures,
    said_of,
    shortened,
)
from opusclip_mlops.comparing import Beside, Show
from opusclip_mlops.contrasts import SECTIONS, Contrast, Facts
from opusclip_mlops.curves import At
from opusclip_mlops.metric_rows import Measured, MetricRow
from opusclip_mlops.page_charts import COLOURS, notes_of, table
from opusclip_mlops.page_document import Section, document, write_document
from opusclip_mlops.page_media import Embedder

MOST_ROWS = 2000
"""How many lines a table of metrics has at most."""

_LONGEST_TEXT = 2000
_HEAD = (
    "metric", "run", "points", "first", "last", "at", "to A", "best", "at", "to A", "mean", "to A"
)  # fmt: skip


def write_comparison(
    path: Path,
    found: Beside,
    *,
    tracking_uri: str | None = None,
    show: Show = lambda *_: None,
) -> int:
    """Write the page, whole or not at all, and say how many bytes it has.

    Args:
        path: Where to write; what is there is replaced.
        found: The runs, as `comparing.laid_beside` read them.
        tracking_uri: Where the runs are, for their samples; MLflow's default when None.
        show: Is told what is being done.

    Raises:
        ConfigError: It cannot be written.
        RegistryError: MLflow knows no such place.
    """
    names = [_called(label, one) for label, one in found.comparison.runs.items()]
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = document(
        f"{names[0]} beside {names[1]}{more}",
        sections_of(found, tracking_uri=tracking_uri, show=show),
        subtitle=f"Made {made}. A is what the others are compared with.",
    )
    write_document(path, text)
    return path.stat().st_size


def sections_of(
    found: Beside,
    *,
    tracking_uri: str | None = None,
    embedder: Embedder | None = None,
    show: Show = lambda *_: None,
) -> list[Section]:
    """The parts of the page; those of which nothing is known are left out.

    Args:
        found: The runs.
        tracking_uri: Where they are.
        embedder: Takes the clips, one of its own size when None.
        show: Is told what is being done.

    Raises:
        RegistryError: MLflow knows no such place.
    """
    comparison, room = found.comparison, embedder or Embedder()
    parts = {
        "Runs": _runs(comparison.runs) + notes_of(comparison.notes),
        "Differences": "".join(_differences(found)),
        "Metrics": _metrics(found) if comparison.metrics else "",
        "Curves": charts_of(found, show=show) if comparison.metrics else "",
        "Samples": samples_html(client_of(tracking_uri, None), found, embedder=room, show=show)
        if comparison.panels
        else "",
    }
    return [
        Section(id=title.lower(), title=title, html=text) for title, text in parts.items() if text
    ]


def _called(label: str, one: Facts) -> str:
    return f"{label} {shortened(one.run_name)}".rstrip()


# What the runs are


def _runs(runs: Mapping[str, Facts]) -> str:
    head = ("run", "name", "id", "status", "began", "took", "ended because")
    rows = "".join(_run(place, label, one) for place, (label, one) in enumerate(runs.items()))
    return _wide(head, rows)


def _run(place: int, label: str, one: Facts) -> str:
    took = "" if one.duration_s is None else duration_text(one.duration_s)
    why = shortened(one.end_reason, _LONGEST_TEXT)
    texts = (shortened(one.run_name, 200), one.run_id, one.status, _moment(one.start_ms), took, why)
    cells = "".join(f"<td>{html.escape(text)}</td>" for text in texts)
    mark = f'<th scope="row"><span class="mark c{place % COLOURS}">{html.escape(label)}</span></th>'
    return f"<tr>{mark}{cells}</tr>\n"


def _moment(timestamp_ms: int) -> str:
    try:
        return datetime.fromtimestamp(timestamp_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return ""


def _differences(found: Beside) -> Iterator[str]:
    runs, differences = found.comparison.runs, found.comparison.differences
    for section in SECTIONS:
        if differences[section]:
            yield f"<h3>{section} that differ</h3>\n"
            yield table((section, *runs), map(_contrast, differences[section]))
    if alike := alike_of(runs, differences):
        yield notes_of([f"alike: {', '.join(alike)}"])


def _contrast(one: Contrast) -> list[str]:
    values = ("–" if text is None else shortened(text, _LONGEST_TEXT) for text in one.values)
    return [shortened(one.name, _LONGEST_TEXT), *(text or '""' for text in values)]


# How metrics went


def _metrics(found: Beside) -> str:
    rows = ordered(found.comparison.metrics)
    lines = [line for row in rows for line in _lines(row)]
    unit = "steps" if found.comparison.by == "step" else "time"
    notes = [f"mean: the area over the {unit} that all have, by their length"]
    if found.branch == "all":
        notes.append("what training went back behind counts as well, and is drawn faded")
    if len(lines) > MOST_ROWS:
        notes.append(f"{len(lines) - MOST_ROWS:,} more lines: --metric chooses, --json has all")
    notes += [note for row in rows for note in said_of(row)][:MOST_ROWS]
    return _wide(_HEAD, "".join(lines[:MOST_ROWS])) + notes_of(notes)


def _lines(row: MetricRow) -> Iterator[str]:
    """A line a run; two where the name does not say which way is better."""
    better = f" ({row.better})" if row.better else ""
    for number, one in enumerate(row.runs):
        called = "" if number else f"{row.key}{better}"
        before = (called, one.label, f"{one.points:,}", _value(one.first)[0])
        last = (*_value(one.last), apart(one, "last", row.better))
        mean = "–" if one.mean is None else figures(one.mean)
        means = (mean, apart(one, "mean", row.better))
        for place, name in enumerate(("best",) if row.better else ("lowest", "highest")):
            best = _extreme(one, name, row.better)
            cells = (*before, *last, *best, *means) if not place else (*[""] * 7, *best, "", "")
            yield _line(row.key, cells)


def _extreme(one: Measured, name: str, better: str) -> tuple[str, str, str]:
    value, at = _value(getattr(one, name))
    return (value if better else f"{name} {value}"), at, apart(one, name, better)


def _value(point: At | None) -> tuple[str, str]:
    return (figures(point.value), f"{point.step:,}") if point else ("–", "")


def _line(key: str, texts: Sequence[str]) -> str:
    cells = "".join(_cell(place, text) for place, text in enumerate(texts))
    return f'<tr data-key="{html.escape(key)}">{cells}</tr>\n'


def _cell(place: int, text: str) -> str:
    verdict = next((f" {one}" for one in ("better", "worse") if text.endswith(f" {one}")), "")
    kind = f' class="n{verdict if place > 1 else ""}"' if place > 1 else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def _wide(head: Sequence[str], rows: str) -> str:
    titles = "".join(f'<th scope="col">{html.escape(one)}</th>' for one in head)
    return (
        f'<div class="wide"><table><thead><tr>{titles}</tr></thead>\n<tbody>{rows}</tbody></table>'
        "</div>\n"
    )
