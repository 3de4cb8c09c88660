"""Promoting, approving and rolling back: decided in a history, then shown by MLflow's registry.

A decision is made in this order: what was changed by hand since is recorded, the gate judges, the
decision is appended to the history, the registry is made to look like it. Where two processes
decide at once, one of them is first; the other looks and judges again. A process that was killed
leaves either nothing or a decision that the next call carries out.

The history shows what was changed; it is no lock. Who may write to MLflow's database can write
there too, but not so that `chronicle.verify_history` finds nothing, unless the whole end is written
anew.
"""

from __future__ import annotations

from dataclasses import replace

from mlflow import MlflowClient

from opusclip_mlops import chain
from opusclip_mlops.deciding import Case as Case
from opusclip_mlops.deciding import GateRefused as GateRefused
from opusclip_mlops.deciding import Judge, answer_changes, decide, note
from opusclip_mlops.deciding import Verdict as Verdict
from opusclip_mlops.decisions import (
    HELD,
    PRODUCTION,
    STAGING,
    Actor,
    CameBy,
    Decision,
    present_actor,
    reason_given,
    sha256_of,
    stage_held,
    stage_named,
    version_named,
)
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.patience import connected
from opusclip_mlops.settling import Desk, View, open_desk


def promote(
    name: str,
    version: int | str,
    *,
    to: str,
    judge: Judge | None,
    reason: str = "",
    force: bool = False,
    came_by: CameBy = "API",
    actor: Actor | None = None,
    client: MlflowClient | None = None,
) -> Decision:
    """Make a version the one holder of Staging or Production; its predecessor is archived.

    Alias `staging` or `production` follows. With `to` Archived or None the version is taken out of
    the stage that it holds, which no gate judges. A version that holds the stage already is left
    there, and the decision that brought it there is returned. The holder of Production does not go
    to Staging but by force: nobody would hold Production then.

    Args:
        name: The registered model.
        version: The version's number.
        to: Staging, Production, Archived or None, however capitalised.
        judge: The gate; None to promote without one. It may be asked again, where another process
            decided meanwhile, and about versions that were moved by hand.
        reason: Why, at most 1,000 characters.
        force: Promote whatever the gate says, and onto a history that was tampered with; it needs a
            reason and is recorded.
        came_by: What the decision came in by.
        actor: Who decides; None for MLFLOW_TRACKING_USERNAME, else the user of this process.
        client: MLflow, by default where MLflow itself would look.

    Raises:
        GateRefused: The gate does not let the version through.
        RegistryError: No such model, version or stage, a history that was tampered with, or MLflow
            refused or did not answer. Where it stopped answering midway, the next call finishes.
    """
    stage, number = stage_named(to), version_named(version)
    draft = Decision(
        kind="promotion" if stage in HELD else "demotion",
        model=name,
        version=number,
        to_stage=stage,
        reason=reason_given(reason, needed_for="force" if force else ""),
        forced=force,
    )
    desk = _desk(name, came_by, actor, client, version=number)
    return decide(desk, judge, lambda view: _moved(draft, view, desk.actor), forced=force)


def rollback(
    name: str,
    *,
    judge: Judge | None,
    stage: str = PRODUCTION,
    reason: str,
    force: bool = False,
    came_by: CameBy = "API",
    actor: Actor | None = None,
    client: MlflowClient | None = None,
) -> Decision:
    """Give a stage back to the version that held it before, the last one that still exists.

    Rolling back again goes back further. A version that a hand has moved into the stage since the
    last decision is put back unjudged, and the stage goes to whoever held it before that. Where
    somebody else changes the holder at the same time, this is an error: two people who roll back at
    once go back by one.

    Args:
        name: The registered model.
        judge: The gate, asked with kind "rollback"; None to roll back without one.
        stage: Staging or Production.
        reason: Why, at most 1,000 characters; it is needed.
        force: Roll back whatever the gate says, and on a history that was tampered with.
        came_by: What the decision came in by.
        actor: Who decides; None for MLFLOW_TRACKING_USERNAME, else the user of this process.
        client: MLflow, by default where MLflow itself would look.

    Raises:
        GateRefused: The gate does not let the earlier version through.
        RegistryError: Nobody held the stage before, the holder changed meanwhile, or as `promote`.
    """
    held = stage_held(stage)
    why = reason_given(reason, needed_for="a rollback")
    desk = _desk(name, came_by, actor, client)
    present: list[int | None] = []

    def propose(view: View) -> Decision:
        now = chain.holder(view.records, held)
        present.append(now)
        if present[0] != now:
            changed = f"from version {present[0]} to {now}"
            raise RegistryError(
                f"{held} of {name!r} went {changed} meanwhile: look, and call again"
            )
        stranger = _put_back_by(desk, view, held)
        version = _before(view, held) if stranger is None else now
        draft = Decision(kind="rollback", model=name, version=version, to_stage=held, reason=why)
        moved = _moved(replace(draft, forced=force), view, desk.actor)
        return moved if stranger is None else replace(moved, previous_holder=stranger)

    return decide(desk, judge, propose, forced=force, is_urgent=True)


