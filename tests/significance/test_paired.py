"""Facts about two models on the same prompts: verdicts, and how often they are wrong."""

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from opusclip_mlops import intervals
from opusclip_mlops.errors import RecordError
from opusclip_mlops.intervals import over_clips
from opusclip_mlops.significance import compare_metrics, compare_paired, paired

ROUNDS = 2000
RNG = np.random.default_rng(0)
BASE = RNG.normal(10, 3, 24)  # prompts differ more than models do
BETTER = BASE + RNG.normal(1.0, 0.5, 24)


def near(share: float, nominal: float, rounds: int = ROUNDS) -> bool:
    """Whether a share of so many rounds is what chance makes of the nominal one."""
    return abs(share - nominal) <= 3 * math.sqrt(nominal * (1 - nominal) / rounds)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer draws, and no effect sizes, which no verdict asks for."""
    monkeypatch.setattr(intervals, "RESAMPLES", 400)
    monkeypatch.setattr(paired, "hedges_g_paired", lambda _: None)


def test_it_says_all_of_it() -> None:
    """n, who is better where, the difference with its interval, Wilcoxon's test, the effect."""
    found = compare_paired(BETTER, BASE, better="higher", metric="clip_score")
    interval = over_clips(list(BETTER - BASE))
    assert interval is not None
    assert found.difference is not None
    assert (found.difference.low, found.difference.high) == (interval.low, interval.high)
    assert found.test.p == pytest.approx(stats.wilcoxon(BETTER, BASE, method="exact").pvalue)
    assert found.p_adjusted == found.test.p
    assert (found.n, found.verdict) == (24, "better")
    assert found.n_a_better + found.n_b_better == 24
    assert found.effect is not None
    assert found.effect.value > 1
    assert found.sentence.startswith("clip_score: A ")
    assert ": A is better (higher is better); mean difference " in found.sentence
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["verdict"] == "better"


def test_the_direction_turns_the_verdict_only() -> None:
    """What is better where higher is, is worse where lower is; the numbers stay A minus B."""
    up, down = (compare_paired(BETTER, BASE, better=one) for one in ("higher", "lower"))
    assert (up.verdict, down.verdict) == ("better", "worse")
    assert (up.difference, up.test) == (down.difference, down.test)
    assert (up.n_a_better, up.n_b_better) == (down.n_b_better, down.n_a_better)
    assert compare_paired(BASE, BETTER, better="lower").verdict == "better"


@pytest.mark.parametrize(
    ("minimum_effect", "verdict"),
    [(0.0, "better"), (0.5, "better"), (1.0, "undecided"), (2.0, "equivalent")],
)
def test_the_minimum_effect_decides_what_matters(minimum_effect: float, verdict: str) -> None:
    """A difference of about 1: beyond, across and within what matters."""
    found = compare_paired(BETTER, BASE, better="higher", minimum_effect=minimum_effect)
    assert found.verdict == verdict
    if minimum_effect:
        assert f", {minimum_effect:g} or more matters)" in found.sentence


def test_models_that_do_not_differ_at_all_are_equivalent_where_that_can_be() -> None:
    """Zero from zero to zero; with no minimum effect nothing is ever equivalent."""
    found = compare_paired(BASE, BASE, better="higher", minimum_effect=0.1)
    assert (found.verdict, found.test.p, found.effect) == ("equivalent", 1.0, None)
    plain = compare_paired(BASE, BASE, better="higher")
    assert plain.verdict == "undecided"
    assert plain.sentence.endswith("no pair differs at all")


def test_pairs_without_a_difference_count_as_said() -> None:
    """Left out of the ranks, or kept among them; they weigh on the mean in both cases."""
    half = np.where(np.arange(24) < 12, BASE, BETTER)
    dropped = compare_paired(half, BASE, better="higher")
    ranked = compare_paired(half, BASE, better="higher", zeros="pratt")
    assert dropped.n_a_better + dropped.n_b_better == 12
    assert dropped.test.value < ranked.test.value
    assert dropped.difference == ranked.difference


def test_of_fewer_than_six_pairs_there_is_no_verdict() -> None:
    """However far they are apart; the reason is said."""
    found = compare_paired([9.0] * 5, [1.0, 2, 3, 4, 5], better="higher")
    assert found.verdict == "undecided"
    assert found.sentence.endswith("fewer than 6 pairs are too few for a verdict")
    assert found.difference is not None
    assert found.difference.low is None


