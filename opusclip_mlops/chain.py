"""The history of a registered model: a chain of records, and what follows from it.

MLflow keeps the records as params of a run: `000001`, `000002`, … A param is written once, so the
database decides which of two processes writes a number. Texts that are too long for a record are
params too, in parts, named by the sha256 of the text: `<sha256>.0`, `<sha256>.1`, …

Who holds a stage follows from the records alone. The registry is made to look like that.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from opusclip_mlops.decisions import (
    ARCHIVED,
    HELD,
    LONGEST_RECORD,
    MOST_DIGITS,
    MOVING,
    NO_STAGE,
    Decision,
    canonical,
    from_text,
    number_in,
    sealed,
    sha256_of,
    to_text,
)
from opusclip_mlops.errors import RegistryError

_PART = re.compile(r"([0-9a-f]{64})\.(0|[1-9][0-9]?)")
_MOST_PARTS = 100
_LONGEST_ADMITTED = 200


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a history, at which record; 0 is the history as a whole."""

    number: int
    what: str

    def __str__(self) -> str:
        return f"record {self.number} {self.what}" if self.number else self.what

    @property
    def short(self) -> str:
        """Its first 200 characters, as a record keeps what was forced."""
        return str(self)[:_LONGEST_ADMITTED]


@dataclass(frozen=True, slots=True)
class Chain:
    """A history as it was read: its records in order, and what is wrong with them."""

    model: str
    origin: str
    records: tuple[Decision, ...] = ()
    last_number: int = 0
    problems: tuple[Problem, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """The number and the hash of the last record, as the registered model's tag keeps it."""
        return f"{self.last_number} {self._last_hash}" if self.last_number else ""

    @property
    def unsettled(self) -> tuple[Problem, ...]:
        """The problems that nobody has passed over in writing, by forcing a decision."""
        admitted = {what for one in self.records for what in one.problems}
        lines = admitted | {one.short for one in _admitted(self.records)}
        return tuple(one for one in self.problems if one.short not in lines)

    @property
    def _last_hash(self) -> str:
        return self.records[-1].hash if self.records else self.origin

    @property
    def callers(self) -> frozenset[str]:
        """The nonces of all calls that have written records."""
        return frozenset(one.nonce for one in self.records)

    def next(self, draft: Decision) -> Decision:
        """The draft as the record after the last one.

        Raises:
            RegistryError: There is no number after the last one.
        """
        if self.last_number + 1 >= 10**MOST_DIGITS:
            raise RegistryError(
                f"the history of {self.model!r} is full: somebody wrote param {self.last_number}"
            )
        return sealed(draft, number=self.last_number + 1, previous_hash=self._last_hash)


def origin_of(model: str, run_id: str) -> str:
    """What the first record follows: the model and the run, so that no chain fits elsewhere."""
    return sha256_of(canonical({"model": model, "run_id": run_id}))


def key_of(number: int) -> str:
    """The param that holds a record: 000001."""
    return f"{number:06d}"


def is_key(param: str) -> bool:
    """Whether a param holds a record."""
    number = number_in(param) or 0
    return number > 0 and param == key_of(number)


def parts_of(text: str) -> dict[str, str]:
    """The params that keep a long text, named by its sha256.

    Raises:
        RegistryError: Longer than 100 params can hold.
    """
    line = json.dumps(text, ensure_ascii=False)
    starts = range(0, len(line), LONGEST_RECORD)
    if len(starts) > _MOST_PARTS:
        raise RegistryError(
            f"a text of {len(text):,} characters is too long for a history: at most "
            f"{_MOST_PARTS * LONGEST_RECORD:,}"
        )
    return {
        f"{sha256_of(text)}.{part}": line[start : start + LONGEST_RECORD]
        for part, start in enumerate(starts)
    }


def read_chain(params: Mapping[str, str], *, model: str, run_id: str) -> Chain:
    """The history that the params of a run hold, verified; other params are passed over."""
    records, problems = [], []
    keys = sorted((key for key in params if is_key(key)), key=int)
    for key in keys:
        try:
            records.append(_read(key, params[key]))
        except RegistryError as error:
            problems.append(Problem(int(key), str(error)))
    origin, texts = origin_of(model, run_id), _texts(params)
    problems += verify_chain(
        records, model=model, origin=origin, unread={p.number for p in problems}
    )
    problems += _missing_texts(records, texts)
    problems += _unjudged(records)
    problems += _admitted(records)
    found = tuple(sorted(problems, key=lambda problem: problem.number))
    return Chain(model, origin, tuple(records), int(keys[-1]) if keys else 0, found, texts)


def verify_chain(
    records: Sequence[Decision], *, model: str, origin: str, unread: set[int] | None = None
) -> list[Problem]:
    """What was changed, removed, put in or moved in a chain of records.

    Args:
        records: In the order in which they are kept.
        model: The registered model that all of them must be about.
        origin: What the first record follows, see `origin_of`.
        unread: Numbers whose record is there but cannot be read; they are not missing.
    """
    problems: list[Problem] = []
    previous_number, previous_hash = 0, origin
    for record in records:
        problems += _missing(previous_number, record.number, unread or set())
        problems += _problems_of(record, model)
        if record.number <= previous_number:
            problems.append(Problem(record.number, f"stands after record {previous_number}"))
        elif record.number == previous_number + 1 and record.previous_hash != previous_hash:
            problems.append(Problem(record.number, "does not follow the record before it"))
        previous_number, previous_hash = record.number, record.hash
    return problems


def cut_off(chain: Chain, head: str) -> list[Problem]:
    """Whether the end is missing, by the head that the registered model's tag names."""
    digits, _, hash_of_head = head.partition(" ")
    if not head:
        return []
    number = number_in(digits)
    if number is None:
        return [Problem(0, f"the tag of its head is {head[:80]!r}, which names no record")]
    if number > chain.last_number:
        last = f"its last record is {chain.last_number}"
        return [Problem(0, f"its end is missing: {last}, it had {number}")]
    named = [one for one in chain.records if one.number == number]
    if named and named[0].hash != hash_of_head:
        return [Problem(number, "is not the one that the tag of the head names")]
    return []


def places(records: Sequence[Decision]) -> dict[int, str]:
    """Where each version is by the records: Staging, Production, Archived, None or Deleted."""
    found: dict[int, str] = {}
    for record in _moves(records):
        _move(found, record)
    return found


def holders_since(records: Sequence[Decision], stage: str, number: int) -> set[int]:
    """Everybody who held a stage at record `number` or later, by the records."""
    found: dict[int, str] = {}
    held: set[int] = set()
    for record in records:
        if record.number > number:
            held |= {version for version, place in found.items() if place == stage}
        if record.kind in MOVING:
            _move(found, record)
    return held | {version for version, place in found.items() if place == stage}


def holder(records: Sequence[Decision], stage: str) -> int | None:
    """Who holds a stage by the records, None for nobody."""
    return next((version for version, held in places(records).items() if held == stage), None)


def place_of(records: Sequence[Decision], version: int) -> str:
    """Where a version is by the records; "None" where they do not know it."""
    return places(records).get(version, NO_STAGE)


def made_holder(records: Sequence[Decision], stage: str) -> Decision | None:
    """The record by which the present holder of a stage came to hold it."""
    version = holder(records, stage)
    entered = [one for one in _moves(records) if (one.version, one.to_stage) == (version, stage)]
    return entered[-1] if version is not None and entered else None


def holders_before(records: Sequence[Decision], stage: str) -> list[int]:
    """Whom a rollback may put back, the last first.

    What was rolled back is not among them, nor what was taken out of the stage or deleted: rolling
    back twice goes back by two.
    """
    line: list[int] = []
    for record in _moves(records):
        if record.version is None:
            continue
        if record.to_stage != stage:
            line = line[:-1] if line[-1:] == [record.version] else line
        elif record.kind == "rollback" and record.version in line:
            line = line[: _last_index(line, record.version) + 1]
        elif line[-1:] != [record.version]:
            line.append(record.version)
    present = holder(records, stage)
    return list(dict.fromkeys(version for version in reversed(line) if version != present))


def until(records: Sequence[Decision], timestamp_ms: int) -> tuple[Decision, ...]:
    """The records up to the last one that was made by then, in the order of the chain."""
    made = [index for index, one in enumerate(records) if one.timestamp_ms <= timestamp_ms]
    return tuple(records[: made[-1] + 1]) if made else ()


def approvals(records: Sequence[Decision], version: int, stage: str) -> tuple[Decision, ...]:
    """Approvals of a version for a stage that still count: made since it was moved last.

    It is moved, too, when another version takes its place; what is said of the holder is no
    approval.
    """
    found: tuple[Decision, ...] = ()
    held: dict[int, str] = {}
    for record in records:
        place = held.get(version)
        if record.kind in MOVING:
            _move(held, record)
            found = found if record.version != version and held.get(version) == place else ()
        elif (record.kind, record.version, record.to_stage) == ("approval", version, stage):
            found = found if place == stage else (*found, record)
    return found


def moved_since(records: Sequence[Decision], stage: str, number: int) -> bool:
    """Whether a record after `number` moved a version into a stage, or out of it."""
    later = (one for one in _moves(records) if one.number > number)
    return any(stage in (one.from_stage, one.to_stage) for one in later)


def been_in(records: Sequence[Decision], version: int) -> frozenset[str]:
    """The stages that a version has ever held."""
    moved = (one for one in _moves(records) if one.version == version)
    return frozenset(one.to_stage for one in moved if one.to_stage in HELD)


def fitted(draft: Decision) -> tuple[Decision, str | None]:
    """The draft so that it fits into a param, and the verdict's text where it had to go.

    Raises:
        RegistryError: It is too long even so.
    """
    room = LONGEST_RECORD - 200  # for the number and two hashes, filled in later
    if len(to_text(draft)) <= room:
        return draft, None
    text = None if draft.verdict is None else canonical(draft.verdict)
    short = replace(draft, verdict=None, verdict_sha256="" if text is None else sha256_of(text))
    if len(to_text(short)) > room:
        raise RegistryError(f"a decision about {draft.model[:80]} is too long to be recorded")
    return short, text


def _read(key: str, text: str) -> Decision:
    record = from_text(text)
    if key_of(record.number) != key:
        raise RegistryError(f"says that it is record {record.number}")
    return record


def _problems_of(record: Decision, model: str) -> Iterator[Problem]:
    if record.hash != record.digest:
        yield Problem(record.number, "was changed: its hash is not that of what it says")
    if record.model != model:
        yield Problem(record.number, f"is about another model, {record.model[:80]!r}")


def _missing(before: int, number: int, unread: set[int]) -> Iterator[Problem]:
    """One problem for each row of numbers that is missing below `number`."""
    borders = sorted({before, number, *(one for one in unread if before < one < number)})
    for low, high in itertools.pairwise(borders):
        first, last = low + 1, high - 1
        if first == last:
            yield Problem(first, "is missing")
        elif first < last:
            yield Problem(first, f"is missing, and so are all up to {last}")


def _admitted(records: Sequence[Decision]) -> list[Problem]:
    """What was wrong when somebody forced a decision onto the history, kept in that record."""
    return [Problem(one.number, f"was forced: {what}") for one in records for what in one.problems]


def _texts(params: Mapping[str, str]) -> dict[str, str]:
    """The long texts that are whole, by their sha256."""
    digests = {found[1] for key in params if (found := _PART.fullmatch(key))}
    texts = {digest: _text(params, digest) for digest in digests}
    return {digest: text for digest, text in texts.items() if text is not None}


def _text(params: Mapping[str, str], digest: str) -> str | None:
    """The text of the fewest first parts that have the digest; anybody may have added more."""
    line = ""
    for part in range(_MOST_PARTS):
        value = params.get(f"{digest}.{part}")
        if value is None:
            return None
        line += value
        text = _said(line) if value.endswith('"') else None
        if text is not None and sha256_of(text) == digest:
            return text
    return None


def _said(line: str) -> str | None:
    """The text that JSON holds; None where it holds none, or only halves of characters."""
    try:
        text = json.loads(line)
        return text if isinstance(text, str) and text.encode() is not None else None
    except (ValueError, RecursionError):
        return None


def _missing_texts(records: Sequence[Decision], texts: Mapping[str, str]) -> list[Problem]:
    named = ((one.number, one.verdict_sha256) for one in records if one.verdict_sha256)
    policies = ((one.number, one.policy_digest) for one in records if one.kind == "policy")
    absent = [(number, "verdict") for number, digest in named if digest not in texts]
    absent += [(number, "policy") for number, digest in policies if digest not in texts]
    return [Problem(number, f"has lost its {what}, or it was changed") for number, what in absent]


def _unjudged(records: Sequence[Decision]) -> Iterator[Problem]:
    """Who entered a stage while there was a policy, and was neither judged by it nor forced."""
    has_policy = False
    for one in records:
        is_judged = one.forced or one.verdict is not None or bool(one.verdict_sha256)
        if one.kind == "policy":
            has_policy = one.policy_digest != sha256_of("")
        elif has_policy and one.kind in MOVING and one.to_stage in HELD and not is_judged:
            yield Problem(one.number, f"entered {one.to_stage} without a verdict")


def _move(found: dict[int, str], record: Decision) -> None:
    if record.to_stage in HELD:
        displaced = [version for version, stage in found.items() if stage == record.to_stage]
        found |= dict.fromkeys(displaced, ARCHIVED)
    if record.version is not None:
        found[record.version] = record.to_stage


def _moves(records: Sequence[Decision]) -> Iterator[Decision]:
    return (record for record in records if record.kind in MOVING)


def _last_index(line: list[int], version: int) -> int:
    return len(line) - 1 - line[::-1].index(version)
