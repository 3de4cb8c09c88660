"""A run as sections of a page: what stands in MLflow of it, in the order people ask for it.

All of it was written by somebody else: what comes from a run is text on the page, never HTML.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from dataclasses import replace

from opusclip_mlops import compare_page
from opusclip_mlops.amounts import size_text
from opusclip_mlops.layout import BEST_TAG, CHECKPOINTS, LAST_TAG
from opusclip_mlops.metadata import WEIGHTS
from opusclip_mlops.metric_rows import FIRST
from opusclip_mlops.page_charts import facts, notes_of, table
from opusclip_mlops.page_document import Section
from opusclip_mlops.page_media import Embedder
from opusclip_mlops.records import SYSTEM_PREFIX, About, Dataset, Files
from opusclip_mlops.redaction import readable
from opusclip_mlops.reports.reading import MAIN_METRICS, RunRead
from opusclip_mlops.reports.registry_past import ModelPast
from opusclip_mlops.reports.sample_parts import media_html, samples_html, tables_html
from opusclip_mlops.reports.wording import (
    best_of,
    figures,
    length,
    main_keys,
    moment,
    plain,
    step_of,
    value_of,
)
from opusclip_mlops.words import NOTE_TAG

_CHECKPOINT = "checkpoint-"
_MARKS = {"best": BEST_TAG, "last": LAST_TAG}
_SHA_DIGITS = 12
_MOST_OPERATIONS = 12
_OF_VERSION = ("version", "stage", "aliases", "made", "by", "source", "about")
_OF_DECISION = ("", "when", "what", "by", "through", "why")
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
    parts = (
        ("summary", "Summary", summary_html(read)),
        ("crash", "How it died", _crash(read)),
        ("changes", f"Beside {other_name(read)}", _changes(read)),
        ("curves", "Curves", curves),
        ("samples", "Samples", samples_html(read, page)),
        ("media", "Clips and pictures", media_html(read, page)),
        ("insights", "Tables and insights", tables_html(read)),
        ("checkpoints", "Checkpoints", _checkpoints(read)),
        ("registry", "Models and registry", "".join(_registry(read))),
        ("bottlenecks", "Bottlenecks", _bottlenecks(read)),
        ("alerts", "Alerts", _alerts(read)),
        ("params", "Params and tags", _params(read)),
        ("data", "Data", _data(read)),
        ("environment", "Environment", _environment(read)),
        ("left-out", "Not carried over", _left_out(read)),
    )
    return [Section(id=name, title=title, html=text) for name, title, text in parts if text]


def summary_html(read: RunRead) -> str:
    """What the run was, how it ended, and where its main metrics stand."""
    unread = [f"Not read: {one.part}: {one.reason}" for one in read.unread]
    return notes_of(unread) + facts(summary_of(read)) + _metrics(read)


def summary_of(read: RunRead) -> dict[str, str]:
    """What is known of a run in one line each, by what it is called."""
    run, one = read.run, read.facts
    lasts = (one.last for key, one in read.curves.items() if not key.startswith(SYSTEM_PREFIX))
    steps = [one.step for one in lasts if one]
    return {
        "run": read.called,
        "id": plain(one.run_id),
        "experiment": plain(read.experiment or run.info.experiment_id),
        "about": plain(run.data.tags.get(NOTE_TAG, ""), at_most=1000),
        "status": plain(one.status),
        "ended because": plain(one.end_reason, at_most=1000),
        "began": moment(one.start_ms),
        "took": length(one.duration_s) if one.duration_s is not None else "it goes on",
        "last step": f"{max(steps):,}" if steps else "",
        "went on": _went_on(read),
        "left out": _losses(run.data.tags),
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
    names = dict.fromkeys(plain(one.alert) for one in read.alerts if one.state == "raised")
    return ", ".join(names)


def _metrics(read: RunRead) -> str:
    keys = main_keys(read.curves)
    rows = []
    for key in keys[:MAIN_METRICS]:
        curve, best = read.curves[key], best_of(key, read.curves[key])
        rows.append(
            (plain(key), value_of(curve.last), step_of(curve.last), value_of(best), step_of(best))
        )
    more = [f"{len(keys) - MAIN_METRICS:,} more stand among the curves"]
    heads = ("metric", "last", "at step", "best", "at step")
    said = notes_of(more if len(keys) > MAIN_METRICS else [])
    return table(heads, rows) + said if rows else ""


def _crash(read: RunRead) -> str:
    return _lines(read.crash) if read.crash else ""


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


def _registry(read: RunRead) -> Iterator[str]:
    for one in read.models:
        yield f"<h3>{html.escape(plain(one.model))}</h3>\n"
        yield table(_OF_VERSION, _versions(one))
        if one.decisions:
            yield table(_OF_DECISION, _decisions(one))
        for number, lines in sorted(one.verdicts.items()):
            title = f"the gate at decision {number}"
            yield f"<details><summary>{title}</summary>{_lines(chr(10).join(lines))}</details>\n"
        yield notes_of(chain_said(one))
    yield _logged_models(read)


def _versions(one: ModelPast) -> Iterator[tuple[str, ...]]:
    for made in one.versions:
        yield (
            str(made.version), plain(made.stage), plain(", ".join(made.aliases)),
            moment(made.created_ms), plain(made.by), plain(made.source), plain(made.description),
        )  # fmt: skip


def _decisions(one: ModelPast) -> Iterator[tuple[str, ...]]:
    for made in one.decisions:
        forced = ", forced past the gate" if made.forced else ""
        replaced = f", in place of {made.previous_holder}" if made.previous_holder else ""
        yield (
            str(made.number),
            moment(made.timestamp_ms),
            f"{made.kind} of version {made.version}: {plain(made.from_stage)} to "
            f"{plain(made.to_stage)}{replaced}{forced}",
            f"{plain(made.actor)} ({plain(made.actor_known_by) or 'unknown'})",
            made.came_by,
            plain(made.reason, at_most=1000),
        )


def chain_said(one: ModelPast) -> Iterator[str]:
    """Whether the history of a model is whole, in words."""
    if one.problems:
        for problem in one.problems:
            yield f"The history of {plain(one.model)} is not whole: {plain(problem)}"
    elif one.records:
        yield f"The chain of its {one.records:,} decisions was verified: it is whole."


def _logged_models(read: RunRead) -> str:
    models = [one for one in read.records(Files) if "logged_model" in one.metadata]
    rows = [
        (
            plain(one.metadata["logged_model"]),
            plain(one.metadata.get("model_id", "")),
            plain(", ".join(one.aliases)),
            size_text(sum(one.sizes_bytes.values())),
        )
        for one in models
    ]
    heads = ("logged model", "id", "at", "size")
    return f"<h3>Logged models</h3>\n{table(heads, rows)}" if rows else ""


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
        (moment(one.timestamp_ms), one.severity, plain(one.alert), one.state, f"{one.step:,}",
         plain(one.message))
        for one in read.alerts
    ]  # fmt: skip
    return table(("when", "severity", "rule", "", "step", "what"), rows) if rows else ""


# What it was made of


def _params(read: RunRead) -> str:
    params, tags = read.facts.params, read.facts.tags
    parts = [
        table((name, "value"), [(plain(key), plain(text)) for key, text in sorted(found.items())])
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
            known = {**known, **one.values}
    return facts({plain(name): plain(text, at_most=1000) for name, text in known.items()})


def _left_out(read: RunRead) -> str:
    return notes_of(f"{plain(one.name)}: {plain(one.reason)}" for one in read.left_out)
