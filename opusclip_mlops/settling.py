"""Making the registry look like the history, and telling what was moved there by hand.

Whoever decides says first that the registry is about to change (`Ledger.announce`), then appends
the record, then settles: reads, writes what differs, and reads again until nothing differs. A write
of a slow process that comes too late is put right by itself, for it reads again; if it was killed,
by the next call. What no announced decision explains was done by hand.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from mlflow import MlflowClient

from opusclip_mlops.chain import (
    Chain,
    Problem,
    cut_off,
    fitted,
    holder,
    holders_since,
    moved_since,
    place_of,
    places,
    read_chain,
)
from opusclip_mlops.decisions import HELD, Actor, CameBy, Decision, model_named
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.ledger import Ledger, Notes, find_ledger, namesake, open_ledger, succeed
from opusclip_mlops.patience import may_wait
from opusclip_mlops.standing import (
    HEAD_TAG,
    HISTORY_TAG,
    Standing,
    Write,
    alias_of,
    read_standing,
    write,
    writes_towards,
)

How = Literal["moved in", "alias", "taken out", "deleted", "alias removed"]

_MOST_ROUNDS = 100
_COURTESY_S = 3.0
_PAUSE_S = (0.05, 0.2)
_MOST_ADMITTED = 8


@dataclass(frozen=True, slots=True)
class Change:
    """What somebody changed by hand.

    Attributes:
        stage: Staging or Production.
        how: "moved in" by its stage, "alias" set to it, "taken out" of its stage, "deleted", or
            "alias removed" while its stage stayed.
        version: The version that was moved.
        found_in: The stage it is in now, "Deleted" when it is gone.
        holder: Who holds the stage by the history, None for nobody.
    """

    stage: str
    how: How
    version: int
    found_in: str = field(compare=False)
    holder: int | None = field(compare=False)

    def __str__(self) -> str:
        alias = alias_of(self.stage)
        texts = {
            "moved in": f"version {self.version} was put into {self.stage} by hand",
            "alias": f"alias {alias} was set to version {self.version} by hand",
            "taken out": f"version {self.version} was taken out of {self.stage} by hand",
            "deleted": f"version {self.version}, the holder of {self.stage}, was deleted",
            "alias removed": f"alias {alias} of version {self.version} was removed by hand",
        }
        return texts[self.how]


@dataclass(frozen=True, slots=True)
class View:
    """The history and the registry, read so that their differences are told apart."""

    notes: Notes
    standing: Standing
    changes: tuple[Change, ...]

    @property
    def chain(self) -> Chain:
        """The history."""
        return self.notes.chain

    @property
    def records(self) -> tuple[Decision, ...]:
        """The history's records."""
        return self.notes.chain.records

    def writes(self, run_id: str) -> list[Write]:
        """What is missing in the registry; a history without records asks for nothing."""
        if not self.chain.last_number:
            return []
        tags = {HISTORY_TAG: run_id, HEAD_TAG: self.chain.head}
        return writes_towards(self.standing, places(self.records), tags)


