"""A run as sections of a page: what stands in MLflow of it, in the order people ask for it.

All of it was written by somebody else: what comes from a run is text on the page, never HTML.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import replace

from opusclip_mlops import compare_page
from opusclip_mlops.alerts.events import Event
from opusclip_mlops.amounts import size_text
from opusclip_mlops.curves import Curve
from opusclip_mlops.layout import BEST_TAG, CHECKPOINTS, LAST_TAG, REPORTS
from opusclip_mlops.metadata import WEIGHTS
from opusclip_mlops.metric_rows import FIRST
from opusclip_mlops.page_charts import facts, notes_of, table
from opusclip_mlops.page_document import Section
from opusclip_mlops.page_media import Embedder
from opusclip_mlops.records import About, Dataset, Files
from opusclip_mlops.redaction import readable
from opusclip_mlops.reports.registry_parts import registry_html
from opusclip_mlops.reports.run_read import Raised, RunRead
from opusclip_mlops.reports.sample_parts import media_html, samples_html, tables_html
from opusclip_mlops.reports.wording import (
    MAIN_METRICS,
    NOTHING,
    best_of,
    figures,
    last_of,
    length,
    main_keys,
    moment,
    plain,
    step_of,
    value_of,
    valued,
)
from opusclip_mlops.words import NOTE_TAG

_Part = tuple[str, str, str]  # id, title, HTML
_CHECKPOINT = "checkpoint-"
_MARKS = {"best": BEST_TAG, "last": LAST_TAG}
_SHA_DIGITS = 12
_OTHER_FILES, _MOST_FILES = "artifacts-", 60
_SAID = (
    "run_id", "run_name", "experiment", "experiment_id", "status", "started", "ended",
    "user", "mlflow.source.git.commit", "mlflow.source.git.branch", "mlflow.source.name",
    "mlflow.project.entryPoint", "opusclip.git_dirty", "opusclip.host", "opusclip.end_reason",
)  # fmt: skip
_MACHINERY = (
    "opusclip.library.", "opusclip.mirror", "opusclip.generation.", "opusclip.alert.",
    "opusclip.checkpoint.", "opusclip.dropped", "opusclip.skipped", "opusclip.lost_records",
)  # fmt: skip
_MOST_OPERATIONS = 12
_LOSSES = {
    "opusclip.dropped": "points shed or lost",
    "opusclip.skipped": "points skipped by interval",
    "opusclip.lost_records": "records lost for want of room on the disk",
}


def sections_of(read: RunRead, curves: str, page: Embedder) -> list[Section]:
    """The sections of a run that was read; what it has nothing of has no section.

    Args:
        read: The run.
        curves: Its curves, as HTML.
        page: Takes its clips.
    """
    parts = (*_told(read), *_seen(read, curves, page), *_decided(read), *_made_of(read))
    return [Section(id=name, title=title, html=text) for name, title, text in parts if text]


def _told(read: RunRead) -> Iterator[_Part]:
    """How it went, and how it ended."""
    yield "summary", "Summary", summary_html(read)
    yield (
        "crash",
        "How an earlier part died" if read.outlived_crash else "How it died",
        _crash(read),
    )
    yield "changes", f"Beside {other_name(read)}", _changes(read)


def _seen(read: RunRead, curves: str, page: Embedder) -> Iterator[_Part]:
    """What it logged."""
    yield "curves", "Curves", curves
    yield "samples", "Samples", samples_html(read, page)
    yield "media", "Clips and pictures", media_html(read, page)
    yield "insights", "Tables and insights", tables_html(read)


def _decided(read: RunRead) -> Iterator[_Part]:
    """What was made of it, and found in it."""
    yield "checkpoints", "Checkpoints", _checkpoints(read)
    yield "registry", "Models and registry", registry_html(read)
    yield "bottlenecks", "Bottlenecks", _bottlenecks(read)
    yield "alerts", "Alerts", _alerts(read)


def _made_of(read: RunRead) -> Iterator[_Part]:
    """What it was made of."""
    yield "params", "Params and tags", _params(read)
    yield "data", "Data", _data(read)
    yield "environment", "Environment", _environment(read)
    yield "files", "Other files", _files(read)
    yield "left-out", "Not shown", _left_out(read)


def summary_html(read: RunRead) -> str:
    """What the run was, how it ended, and where its main metrics stand."""
    unread = [f"Not read: {one.part}: {one.reason}" for one in read.unread]
    return notes_of(unread) + facts(summary_of(read)) + _metrics(read)


def summary_of(read: RunRead) -> dict[str, str]:
    """What is known of a run in one line each, by what it is called."""
    return {**_called(read), **_ended(read), **_found(read)}


def _called(read: RunRead) -> dict[str, str]:
    run = read.run
    return {
        "run": read.called,
        "id": plain(read.facts.run_id),
        "experiment": plain(read.experiment or run.info.experiment_id),
        "about": plain(run.data.tags.get(NOTE_TAG, ""), at_most=1000),
    }


def _ended(read: RunRead) -> dict[str, str]:
    one = read.facts
    return {
        "status": plain(one.status),
        "ended because": plain(one.end_reason, at_most=1000),
        "began": moment(one.start_ms),
        # What lies between two parts of it is in there too.
        "from start to end" if read.generations else "took": took(read),
        "last step": "" if read.last_step is None else f"{read.last_step:,}",
        "went on": _went_on(read),
    }


def took(read: RunRead) -> str:
    """How long it took; of one that is over and has no end, that nobody knows."""
    if read.facts.duration_s is not None:
        return length(read.facts.duration_s)
    return "it goes on" if read.facts.status in ("RUNNING", "SCHEDULED") else NOTHING


def _found(read: RunRead) -> dict[str, str]:
    return {
        "left out": _losses(read.run.data.tags),
        "limited by": read.bottlenecks.limit if read.bottlenecks else "",
        "alerts": _raised(read),
    }


def _went_on(read: RunRead) -> str:
    said = (
        f"from {plain(one.checkpoint)} (step {one.after_step:,}) at {moment(one.start_ms)}"
        for one in read.generations
    )
    return "; ".join(said)


def _losses(tags: Mapping[str, str]) -> str:
    found = {what: tags.get(tag, "0") for tag, what in _LOSSES.items()}
    return ", ".join(f"{plain(count)} {what}" for what, count in found.items() if count != "0")


def _raised(read: RunRead) -> str:
    """The rules that raised something, each as its last alert stands."""
    last = {one.event.alert: one for one in read.raised()}
    return ", ".join(f"{plain(name)}{standing(one)}" for name, one in last.items())


def standing(one: Raised) -> str:
    """What became of an alert, in brackets; "" of one that stands."""
    return f" ({one.standing})" if one.standing else ""


def _metrics(read: RunRead) -> str:
    keys = main_keys(read.curves)
    rows = [(plain(key), *_values(key, read.curves[key])) for key in keys[:MAIN_METRICS]]
    more = [f"{len(keys) - MAIN_METRICS:,} more stand among the curves"]
    heads = ("metric", "last", "at step", "best", "at step")
    said = notes_of(more if len(keys) > MAIN_METRICS else [])
    return table(heads, rows) + said if rows else ""


def _values(key: str, curve: Curve) -> tuple[str, ...]:
    best = best_of(key, curve)
    return last_of(curve), step_of(curve.last), value_of(best), step_of(best)


def _crash(read: RunRead) -> str:
    return _lines(read.crash.text) if read.crash else ""


def other_name(read: RunRead) -> str:
    """What the run is called that a run is compared with, "" for none."""
    return plain(read.changes.comparison.runs[FIRST].run_name) if read.changes else ""


def _changes(read: RunRead) -> str:
    """What is otherwise than in that run; the samples of both are for `opusclip wall`."""
    if read.changes is None:
        return ""
    told = replace(read.changes.comparison, panels=())
    parts = compare_page.sections_of(replace(read.changes, comparison=told))
    return "".join(
        f"<details{'' if one.id == 'curves' else ' open'}>"
        f"<summary>{html.escape(one.title)}</summary>\n{one.html}</details>\n"
        for one in parts
    )


def _lines(text: str) -> str:
    return f"<pre>{html.escape(readable(text))}</pre>\n"


# Checkpoints and models


def _checkpoints(read: RunRead) -> str:
    files = [one for one in read.records(Files) if one.name.startswith(_CHECKPOINT)]
    rows = [_checkpoint(one, read) for one in files]
    lost = [one for one in read.left_out if one.name.startswith(CHECKPOINTS)]
    notes = [f"{plain(one.name)}: {plain(one.reason)}" for one in lost]
    heads = ("checkpoint", "step", "epoch", "size", "weights (SHA-256)", "", "metrics")
    return (table(heads, rows) if rows else "") + notes_of(notes)


def _checkpoint(one: Files, read: RunRead) -> tuple[str, ...]:
    about, tags = one.metadata, read.run.data.tags
    name = str(about.get("name", ""))
    marks = [word for word, tag in _MARKS.items() if tags.get(tag) == name]
    metrics = dict(about.get("metrics") or {})
    sha256 = str(dict(about.get("files") or {}).get(WEIGHTS, ""))
    return (
        plain(name),
        plain(about.get("step", "")),
        plain(about.get("epoch", "")),
        size_text(sum(one.sizes_bytes.values())),
        sha256[:_SHA_DIGITS],
        ", ".join(marks),
        plain(", ".join(f"{key} {_short(value)}" for key, value in sorted(metrics.items()))),
    )


def _short(value: object) -> str:
    try:
        return figures(float(str(value)))
    except ValueError:
        return str(value)


# What went on in it


def _bottlenecks(read: RunRead) -> str:
    found = read.bottlenecks
    if found is None:
        return ""
    rows = [
        (plain(row[0]), f"{row[1]:,}", f"{row[3]:,.3f} s", f"{row[4]:.1f} %")
        for row in found.rows[:_MOST_OPERATIONS]
    ]
    said = notes_of([f"limit: {found.limit}", *(plain(one.text) for one in found.findings)])
    return said + table(("operation", "uses", "by itself", "of the time"), rows)


def _alerts(read: RunRead) -> str:
    rows = [
        (moment(one.timestamp_ms), one.severity, plain(one.alert), _state(read, one),
         f"{one.step:,}", plain(one.message))
        for one in read.alerts
    ]  # fmt: skip
    return table(("when", "severity", "rule", "", "step", "what"), rows) if rows else ""


def _state(read: RunRead, one: Event) -> str:
    return f"{one.state}, training went back behind it" if read.is_behind(one) else one.state


# What it was made of


def _params(read: RunRead) -> str:
    params, tags = read.facts.params, read.facts.tags
    parts = [
        table(
            (name, "value"),
            [(plain(key), valued(key, text)) for key, text in sorted(found.items())],
        )
        for name, found in (("param", params), ("tag", tags))
        if found
    ]
    return "".join(parts)


def _data(read: RunRead) -> str:
    rows = [
        tuple(map(plain, (one.context, one.name, one.digest, one.source, one.profile)))
        for one in read.records(Dataset)
    ]
    if not rows:
        rows = [(plain(use), plain(said), "", "", "") for use, said in read.facts.data.items()]
    heads = ("used for", "dataset", "digest", "source", "profile")
    return table(heads, rows) if rows else ""


def _environment(read: RunRead) -> str:
    known = {**read.facts.code, **read.facts.environment}
    for one in read.records(About):
        if one.name == "mlflow":
            said = {name: text for name, text in one.values.items() if _is_told(name)}
            known = {**known, **said}
    return facts({plain(name): valued(name, text, at_most=1000) for name, text in known.items()})


def _is_told(name: str) -> bool:
    """Whether it is said by no other line, and for people."""
    return name not in _SAID and not name.startswith(_MACHINERY)


def _files(read: RunRead) -> str:
    """The files that no other section shows, by name."""
    every = {
        path: size_bytes
        for one in read.records(Files)
        if one.name.startswith(_OTHER_FILES)
        for path, size_bytes in one.sizes_bytes.items()
        if not path.startswith(f"{REPORTS}/")
    }
    rows = [(plain(path), size_text(one)) for path, one in list(every.items())[:_MOST_FILES]]
    more = len(every) - _MOST_FILES
    said = notes_of([f"{more:,} more files are in MLflow"] if more > 0 else [])
    return table(("file", "size"), rows) + said if rows else ""


def _left_out(read: RunRead) -> str:
    return notes_of(f"{plain(one.name)}: {plain(one.reason)}" for one in read.left_out)
