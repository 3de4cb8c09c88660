"""The registered versions that were made of a run, and what was decided about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from opusclip_mlops.chain import Problem
from opusclip_mlops.chronicle import history, verdict_of, verify_history
from opusclip_mlops.decisions import Decision
from opusclip_mlops.errors import RegistryError
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
        verdicts: The gate's lines, by the number of the decision.
        records: How many decisions its whole history has.
        problems: What is wrong with that history, empty where its chain is whole.
    """

    model: str
    versions: tuple[Made, ...]
    decisions: tuple[Decision, ...] = ()
    verdicts: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    records: int = 0
    problems: tuple[Problem, ...] = ()


def read_past(client: MlflowClient, run_id: str) -> tuple[ModelPast, ...]:
    """The models that have versions made of a run, by name.

    Raises:
        RegistryError: A verdict was changed or removed, or MLflow did not answer.
        MlflowException: MLflow does not answer.
    """
    found: dict[str, list[ModelVersion]] = {}
    for one in _versions(client, run_id):
        found.setdefault(str(one.name), []).append(one)
    return tuple(_past(client, name, found[name]) for name in sorted(found))


def _versions(client: MlflowClient, run_id: str) -> Iterator[ModelVersion]:
    token: str | None = None
    while True:
        query = f"run_id = '{run_id}'"
        page = client.search_model_versions(query, _PAGE_VERSIONS, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _past(client: MlflowClient, name: str, versions: Sequence[ModelVersion]) -> ModelPast:
    aliases = client.get_registered_model(name).aliases
    made = sorted((_made(one, aliases) for one in versions), key=lambda one: one.version)
    numbers = {one.version for one in made}
    records = history(name, client=client)
    about = [one for one in records if {one.version, one.previous_holder} & numbers]
    return ModelPast(
        model=name,
        versions=tuple(made),
        decisions=tuple(about),
        verdicts=_verdicts(client, about),
        records=len(records),
        problems=tuple(verify_history(name, client=client)),
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


def _verdicts(client: MlflowClient, decisions: Sequence[Decision]) -> dict[int, tuple[str, ...]]:
    found = ((one.number, verdict_of(one, client=client)) for one in decisions)
    return {number: _lines(one) for number, one in found if one}


def _lines(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    """A verdict of our gate in lines; of another judge whether it let the version pass."""
    try:
        return tuple(Verdict.from_dict(verdict).lines())
    except RegistryError:
        return ("passed" if verdict.get("passed") else "refused",)
