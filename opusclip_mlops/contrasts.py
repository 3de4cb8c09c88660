"""What a run in MLflow was made of, and in what several runs differ, their points aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from opusclip_mlops.layout import REASON_TAG
from opusclip_mlops.redaction import redacted

if TYPE_CHECKING:
    from mlflow.entities import Run

SECTIONS = ("params", "tags", "code", "data", "environment")
"""What is contrasted, in the order in which it is told."""

_CODE = {
    "commit": "mlflow.source.git.commit",
    "branch": "mlflow.source.git.branch",
    "dirty": "opusclip.git_dirty",
    "program": "mlflow.source.name",
    "entry point": "mlflow.project.entryPoint",
}
_ENVIRONMENT = {"host": "opusclip.host", "user": "mlflow.user"}
_LIBRARY = "opusclip.library."
_OURS = ("mlflow.", "opusclip.")
_CONTEXT = "mlflow.data.context"
_NO_CONTEXT = "no context"
_LONGEST_NUMBER = 100
_OVER = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a run was made of, and how it ended.

    Attributes:
        run_id: Its id in MLflow.
        run_name: Its name there.
        status: As MLflow says it: RUNNING, FINISHED, FAILED, KILLED, SCHEDULED.
        start_ms: When it began, Unix milliseconds.
        duration_s: How long it took, None while it runs.
        end_reason: Why it ended, "" where that is not known.
        params: What it was given.
        tags: Those of the user, none of MLflow's or ours.
        code: Commit, branch, whether it was changed, program and entry point, as far as known.
        data: Names and digests of the datasets, by what they were used for.
        environment: Host, user and versions of libraries, as far as known.
    """

    run_id: str
    run_name: str
    status: str
    start_ms: int
    duration_s: float | None = None
    end_reason: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Something that is not alike in all runs.

    Attributes:
        name: The param, the tag, the use of a dataset.
        values: Of each run, in their order; None where it has none. Without credentials.
    """

    name: str
    values: tuple[str | None, ...]


def facts_of(run: Run) -> Facts:
    """What MLflow holds of a run."""
    info, tags = run.info, dict(run.data.tags)
    start_ms, end_ms = int(info.start_time or 0), info.end_time
    return Facts(
        run_id=str(info.run_id),
        run_name=str(info.run_name or ""),
        status=str(info.status),
        start_ms=start_ms,
        # A run that went on keeps the end it had before.
        duration_s=(int(end_ms) - start_ms) / 1000 if end_ms and info.status in _OVER else None,
        end_reason=tags.get(REASON_TAG, ""),
        params=dict(run.data.params),
        tags={name: text for name, text in tags.items() if not name.startswith(_OURS)},
        code=_named(_CODE, tags),
        data=_datasets(run),
        environment={**_named(_ENVIRONMENT, tags), **_libraries(tags)},
    )


def contrasts(every: Sequence[Facts]) -> dict[str, tuple[Contrast, ...]]:
    """In what runs differ, for each of `SECTIONS`; numbers that are equal as numbers are equal."""
    return {
        section: _contrasts([getattr(one, section) for one in every], numeric=section == "params")
        for section in SECTIONS
    }


def _contrasts(every: Sequence[Mapping[str, str]], *, numeric: bool) -> tuple[Contrast, ...]:
    found = []
    for name in sorted({name for one in every for name in one}):
        values = [one.get(name) for one in every]
        if not all(_is_same(values[0], other, numeric=numeric) for other in values[1:]):
            shown = (None if value is None else shown_of(name, value) for value in values)
            found.append(Contrast(name=name, values=tuple(shown)))
    return tuple(found)


def shown_of(name: str, value: str) -> str:
    """A value without credentials; `***` for all of it where its name says that it is one."""
    said = f"{name}=x"
    return "***" if value and redacted(said, values=()) != said else redacted(value)


def _is_same(first: str | None, second: str | None, *, numeric: bool) -> bool:
    if first == second or first is None or second is None or not numeric:
        return first == second
    mine, theirs = _number(first), _number(second)
    return mine is not None and mine == theirs


def _number(text: str) -> Decimal | None:
    """The number that a text is, exactly; None for a text that is no finite one."""
    try:
        number = Decimal(text) if len(text) <= _LONGEST_NUMBER else None
    except InvalidOperation:
        return None
    return number if number is not None and number.is_finite() else None


def _named(names: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    return {name: tags[tag] for name, tag in names.items() if tag in tags}


def _libraries(tags: Mapping[str, str]) -> dict[str, str]:
    known = sorted(tag for tag in tags if tag.startswith(_LIBRARY))
    return {tag.removeprefix(_LIBRARY): tags[tag] for tag in known}


def _datasets(run: Run) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for one in run.inputs.dataset_inputs if run.inputs else []:
        about = {tag.key: str(tag.value) for tag in one.tags or ()}
        use = about.get(_CONTEXT, "").strip() or _NO_CONTEXT
        found.setdefault(use, set()).add(f"{one.dataset.name} ({one.dataset.digest})")
    return {use: ", ".join(sorted(names)) for use, names in sorted(found.items())}
