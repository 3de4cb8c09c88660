"""Runs beside each other as one page that needs no network: tables, curves, clips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from opusclip_mlops.asking import client_of
from opusclip_mlops.compare_charts import charts_of, ordered
from opusclip_mlops.compare_samples import samples_html
from opusclip_mlops.compare_words import (
    LONGEST_KEY,
    METRIC_COLUMNS,
    NOTHING,
    alike_of,
    duration_text,
    metric_cells,
    said_of,
    shortened,
)
from opusclip_mlops.comparing import Beside, Show
from opusclip_mlops.contrasts import SECTIONS, Contrast, Facts
from opusclip_mlops.metric_rows import MetricRow
from opusclip_mlops.page_charts import cell_of, look_of, notes_of, table
from opusclip_mlops.page_document import Section, parts_of, write_document
from opusclip_mlops.page_media import Embedder
from opusclip_mlops.page_text import escaped, moment_text
from opusclip_mlops.redaction import one_line

MOST_ROWS = 2000
"""How many lines a table of metrics has at most."""

_LONGEST_TEXT = 2000
_PERCENT = "\N{NO-BREAK SPACE}%"


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
    parts = parts_of(
        f"{names[0]} beside {names[1]}{more}",
        sections_of(found, tracking_uri=tracking_uri, show=show),
        subtitle=f"Made {made}. A is what the others are compared with.",
    )
    return write_document(path, parts)


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
        "Runs": _runs(comparison.runs) + notes_of(map(one_line, comparison.notes)),
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
    name, run_id, status = (shortened(text, 200) for text in (one.run_name, one.run_id, one.status))
    texts = (name, run_id, status, moment_text(one.start_ms), took, why)
    cells = "".join(map(cell_of, texts))
    mark = f'<th scope="row"><span class="mark {look_of(place)}">{escaped(label)}</span></th>'
    return f"<tr>{mark}{cells}</tr>\n"


def _differences(found: Beside) -> Iterator[str]:
    runs, differences = found.comparison.runs, found.comparison.differences
    for section in SECTIONS:
        if differences[section]:
            yield f"<h3>{section} that differ</h3>\n"
            yield table((section, *runs), map(_contrast, differences[section]))
    if alike := alike_of(runs, differences):
        yield notes_of([f"alike: {', '.join(alike)}"])


def _contrast(one: Contrast) -> list[str]:
    values = (NOTHING if text is None else shortened(text, _LONGEST_TEXT) for text in one.values)
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
    return _wide(METRIC_COLUMNS, "".join(lines[:MOST_ROWS])) + notes_of(notes)


def _lines(row: MetricRow) -> Iterator[str]:
    """A line a run, or two; each is found by the metric's key."""
    key = escaped(shortened(row.key, LONGEST_KEY))
    for texts in metric_cells(row, at_most=LONGEST_KEY):
        cells = "".join(_cell(place, text) for place, text in enumerate(texts))
        yield f'<tr data-key="{key}">{cells}</tr>\n'


def _cell(place: int, text: str) -> str:
    verdict = next((f" {one}" for one in ("better", "worse") if text.endswith(f" {one}")), "")
    kind = f' class="n{verdict if place > 1 else ""}"' if place > 1 else ""
    # A line may end before a verdict, not before a sign of percent.
    return f"<td{kind}>{escaped(text.replace(' %', _PERCENT))}</td>"


def _wide(head: Sequence[str], rows: str) -> str:
    titles = "".join(f'<th scope="col">{escaped(one)}</th>' for one in head)
    return (
        f'<div class="wide"><table><thead><tr>{titles}</tr></thead>\n<tbody>{rows}</tbody></table>'
        "</div>\n"
    )
