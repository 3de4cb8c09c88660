"""The registered versions that were made of a run, and what was decided about them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from opusclip_mlops.chain import Chain, Problem
from opusclip_mlops.chronicle import problems_of, read_history
from opusclip_mlops.decisions import Decision
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.lookout import pages
from opusclip_mlops.reports.unread import Asking
from opusclip_mlops.verdicts import Verdict

_PAGE_VERSIONS = 100


@dataclass(frozen=True, kw_only=True)
class Made:
    """A version that was made of a run.

    Attributes:
        version: Its number.
        stage: Where it is now: None, Staging, Production, Archived.
        created_ms: When it was made, Unix milliseconds.
        by: Who made it, "" where MLflow does not know.
        aliases: Those that point at it now.
        source: Where its files lie, as MLflow says it.
        description: What people wrote of it.
    """

    version: int
    stage: str
    created_ms: int
    by: str = ""
    aliases: tuple[str, ...] = ()
    source: str = ""
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelPast:
    """What a registered model has to do with a run.

    Attributes:
        model: Its name.
        versions: Those made of the run, the oldest first.
        decisions: Those about these versions, or that took a stage from one of them.
        verdicts: The gate's lines, by the number of the decision; one that was lost is a problem.
        records: How many decisions its whole history has.
        problems: What is wrong with that history, empty where its chain is whole.
    """

    model: str
    versions: tuple[Made, ...]
    decisions: tuple[Decision, ...] = ()
    verdicts: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    records: int = 0
    problems: tuple[Problem, ...] = ()


def read_past(client: MlflowClient, run_id: str, ask: Asking) -> tuple[ModelPast, ...]:
    """The models that have versions made of a run, by name.

    Args:
        client: Asks MLflow.
        run_id: The run.
        ask: Notes the models whose history cannot be read; their versions are told all the same.
    """
    found: dict[str, list[ModelVersion]] = {}
    for one in ask.part("registry", lambda: _versions(client, run_id), list[ModelVersion]()):
        found.setdefault(str(one.name), []).append(one)
    return tuple(_past(client, name, found[name], ask) for name in sorted(found))


def _versions(client: MlflowClient, run_id: str) -> list[ModelVersion]:
    query = f"run_id = '{run_id}'"
    return list(pages(partial(client.search_model_versions, query, _PAGE_VERSIONS)))


def _past(
    client: MlflowClient, name: str, versions: Sequence[ModelVersion], ask: Asking
) -> ModelPast:
    aliases = ask.part(f"aliases of {name}", lambda: _aliases(client, name), dict[str, object]())
    made = sorted((_made(one, aliases) for one in versions), key=lambda one: one.version)
    past = ModelPast(model=name, versions=tuple(made))
    return ask.part(f"history of {name}", lambda: _with_history(client, past), past)


def _aliases(client: MlflowClient, name: str) -> dict[str, object]:
    return dict(client.get_registered_model(name).aliases)


def _with_history(client: MlflowClient, past: ModelPast) -> ModelPast:
    """The same with what its history says, all of it of one reading."""
    notes = read_history(past.model, client=client)
    numbers = {one.version for one in past.versions}
    records = notes.chain.records
    about = [one for one in records if {one.version, one.previous_holder} & numbers]
    return replace(
        past,
        decisions=tuple(about),
        verdicts=_verdicts(notes.chain, about),
        records=len(records),
        problems=tuple(problems_of(notes)),
    )


def _made(one: ModelVersion, aliases: Mapping[str, object]) -> Made:
    return Made(
        version=int(one.version),
        stage=str(one.current_stage or "None"),
        created_ms=int(one.creation_timestamp or 0),
        by=str(one.user_id or ""),
        aliases=tuple(sorted(name for name, of in aliases.items() if str(of) == str(one.version))),
        source=str(one.source or ""),
        description=str(one.description or ""),
    )


def _verdicts(chain: Chain, decisions: Sequence[Decision]) -> dict[int, tuple[str, ...]]:
    """What the gate said, long verdicts too; that one is lost is among the chain's problems."""
    found = ((one.number, _verdict(chain, one)) for one in decisions)
    return {number: _lines(one) for number, one in found if one}


def _verdict(chain: Chain, record: Decision) -> Mapping[str, Any] | None:
    if not record.verdict_sha256:
        return record.verdict
    verdict = json.loads(chain.texts.get(record.verdict_sha256, "null"))
    return verdict if isinstance(verdict, dict) else None


def _lines(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    """A verdict of our gate in lines; of another judge whether it let the version pass."""
    try:
        return tuple(Verdict.from_dict(verdict).lines())
    except RegistryError:
        return ("passed" if verdict.get("passed") else "refused",)
