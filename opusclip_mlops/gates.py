"""The gate before a stage: a policy and what is known of a version, made a verdict.

Nothing is read or written here. A verdict lists every condition of the policy, passed or not, with
the numbers. What is not known does not pass: a metric that is missing or NaN, a check that was not
made, an author nobody knows where the author may not approve. Where a stage has no holder yet there
is nothing to be worse than, so that passes, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import msgspec

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.policy import ANY, ApprovalRule, MetricRule, Policy, StageRules, stage_named
from opusclip_mlops.redaction import one_line
from opusclip_mlops.smoke import SmokeResult

_MOST_CHARACTERS = 200
_NON_FINITE = "non_finite"
_ARTIFACTS = "artifacts/"


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric's value, and where it was found: "checkpoint", "run, step 120"."""

    value: float
    origin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is known of a version.

    Attributes:
        name: The registered model.
        version: The version's number.
        author: Who made it, "" when nobody knows.
        metrics: What was measured, by key.
        tags: The version's own tags.
        files: Paths below the version's folder, with sizes in bytes.
        has_signature: Whether the model says what it takes and returns.
        checkpoint_problem: What is wrong with its weights, "" when they are those that were
            registered, None when nobody looked.
        dataset_digest: The dataset it was made with, "" when nobody knows.
        smoke: How the smoke test went, None when there was none.
    """

    name: str
    version: int
    author: str = ""
    metrics: Mapping[str, Measure] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)
    has_signature: bool = False
    checkpoint_problem: str | None = None
    dataset_digest: str = ""
    smoke: SmokeResult | None = None


@dataclass(frozen=True, slots=True)
class Approval:
    """Somebody's word that a version may enter a stage; the policy says what roles they have."""

    actor: str
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing a policy asks for: what was found, what was wanted, and what explains it."""

    name: str
    passed: bool
    measured: float | str | None
    wanted: float | str | None
    note: str = ""

    def line(self) -> str:
        """The condition on one line, for people."""
        note = f" ({self.note})" if self.note else ""
        found = f"{_shown(self.measured)}, wanted {_shown(self.wanted)}{note}"
        return f"{'passed' if self.passed else 'FAILED'}  {self.name}: {found}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a version may enter a stage, with every condition of the policy."""

    model: str
    version: int
    stage: str
    conditions: tuple[Condition, ...]
    policy_digest: str

    @property
    def passed(self) -> bool:
        """True when every condition passed, also where there are none."""
        return not self.failed

    @property
    def failed(self) -> tuple[Condition, ...]:
        """The conditions that did not pass."""
        return tuple(one for one in self.conditions if not one.passed)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; a number that is not finite is {"non_finite": "nan"}."""
        content: dict[str, Any] = msgspec.to_builtins(self)
        for one in content["conditions"]:
            one["measured"], one["wanted"] = map(_plain, (one["measured"], one["wanted"]))
        return {**content, "conditions": list(content["conditions"]), "passed": self.passed}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Verdict:
        """Read what `to_dict` gave; whether it passed is told by the conditions alone.

        Raises:
            RegistryError: It is no verdict.
        """
        try:
            conditions = [
                {**one, "measured": _number(one["measured"]), "wanted": _number(one["wanted"])}
                for one in content["conditions"]
            ]
            return msgspec.convert({**content, "conditions": conditions}, cls)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RegistryError(f"this is no verdict: {one_line(str(error))}") from error

    def lines(self) -> list[str]:
        """The verdict for people: what came of it, then a line for each condition."""
        about = f"{self.model} {self.version} to {self.stage}"
        if not self.conditions:
            return [f"{about}: passed, the policy asks for nothing"]
        count = len(self.conditions)
        came = f"refused, {len(self.failed)} of {count} conditions failed"
        first = f"{about}: {f'passed, {count} of {count} conditions' if self.passed else came}"
        return [first, *(f"  {one.line()}" for one in self.conditions)]


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
    found = [
        *_order(policy, stage, been_in),
        *(one for rule in rules.metrics for one in _metric(rule, candidate, holders)),
        *_contents(rules, candidate),
        *_dataset(rules.same_dataset_as, candidate, holders),
        *_approvals(rules.approvals, policy, candidate, approvals),
    ]
    return Verdict(
        model=candidate.name,
        version=candidate.version,
        stage=stage,
        conditions=tuple(found),
        policy_digest=policy.digest,
    )


def _condition(
    name: str,
    passed: bool,
    measured: float | str | None,
    wanted: float | str | None,
    note: str = "",
) -> Condition:
    texts = (_text(name), _value(measured), _value(wanted), _text(note))
    return Condition(str(texts[0]), passed, texts[1], texts[2], str(texts[3]))


def _order(policy: Policy, stage: str, been_in: Collection[str]) -> Iterator[Condition]:
    earlier = policy.order[: policy.order.index(stage)] if stage in policy.order else ()
    been = {one.strip().lower() for one in been_in}
    for one in earlier:
        has_been = one.lower() in been
        measured = f"was in {one}" if has_been else f"never was in {one}"
        yield _condition("order", has_been, measured, f"{one} before {stage}")


# Metrics


def _metric(
    rule: MetricRule, candidate: Candidate, holders: Mapping[str, Candidate]
) -> Iterator[Condition]:
    measure = candidate.metrics.get(rule.key)
    value = None if measure is None else measure.value
    note = "it was not measured" if measure is None else measure.origin
    if rule.min is not None:
        passed = _is_number(value) and _exact(value) >= _exact(rule.min)
        yield _condition(f"{rule.key} min", passed, value, rule.min, note)
    if rule.max is not None:
        passed = _is_number(value) and _exact(value) <= _exact(rule.max)
        yield _condition(f"{rule.key} max", passed, value, rule.max, note)
    if rule.not_worse_than:
        yield _compared(rule, value, note, holders.get(rule.not_worse_than))


def _compared(
    rule: MetricRule, value: float | None, note: str, holder: Candidate | None
) -> Condition:
    name = f"{rule.key} not worse than {rule.not_worse_than}"
    way = f"{rule.better} is better"
    if holder is None:
        why = f"nobody is in {rule.not_worse_than} yet; {note}"
        return _condition(name, _is_number(value), value, "a number", why)
    held = holder.metrics.get(rule.key)
    who = f"version {holder.version} in {rule.not_worse_than}"
    if held is None or not _is_number(held.value):
        there = "has no such metric" if held is None else f"has {_shown(held.value)}"
        why = f"{who} {there}, so they cannot be compared; {note}"
        return _condition(name, False, value, f"a number of {who}", why)
    bound = _bound(held.value, rule)
    better = value is not None and _is_better(value, bound, rule.better)
    by = f", by {_shown(rule.by)}" if rule.by else ""
    why = f"{who} has {_shown(held.value)} ({held.origin}){by}; {way}; {note}"
    return _condition(name, better, value, float(bound), why)


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
        yield _condition(f"tag {tag}", passed, value or "no such tag", wanted)
    for path in rules.files:
        yield _file(path, candidate.files)
    if rules.checkpoint_hash:
        problem = candidate.checkpoint_problem
        said = "not checked" if problem is None else problem or "verified"
        yield _condition("checkpoint hash", problem == "", said, "verified")
    if rules.signature:
        said = "present" if candidate.has_signature else "missing"
        yield _condition("signature", candidate.has_signature, said, "present")
    if rules.smoke_timeout_s is not None:
        yield _smoke(rules.smoke_timeout_s, candidate.smoke)


def _file(path: str, files: Mapping[str, int]) -> Condition:
    found = next((one for one in (path, _ARTIFACTS + path) if one in files), None)
    if found is None:
        return _condition(f"file {path}", False, "missing", "present")
    said = f"{files[found]} bytes" if files[found] else "present"
    return _condition(f"file {path}", True, said, "present")


def _smoke(timeout_s: float, result: SmokeResult | None) -> Condition:
    wanted = f"an answer within {_shown(timeout_s)} s"
    if result is None:
        return _condition("smoke test", False, "not tested", wanted)
    note = f"{result.duration_s:.1f} s"
    return _condition("smoke test", result.passed, result.reason, wanted, note)


def _dataset(
    stage: str, candidate: Candidate, holders: Mapping[str, Candidate]
) -> Iterator[Condition]:
    if not stage:
        return
    holder, digest = holders.get(stage), candidate.dataset_digest
    name, measured = f"same dataset as {stage}", digest or "no dataset known"
    if holder is None:
        yield _condition(name, True, measured, None, f"nobody is in {stage} yet")
        return
    passed = bool(digest) and digest == holder.dataset_digest
    who = f"version {holder.version} in {stage}"
    known = holder.dataset_digest or "no dataset known"
    yield _condition(name, passed, measured, known, f"of {who}")


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
    author = _person(candidate.author)
    counted = {key: name for key, name in given.items() if _may(name, rule, policy)}
    notes = [f"no role for it: {name}" for key, name in given.items() if key not in counted]
    unknown_author = rule.not_by_author and not author
    if rule.not_by_author and author in counted:
        notes.append(f"the author: {counted.pop(author)}")
    if unknown_author:
        notes.append("the author is unknown, and may not be the one who approves")
    if counted:
        notes.insert(0, f"by {', '.join(counted.values())}")
    passed = len(counted) >= rule.count and not unknown_author
    yield _condition("approvals", passed, len(counted), _wanted(rule), "; ".join(notes))


def _wanted(rule: ApprovalRule) -> str:
    whose = f" of {' or '.join(rule.roles)}" if rule.roles else ""
    return f"{rule.count}{whose}{', not by the author' if rule.not_by_author else ''}"


def _may(actor: str, rule: ApprovalRule, policy: Policy) -> bool:
    return not rule.roles or any(
        actor in (one.strip() for one in policy.roles.get(role, ())) for role in rule.roles
    )


def _person(name: str) -> str:
    return name.strip().casefold()


# Texts and numbers


def _text(text: str) -> str:
    return one_line(text, at_most=_MOST_CHARACTERS)


def _value(value: float | str | None) -> float | str | None:
    if isinstance(value, str):
        return _text(value)
    return None if value is None else float(value)


def _shown(value: float | str | None) -> str:
    """A number with all its digits, and nothing for a whole one's fraction."""
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else repr(value).removesuffix(".0")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_NON_FINITE: repr(value)}
    return value


def _number(value: Any) -> Any:
    if isinstance(value, Mapping):
        return float(value[_NON_FINITE])
    return value
