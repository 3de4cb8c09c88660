"""Promoting and rolling back past the gate: the policy that is kept with a model is what judges.

A guarded registry is asked instead, see `guarded`; it decides as the user who is logged in there.

Without a policy every version passes. A rollback is judged by what has to hold of any version that
serves: it answers its input example, where it has one or the policy asks for that, and its weights
are those that were registered, where the policy asks for that.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from mlflow import MlflowClient

from opusclip_mlops import chain, chronicle, promotion
from opusclip_mlops.asking import told_in_one_line
from opusclip_mlops.candidates import Bench, judge_version
from opusclip_mlops.deciding import Case, Judge
from opusclip_mlops.decisions import HELD, CameBy, Decision, stage_held, version_named
from opusclip_mlops.faults import attempted
from opusclip_mlops.gates import Approval, Verdict
from opusclip_mlops.guarded import Ask, guard_of
from opusclip_mlops.patience import connected, patiently
from opusclip_mlops.policy import Policy, StageRules, read_policy
from opusclip_mlops.redaction import one_line
from opusclip_mlops.registry_rows import Rows
from opusclip_mlops.version_files import VersionFiles

_ROLLBACK_SMOKE_S = 60.0


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a look at a model came to: a record that was made, or why it could not be looked at."""

    model: str
    decision: Decision | None = None
    problem: str = ""