@dataclass
class Desk:
    """One call's work on one registered model: it looks, decides and settles.

    The history is begun with the first decision: a call that decides nothing leaves no trace.
    """

    client: MlflowClient
    model: str
    actor: Actor
    came_by: CameBy
    ledger: Ledger | None = None
    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)
    answered: list[Change] = field(default_factory=list)
    passed_over: dict[str, None] = field(default_factory=dict)

    def look(self, *, forced: bool = False) -> View:
        """How things are.

        Raises:
            RegistryError: The model is gone, or its history is, or was tampered with and nobody
                `forced` the decision.
        """
        self.ledger = self.ledger or _ledger_of(self.client, self.model)
        view = look(self.client, self.model, self.ledger, answered=self.answered)
        if self.ledger and not view.notes.is_active:
            raise RegistryError(
                f"the history of {self.model!r} is deleted: restore run {self.ledger.run_id}"
            )
        if view.chain.unsettled and not forced:
            raise RegistryError(_damaged(view.chain))
        self.passed_over |= dict.fromkeys(one.short for one in view.chain.unsettled)
        return view

    def answer(self, change: Change, decision: Decision, view: View) -> Decision | None:
        """Write the decision on a change by hand; it holds for all that was changed in its stage.

        Raises:
            RegistryError: As `append`.
        """
        record = self.append(decision, view)
        if record:
            self.answered += [one for one in view.changes if one.stage == change.stage]
        return record

    def append(
        self, decision: Decision, view: View, *, text: str | None = None, is_move: bool = True
    ) -> Decision | None:
        """Write a decision that was made on `view`; None when another process decided meanwhile.

        Args:
            decision: What was decided; its number, time and hashes are filled in.
            view: What it was decided on.
            text: A long text that it names by its sha256.
            is_move: Whether the registry is to be changed by it.

        Raises:
            RegistryError: MLflow refused, or did not answer.
        """
        chain = self._begun(view)
        if chain is None or self.ledger is None:
            return None
        self._name_head(view)
        told = {one.short for one in view.chain.problems}
        full = replace(
            decision,
            came_by=self.came_by,
            nonce=self.nonce,
            timestamp_ms=time.time_ns() // 1_000_000,
            problems=tuple(one for one in self.passed_over if one in told)[:_MOST_ADMITTED],
        )
        draft, verdict = fitted(full)
        record = chain.next(draft)
        if is_move:
            self._announce(view.notes)
        kept = verdict if text is None else text
        return record if self.ledger.append(record, text=kept) else None

    def settle(self) -> None:
        """Make the registry look like the history; other changes by hand are recorded, put back.

        Raises:
            RegistryError: MLflow refused, or something else moves the versions all the time.
        """
        ledger, courtesy_s = self.ledger, _COURTESY_S if may_wait() else 0.0
        end_s = time.monotonic() + courtesy_s
        for _ in range(_MOST_ROUNDS if ledger else 0):
            view = look(self.client, self.model, ledger, answered=self.answered)
            if view.changes:
                self.answer(view.changes[0], put_back(view.changes[0], view, self.actor), view)
                continue
            writes = view.writes(ledger.run_id) if ledger else []
            if not writes:
                return self._withdraw(view.notes)
            if time.monotonic() < end_s and self._is_others(view.notes):
                time.sleep(random.uniform(*_PAUSE_S))
                continue
            self._announce(view.notes)
            for one in writes:
                write(self.client, self.model, one)
        if ledger:
            raise RegistryError(f"something else moves the versions of {self.model!r} all the time")
        return None

    def close(self, record: Decision) -> None:
        """Show a decision that moved nothing as the head; settle what was found before."""
        if self.answered:
            return self.settle()
        return self._show(f"{record.number} {record.hash}")

    def finish(self, view: View) -> None:
        """Settle where this call, or one that was killed, has left something to be done."""
        is_mine = self.nonce in view.notes.settling
        if self.ledger and (is_mine or view.writes(self.ledger.run_id)):
            self.settle()

    def _is_others(self, notes: Notes) -> bool:
        """Whether the last decision is of somebody who is about to carry it out.

        All who write the same rows at once only block each other.
        """
        last = notes.chain.records[-1:]
        return any(one.nonce != self.nonce and one.nonce in notes.settling for one in last)

    def _name_head(self, view: View) -> None:
        """Name the head of a call that has not done so, before another one's record is there."""
        callers = view.chain.callers
        if len(callers) == 1 and self.nonce not in callers and not view.standing.names_head:
            self._show(view.chain.head)

    def _show(self, head: str) -> None:
        tags = {HISTORY_TAG: self.ledger.run_id, HEAD_TAG: head} if self.ledger else {}
        for key, value in tags.items():
            write(self.client, self.model, Write("tag", key, value=value))

    def _begun(self, view: View) -> Chain | None:
        """The chain to append to; None where somebody else began it since `view`."""
        if self.ledger and not view.notes.is_erased:
            return view.chain
        made_ms = view.standing.created_ms
        if self.ledger:
            self.ledger = succeed(self.ledger, created_ms=made_ms)
        else:
            self.ledger = open_ledger(self.client, self.model, created_ms=made_ms)
        begun = self.ledger.read().chain
        return None if begun.last_number else begun

    def _announce(self, notes: Notes) -> None:
        if self.ledger and self.nonce not in notes.settling:
            self.ledger.announce(self.nonce, notes.chain.last_number)

    def _withdraw(self, notes: Notes) -> None:
        mine = {self.nonce} & set(notes.settling)
        if self.ledger:
            self.ledger.withdraw(sorted(mine | set(notes.forgotten)))


def open_desk(
    client: MlflowClient, model: str, *, actor: Actor, came_by: CameBy, version: int | None = None
) -> Desk:
    """Begin work on a registered model, or on one of its versions.

    Raises:
        RegistryError: There is no such model or version, or MLflow refused or did not answer.
    """
    standing = read_standing(client, model_named(model))
    if version is not None and version not in standing.stages:
        raise RegistryError(standing.lack(version))
    return Desk(client, model, actor, came_by)


