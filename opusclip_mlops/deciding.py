"""How a decision comes about: changes by hand first, then the gate, the record and the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from opusclip_mlops import chain
from opusclip_mlops.decisions import HELD, LONGEST_REASON, Decision, Kind
from opusclip_mlops.errors import OpusclipError, RegistryError
from opusclip_mlops.redaction import one_line
from opusclip_mlops.settling import Change, Desk, View, let_stand, put_back

_MOST_TIMES = 1_000


class Verdict(Protocol):
    """What a gate says about a version."""

    @property
    def passed(self) -> bool:
        """Whether the version may enter the stage."""

    def to_dict(self) -> Mapping[str, Any]:
        """Every condition with its numbers, as JSON can hold it; kept in the history."""

    def lines(self) -> Sequence[str]:
        """The same for people, one condition a line."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a gate is asked: may this version enter that stage.

    Attributes:
        kind: promotion, rollback, or external for what was moved in by hand already.
        model: The registered model's name.
        version: The version.
        to_stage: Staging or Production.
        holder: Who holds that stage now, None for nobody.
        actor: Who decides, "unknown" for what was moved by hand.
        records: The history; see `chain.approvals` and `chain.been_in`.
    """

    kind: Kind
    model: str
    version: int
    to_stage: str
    holder: int | None
    actor: str
    records: tuple[Decision, ...]


Judge = Callable[[Case], Verdict]


class GateRefused(RegistryError):
    """A version that the gate does not let through; nothing was changed.

    Attributes:
        verdict: Every condition with its numbers.
    """

    def __init__(self, text: str, verdict: Verdict) -> None:
        super().__init__(text)
        self.verdict = verdict


class CannotJudge(RegistryError):
    """A version that no gate can judge, now or later: it has lost its run or its checkpoint."""


def decide(
    desk: Desk,
    judge: Judge | None,
    propose: Callable[[View], Decision],
    *,
    forced: bool = False,
    is_urgent: bool = False,
) -> Decision:
    """Have a decision proposed, judged, recorded and carried out; again where others were faster.

    No version that was moved in by hand stands in the way: one that cannot be judged is put back.

    Args:
        desk: The registered model.
        judge: The gate, None for no gate.
        propose: Drafts the decision for how things are, or returns one that was made already.
        forced: Whether the gate and the state of the history do not matter.
        is_urgent: Whether what was moved in by hand is put back without asking the gate, which may
            take its time; a forced decision is urgent.

    Raises:
        GateRefused: The gate does not let the version through.
        RegistryError: What `propose` raises, or MLflow refused or did not answer.
    """
    of_strangers = _not_asked if judge and (forced or is_urgent) else judge
    for _ in range(_MOST_TIMES):
        view = desk.look(forced=forced)
        if view.changes:
            _answer(desk, view.changes[0], view, of_strangers, put_back_at=OpusclipError)
            continue
        try:
            draft = _judged(propose(view), view, judge)
        except RegistryError:
            desk.finish(view)
            raise
        if draft.number:
            desk.finish(view)
            return draft
        if record := desk.append(draft, view):
            desk.settle()
            return record
    raise _restless(desk.model)


def note(desk: Desk, propose: Callable[[View], Decision], *, text: str | None = None) -> Decision:
    """Record a decision that moves no version; what was changed by hand is left for later.

    Args:
        desk: The registered model.
        propose: Drafts the decision for how things are.
        text: A long text that the decision names by its sha256.

    Raises:
        RegistryError: What `propose` raises, or MLflow refused or did not answer.
    """
    for _ in range(_MOST_TIMES):
        view = desk.look()
        if found := [change for change in view.changes if _stood_before(change, view)]:
            _answer(desk, found[0], view, None, put_back_at=CannotJudge)
        elif record := desk.append(propose(view), view, text=text, is_move=False):
            desk.close(record)
            return record
    raise _restless(desk.model)


def _answer(
    desk: Desk,
    change: Change,
    view: View,
    judge: Judge | None,
    *,
    put_back_at: type[OpusclipError],
) -> Decision | None:
    """Record a change by hand: it stands, or it is to be put back, as where judging fails so."""
    decision, back = let_stand(change, view), put_back(change, view, desk.actor)
    if _stood_before(change, view):
        is_first = all(record.nonce == desk.nonce for record in view.records)
        when = ", before this history began" if is_first else ""
        return desk.answer(change, replace(decision, reason=f"{change}{when}"), view)
    if _cannot_stand(change):
        return desk.answer(change, back, view)
    try:
        decision = _judged(decision, view, judge)
    except GateRefused as refused:
        decision = _with(back, refused.verdict)
    except put_back_at as error:
        decision = replace(back, reason=_cut(f"{back.reason}: not judged: {error}"))
    return desk.answer(change, decision, view)


def _not_asked(case: Case) -> Verdict:
    raise CannotJudge(f"the decision that finds it in {case.to_stage} does not wait")


def _stood_before(change: Change, view: View) -> bool:
    """Whether it is how a stage was when the history began: that is nobody's to judge."""
    touched = {stage for one in view.records for stage in (one.from_stage, one.to_stage)}
    is_beginning = all(record.kind == "external" for record in view.records)
    return is_beginning and change.stage not in touched


def _cannot_stand(change: Change) -> bool:
    is_elsewhere = change.found_in in HELD and change.found_in != change.stage
    return change.how == "alias removed" or (change.how == "alias" and is_elsewhere)


def _judged(draft: Decision, view: View, judge: Judge | None) -> Decision:
    """The draft with its verdict; what is written already, or enters no stage, is not judged."""
    version = draft.version
    is_entering = draft.kind in ("promotion", "rollback", "external") and draft.to_stage in HELD
    if judge is None or draft.number or version is None or not is_entering:
        return draft
    held = chain.holder(view.records, draft.to_stage)
    kind, model, to = draft.kind, draft.model, draft.to_stage
    try:
        verdict = judge(Case(kind, model, version, to, held, draft.actor, view.records))
    except OpusclipError as error:
        if not draft.forced:
            raise
        return replace(draft, reason=_cut(f"{draft.reason} (not judged: {error})"))
    if not verdict.passed and not draft.forced:
        why = "; ".join(verdict.lines())
        text = f"version {version} of {model!r} may not enter {to}: {why}"
        raise GateRefused(" ".join(text.split()), verdict)
    return _with(draft, verdict)


def _cut(reason: str) -> str:
    return one_line(reason, at_most=LONGEST_REASON)


def _with(draft: Decision, verdict: Verdict) -> Decision:
    content = verdict.to_dict()
    return replace(draft, verdict=content, policy_digest=str(content.get("policy_digest") or ""))


def answer_changes(desk: Desk, judge: Judge | None) -> tuple[Decision, ...]:
    """Record what was changed by hand, put back what the gate refuses, finish what was left.

    Raises:
        OpusclipError: The gate cannot judge a version now; it is left where it is.
        RegistryError: MLflow refused or did not answer.
    """
    made: list[Decision] = []
    for _ in range(_MOST_TIMES):
        view = desk.look()
        if not view.changes:
            desk.finish(view)
            return tuple(made)
        if record := _answer(desk, view.changes[0], view, judge, put_back_at=CannotJudge):
            made.append(record)
    raise _restless(desk.model)


def _restless(name: str) -> RegistryError:
    return RegistryError(f"others decide about {name!r} all the time: call again")
