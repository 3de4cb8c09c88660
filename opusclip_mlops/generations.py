"""The generations of a run: each time training went on from a checkpoint, the next one began.

What a run logged first is generation 0. Each later one leaves a tag that says when it began, and
from which checkpoint. Numbers are not kept but counted in the order of the beginnings, so that who
begins one need not know how many there were. A point belongs to the generation in whose time it was
logged; the clocks of the machines that train on one run are taken to agree.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.records import SYSTEM_PREFIX, to_step

GENERATION_TAG = "opusclip.generation."
"""Begins the name of the tag that a generation leaves."""

_MOST_SKEW_MS = 24 * 3600 * 1000
_NAME_CHARACTERS = 250
_NO_LIMIT = 2**63
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A part of a run that went on from a checkpoint.

    Attributes:
        number: From 1; what was logged before the first of them is generation 0.
        start_ms: When it began, Unix milliseconds: no point of it has an earlier time.
        after_step: The checkpoint's step: the first it logs anew is the one after.
        checkpoint: The checkpoint's name.
        parent: The generation that made the checkpoint.
    """

    number: int
    start_ms: int
    after_step: int
    checkpoint: str
    parent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a generation looks back on: its own, and that of its parents up to where it left them.

    Attributes:
        generations: All of the run.
        reach: The last step that counts of each generation in the line.
    """

    generations: Sequence[Generation]
    reach: Mapping[int, int]

    def holds(self, *, key: str, step: int, timestamp_ms: int) -> bool:
        """Whether a point is a part of it; what the machine uses has steps of its own, and is."""
        reach = self.reach.get(generation_of(self.generations, timestamp_ms), -_NO_LIMIT - 1)
        return step <= reach or key.startswith(SYSTEM_PREFIX)


class _Written(msgspec.Struct, frozen=True):
    """What the tag of a generation says, as JSON."""

    start_ms: _Int64
    after_step: _Int64
    checkpoint: str
    checkpoint_ms: _Int64
    rank: _Int64 | None = None


def generation_tag(
    session: str, *, start_ms: int, begun_from: CheckpointMetadata, rank: int | None = None
) -> dict[str, str]:
    """The tag that a generation leaves, the same however often it is sent.

    Args:
        session: A name of the process that no other process has.
        start_ms: When it began, as `start_after` says it.
        begun_from: The checkpoint that it went on from.
        rank: The process's number among those that train together, as `ranks.rank_in` says it.

    Raises:
        RecordError: the checkpoint's step is beyond 64 bits.
    """
    mark = hashlib.sha256(session.encode()).hexdigest()[:8]
    name = begun_from.name[:_NAME_CHARACTERS].encode(errors="replace").decode()
    made_ms = max(0, min(begun_from.created_ms, start_ms - 1))
    said = _Written(start_ms, to_step(begun_from.step), name, made_ms, rank)
    return {f"{GENERATION_TAG}{start_ms}-{mark}": msgspec.json.encode(said).decode()}


def tags_of_generations(tags: Mapping[str, str]) -> dict[str, str]:
    """Of a run's tags, those that its generations have left."""
    return {name: text for name, text in tags.items() if name.startswith(GENERATION_TAG)}


def generations_of(tags: Mapping[str, str]) -> tuple[Generation, ...]:
    """The generations of a run by its tags, in their order; a tag that is none of ours is none.

    Processes that train together begin one generation: once a rank comes again, it is the next.
    """
    found = sorted(_read(tags), key=lambda one: (one[1].start_ms, one[0]))
    known: list[Generation] = []
    together: list[_Written] = []
    for _, said in found:
        if _belongs(said, together):
            together.append(said)
            continue
        together = [said]
        known.append(
            Generation(
                number=len(known) + 1,
                start_ms=said.start_ms,
                after_step=said.after_step,
                checkpoint=said.checkpoint,
                parent=generation_of(known, said.checkpoint_ms),
            )
        )
    return tuple(known)


def _belongs(said: _Written, together: Sequence[_Written]) -> bool:
    """Whether a process went on together with these."""
    known = {one.rank for one in together}
    if not known or said.rank is None or known & {said.rank, None}:
        return False
    first = together[0]
    return (said.checkpoint, said.after_step) == (first.checkpoint, first.after_step)


def _read(tags: Mapping[str, str]) -> Iterator[tuple[str, _Written]]:
    for name, text in tags.items():
        if not name.startswith(GENERATION_TAG):
            continue
        try:
            yield name, msgspec.json.decode(text, type=_Written)
        except (msgspec.DecodeError, UnicodeError, RecursionError, TypeError):
            continue


def generation_of(generations: Sequence[Generation], timestamp_ms: int) -> int:
    """The number of the generation in whose time something was logged."""
    return sum(one.start_ms <= timestamp_ms for one in generations)


def line_of(generations: Sequence[Generation], number: int) -> Line:
    """What a generation looks back on; the highest number is that of the run as it is now."""
    limit = _NO_LIMIT
    reach = {number: limit}
    while number:
        begun = generations[number - 1]
        limit, number = min(limit, begun.after_step), begun.parent
        reach[number] = limit
    return Line(generations=generations, reach=reach)


def is_superseded(
    generations: Sequence[Generation], *, key: str, step: int, timestamp_ms: int
) -> bool:
    """Whether training went on from before a point, and so came by its step anew."""
    now = line_of(generations, len(generations))
    return not now.holds(key=key, step=step, timestamp_ms=timestamp_ms)


def start_after(checkpoint_ms: int, *, now_ms: int) -> int:
    """When a generation begins: now, but not before its checkpoint was made.

    A clock that is a day ahead is not believed.
    """
    is_behind = now_ms <= checkpoint_ms <= now_ms + _MOST_SKEW_MS
    return checkpoint_ms + 1 if is_behind else now_ms
