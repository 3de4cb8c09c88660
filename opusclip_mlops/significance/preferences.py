"""Blind votes for A or B: what they say so far, however often one looks.

**The test.** Where nobody prefers anything, each vote that is no tie is for A with probability 1/2,
whatever came before: the sides were drawn, so the voter's choice of a side says nothing about A.
Bet on the votes with a stake of 1, at fair odds. Who spreads the stake over all preferences p, by
the density of Beta(s, s), and bets with each part as if its p were true, holds after w votes for A
and l for B

    E = ∫ p^w (1-p)^l dBeta(p; s, s) / 2^-(w+l) = 2^(w+l) · B(s+w, s+l) / B(s, s).

No way of betting makes money on average in a fair game: E is a martingale of mean 1 that never
falls below 0 (such mixtures: Robbins, "Statistical methods related to the law of the iterated
logarithm", 1970). Ville's inequality ("Étude critique de la notion de collectif", 1939): such a
process *ever* reaches 1/α with probability α at most. So 1 / (the largest E so far) is a p that may
be looked at after each vote, and one may stop or go on as one likes: where nothing is preferred it
ever falls to 0.05 in 5 of 100 experiments at most.

**The interval.** The same bet against another share q of A than 1/2 holds E(q), with q^w (1-q)^l in
the place of 2^-(w+l). The q whose E(q) never reached 20 hold the true share at all times together
with probability 95 %: a confidence sequence (Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform,
nonparametric, nonasymptotic confidence sequences", 2021; bets turned into estimates: Waudby-Smith
and Ramdas, "Estimating means of bounded random variables by betting", 2024). What was ruled out
once stays so. 1/2 is ruled out exactly when the test rejects.

It is wider than an interval for a number of votes fixed before: that is the price of looking.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy import special

from opusclip_mlops.errors import RecordError
from opusclip_mlops.intervals import LEVEL
from opusclip_mlops.significance.results import (
    ALPHA,
    Estimate,
    Floats,
    as_json,
    is_number,
    p_in_words,
)

Vote = Literal["A", "B", "tie"]
Preferred = Literal["A", "B", "neither", "undecided"]

PRIOR = 2.0
"""The s of the mixture, Beta(s, s): the larger, the sooner a small preference is seen."""

MINIMUM_EFFECT = 0.1
"""A preference within 40:60 and 60:40 is none that matters, where nothing else is said."""

_STEPS = 50  # of a bisection: 15 digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """What votes say so far.

    Attributes:
        votes_a: How many are for A.
        votes_b: How many are for B.
        ties: How many are for neither; they say nothing of which is preferred.
        e_value: What the bet of the module's page holds now, 0 or more.
        p: 1 / the largest that it ever held, 1 at most: valid at any time.
        share: Of A among votes that are no ties, with its confidence sequence; 0.5 from 0 to 1
            before the first.
        minimum_effect: How far from 1/2 a preference lies that matters.
    """

    votes_a: int
    votes_b: int
    ties: int
    e_value: float
    p: float
    share: Estimate
    minimum_effect: float = MINIMUM_EFFECT

    @property
    def n(self) -> int:
        """How many votes there are, ties among them."""
        return self.votes_a + self.votes_b + self.ties

    @property
    def verdict(self) -> Preferred:
        """Who is preferred, "neither" where at most a preference that does not matter is left."""
        low, high = self.share.low or 0.0, self.share.high or 0.0
        if low > high:  # the votes changed while they came
            return "undecided"
        if abs(low - 0.5) < self.minimum_effect and abs(high - 0.5) < self.minimum_effect:
            return "neither"
        if self.p > ALPHA:
            return "undecided"
        return "A" if low + high > 1 else "B"

    @property
    def sentence(self) -> str:
        """All of it in a line."""
        if not self.votes_a + self.votes_b:
            return f"no vote for A or B yet, {_counted(self.ties, 'tie')}: undecided"
        ties = _counted(self.ties, "tie")
        votes = f"{_counted(self.votes_a, 'vote')} for A, {self.votes_b} for B, {ties}"
        between = f"{self.share.low:.1%} to {self.share.high:.1%}"
        share = f"A's share {self.share.value:.1%} ({LEVEL:.0%} confidence sequence {between})"
        evidence = f"e-value {self.e_value:.3g}, {p_in_words(self.p)} by its highest so far"
        return f"{votes}: {_SAID[self.verdict]}{self._turned}; {share}, {evidence}"

    @property
    def _turned(self) -> str:
        is_turned = (self.share.low or 0.0) > (self.share.high or 0.0)
        return ", as the votes turned round while they came" if is_turned else ""

    def to_dict(self) -> dict[str, Any]:
        """It as JSON values, with n, the test, the verdict and the sentence."""
        return {
            "n": self.n,
            "test": f"beta-binomial e-process, Beta({PRIOR:g}, {PRIOR:g})",
            **as_json(self),
            "verdict": self.verdict,
            "sentence": self.sentence,
        }


_SAID = {
    "A": "A is preferred",
    "B": "B is preferred",
    "neither": "neither is preferred by as much as matters",
    "undecided": "undecided",
}


def preference(votes: Iterable[Vote], *, minimum_effect: float = MINIMUM_EFFECT) -> Preference:
    """What votes say so far of who is preferred; ask after each vote if you like.

    Args:
        votes: "A", "B" or "tie", in the order they came in.
        minimum_effect: How far from 1/2 a preference lies that matters, 0 to 0.5; it makes the
            difference between "neither" and "undecided" alone.

    Raises:
        RecordError: A vote that is none, or a minimum effect out of range.
    """
    given = _checked(votes)
    if not is_number(minimum_effect, 0, 0.5):
        raise RecordError(f"minimum_effect is {minimum_effect!r:.60}: give 0 to 0.5")
    decided = np.array([one == "A" for one in given if one != "tie"], float)
    wins, counts = np.cumsum(decided), np.arange(1, len(decided) + 1)
    grown = log_e_values(wins, counts - wins)
    return Preference(
        votes_a=int(decided.sum()),
        votes_b=int(len(decided) - decided.sum()),
        ties=len(given) - len(decided),
        e_value=math.exp(min(grown[-1], 700.0)) if len(grown) else 1.0,
        p=math.exp(-grown.max(initial=0.0)),
        share=_share(wins, counts - wins),
        minimum_effect=float(minimum_effect),
    )


def _checked(votes: Any) -> list[str]:
    """Votes as a list of texts.

    Raises:
        RecordError: There is none to go through, or one of them is no vote.
    """
    if not isinstance(votes, Iterable):
        raise RecordError(f"votes must be a list of A, B and tie, not {votes!r:.60}")
    given = list(votes)
    for one in given:
        if not isinstance(one, str) or one not in get_args(Vote):
            raise RecordError(f"vote {one!r:.60} is none of A, B, tie")
    return given


def log_e_values(
    wins: npt.ArrayLike, losses: npt.ArrayLike, *, against: float = 0.5, prior: float = PRIOR
) -> Floats:
    """The logarithm of E, of any number of counts at once.

    Args:
        wins: Votes for A, in an array of any shape.
        losses: Votes for B, of the same shape.
        against: The share of A that is bet against, between 0 and 1.
        prior: The s of the mixture.
    """
    w, lost = np.asarray(wins, float), np.asarray(losses, float)
    found: Floats = _log_mixture(w, lost, prior) - _log_likelihood(w, lost, against)
    return found


def confidence_limits(wins: npt.ArrayLike, losses: npt.ArrayLike) -> tuple[Floats, Floats]:
    """The shares of A below and above which E(q) is 20 or more now, for each pair of counts."""
    w, lost = np.asarray(wins, float), np.asarray(losses, float)
    least = _log_mixture(w, lost, PRIOR) + math.log(1 - LEVEL)
    best = w / np.maximum(w + lost, 1)
    ends = []
    for end in (0.0, 1.0):
        outside, inside = np.full_like(best, end), best
        for _ in range(_STEPS):
            middle = (outside + inside) / 2
            is_inside = _log_likelihood(w, lost, middle) >= least
            outside = np.where(is_inside, outside, middle)
            inside = np.where(is_inside, middle, inside)
        is_whole = _log_likelihood(w, lost, np.full_like(best, end)) >= least
        ends.append(np.where(is_whole, end, inside))
    return ends[0], ends[1]


def _share(wins: Floats, losses: Floats) -> Estimate:
    """The share of A; the limits are the narrowest there were."""
    low, high = confidence_limits(wins, losses)
    count = len(wins)
    return Estimate(
        name="A's share",
        value=float(wins[-1] / count) if count else 0.5,
        low=float(low.max(initial=0.0)),
        high=float(high.min(initial=1.0)),
        method="beta-binomial confidence sequence",
    )


def _log_mixture(wins: Floats, losses: Floats, prior: float) -> Floats:
    """The logarithm of the likelihood of votes in one order, on average over the mixture."""
    found: Floats = special.betaln(prior + wins, prior + losses) - special.betaln(prior, prior)
    return found


def _log_likelihood(wins: Floats, losses: Floats, share: float | Floats) -> Floats:
    found: Floats = special.xlogy(wins, share) + special.xlog1py(losses, -np.asarray(share))
    return found


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