def test_an_effect_takes_three_pairs() -> None:
    """The factor that takes the bias away of two is 0: nothing would be left of any effect."""
    two = compare_paired([1.0, 3.0], [0.0, 0.0], better="higher")
    assert two.effect is None
    assert "Hedges" not in two.sentence
    three = compare_paired([1.0, 3.0, 2.0], [0.0, 0.0, 0.0], better="higher")
    assert three.effect is not None
    assert three.effect.value > 0


def test_an_infinite_value_leaves_the_ranks_and_no_verdict() -> None:
    """Two that are infinite alike do not differ; one alone makes no mean."""
    a = [math.inf, math.inf, *range(8)]
    b = [math.inf, *range(9)]
    found = compare_paired([float(x) for x in a], [float(x) for x in b], better="higher")
    assert (found.difference, found.effect, found.verdict) == (None, None, "undecided")
    assert found.n_a_better + found.n_b_better == 9
    assert "a difference is infinite" in found.sentence
    json.dumps(found.to_dict(), allow_nan=False)


def test_values_belong_together_by_name() -> None:
    """Whatever order they come in."""
    named = {f"prompt {i}": float(x) for i, x in enumerate(BETTER)}
    other = {f"prompt {i}": float(x) for i, x in reversed(list(enumerate(BASE)))}
    assert compare_paired(named, other, better="higher") == compare_paired(
        BETTER, BASE, better="higher"
    )


@pytest.mark.parametrize(
    ("a", "b", "options", "problem"),
    [
        ([1.0, 2.0], [1.0], {}, "fid: A has 2 and B 1 values; give one a prompt for both"),
        ([], [], {}, "A has 0 and B 0 values"),
        ([1.0, math.nan], [1.0, 2.0], {}, "value 2 of 2 of fid of A is NaN"),
        ({"x": 1.0}, {"y": 1.0}, {}, "fid: B has no value of 'x'"),
        ({"x": 1.0}, [1.0], {}, "by name, or both as lists"),
        ([1.0], [1.0], {"better": "more"}, "better of fid is 'more': give higher or lower"),
        ([1.0], [1.0], {"zeros": "no"}, "zeros of fid is 'no': give wilcox or pratt"),
        ([1.0], [1.0], {"minimum_effect": -1}, "minimum_effect of fid is -1: give 0 or more"),
        ([1.0], [1.0], {"minimum_effect": math.nan}, "minimum_effect of fid is nan"),
        ([1.0], [1.0], {"minimum_effect": "x"}, "minimum_effect of fid is 'x': give 0 or more"),
        ([1.0], [1.0], {"better": None}, "better of fid is None: give higher or lower"),
        ([1.0], [1.0], {"metric": 5}, "metric must be a text, not 5"),
        ({1: 1.0, "x": 1.0}, {}, {}, "fid: B has no value of '1'"),
    ],
)
def test_what_does_not_belong_together_is_one_line(
    a: Any, b: Any, options: dict[str, Any], problem: str
) -> None:
    """Which metric, what is wrong with it, what to give."""
    with pytest.raises(RecordError, match=problem):
        compare_paired(a, b, **{"better": "lower", "metric": "fid", **options})


@pytest.mark.parametrize("factor", [2.0**-700, 2.0**900])
def test_size_does_not_move_what_is_found(factor: float) -> None:
    """Of values near the smallest and largest numbers: the same test, effect and verdict."""
    plain = compare_paired(BETTER, BASE, better="higher")
    moved = compare_paired(factor * BETTER, factor * BASE, better="higher")
    assert (moved.verdict, moved.notes, moved.test) == ("better", (), plain.test)
    assert (moved.effect, moved.mean_a / factor) == (plain.effect, plain.mean_a)
    for one, other in ((plain.difference, moved.difference),):
        assert one is not None
        assert other is not None
        assert (other.low / factor, other.high / factor) == (one.low, one.high)  # type: ignore[operator]


def test_rounding_is_no_difference() -> None:
    """0.1 + 0.2 is not better than 0.3, whichever is the higher."""
    found = compare_paired([0.1 + 0.2] * 8, [0.3] * 8, better="higher")
    assert (found.n_a_better, found.n_b_better, found.test.p) == (0, 0, 1.0)
    assert found.notes == ("no pair differs at all",)


