"""What the history of a registered model tells: who held a stage when, and whether it is whole."""

from __future__ import annotations

import json
from typing import Any

from mlflow import MlflowClient

from opusclip_mlops import chain
from opusclip_mlops.chain import Problem
from opusclip_mlops.decisions import Decision, model_named, stage_held
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.ledger import Notes, find_ledger
from opusclip_mlops.patience import connected
from opusclip_mlops.settling import Change, look
from opusclip_mlops.standing import read_standing


def policy_of(name: str, *, client: MlflowClient | None = None) -> str:
    """The policy that is kept with a registered model, empty where there is none.

    Raises:
        RegistryError: The policy was changed other than by `set_policy`, the history that holds it
            was tampered with, or MLflow did not answer.
    """
    found = _notes(name, client).chain
    digests = [record.policy_digest for record in found.records if record.kind == "policy"]
    if digests and digests[-1] not in found.texts:
        raise RegistryError(f"the policy of {name!r} was changed or removed: set it again")
    if found.unsettled:
        what = "; ".join(map(str, found.unsettled[:3]))
        raise RegistryError(f"the policy of {name!r} is not known, its history is damaged: {what}")
    return found.texts[digests[-1]] if digests else ""


def history(
    name: str, *, at_ms: int | None = None, client: MlflowClient | None = None
) -> tuple[Decision, ...]:
    """All decisions about a registered model, oldest first.

    Args:
        name: The registered model; its history is there after it was deleted, too.
        at_ms: Only up to this Unix time in milliseconds.
        client: MLflow, by default where MLflow itself would look.

    Raises:
        RegistryError: There is and was no such model, or MLflow did not answer.
    """
    records = _notes(name, client).chain.records
    return records if at_ms is None else chain.until(records, at_ms)


def holder_at(
    name: str, stage: str, timestamp_ms: int, *, client: MlflowClient | None = None
) -> int | None:
    """Which version held a stage at a Unix time in milliseconds, None for nobody.

    Raises:
        RegistryError: No such stage, or as `history`.
    """
    held = stage_held(stage)
    return chain.holder(history(name, at_ms=timestamp_ms, client=client), held)


def verify_history(name: str, *, client: MlflowClient | None = None) -> list[Problem]:
    """What was changed, removed or put in, empty for a history that is whole.

    Raises:
        RegistryError: As `history`.
    """
    return problems_of(_notes(name, client))


def read_history(name: str, *, client: MlflowClient | None = None) -> Notes:
    """All of a history by one reading: its decisions, their verdicts, what is wrong with it.

    Raises:
        RegistryError: As `history`.
    """
    return _notes(name, client)


def problems_of(notes: Notes) -> list[Problem]:
    """What is wrong with a history that was read, empty for one that is whole."""
    deleted = [] if notes.is_active else [Problem(0, "its run was deleted: restore it")]
    return [*deleted, *notes.chain.problems]


def verdict_of(record: Decision, *, client: MlflowClient | None = None) -> dict[str, Any] | None:
    """The verdict of a decision, long ones too; None where no gate was asked.

    Raises:
        RegistryError: The verdict was changed or removed, or as `history`.
    """
    if not record.verdict_sha256:
        return None if record.verdict is None else dict(record.verdict)
    text = _notes(record.model, client).chain.texts.get(record.verdict_sha256)
    if text is None:
        raise RegistryError(f"record {record.number} of {record.model!r} has lost its verdict")
    verdict: dict[str, Any] = json.loads(text)
    return verdict


def observe(name: str, *, client: MlflowClient | None = None) -> tuple[Change, ...]:
    """What was changed by hand since the last decision: stages, aliases, deleted holders.

    Raises:
        RegistryError: There is no such model, or MLflow did not answer.
    """
    client = connected(client)
    standing = read_standing(client, model_named(name))
    ledger = find_ledger(client, name, created_ms=standing.created_ms)
    return look(client, name, ledger).changes


def _notes(name: str, client: MlflowClient | None) -> Notes:
    """The history with what is wrong with it; a model that was deleted has its history still."""
    client, name = connected(client), model_named(name)
    try:
        created_ms = read_standing(client, name).created_ms
    except RegistryError:
        if (ledger := find_ledger(client, name)) is None:
            raise
        return ledger.read()
    return look(client, name, find_ledger(client, name, created_ms=created_ms)).notes
