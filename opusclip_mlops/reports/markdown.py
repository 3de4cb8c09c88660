"""A report in short, as Markdown for a pull request.

What comes from a run is text in it: nothing of it becomes a link, a heading, HTML or a mention.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence

from opusclip_mlops.compare_words import apart, said_of
from opusclip_mlops.comparing import Comparison
from opusclip_mlops.metric_rows import FIRST, Measured, MetricRow
from opusclip_mlops.policy import better_of
from opusclip_mlops.redaction import redacted
from opusclip_mlops.reports.reading import MAIN_METRICS, RunRead
from opusclip_mlops.reports.run_sections import chain_said, summary_of
from opusclip_mlops.reports.wording import (
    NOTHING,
    best_of,
    length,
    main_keys,
    moment,
    plain,
    step_of,
    value_of,
)

_MOST_LINES = 12
_MOST_ROWS = 60
_SIGN = re.compile(r"[\\`*_{}\[\]()<>#!|~&$^=]")
_LINKED = re.compile(r"(?i)(www)\.|(:)//|@")
_BEGINS = re.compile(r"^(\d*)([-+.)])(?=\s|$)")


def text(of_run: object) -> str:
    """A text of a run as Markdown that shows it, and does nothing else."""
    signs = _SIGN.sub(_entity, plain(of_run, at_most=200))
    begun = _BEGINS.sub(lambda found: found[1] + _coded(found[2]), signs)
    return _LINKED.sub(_unlinked, begun)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table of cells that are Markdown already; nothing where there are no rows."""
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    rule = f"|{'---|' * len(headings)}"
    return [f"| {' | '.join(headings)} |", rule, *lines, ""] if lines else []


def of_run(read: RunRead, commands: Sequence[Sequence[str]]) -> str:
    """The report of one run.

    Args:
        read: The run.
        commands: Those that show more, as words.
    """
    lines = [f"## {text(read.called)}: {text(read.facts.status)}", ""]
    about = ((name, text(said)) for name, said in summary_of(read).items() if said)
    lines += table(("", ""), about)
    lines += _metrics(read)
    lines += _listed("Findings", _findings(read))
    lines += _listed("Models", _models(read))
    lines += _listed("Not read", (f"{text(one.part)}: {text(one.reason)}" for one in read.unread))
    return "\n".join([*lines, *_commands(commands)])


def of_several(
    title: str,
    runs: Sequence[RunRead],
    found: Comparison | None,
    notes: Sequence[str],
    commands: Sequence[Sequence[str]],
) -> str:
    """The report of several runs, the first of which the others are compared with.

    Args:
        title: What the report is of.
        runs: In their order.
        found: The runs beside each other, None where they could not be compared.
        notes: What else has to be known.
        commands: Those that show more, as words.
    """
    labels = {one.run_id: label for label, one in found.runs.items()} if found else {}
    lines = [f"## {text(title)}", ""]
    lines += table(
        ("", "run", "id", "status", "took", "ended because"),
        (
            (
                labels.get(one.facts.run_id, ""), text(one.called), text(one.facts.run_id),
                text(one.facts.status), length(one.facts.duration_s),
                text(one.facts.end_reason) or NOTHING,
            )
            for one in runs
        ),
    )  # fmt: skip
    lines += _beside(found.metrics) if found else []
    findings = (f"{text(one.called)}: {said}" for one in runs for said in _findings(one))
    lines += _listed("Findings", findings)
    models = (f"{text(one.called)}: {said}" for one in runs for said in _models(one))
    lines += _listed("Models", models)
    lines += _listed("Notes", map(text, notes))
    return "\n".join([*lines, *_commands(commands)])


# Metrics


def _metrics(read: RunRead) -> list[str]:
    """The main metrics, with their difference to the run it is compared with."""
    changes = read.changes.comparison if read.changes else None
    rows = {row.key: row for row in changes.metrics} if changes else {}
    other = text(changes.runs[FIRST].run_name) if changes else ""
    heads = ("metric", "last", "at step", "best", "at step", *([f"to {other}"] if other else []))
    keys = main_keys(read.curves)
    shown = keys[:MAIN_METRICS]
    cells = (tuple(_cells(read, key, rows.get(key), has_other=bool(other))) for key in shown)
    lines = ["### Metrics", "", *table(heads, cells)] if keys else []
    if len(keys) > MAIN_METRICS:
        lines += [f"{len(keys) - MAIN_METRICS} more metrics are in the report.", ""]
    return lines