def promote(
    name: str,
    version: int | str,
    *,
    to: str,
    reason: str = "",
    approve: bool = False,
    force: bool = False,
    came_by: CameBy = "API",
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> Decision:
    """Make a version the one holder of Staging or Production, if its gate lets it through.

    Stage and alias move together and the holder before it is archived. With `to` Archived or None
    the version is taken out of the stage that it holds.

    Args:
        name: The registered model.
        version: The version's number.
        to: Staging, Production, Archived or None, however capitalised.
        reason: Why, at most 1,000 characters; kept in the history.
        approve: Approve first, as the user of this process; the approval stays, whatever the gate
            says.
        force: Promote whatever the gate says; it needs a reason and is recorded as forced.
        came_by: What the decision came in by.
        tracking_uri: Where runs and histories are, MLflow's default when None.
        registry_uri: Where models are, the tracking server when None.

    Raises:
        GateRefused: The gate does not let the version through; the verdict has every condition.
        RegistryError: No such model, version or stage, a damaged history, or MLflow did not answer.
    """
    client = connected(tracking_uri=tracking_uri, registry_uri=registry_uri)
    if guard := guard_of(client):
        number = str(version_named(version))
        told = Ask(what="promote", name=name, version=number, to=to, reason=reason, force=force)
        ask = replace(told, came_by=came_by)
        if approve:
            guard.decide(replace(ask, what="approve", force=False))
        return guard.decide(ask)[0]
    if approve:
        promotion.approve(name, version, to=to, reason=reason, came_by=came_by, client=client)
    return promotion.promote(
        name,
        version,
        to=to,
        judge=gate(tracking_uri=tracking_uri, registry_uri=registry_uri),
        reason=reason,
        force=force,
        came_by=came_by,
        client=client,
    )


def rollback(
    name: str,
    *,
    stage: str = "Production",
    reason: str,
    force: bool = False,
    came_by: CameBy = "API",
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> Decision:
    """Give a stage back to the version that held it before, if that still answers.

    Args:
        name: The registered model.
        stage: Staging or Production.
        reason: Why, at most 1,000 characters; it is needed.
        force: Roll back whatever the gate says.
        came_by: What the decision came in by.
        tracking_uri: Where runs and histories are, MLflow's default when None.
        registry_uri: Where models are, the tracking server when None.

    Raises:
        GateRefused: The version before does not answer its input example, within 60 s where the
            policy says nothing else, or its weights were changed.
        RegistryError: Nobody held the stage before, or as `promote`.
    """
    client = connected(tracking_uri=tracking_uri, registry_uri=registry_uri)
    if guard := guard_of(client):
        told = Ask(what="rollback", name=name, to=stage, reason=reason, force=force)
        return guard.decide(replace(told, came_by=came_by))[0]
    return promotion.rollback(
        name,
        judge=gate(tracking_uri=tracking_uri, registry_uri=registry_uri),
        stage=stage,
        reason=reason,
        force=force,
        came_by=came_by,
        client=client,
    )


def check(
    name: str,
    version: int | str,
    *,
    to: str,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> Verdict:
    """What the gate says of a version now; nothing is changed.

    Raises:
        RegistryError: As `promote`; a damaged history is one that knows no policy.
    """
    client = connected(tracking_uri=tracking_uri, registry_uri=registry_uri)
    stage, number = stage_held(to), version_named(version)
    what = f"cannot read version {number} of {name!r}"
    patiently(what, lambda: client.get_model_version(name, str(number)))
    records = chronicle.history(name, client=client)
    held = chain.holder(records, stage)
    case = Case("promotion", name, number, stage, held, "", records)
    return _verdict(case, tracking_uri, registry_uri)


def set_policy(
    name: str,
    text: str,
    *,
    source: str = "gates.yaml",
    reason: str = "",
    came_by: CameBy = "API",
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> Decision:
    """Keep a policy with a registered model, from now on the same one for everybody.

    Args:
        name: The registered model.
        text: The policy in YAML, see `policy`.
        source: What the file is called in messages.
        reason: Why, at most 1,000 characters.
        came_by: What it came in by.
        tracking_uri: Where runs and histories are, MLflow's default when None.
        registry_uri: Where models are, the tracking server when None.

    Raises:
        PolicyError: It is no policy, or one for another model; the message has the line.
        RegistryError: As `promote`.
    """
    read_policy(text, source=source).check_model(name)
    client = connected(tracking_uri=tracking_uri, registry_uri=registry_uri)
    if guard := guard_of(client):
        ask = Ask(what="policy", name=name, text=text, reason=reason, came_by=came_by)
        return guard.decide(ask)[0]
    return promotion.set_policy(name, text, reason=reason, came_by=came_by, client=client)


def gate(
    *,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
    bench: Bench | None = None,
) -> Judge:
    """What judges versions: the policy that is kept with their model at that moment.

    Args:
        tracking_uri: Where runs and histories are, MLflow's default when None.
        registry_uri: Where models are, the tracking server when None.
        bench: Reads and tests instead of what the URIs lead to.
    """
    return lambda case: _verdict(case, tracking_uri, registry_uri, bench)


def watch(
    names: Sequence[str] = (),
    *,
    poll_s: float = 10.0,
    show: Callable[[Sighting], None],
    rounds: int | None = None,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> None:
    """Record what is moved by hand, and put back what the gate refuses, until it is stopped.

    A registry that does not answer is asked again at the next poll, and told of once. Without
    `names` a poll asks for the list of models, and looks closely at those that changed; at all of
    them each minute, less often where that takes longer than 3 s.

    Args:
        names: The registered models; all that there are when empty.
        poll_s: Seconds between two looks.
        show: Is told each record that was made, and each new problem.
        rounds: How many looks; None for no end.
        tracking_uri: Where runs and histories are, MLflow's default when None.
        registry_uri: Where models are, the tracking server when None.
    """
    client = connected(tracking_uri=tracking_uri, registry_uri=registry_uri)
    judge = gate(tracking_uri=tracking_uri, registry_uri=registry_uri)
    rows, problems = Rows(client, names), dict[str, str]()
    for look in itertools.count() if rounds is None else range(rounds):
        if look:
            time.sleep(poll_s)
        for sighting in _looked(rows, judge, client):
            if sighting.decision or sighting.problem != problems.get(sighting.model, ""):
                show(sighting)
            problems[sighting.model] = sighting.problem


def _looked(rows: Rows, judge: Judge, client: MlflowClient) -> Iterator[Sighting]:
    """What came of the list of models, and of each that may have changed."""
    listed: list[str] = []
    fault = attempted(lambda: listed.extend(rows.to_look_at()))
    yield Sighting("", problem=_said(fault))
    for name in listed:
        made: list[Decision] = []
        fault = attempted(functools.partial(_reconcile, name, judge, client, made))
        if fault is None:
            rows.looked_at(name)
        yield Sighting(name, problem=_said(fault))
        yield from (Sighting(name, record) for record in made)
    rows.close()


def _reconcile(name: str, judge: Judge, client: MlflowClient, made: list[Decision]) -> None:
    if guard := guard_of(client):
        made += guard.decide(Ask(what="reconcile", name=name, came_by="watch"))
    else:
        made += promotion.reconcile(name, judge=judge, client=client)


def _said(fault: Exception | None) -> str:
    return one_line(str(fault)) if fault else ""


def _verdict(
    case: Case, tracking_uri: str | None, registry_uri: str | None, bench: Bench | None = None
) -> Verdict:
    given = bench.client if bench else None
    client = connected(given, tracking_uri=tracking_uri, registry_uri=registry_uri)
    text = chronicle.policy_of(case.model, client=client)
    policy = read_policy(text, source=f"the policy of {case.model}") if text else Policy()
    if case.kind == "rollback":
        policy = _for_rollback(policy, case, client, bench is None or bench.runs_examples)
    if not policy.stages:
        return Verdict(
            model=case.model,
            version=case.version,
            stage=case.to_stage,
            conditions=(),
            policy_digest=policy.digest if text else "",
        )
    holders = {stage: chain.holder(case.records, stage) for stage in HELD}
    verdict = judge_version(
        policy,
        case.model,
        case.version,
        to=case.to_stage,
        holders={stage: held for stage, held in holders.items() if held is not None},
        approvals=[
            Approval(one.actor, one.timestamp_ms)
            for one in chain.approvals(case.records, case.version, case.to_stage)
        ],
        been_in=chain.been_in(case.records, case.version),
        tracking_uri=tracking_uri,
        registry_uri=registry_uri,
        bench=bench,
    )
    return verdict if text else replace(verdict, policy_digest="")


def _for_rollback(policy: Policy, case: Case, client: MlflowClient, runs_examples: bool) -> Policy:
    """What has to hold of a version that was let through before: no stages if nothing has to."""
    rules = policy.rules(case.to_stage)
    timeout_s = rules.smoke_timeout_s
    if timeout_s is None and runs_examples and _has_example(case, client):
        timeout_s = _ROLLBACK_SMOKE_S
    asked = StageRules(checkpoint_hash=rules.checkpoint_hash, smoke_timeout_s=timeout_s)
    stages = {} if asked == StageRules() else {case.to_stage: asked}
    return replace(policy, stages=stages, order=())


def _has_example(case: Case, client: MlflowClient) -> bool:
    what = f"cannot read version {case.version} of {case.model!r}"
    with told_in_one_line(what):
        version = client.get_model_version(case.model, str(case.version))
        return VersionFiles.of(client, version).has_example()
