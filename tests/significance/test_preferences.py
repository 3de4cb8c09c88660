"""Facts about blind votes: formulas, what is promised of looking early, and what it costs."""

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from opusclip_mlops.errors import RecordError
from opusclip_mlops.significance import preference
from opusclip_mlops.significance.preferences import PRIOR, Vote, confidence_limits, log_e_values

ROUNDS, VOTES = 2000, 400
COUNTS = np.arange(1, VOTES + 1)


def wins_of(p: float, *, rounds: int = ROUNDS, seed: int = 0) -> np.ndarray:
    """How many of the first votes of each experiment are for A; (rounds, VOTES)."""
    return (np.random.default_rng(seed).random((rounds, VOTES)) < p).cumsum(axis=1)


def votes_of(text: str) -> list[Vote]:
    """Votes out of letters, "-" for a tie."""
    return [{"A": "A", "B": "B", "-": "tie"}[one] for one in text]  # type: ignore[misc]


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (3, 5), (40, 11)])
def test_the_bet_pays_what_its_formula_says(wins: int, losses: int) -> None:
    """The likelihood of the votes on average over the mixture, beside that of a fair coin."""

    def weighed(p: float) -> float:
        return float(p**wins * (1 - p) ** losses * stats.beta.pdf(p, PRIOR, PRIOR))

    mixture = integrate.quad(weighed, 0, 1)[0]
    expected = math.log(mixture / 0.5 ** (wins + losses))
    assert float(log_e_values(wins, losses)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_no_way_of_betting_makes_money(share: float) -> None:
    """Over all ways that six votes can come the bet holds 1 on average: it is a fair game."""
    total = 0.0
    for votes in itertools.product((0, 1), repeat=6):
        wins = sum(votes)
        chance = share**wins * (1 - share) ** (6 - wins)
        total += chance * math.exp(float(log_e_values(wins, 6 - wins, against=share)))
    assert total == pytest.approx(1)


def test_looking_after_each_vote_is_no_cheating() -> None:
    """Of 2,000 experiments where nothing is preferred, looked at 400 times each and stopped at the
    first find, 5 % are wrong at most; the binomial test, looked at as often, is in more than 25 %.
    """
    wins = wins_of(0.5)
    wrong = (log_e_values(wins, COUNTS - wins) >= math.log(20)).any(axis=1).mean()
    assert 0.01 < wrong <= 0.05
    fewer, counts = np.minimum(wins, COUNTS - wins)[:, 19::10], COUNTS[19::10]
    tails = stats.binom.cdf(fewer, counts, 0.5)
    assert (2 * tails <= 0.05).any(axis=1).mean() > 0.25


@pytest.mark.parametrize("p", [0.5, 0.7, 0.95])
def test_the_confidence_sequence_holds_the_share_at_all_times_together(p: float) -> None:
    """In 95 of 100 experiments at least there is no moment in 400 at which it does not."""
    wins = wins_of(p, seed=1)
    held = (log_e_values(wins, COUNTS - wins, against=p) < math.log(20)).all(axis=1).mean()
    assert 0.95 <= held < 0.995
    few = wins[:40]
    low, high = confidence_limits(few, COUNTS - few)
    inside = ((low <= p) & (p <= high)).all(axis=1)
    agree = (log_e_values(few, COUNTS - few, against=p) < math.log(20)).all(axis=1)
    assert (inside == agree).all()


@pytest.mark.parametrize(("p", "votes"), [(0.65, 80), (0.7, 45), (0.8, 22), (0.9, 13)])
def test_a_real_preference_is_found(p: float, votes: int) -> None:
    """In half of the experiments after about so many votes, in 99 of 100 after 400."""
    wins = wins_of(p, rounds=500, seed=2)
    found = log_e_values(wins, COUNTS - wins) >= math.log(20)
    assert found.any(axis=1).mean() > 0.99
    assert np.median(found.argmax(axis=1) + 1) <= votes


def test_prompts_that_are_unlike_make_it_no_oftener_wrong() -> None:
    """A wins all votes on half of the prompts and none on the others: each voter sees all, in an
    order of their own, and on the whole nothing is preferred.
    """
    rng = np.random.default_rng(3)
    sheet = np.tile([True, False], 10)
    wins = np.array([
        np.concatenate([rng.permutation(sheet) for _ in range(VOTES // 20)]) for _ in range(500)
    ]).cumsum(axis=1)  # fmt: skip
    assert (log_e_values(wins, COUNTS - wins) >= math.log(20)).any(axis=1).mean() <= 0.05


def test_it_says_what_votes_say() -> None:
    """Counts, ties apart, who is preferred, p at any time and the interval; as JSON too."""
    found = preference(votes_of("AAABAA-AAAAABAAAA-AA"))
    assert (found.n, found.votes_a, found.votes_b, found.ties) == (20, 16, 2, 2)
    assert found.verdict == "A"
    assert found.share.value == pytest.approx(16 / 18)
    assert found.p == pytest.approx(1 / found.e_value)
    assert found.sentence.startswith(
        "16 votes for A, 2 for B, 2 ties: A is preferred; A's share 88.9% (95% confidence sequence "
    )
    assert f"e-value {found.e_value:.3g}, p = {found.p:.2g} by its highest so far" in found.sentence
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (content["n"], content["verdict"], content["p"]) == (20, "A", found.p)
    assert content["test"] == "beta-binomial e-process, Beta(2, 2)"


def test_the_sides_are_alike() -> None:
    """With each vote turned round the verdict is, and nothing else."""
    found = preference(votes_of("BBBABB-BBBBBABBBB-BB"))
    turned = preference(votes_of("AAABAA-AAAAABAAAA-AA"))
    assert found.verdict == "B"
    assert found.p == turned.p
    assert found.share.low == pytest.approx(1 - turned.share.high)  # type: ignore[operator]


@pytest.mark.parametrize("text", ["", "---"])
def test_before_a_vote_nothing_is_known(text: str) -> None:
    """From 0 to 1, p of 1."""
    found = preference(votes_of(text))
    assert (found.verdict, found.p, found.e_value) == ("undecided", 1.0, 1.0)
    assert (found.share.low, found.share.high) == (0.0, 1.0)
    assert found.sentence.startswith("no vote for A or B yet")


def test_one_vote_proves_nothing_and_unanimous_ones_soon_do() -> None:
    """Eight of eight are undecided, nine of nine are not."""
    assert preference(votes_of("A")).verdict == "undecided"
    assert preference(votes_of("A" * 7)).verdict == "undecided"
    assert preference(votes_of("A" * 10)).verdict == "A"
    assert preference(votes_of("A" * 10)).share.high == 1.0


def test_what_was_found_stays_found() -> None:
    """Votes that come later do not take back what may be said at any time."""
    found = preference(votes_of("A" * 12 + "BABA" * 3))
    assert found.verdict == "A"
    assert found.p < 1 / found.e_value


def test_votes_that_turn_round_decide_nothing() -> None:
    """All for A, then all for B: no one share explains both, and no verdict is made of it."""
    found = preference(votes_of("A" * 30 + "B" * 60))
    assert found.share.low > found.share.high  # type: ignore[operator]
    assert found.verdict == "undecided"
    assert ": undecided, as the votes turned round while they came; " in found.sentence


def test_many_even_votes_say_neither() -> None:
    """With 40:60 as the least that matters it takes hundreds; with 0 it is never said."""
    even = votes_of("AB" * 400)
    assert preference(even).verdict == "neither"
    assert preference(even[:40]).verdict == "undecided"
    assert preference(even, minimum_effect=0).verdict == "undecided"


@pytest.mark.parametrize(
    ("votes", "options", "problem"),
    [
        (["C"], {}, "vote 'C' is none of A, B, tie"),
        (["A"], {"minimum_effect": 0.6}, "minimum_effect is 0.6: give 0 to 0.5"),
        (["A"], {"minimum_effect": math.nan}, "minimum_effect is nan"),
        (["A"], {"minimum_effect": "x"}, "minimum_effect is 'x': give 0 to 0.5"),
        (["A"], {"minimum_effect": None}, "minimum_effect is None: give 0 to 0.5"),
        (None, {}, "votes must be a list of A, B and tie, not None"),
        (5, {}, "votes must be a list of A, B and tie, not 5"),
        ([["A"]], {}, r"vote \['A'\] is none of A, B, tie"),
        ([np.array(["A", "B"])], {}, "vote array"),
    ],
)
def test_what_is_no_vote_is_refused(votes: Any, options: dict[str, float], problem: str) -> None:
    """In one line."""
    with pytest.raises(RecordError, match=problem):
        preference(votes, **options)


def test_ten_thousand_votes_are_no_overflow() -> None:
    """The numbers stay finite."""
    found = preference(["A"] * 10_000)
    assert found.p == pytest.approx(0, abs=1e-300)
    assert math.isfinite(found.e_value)
    assert found.share.low > 0.99  # type: ignore[operator]