def approve(
    name: str,
    version: int | str,
    *,
    to: str,
    reason: str = "",
    came_by: CameBy = "API",
    actor: Actor | None = None,
    client: MlflowClient | None = None,
) -> Decision:
    """Say that a version may enter a stage; it counts until the version is moved.

    Args:
        name: The registered model.
        version: The version's number.
        to: Staging or Production.
        reason: Why, at most 1,000 characters.
        came_by: What the approval came in by.
        actor: Who approves; None for MLFLOW_TRACKING_USERNAME, else the user of this process.
        client: MLflow, by default where MLflow itself would look.

    Raises:
        RegistryError: As `promote`.
    """
    number = version_named(version)
    draft = Decision(
        kind="approval",
        model=name,
        version=number,
        to_stage=stage_held(to),
        reason=reason_given(reason),
    )
    desk = _desk(name, came_by, actor, client, version=number)
    return note(desk, lambda view: _told(draft, view, desk.actor))


def set_policy(
    name: str,
    text: str,
    *,
    reason: str = "",
    came_by: CameBy = "API",
    actor: Actor | None = None,
    client: MlflowClient | None = None,
) -> Decision:
    """Keep a policy with the registered model, the same one for everybody; an empty text ends it.

    Args:
        name: The registered model.
        text: The policy as it was written, at most 600,000 characters; it is not looked into.
        reason: Why, at most 1,000 characters.
        came_by: What it came in by.
        actor: Who sets it; None for MLFLOW_TRACKING_USERNAME, else the user of this process.
        client: MLflow, by default where MLflow itself would look.

    Raises:
        RegistryError: As `promote`.
    """
    why, digest = reason_given(reason), sha256_of(text)
    draft = Decision(kind="policy", model=name, version=None, reason=why, policy_digest=digest)
    desk = _desk(name, came_by, actor, client)
    return note(desk, lambda view: _told(draft, view, desk.actor), text=text)


def reconcile(
    name: str,
    *,
    judge: Judge | None,
    came_by: CameBy = "watch",
    actor: Actor | None = None,
    client: MlflowClient | None = None,
) -> tuple[Decision, ...]:
    """Record what was changed by hand; what the gate does not let through is put back.

    What a killed process left is finished. Without changes nothing is written.

    Args:
        name: The registered model.
        judge: The gate, asked with kind "external"; None lets every change stand.
        came_by: What noticed the changes.
        actor: Who puts back; None for MLFLOW_TRACKING_USERNAME, else the user of this process.
        client: MLflow, by default where MLflow itself would look.

    Returns:
        The records that were made.

    Raises:
        RegistryError: As `promote`.
    """
    return answer_changes(_desk(name, came_by, actor, client), judge)


def _moved(draft: Decision, view: View, actor: Actor) -> Decision:
    """The draft as it moves the version on `view`, or the decision that moved it there before."""
    version, to = draft.version, draft.to_stage
    if version is None or version not in view.standing.stages:
        raise RegistryError(f"version {version} of {draft.model!r} was deleted")
    place = chain.place_of(view.records, version)
    if to in HELD:
        made = chain.made_holder(view.records, to)
        if made is not None and made.version == version and draft.kind != "rollback":
            return made
        if (to, place) == (STAGING, PRODUCTION) and not draft.forced:
            raise RegistryError(_would_empty(draft))
    elif place not in HELD:
        raise RegistryError(
            f"version {version} of {draft.model!r} holds no stage: it is in {place}"
        )
    previous = chain.holder(view.records, to) if to in HELD else None
    return replace(_told(draft, view, actor), from_stage=place, previous_holder=previous)


def _would_empty(draft: Decision) -> str:
    what = f"version {draft.version} of {draft.model!r} holds {PRODUCTION}, which nobody would hold"
    return f"{what} then: promote another one to {PRODUCTION} first, or force it with a reason"


def _told(draft: Decision, view: View, actor: Actor) -> Decision:
    place = chain.place_of(view.records, draft.version) if draft.version else draft.from_stage
    return replace(draft, from_stage=place, actor=actor.name, actor_known_by=actor.known_by)


def _put_back_by(desk: Desk, view: View, stage: str) -> int | None:
    """The version that this call has put back, so that the holder before it is the holder now."""
    now = chain.holder(view.records, stage)
    found = [
        one.version
        for one in view.records
        if (one.nonce, one.kind, one.to_stage) == (desk.nonce, "repair", stage)
        and now is not None
        and one.previous_holder == now != one.version
    ]
    return found[-1] if found else None


def _before(view: View, stage: str) -> int:
    known = chain.holders_before(view.records, stage)
    there = [version for version in known if version in view.standing.stages]
    if not there:
        model, gone = view.chain.model, f" (deleted: {', '.join(map(str, known))})" if known else ""
        raise RegistryError(f"nobody held {stage} of {model!r} before: nothing to go back to{gone}")
    return there[0]


def _desk(
    name: str,
    came_by: CameBy,
    actor: Actor | None,
    client: MlflowClient | None,
    *,
    version: int | None = None,
) -> Desk:
    return open_desk(
        connected(client),
        name,
        actor=actor or present_actor(),
        came_by=came_by,
        version=version,
    )
