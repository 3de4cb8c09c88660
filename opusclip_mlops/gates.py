"""The gate before a stage: a policy and what is known of a version, made a verdict.

Nothing is read or written here. A verdict lists every condition of the policy, passed or not, with
the numbers. What is not known does not pass: a metric that is missing or NaN, a check that was not
made, an author nobody knows where the author may not approve. Where a stage has no holder yet there
is nothing to be worse than, so that passes, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from types import MappingProxyType

from opusclip_mlops.passports import Passport, differences
from opusclip_mlops.policy import ANY, ApprovalRule, MetricRule, Policy, StageRules, stage_named
from opusclip_mlops.smoke import SmokeResult
from opusclip_mlops.verdicts import Condition as Condition
from opusclip_mlops.verdicts import Verdict as Verdict
from opusclip_mlops.verdicts import condition, shown

SMOKE_TEST = "smoke test"
"""The name of the condition that a version answers."""

_ARTIFACTS = "artifacts/"
_NO_DATASET = "no dataset known"


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric's value, where it was found ("checkpoint", "run, step 120"), how it was measured."""

    value: float
    origin: str = ""
    passport: Passport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is known of a version.

    Attributes:
        name: The registered model.
        version: The version's number.
        author: Whose run it was made in, "" when nobody knows.
        registered_by: Who made a version of it, an author too; "" when nobody knows.
        made_by: Who was logged in when the run was made, an author too; "" when nobody knows.
        metrics: What was measured, by key.
        tags: The version's own tags.
        files: Paths below the version's folder, with sizes in bytes.
        has_signature: Whether the model says what it takes and returns.
        checkpoint_problem: What is wrong with its weights, "" when they are those that were
            registered, None when nobody looked.
        dataset_digest: The dataset it was trained on, "" when nobody knows.
        evaluation_digest: The dataset its metrics were measured on, "" when nobody knows.
        smoke: How the smoke test went, None when there was none.
    """

    name: str
    version: int
    author: str = ""
    registered_by: str = ""
    made_by: str = ""
    metrics: Mapping[str, Measure] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    has_signature: bool = False
    checkpoint_problem: str | None = None
    dataset_digest: str = ""
    evaluation_digest: str = ""
    smoke: SmokeResult | None = None


@dataclass(frozen=True, slots=True)
class Approval:
    """Somebody's word that a version may enter a stage; the policy says what roles they have."""

    actor: str
    timestamp_ms: int


def judge(
    policy: Policy,
    stage: str,
    candidate: Candidate,
    *,
    holders: Mapping[str, Candidate] = MappingProxyType({}),
    approvals: Sequence[Approval] = (),
    been_in: Collection[str] = (),
) -> Verdict:
    """Hold what is known of a version against the policy of a stage.

    Args:
        policy: The model's policy.
        stage: Where the version is to go, in any case.
        candidate: The version.
        holders: Who holds each stage; a stage that is not there has no holder.
        approvals: Those given to this version for this stage.
        been_in: The stages this version was in before or is in.

    Raises:
        PolicyError: The policy is for another model, or there is no such stage.
    """
    policy.check_model(candidate.name)
    stage = stage_named(stage)
    rules = policy.rules(stage)
    found = (
        *_order(policy, stage, been_in),
        *(one for rule in rules.metrics for one in _metric(rule, candidate, holders)),
        *_contents(rules, candidate),
        *_dataset(rules.same_dataset_as, candidate, holders),
        *_approvals(rules.approvals, policy, candidate, approvals),
    )
    return Verdict(
        model=candidate.name,
        version=candidate.version,
        stage=stage,
        conditions=found if candidate.smoke else _untested(found),
        policy_digest=policy.digest,
    )


