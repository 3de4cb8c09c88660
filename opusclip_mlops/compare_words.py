"""Words and numbers of a comparison, the same on a terminal and on a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from opusclip_mlops.contrasts import SECTIONS, Contrast, Facts
from opusclip_mlops.curves import At, Difference
from opusclip_mlops.metric_rows import Measured, MetricRow
from opusclip_mlops.redaction import one_line

LONGEST_VALUE = 40
LONGEST_NAME = 80
LONGEST_KEY = 500
"""How much of a metric's key stands on a page: all that MLflow takes."""

MOST_NAMED = 12
"""How many names stand in a line; of the others their number is told."""

METRIC_COLUMNS = (
    "metric", "run", "points", "first", "last", "at", "to A", "best", "at", "to A", "mean", "to A"
)  # fmt: skip
"""What `metric_cells` are."""

NOTHING = "-"
"""What stands where there is no value."""


def alike_of(runs: Mapping[str, Facts], differences: Mapping[str, Sequence[Contrast]]) -> list[str]:
    """Of which of `SECTIONS` something is known, and alike in all runs."""
    known = [name for name in SECTIONS if any(getattr(one, name) for one in runs.values())]
    return [name for name in known if not differences[name]]


def said_of(row: MetricRow) -> Iterator[str]:
    """What has to be known of a row, a sentence each."""
    key = shortened(row.key, LONGEST_NAME)
    labels = ", ".join(one.label for one in row.runs)
    if row.apart:
        yield f"{key} of {labels} was measured otherwise: {one_line('; '.join(row.apart))}"
    for one in row.runs:
        if parts := list(_left_out(one)):
            yield f"{key} of {one.label}: {'; '.join(parts)}"


def _left_out(one: Measured) -> Iterator[str]:
    if one.note:
        yield one_line(one.note)
    if one.not_finite:
        ends = "" if one.ends_finite else ", the last among them"
        yield f"{one.not_finite:,} NaN or infinite left out{ends}"
    if one.superseded:
        yield f"{one.superseded:,} left out that training went back behind"


def apart(one: Measured, name: str, better: str) -> str:
    """How far a run's value is from A's, and whether that is better; "" where it is not known."""
    found = (one.differences or {}).get(name)
    if found is None or found.absolute is None:
        return ""
    verdict = judged(found.absolute, better)
    return f"{signed(found)} {verdict}".rstrip()


def metric_cells(row: MetricRow, *, at_most: int) -> Iterator[tuple[str, ...]]:
    """The texts of a row in `METRIC_COLUMNS`, a line a run.

    Where the metric's name does not say which way is better a run has two: its lowest, its highest.

    Args:
        row: A metric.
        at_most: How many characters of its key are shown.
    """
    called = f"{shortened(row.key, at_most)}{f' ({row.better})' if row.better else ''}"
    for number, one in enumerate(row.runs):
        before = ("" if number else called, one.label, f"{one.points:,}", _at(one.first)[0])
        last = (*_at(one.last), apart(one, "last", row.better))
        mean = NOTHING if one.mean is None else figures(one.mean)
        means = (mean, apart(one, "mean", row.better))
        if row.better:
            yield *before, *last, *_extreme(one, "best", row.better), *means
        else:
            yield *before, *last, *_extreme(one, "lowest", ""), *means
            yield *[""] * 7, *_extreme(one, "highest", ""), "", ""


def _extreme(one: Measured, name: str, better: str) -> tuple[str, str, str]:
    value, at = _at(getattr(one, name))
    return (value if better or not at else f"{name} {value}"), at, apart(one, name, better)


def _at(point: At | None) -> tuple[str, str]:
    return (figures(point.value), f"{point.step:,}") if point else (NOTHING, "")


def signed(found: Difference) -> str:
    """A difference with its sign, and in percent where that is defined."""
    absolute = "" if found.absolute is None else f"{found.absolute:+.4g}"
    return absolute if found.relative is None else f"{absolute} ({100 * found.relative:+.3g} %)"


def judged(absolute: float, better: str) -> str:
    """ "better" or "worse"; "" of no difference, or where nobody knows which way is better."""
    if not better or not absolute:
        return ""
    return "better" if (absolute < 0) == (better == "lower") else "worse"


def steps_in_common(steps: Mapping[str, Sequence[int]], common: Sequence[int]) -> str:
    """At which steps all of the runs have samples."""
    counts = ", ".join(f"{label} {len(every):,}" for label, every in steps.items())
    if not common:
        return f"no step in common ({counts})"
    shown = ", ".join(map(str, common[:MOST_NAMED]))
    more = f" and {len(common) - MOST_NAMED} more" if len(common) > MOST_NAMED else ""
    return f"step {shown}{more} in common (steps: {counts})"


def figures(value: float) -> str:
    """A value with five digits."""
    return f"{value:.5g}"


def shortened(text: str, at_most: int = LONGEST_VALUE) -> str:
    """A text on one line, without credentials, cut where it is long."""
    plain = one_line(text, at_most=at_most + 1)
    return plain if len(plain) <= at_most else f"{plain[: at_most - 1]}…"


def duration_text(length_s: float) -> str:
    """A time in seconds, minutes, hours or days."""
    for unit_s, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if length_s >= 2 * unit_s:
            return f"{length_s / unit_s:.1f} {name}"
    return f"{length_s:.1f} s"