def look(
    client: MlflowClient, model: str, ledger: Ledger | None, *, answered: Collection[Change] = ()
) -> View:
    """The history and the registry; a difference counts as made by hand when it lasts.

    The registry is read before the history and, where it differs, after it once more: whatever a
    process was about to write in between has been announced in the history by then.

    Args:
        client: MLflow.
        model: The registered model's name.
        ledger: The history, None where there is none.
        answered: Changes that the history has an answer to; they are not told again.
    """
    first = standing = read_standing(client, model)
    notes = ledger.read() if ledger else Notes(read_chain({}, model=model, run_id=""))
    found = [one for one in changes(first, notes) if one not in answered]
    is_headless = len(notes.chain.callers) > 1 and not first.names_head
    if found or is_headless:
        standing = read_standing(client, model)
        lasting = changes(standing, notes)
        found = [one for one in found if one in lasting]
    problems = [*notes.chain.problems, *_misfits(first, ledger, notes.chain)]
    if is_headless and not standing.names_head:
        problems.append(Problem(0, "its head is not named: the end may be missing"))
    if not notes.chain.last_number and not first.tags.get(HISTORY_TAG):
        problems += _namesakes(client, first)
    notes = replace(notes, chain=replace(notes.chain, problems=tuple(problems)))
    return View(notes, standing, tuple(found))


def _misfits(standing: Standing, ledger: Ledger | None, chain: Chain) -> list[Problem]:
    """Whether the history is the one that the registered model names, with the end it names."""
    named = standing.tags.get(HISTORY_TAG, "")
    known = (ledger.run_id, *ledger.before) if ledger else ()
    if named and named not in known:
        return [Problem(0, f"run {named[:80]} was its history: erased, or the model was renamed")]
    if ledger and named in ("", ledger.run_id):
        return cut_off(chain, standing.tags.get(HEAD_TAG, ""))
    return []


def _namesakes(client: MlflowClient, standing: Standing) -> Iterator[Problem]:
    if run_id := namesake(client, standing.model, created_ms=standing.created_ms):
        text = f"run {run_id} is a history of that name: was the model deleted and made again?"
        yield Problem(0, text)


def changes(standing: Standing, notes: Notes) -> list[Change]:
    """What no decision explains, neither the last one nor one that is being settled."""
    return [change for stage in reversed(HELD) for change in _changes_of(stage, standing, notes)]


def put_back(change: Change, view: View, actor: Actor) -> Decision:
    """The record of a change by hand that is not let stand; a deletion stands in any case."""
    if change.how == "deleted":
        return let_stand(change, view)
    return Decision(
        kind="repair",
        model=view.chain.model,
        version=change.version,
        from_stage=place_of(view.records, change.version),
        to_stage=change.stage,
        previous_holder=change.holder,
        actor=actor.name,
        actor_known_by=actor.known_by,
        reason=f"{change}, and put back",
    )


def let_stand(change: Change, view: View) -> Decision:
    """The record of a change by hand that is let stand."""
    came_in = change.how in ("moved in", "alias")
    return Decision(
        kind="external",
        model=view.chain.model,
        version=change.version,
        from_stage=place_of(view.records, change.version) if came_in else change.stage,
        to_stage=change.stage if came_in else change.found_in,
        previous_holder=change.holder if came_in else None,
        reason=str(change),
    )


def _changes_of(stage: str, standing: Standing, notes: Notes) -> Iterator[Change]:
    records = notes.chain.records
    settled_to = notes.settled_to
    present, explained = holder(records, stage), holders_since(records, stage, settled_to)
    alias = standing.aliases.get(alias_of(stage))

    def change(how: How, version: int) -> Change:
        return Change(stage, how, version, standing.stage_of(version), present)

    strangers = sorted(standing.inside(stage) - explained, reverse=True)
    yield from (change("moved in", version) for version in strangers)
    if alias is not None and alias not in explained and alias not in strangers:
        yield change("alias", alias)
    elif present is not None and present not in standing.stages:
        yield change("deleted", present)
    elif present is not None and not strangers and not moved_since(records, stage, settled_to):
        if standing.stages[present] != stage:
            yield change("taken out", present)
        elif alias is None:
            yield change("alias removed", present)


def _ledger_of(client: MlflowClient, model: str) -> Ledger | None:
    created_ms = read_standing(client, model).created_ms
    return find_ledger(client, model, created_ms=created_ms)


def _damaged(chain: Chain) -> str:
    what = "; ".join(str(one) for one in chain.unsettled[:3])
    return f"the history of {chain.model!r} was tampered with: {what}; look into it, or force"
