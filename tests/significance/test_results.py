"""Facts about what comparisons are given and what they say."""

import json
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from opusclip_mlops.errors import RecordError
from opusclip_mlops.significance import compare_groups, compare_paired
from opusclip_mlops.significance.results import (
    Estimate,
    HypothesisTest,
    Reduced,
    as_json,
    checked,
    is_constant,
    mean_of,
    p_in_words,
)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([1.0, math.nan, 3.0], "value 2 of 3 of loss is NaN: find out why, or leave it out"),
        ([[1.0], [2.0]], r"loss must be a list of numbers, not of shape \(2, 1\)"),
        (["a"], "loss must be a list of numbers"),
        ([[1.0], []], "loss must be a list of numbers"),
        (None, "loss must be a list of numbers, not of shape"),
        ([10**400, 1], "loss must be a list of numbers"),
        ([1 + 2j], "loss must be a list of numbers"),
        (np.array(["2020-01-01"], "M8[D]"), "loss must be a list of numbers"),
        (["1.0", "2.0"], "loss must be a list of numbers"),
        ((one for one in [1.0]), "loss must be a list of numbers"),
        ({"seed 1": 1.0}, "loss must be a list of numbers"),
    ],
)
def test_what_cannot_be_compared_is_told(given: object, problem: str) -> None:
    """Which value of which list it is; NaN is never a number in between."""
    with pytest.raises(RecordError, match=problem):
        checked(given, "loss")  # type: ignore[arg-type]


def test_spread_that_is_rounding_is_none() -> None:
    """0.1 + 0.2 and 0.3 are equal; 0.3 and 0.3001 are not."""
    assert is_constant(np.array([0.1 + 0.2, 0.3, 0.3]))
    assert is_constant(np.zeros(3))
    assert not is_constant(np.array([0.3, 0.3001]))
    assert not is_constant(np.array([-1e-9, 1e-9]))
    assert not is_constant(np.array([1e-200, 3e-200]))
    assert not is_constant(np.array([1e15, 1e15 + 1, 1e15 + 2]))
    assert not is_constant(np.array([-1.7e308, 1.7e308]))


def test_the_largest_number_is_how_mlflow_keeps_infinity() -> None:
    """What comes back from its database as ±1.797e308 was infinite; 1.7e308 is a number."""
    found = checked([1.7976931348623157e308, -1.7976931348623157e308, 1.7e308], "loss")
    assert found.tolist() == [math.inf, -math.inf, 1.7e308]


def test_whole_numbers_and_fractions_are_numbers_and_what_is_masked_is_not() -> None:
    """A masked value is not taken for what lies under the mask."""
    assert checked([Fraction(1, 2), Decimal("0.25"), 10**30, True], "x").tolist() == [
        0.5, 0.25, 1e30, 1.0,
    ]  # fmt: skip
    with pytest.raises(RecordError, match="value 2 of 2 of loss is NaN"):
        checked(np.ma.masked_array([1.0, 2.0], [False, True]), "loss")


@pytest.mark.parametrize(
    "values", [[0.31, 0.29, 0.33], [1e15, 1e15 + 1, 1e15 + 2], [1.7e308, 1.6e308, -1.7e308], [0.0]]
)
def test_reduced_values_are_the_same_values(values: list[float]) -> None:
    """To the last digit, and the mean is within them."""
    near = Reduced.of(np.array(values))
    back = [math.ldexp(near.origin + one, near.power) for one in near.groups[0]]
    assert back == values
    assert min(values) <= mean_of(np.array(values)) <= max(values)
    assert float(np.abs(near.groups[0]).max()) ** 4 < math.inf


@pytest.mark.parametrize("seed", [-1, 1.5, "x", None])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    """In one line, whoever is asked."""
    for call in (
        lambda: compare_groups([1.0], [2.0], seed=seed),
        lambda: compare_paired([1.0], [2.0], better="lower", seed=seed),
    ):
        with pytest.raises(RecordError, match=r"seed is .*: give a whole number, 0 or more"):
            call()


def test_sentences_say_all_numbers() -> None:
    """A test by its letter, an estimate with its interval where it has one."""
    test = HypothesisTest(name="Welch", statistic="t(5.1)", value=-2.3456, p=0.0321)
    assert test.sentence == "Welch t(5.1) = -2.346, p = 0.032"
    assert Estimate(name="g", value=1.5, low=1, high=2).sentence == "g 1.5 (95% interval 1 to 2)"
    assert Estimate(name="g", value=1.5).sentence == "g 1.5"
    assert (p_in_words(3e-7), p_in_words(1.0)) == ("p < 0.0001", "p = 1")


def test_json_holds_no_number_that_is_none() -> None:
    """Infinite values are words, so that any reader of JSON takes it."""
    content = as_json(Estimate(name="x", value=math.inf, low=-math.inf, high=math.nan))
    assert (content["value"], content["low"], content["high"]) == ("inf", "-inf", "nan")
    json.dumps(content, allow_nan=False)
