"""The registered models of a run, and what was decided about them, as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterator

from opusclip_mlops.amounts import size_text
from opusclip_mlops.page_charts import notes_of, table
from opusclip_mlops.records import Files
from opusclip_mlops.redaction import readable
from opusclip_mlops.reports.registry_past import ModelPast
from opusclip_mlops.reports.run_read import RunRead
from opusclip_mlops.reports.wording import moment, plain

_OF_VERSION = ("version", "stage", "aliases", "made", "by", "source", "about")
_OF_DECISION = ("", "when", "what", "by", "through", "why")


def registry_html(read: RunRead) -> str:
    """The models that have versions made of a run, what was decided, and whether that is whole."""
    return "".join(_registry(read))


def _registry(read: RunRead) -> Iterator[str]:
    for one in read.models:
        yield f"<h3>{html.escape(plain(one.model))}</h3>\n"
        yield table(_OF_VERSION, _versions(one))
        if one.decisions:
            yield table(_OF_DECISION, _decisions(one))
        for number, lines in sorted(one.verdicts.items()):
            title = f"the gate at decision {number}"
            text = html.escape(readable("\n".join(lines)))
            yield f"<details><summary>{title}</summary><pre>{text}</pre>\n</details>\n"
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
