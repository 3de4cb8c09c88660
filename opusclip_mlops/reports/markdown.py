"""A report in short, as Markdown for a pull request.

What comes from a run is text in it: nothing of it becomes a link, a heading, HTML or a mention.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence

from opusclip_mlops.compare_words import apart, said_of
from opusclip_mlops.comparing import Comparison
from opusclip_mlops.decisions import HELD, Decision
from opusclip_mlops.metric_rows import FIRST, Measured, MetricRow
from opusclip_mlops.policy import better_of
from opusclip_mlops.redaction import redacted
from opusclip_mlops.reports.registry_parts import chain_said
from opusclip_mlops.reports.registry_past import ModelPast
from opusclip_mlops.reports.run_read import RunRead
from opusclip_mlops.reports.run_sections import standing, summary_of, took
from opusclip_mlops.reports.unread import Unread
from opusclip_mlops.reports.wording import (
    MAIN_METRICS,
    NOTHING,
    best_of,
    last_of,
    main_keys,
    moment,
    plain,
    step_of,
    value_of,
)

_MOST_OF_KIND, _MOST_LINES = 6, 20
_MOST_ROWS = 60
_GAP = "\u200b"  # of no width: what stands on both sides is no reference of GitHub's or GitLab's
_SIGN = re.compile(r"[\\`*_{}\[\]()<>#!|~&$^=\u200b]")
_LINKED = re.compile(r"(?i)(www)\.|(:)//|@")
_BEGINS = re.compile(r"^(\d*)([-+.)])(?=\s|$)")
# #12, !12, ~label, $12, %milestone, &12, a/b#12; GH-12; the hash of a commit.
_MARKED = re.compile(r"([#!~$%&])(?=[\w\"])|(?i:(?<![a-z0-9])(gh-)(?=\d))")
_HASH = re.compile(r"(?<![0-9A-Za-z])([0-9a-fA-F]{6})(?=[0-9a-fA-F]{1,34}(?![0-9A-Za-z]))")
_IN_CODE = re.compile(r"[0-9A-Za-z_\-]+")

_Kind = Callable[[RunRead], Iterable[str]]


def text(of_run: object) -> str:
    """A text of a run as Markdown that shows it, and does nothing else."""
    said = _HASH.sub(rf"\1{_GAP}", _MARKED.sub(_parted, plain(of_run, at_most=200)))
    begun = _BEGINS.sub(lambda found: found[1] + _coded(found[2]), _SIGN.sub(_entity, said))
    return _LINKED.sub(_unlinked, begun)


def code(of_run: object) -> str:
    """An id so that it is copied as it is, and is no link to a commit; other text as `text`."""
    said = plain(of_run)
    return f"`{said}`" if _IN_CODE.fullmatch(said) else text(said)


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
    about = (
        (name, code(said) if name == "id" else text(said))
        for name, said in summary_of(read).items()
        if said
    )
    lines += table(("", ""), about)
    lines += _metrics(read)
    lines += _listed("Findings", _kinds(_FINDINGS, [read]))
    lines += _listed("Models", _kinds(_MODELS, [read]))
    lines += _listed("Not read", (f"{text(one.part)}: {text(one.reason)}" for one in read.unread))
    return "\n".join([*lines, *_commands(commands)])


def of_several(
    title: str,
    runs: Sequence[RunRead],
    found: Comparison | None,
    notes: Sequence[str],
    commands: Sequence[Sequence[str]],
    *,
    unread: Sequence[Unread] = (),
) -> str:
    """The report of several runs, the first of which the others are compared with.

    Args:
        title: What the report is of.
        runs: In their order.
        found: The runs beside each other, None where they could not be compared.
        notes: What else has to be known.
        commands: Those that show more, as words.
        unread: What could not be read of all of them.
    """
    lines = [f"## {text(title)}", "", *_overview(runs, found)]
    lines += _beside(found.metrics) if found else []
    lines += _listed("Findings", _kinds(_FINDINGS, runs))
    lines += _listed("Models", _kinds(_MODELS, runs))
    lines += _listed("Not read", _first([text(one.line) for one in unread], _MOST_LINES))
    lines += _listed("Notes", map(text, notes))
    return "\n".join([*lines, *_commands(commands)])


def _overview(runs: Sequence[RunRead], found: Comparison | None) -> list[str]:
    labels = {one.run_id: label for label, one in found.runs.items()} if found else {}
    rows = (
        (
            labels.get(one.facts.run_id, ""), text(one.called), code(one.facts.run_id),
            text(one.facts.status), took(one), text(one.facts.end_reason) or NOTHING,
        )
        for one in runs
    )  # fmt: skip
    return table(("", "run", "id", "status", "took", "ended because"), rows)


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
    yield from (text(key), last_of(curve), step_of(curve.last), value_of(best), step_of(best))
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
        said.insert(0, f"{len(shared) - most} more metrics are in the report.")
    return [*lines, *_bullets(_first(said, _MOST_LINES))]


def _of_run(row: MetricRow, one: Measured) -> tuple[str, ...]:
    return (
        text(row.key), one.label, value_of(one.last), step_of(one.last),
        apart(one, "last", row.better), value_of(one.best), step_of(one.best),
        apart(one, "best", row.better),
    )  # fmt: skip


# What was found and decided


def _kinds(kinds: Sequence[tuple[str, _Kind]], runs: Sequence[RunRead]) -> Iterator[str]:
    """The lines of all runs kind by kind, of each the first: none crowds out another."""
    for name, kind in kinds:
        every = [_of(read, line, runs) for read in runs for line in kind(read)]
        yield from _first(every, _MOST_OF_KIND, name)


def _of(read: RunRead, line: str, runs: Sequence[RunRead]) -> str:
    return line if len(runs) == 1 else f"{text(read.called)}: {line}"


def _first(lines: Sequence[str], most: int, name: str = "") -> Iterator[str]:
    yield from lines[:most]
    if (more := len(lines) - most) > 0:
        yield f"and {more} more{f' {name}' if name else ''}, in the report"


def _end(read: RunRead) -> Iterator[str]:
    if read.facts.end_reason:
        yield f"it ended because: {text(read.facts.end_reason)}"


def _alerts(read: RunRead) -> list[str]:
    """What stands first, and of that the newest first."""
    every = sorted(read.raised(), key=lambda one: (bool(one.standing), -one.event.timestamp_ms))
    return [
        f"alert {text(one.event.alert)} at step {one.event.step:,}{standing(one)}: "
        f"{text(one.event.message)}"
        for one in every
    ]


def _limits(read: RunRead) -> list[str]:
    return [text(one.text) for one in read.bottlenecks.findings] if read.bottlenecks else []


def _not_finite(read: RunRead) -> Iterator[str]:
    for key in main_keys(read.curves):
        if count := read.curves[key].not_finite:
            ends = "" if read.curves[key].ends_finite else ", the last point among them"
            yield f"{text(key)}: {count:,} NaN or infinite{ends}"


def _versions(read: RunRead) -> list[str]:
    """Those that hold a stage first, then the newest."""
    every = [(model, made) for model in read.models for made in model.versions]
    every.sort(key=lambda one: (one[1].stage not in HELD, -one[1].created_ms, -one[1].version))
    return [
        f"{text(model.model)} version {made.version}: {text(made.stage)}" for model, made in every
    ]


def _decisions(read: RunRead) -> list[str]:
    """The newest first."""
    every = [(model, one) for model in read.models for one in model.decisions]
    every.sort(key=lambda one: (one[1].timestamp_ms, one[1].number), reverse=True)
    return [_decision(model, one) for model, one in every]


def _decision(model: ModelPast, one: Decision) -> str:
    forced = ", forced past the gate" if one.forced else ""
    return (
        f"{one.kind} of {text(model.model)} version {one.version} to {text(one.to_stage)}"
        f"{forced}, {moment(one.timestamp_ms)}, by {text(one.actor)}: {text(one.reason)}"
    )


def _chains(read: RunRead) -> list[str]:
    """Whether histories are whole; those that are not stand first."""
    every = sorted(read.models, key=lambda model: not model.problems)
    return [text(said) for model in every for said in chain_said(model)]


_FINDINGS: tuple[tuple[str, _Kind], ...] = (
    ("reasons", _end),
    ("alerts", _alerts),
    ("bottlenecks", _limits),
    ("metrics", _not_finite),
)
_MODELS: tuple[tuple[str, _Kind], ...] = (
    ("versions", _versions),
    ("decisions", _decisions),
    ("of the histories", _chains),
)


def _listed(title: str, lines: Iterable[str]) -> list[str]:
    found = list(lines)
    return [f"### {title}", "", *_bullets(found)] if found else []


def _bullets(lines: Iterable[str]) -> list[str]:
    said = [f"- {one}" for one in lines]
    return [*said, ""] if said else []


def _commands(commands: Sequence[Sequence[str]]) -> list[str]:
    lines = [redacted(" ".join(shlex.join(words).split())) for words in commands]
    return ["```bash", *lines, "```", ""] if lines else []


def _parted(found: re.Match[str]) -> str:
    return found[0] + _GAP


def _entity(found: re.Match[str]) -> str:
    return _coded(found[0])


def _coded(sign: str) -> str:
    return f"&#{ord(sign)};"


def _unlinked(found: re.Match[str]) -> str:
    """What no reader of Markdown takes for an address or for somebody's name."""
    if found[0] == "@":
        return "&#64;&#8203;"
    return f"{found[1]}&#46;" if found[1] else "&#58;//"