def _cells(read: RunRead, key: str, row: MetricRow | None, *, has_other: bool) -> Iterator[str]:
    curve = read.curves[key]
    best = best_of(key, curve)
    yield from (text(key), value_of(curve.last), step_of(curve.last), value_of(best), step_of(best))
    if has_other:
        one = row.runs[-1] if row and len(row.runs) > 1 else None
        yield (apart(one, "last", better_of(key)) if one else "") or NOTHING


def _beside(rows: Sequence[MetricRow]) -> list[str]:
    """The first metrics that several runs have."""
    shared = [row for row in rows if len(row.runs) > 1]
    most = max(
        1, min(MAIN_METRICS, _MOST_ROWS // max((len(row.runs) for row in shared), default=1))
    )
    cells = (_of_run(row, one) for row in shared[:most] for one in row.runs)
    heads = ("metric", "run", "last", "at step", "to A", "best", "at step", "to A")
    lines = ["### Metrics", "", *table(heads, cells)] if shared else []
    said = [text(one) for row in shared[:most] for one in said_of(row)]
    if len(shared) > most:
        said.append(f"{len(shared) - most} more metrics are in the report.")
    return [*lines, *_bullets(said)]


def _of_run(row: MetricRow, one: Measured) -> tuple[str, ...]:
    return (
        text(row.key), one.label, value_of(one.last), step_of(one.last),
        apart(one, "last", row.better), value_of(one.best), step_of(one.best),
        apart(one, "best", row.better),
    )  # fmt: skip


# What was found and decided


def _findings(read: RunRead) -> Iterator[str]:
    if read.facts.end_reason:
        yield f"it ended because: {text(read.facts.end_reason)}"
    for one in read.alerts:
        if one.state == "raised":
            yield f"alert {text(one.alert)} at step {one.step:,}: {text(one.message)}"
    for found in read.bottlenecks.findings if read.bottlenecks else ():
        yield text(found.text)
    for key in main_keys(read.curves):
        if count := read.curves[key].not_finite:
            yield f"{text(key)}: {count:,} NaN or infinite"


def _models(read: RunRead) -> Iterator[str]:
    for model in read.models:
        for made in model.versions:
            yield f"{text(model.model)} version {made.version}: {text(made.stage)}"
        for one in model.decisions:
            forced = ", forced past the gate" if one.forced else ""
            yield (
                f"{one.kind} of {text(model.model)} version {one.version} to {text(one.to_stage)}"
                f"{forced}, {moment(one.timestamp_ms)}, by {text(one.actor)}: {text(one.reason)}"
            )
        yield from map(text, chain_said(model))


def _listed(title: str, lines: Iterable[str]) -> list[str]:
    found = list(lines)
    return [f"### {title}", "", *_bullets(found)] if found else []


def _bullets(lines: Iterable[str]) -> list[str]:
    found = list(lines)
    more = len(found) - _MOST_LINES
    said = [f"- {one}" for one in found[:_MOST_LINES]]
    if more > 0:
        said.append(f"- and {more} more, in the report")
    return [*said, ""] if said else []


def _commands(commands: Sequence[Sequence[str]]) -> list[str]:
    lines = [redacted(" ".join(shlex.join(words).split())) for words in commands]
    return ["```bash", *lines, "```", ""] if lines else []


def _entity(found: re.Match[str]) -> str:
    return _coded(found[0])


def _coded(sign: str) -> str:
    return f"&#{ord(sign)};"


def _unlinked(found: re.Match[str]) -> str:
    """What no reader of Markdown takes for an address or for somebody's name."""
    if found[0] == "@":
        return "&#64;&#8203;"
    return f"{found[1]}&#46;" if found[1] else "&#58;//"
