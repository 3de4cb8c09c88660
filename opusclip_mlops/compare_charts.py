"""The curves of a comparison as charts: a chart for each way a metric was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from opusclip_mlops.compare_words import LONGEST_KEY, said_of, shortened
from opusclip_mlops.comparing import Beside, Show
from opusclip_mlops.curves import By, Curve, Path, drawn_of, parted
from opusclip_mlops.downsampling import thinned
from opusclip_mlops.generations import Line, generations_of, line_of
from opusclip_mlops.metric_rows import MetricRow
from opusclip_mlops.page_charts import Series, chart, notes_of
from opusclip_mlops.page_text import escaped

MOST_CHARTS = 300
"""How many metrics a page draws, each by step and by time."""

MOST_BYTES = 24 * 2**20
"""What the charts of a page may take: browsers show such a page at once."""

_POINTS_OF_CHART, _FEWEST_POINTS = 2000, 300
_AXES: tuple[By, By] = ("step", "time")
_UNITS = ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


@dataclass(frozen=True)
class _Run:
    """How a run is drawn."""

    name: str
    colour: int
    start_ms: int
    line: Line


def charts_of(found: Beside, *, show: Show = lambda *_: None) -> str:
    """All charts that a page can hold, first those of metrics that several runs have.

    Each stands there by step and by time, one of them hidden.
    """
    runs = {label: _run(found, label, place) for place, label in enumerate(found.runs)}
    rows = ordered(found.comparison.metrics)
    parts: list[str] = []
    size_bytes = 0
    for done, row in enumerate(rows[:MOST_CHARTS]):
        show("drawing curves", done, len(rows))
        one = _both(row, found, runs)
        size_bytes += len(one)
        if size_bytes > MOST_BYTES:
            break
        parts.append(one)
    left = len(rows) - len(parts)
    note = f"{left:,} of {len(rows):,} charts are left out: --metric chooses which are drawn"
    return f'{notes_of([note] if left else [])}<div class="charts">{"".join(parts)}</div>\n'


def ordered(rows: Sequence[MetricRow]) -> list[MetricRow]:
    """Those of metrics that several runs have, then the others; each in its order."""
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row.key] += len(row.runs)
    return sorted(rows, key=lambda row: counts[row.key] < 2)


def _run(found: Beside, label: str, place: int) -> _Run:
    run = found.runs[label]
    begun = generations_of(run.data.tags)
    return _Run(
        name=f"{label} {shortened(str(run.info.run_name or ''))}".rstrip(),
        colour=place,
        start_ms=int(run.info.start_time or 0),
        line=line_of(begun, len(begun)),
    )


def _both(row: MetricRow, found: Beside, runs: Mapping[str, _Run]) -> str:
    drawn = "".join(
        f'<div data-axis="{by}"{"" if by == found.comparison.by else " hidden"}>'
        f"{_chart(row, found, runs, by)}</div>"
        for by in _AXES
    )
    return f'<div data-key="{escaped(shortened(row.key, LONGEST_KEY))}">{drawn}</div>\n'


def _chart(row: MetricRow, found: Beside, runs: Mapping[str, _Run], by: By) -> str:
    paths = [
        (runs[one.label], path, is_faded)
        for one in row.runs
        for path, is_faded in _paths(row.key, found.curves[one.label][row.key], runs[one.label], by)
    ]
    scale, unit = (1.0, "") if by == "step" else _unit([path for _, path, _ in paths])
    x_label = f"{unit} since the run began" if unit else "step"
    most = max(_FEWEST_POINTS, _POINTS_OF_CHART // max(1, len(paths)))
    series = [_series(run, path, is_faded, scale, most) for run, path, is_faded in paths]
    key = shortened(row.key, LONGEST_KEY)
    return chart(key, series, x_label=x_label, x_unit=unit, notes=list(said_of(row)))


def _paths(key: str, curve: Curve, run: _Run, by: By) -> Iterator[tuple[Path, bool]]:
    """What a run looks back on now, and what it does not, which is drawn faded."""
    now, left = parted(key, curve, run.line)
    yield drawn_of(now, by=by, start_ms=run.start_ms), False
    for one in left:
        yield drawn_of(one, by=by, start_ms=run.start_ms), True


def _series(run: _Run, path: Path, is_faded: bool, scale: float, most: int) -> Series:
    few = thinned(path.x / scale, path.y, most=most)
    return Series(
        label=run.name,
        x=few.x.tolist(),
        y=few.y.tolist(),
        of=few.of,
        is_faded=is_faded,
        colour=run.colour,
    )


def _unit(paths: Sequence[Path]) -> tuple[float, str]:
    """The largest unit of time of which the longest curve has two."""
    ends = (abs(float(one.x[end])) for one in paths if len(one.x) for end in (0, -1))
    longest_s = max(ends, default=0.0)
    return next((one for one in _UNITS if longest_s >= 2 * one[0]), _UNITS[-1])
