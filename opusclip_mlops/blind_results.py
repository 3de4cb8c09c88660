"""What blind votes say: who is preferred so far, on which prompts, and by whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from scipy import stats

from opusclip_mlops.blind_votes import Ballots, Contender, Counted
from opusclip_mlops.redaction import one_line
from opusclip_mlops.significance.preferences import MINIMUM_EFFECT, Preference, preference

_ODD = 0.01  # a voter takes one side so often that it is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Votes on one prompt, or by one voter.

    Attributes:
        name: The panel's cell, or the voter.
        a: Votes for A.
        b: Votes for B.
        ties: Votes for neither.
    """

    name: str
    a: int
    b: int
    ties: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlindResult:
    """What votes on two runs' samples of a panel say so far.

    Attributes:
        session: Which comparison it is, 12 digits.
        panel: The panel's title.
        panel_digest: SHA-256 of what was asked for.
        a: One of the two.
        b: The other.
        preference: What all votes say, with the test, p and the confidence sequence.
        balanced_share: The share of A on each prompt, on average over prompts: each counts once,
            however many votes it has. None before there is one.
        prompts: The votes on each cell of the panel, in its order.
        voters: The votes of each voter.
        notes: What a reader has to know; a sentence each.
    """

    session: str
    panel: str
    panel_digest: str
    a: Contender
    b: Contender
    preference: Preference
    balanced_share: float | None
    prompts: tuple[Tally, ...]
    voters: tuple[Tally, ...]
    notes: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """All of it in a line."""
        a, b = (f"{_shown(one.called)} (step {one.step})" for one in (self.a, self.b))
        return f"panel {self.panel}, A {a}, B {b}: {self.preference.sentence}"

    def to_dict(self) -> dict[str, Any]:
        """It as JSON values, with the verdict and the sentence."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        verdict = self.preference.verdict
        own = {"preference": self.preference.to_dict(), "verdict": verdict}
        return {**plain, **own, "sentence": self.sentence}


def result_of(ballots: Ballots, *, minimum_effect: float = MINIMUM_EFFECT) -> BlindResult:
    """What the votes in a file say so far.

    Args:
        ballots: As they were read.
        minimum_effect: How far from 1/2 a preference lies that matters.

    Raises:
        RecordError: The minimum effect is not from 0 to 0.5.
    """
    votes, session = ballots.counted, ballots.session
    prompts = _tallies(session.cells, ((one.cell, one) for one in votes))
    voters = dict.fromkeys(one.voter for one in ballots.sheets.values())
    return BlindResult(
        session=session.id,
        panel=session.panel,
        panel_digest=session.panel_digest,
        a=session.a,
        b=session.b,
        preference=preference([one.vote for one in votes], minimum_effect=minimum_effect),
        balanced_share=_balanced(prompts),
        prompts=prompts,
        voters=_tallies(voters, ((one.voter, one) for one in votes)),
        notes=tuple(_notes(ballots, votes, prompts)),
    )


def _tallies(names: Iterable[str], votes: Iterable[tuple[str, Counted]]) -> tuple[Tally, ...]:
    counts = Counter((name, one.vote) for name, one in votes)
    return tuple(
        Tally(name=_shown(one), a=counts[one, "A"], b=counts[one, "B"], ties=counts[one, "tie"])
        for one in names
    )


def _shown(name: str) -> str:
    """A name out of a file, which may say anything."""
    return one_line(name, at_most=120)


def _balanced(prompts: Iterable[Tally]) -> float | None:
    shares = [one.a / (one.a + one.b) for one in prompts if one.a + one.b]
    return sum(shares) / len(shares) if shares else None


def _notes(ballots: Ballots, votes: list[Counted], prompts: tuple[Tally, ...]) -> Iterator[str]:
    counts = [one.a + one.b + one.ties for one in prompts]
    if votes and min(counts) != max(counts):
        yield f"The prompts have from {min(counts)} to {max(counts)} votes each."
    if ballots.damaged:
        yield f"{ballots.damaged} damaged lines of the file were passed over."
    for voter in dict.fromkeys(one.voter for one in votes):
        sides = Counter(one.choice for one in votes if one.voter == voter)
        left, both = sides["left"], sides["left"] + sides["right"]
        if both and stats.binomtest(left, both).pvalue < _ODD:
            times = f"{left} of {both} times"
            yield f"Voter {_shown(voter)} chose the left side {times}: did they look?"