def test_a_shift_of_all_has_no_effect_size() -> None:
    """All prompts better by 0.1: what differs of that is rounding, and no spread."""
    base = np.random.default_rng(3).normal(30, 4, 12)
    assert compare_paired(base + 0.1, base, better="higher").effect is None


def test_many_metrics_make_no_finds_by_chance() -> None:
    """Of one real difference among ten metrics that one is left, with p as Holm has it."""
    rng = np.random.default_rng(5)
    noise = {f"m{i}": rng.normal(0, 1, 24) for i in range(9)}
    a = {"real": BETTER, **{name: BASE + one for name, one in noise.items()}}
    b = dict.fromkeys(a, BASE)
    found = compare_metrics(a, b, better=dict.fromkeys(a, "higher"), minimum_effect={"m0": 9.0})
    assert [name for name, one in found.items() if one.verdict == "better"] == ["real"]
    assert found["real"].p_adjusted == pytest.approx(10 * found["real"].test.p)
    assert found["m0"].verdict == "equivalent"
    assert "; after Holm over 10 metrics p < 0.0001" in found["real"].sentence


@pytest.mark.parametrize(
    ("b", "better", "least", "problem"),
    [
        ({"y": BASE}, {"x": "lower"}, None, "metric 'x' is not both in a and in b"),
        ({"x": BASE}, {}, None, "metric 'x' is not both in a and in better"),
        ({"x": BASE}, {"x": "lower"}, {"z": 1.0}, "metric 'z' is not both in a and in minimum"),
        ({"x": BASE, 5: BASE}, {"x": "lower"}, None, "metric '5' is not both in a and in b"),
        (None, {"x": "lower"}, None, "b must be a mapping by metric, not NoneType"),
        ({"x": BASE}, "lower", None, "better must be a mapping by metric, not str"),
        ({"x": BASE}, {"x": "lower"}, 0.1, "minimum_effect must be a mapping by metric"),
    ],
)
def test_metrics_are_the_same_everywhere(b: Any, better: Any, least: Any, problem: str) -> None:
    """One that lacks somewhere is named."""
    with pytest.raises(RecordError, match=problem):
        compare_metrics({"x": BASE}, b, better=better, minimum_effect=least)


@pytest.mark.usefixtures("quick")
def test_verdicts_are_wrong_as_seldom_as_they_say() -> None:
    """Of 2,000 panels where nothing differs: the interval leaves 0 out in 5 %; so does the rank
    test, as near as ranks allow; a verdict needs both, and so is not oftener wrong than either.
    """
    rng = np.random.default_rng(6)
    rows = rng.normal(0, 1, (ROUNDS, 20))
    zero = np.zeros(20)
    found = [compare_paired(row, zero, better="higher") for row in rows]
    outside = np.mean([not one.difference.low <= 0 <= one.difference.high for one in found])  # type: ignore[union-attr, operator]
    by_rank = np.mean([one.test.p <= 0.05 for one in found])
    wrong = np.mean([one.verdict != "undecided" for one in found])
    assert near(float(outside), 0.05)
    assert near(float(by_rank), 0.0484)
    assert wrong <= min(outside, by_rank)


@pytest.mark.usefixtures("quick")
def test_a_real_difference_is_found_and_a_small_one_called_equivalent() -> None:
    """Of a spread of 1: 0.8 with 20 prompts, in 90 of 100; 0 within 0.5 with 60, in 90 of 100."""
    rng = np.random.default_rng(7)
    far = [compare_paired(row, 0 * row, better="higher") for row in rng.normal(0.8, 1, (200, 20))]
    assert np.mean([one.verdict == "better" for one in far]) > 0.85
    near_by = [
        compare_paired(row, 0 * row, better="higher", minimum_effect=0.5)
        for row in rng.normal(0, 1, (200, 60))
    ]
    assert np.mean([one.verdict == "equivalent" for one in near_by]) > 0.85


@pytest.mark.usefixtures("quick")
def test_families_of_metrics_are_wrong_as_seldom_as_holm_says() -> None:
    """Of 150 comparisons of five metrics that do not differ hardly one in twenty finds anything."""
    rng = np.random.default_rng(8)
    wrong = 0
    for rows in rng.normal(0, 1, (150, 5, 12)):
        a = {f"m{i}": row for i, row in enumerate(rows)}
        b = dict.fromkeys(a, np.zeros(12))
        found = compare_metrics(a, b, better=dict.fromkeys(a, "lower"))
        wrong += any(one.verdict != "undecided" for one in found.values())
    assert wrong / 150 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)