def _untested(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """The same, and why there was no smoke test where another condition failed."""
    if all(one.passed or one.name == SMOKE_TEST for one in conditions):
        return conditions
    said = "not tested: another condition failed"
    return tuple(
        replace(one, measured=said) if one.name == SMOKE_TEST else one for one in conditions
    )


def _order(policy: Policy, stage: str, been_in: Collection[str]) -> Iterator[Condition]:
    earlier = policy.order[: policy.order.index(stage)] if stage in policy.order else ()
    been = {one.strip().lower() for one in been_in}
    for one in earlier:
        has_been = one.lower() in been
        measured = f"was in {one}" if has_been else f"never was in {one}"
        yield condition("order", has_been, measured, f"{one} before {stage}")


# Metrics


def _metric(
    rule: MetricRule, candidate: Candidate, holders: Mapping[str, Candidate]
) -> Iterator[Condition]:
    measure = candidate.metrics.get(rule.key)
    value = None if measure is None else measure.value
    note = "it was not measured" if measure is None else measure.origin
    if rule.min is not None:
        passed = _is_number(value) and _exact(value) >= _exact(rule.min)
        yield condition(f"{rule.key} min", passed, value, rule.min, note)
    if rule.max is not None:
        passed = _is_number(value) and _exact(value) <= _exact(rule.max)
        yield condition(f"{rule.key} max", passed, value, rule.max, note)
    if rule.passport:
        known = None if measure is None else measure.passport
        said = known.digest if known else "no passport"
        yield condition(f"{rule.key} passport", said == rule.passport, said, rule.passport)
    if rule.not_worse_than:
        yield _compared(rule, measure, note, holders.get(rule.not_worse_than))


def _compared(
    rule: MetricRule, measure: Measure | None, note: str, holder: Candidate | None
) -> Condition:
    value = None if measure is None else measure.value
    name = f"{rule.key} not worse than {rule.not_worse_than}"
    way = f"{rule.better} is better"
    if holder is None:
        why = f"nobody is in {rule.not_worse_than} yet; {note}"
        return condition(name, _is_number(value), value, "a number", why)
    held = holder.metrics.get(rule.key)
    who = f"version {holder.version} in {rule.not_worse_than}"
    if held is None or not _is_number(held.value):
        there = "has no such metric" if held is None else f"has {shown(held.value)}"
        why = f"{who} {there}, so they cannot be compared; {note}"
        return condition(name, False, value, f"a number of {who}", why)
    if unlike := _unlike(rule, measure, held):
        why = f"{who} has {shown(held.value)}; {'; '.join(unlike)}"
        return condition(name, False, value, "a value that was measured alike", why)
    bound = _bound(held.value, rule)
    better = value is not None and _is_better(value, bound, rule.better)
    by = f", by {shown(rule.by)}" if rule.by else ""
    why = f"{who} has {shown(held.value)} ({held.origin}){by}; {way}; {note}"
    return condition(name, better, value, float(bound), why)


def _unlike(rule: MetricRule, measure: Measure | None, held: Measure) -> tuple[str, ...]:
    if measure is None or rule.allow_unlike:
        return ()
    return differences(measure.passport, held.passport)


def _bound(held: float, rule: MetricRule) -> Decimal:
    by = _exact(rule.by)
    return _exact(held) + by if rule.better == "lower" else _exact(held) - by


def _is_better(value: float, bound: Decimal, better: str) -> bool:
    if math.isnan(value):
        return False
    return _exact(value) <= bound if better == "lower" else _exact(value) >= bound


def _is_number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _exact(value: float | None) -> Decimal:
    """The number as it is written: 0.1 + 0.7 is 0.8, and a value at the bound passes."""
    return Decimal(repr(float(value if value is not None else math.nan)))


# What the version holds


def _contents(rules: StageRules, candidate: Candidate) -> Iterator[Condition]:
    for tag, wanted in rules.tags.items():
        value = candidate.tags.get(tag, "")
        passed = bool(value) if wanted == ANY else value == wanted
        yield condition(f"tag {tag}", passed, value or "no such tag", wanted)
    for path in rules.files:
        yield _file(path, candidate.files)
    if rules.checkpoint_hash:
        problem = candidate.checkpoint_problem
        said = "not checked" if problem is None else problem or "verified"
        yield condition("checkpoint hash", problem == "", said, "verified")
    if rules.signature:
        said = "present" if candidate.has_signature else "missing"
        yield condition("signature", candidate.has_signature, said, "present")
    if rules.smoke_timeout_s is not None:
        yield _smoke(rules.smoke_timeout_s, candidate.smoke)


def _file(path: str, files: Mapping[str, int]) -> Condition:
    found = next((one for one in (path, _ARTIFACTS + path) if one in files), None)
    if found is None:
        return condition(f"file {path}", False, "missing", "present")
    said = f"{files[found]} bytes" if files[found] else "present"
    return condition(f"file {path}", True, said, "present")


def _smoke(timeout_s: float, result: SmokeResult | None) -> Condition:
    wanted = f"an answer within {shown(timeout_s)} s"
    if result is None:
        return condition(SMOKE_TEST, False, "not tested", wanted)
    note = f"{result.duration_s:.1f} s"
    return condition(SMOKE_TEST, result.passed, result.reason, wanted, note)


def _dataset(
    stage: str, candidate: Candidate, holders: Mapping[str, Candidate]
) -> Iterator[Condition]:
    if not stage:
        return
    holder, name = holders.get(stage), f"same dataset as {stage}"
    if holder is None:
        known = candidate.evaluation_digest or candidate.dataset_digest or _NO_DATASET
        yield condition(name, True, known, None, f"nobody is in {stage} yet")
        return
    mine, theirs = candidate.dataset_digest, holder.dataset_digest
    what, who = "trained on", f"version {holder.version} in {stage}"
    if candidate.evaluation_digest and holder.evaluation_digest:
        mine, theirs, what = candidate.evaluation_digest, holder.evaluation_digest, "evaluated on"
    passed, note = bool(mine) and mine == theirs, f"{what}; of {who}"
    yield condition(name, passed, mine or _NO_DATASET, theirs or _NO_DATASET, note)


# Who approved


def _approvals(
    rule: ApprovalRule | None,
    policy: Policy,
    candidate: Candidate,
    approvals: Iterable[Approval],
) -> Iterator[Condition]:
    if rule is None:
        return
    given = {_person(one.actor): one.actor.strip() for one in approvals if _person(one.actor)}
    known = (candidate.author, candidate.registered_by, candidate.made_by)
    authors = {_person(one) for one in known} - {""}
    counted = {key: name for key, name in given.items() if _may(name, rule, policy)}
    notes = [f"no role for it: {name}" for key, name in given.items() if key not in counted]
    unknown_author = rule.not_by_author and not authors
    for author in sorted(authors & counted.keys() if rule.not_by_author else ()):
        notes.append(f"the author: {counted.pop(author)}")
    if unknown_author:
        notes.append("the author is unknown, and may not be the one who approves")
    if counted:
        notes.insert(0, f"by {', '.join(counted.values())}")
    passed = len(counted) >= rule.count and not unknown_author
    yield condition("approvals", passed, len(counted), _wanted(rule), "; ".join(notes))


def _wanted(rule: ApprovalRule) -> str:
    whose = f" of {' or '.join(rule.roles)}" if rule.roles else ""
    return f"{rule.count}{whose}{', not by the author' if rule.not_by_author else ''}"


def _may(actor: str, rule: ApprovalRule, policy: Policy) -> bool:
    return not rule.roles or any(
        actor in (one.strip() for one in policy.roles.get(role, ())) for role in rule.roles
    )


def _person(name: str) -> str:
    return name.strip().casefold()
