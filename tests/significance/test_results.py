"""Facts about what comparisons are given and what they say."""

import json
import math

import numpy as np
import pytest

from opusclip_mlops.errors import RecordError
from opusclip_mlops.significance.results import (
    Estimate,
    HypothesisTest,
    as_json,
    checked,
    is_constant,
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


def test_the_largest_number_is_how_mlflow_keeps_infinity() -> None:
    """What comes back from its database as 1.797e308 was infinite; 1e100 is a number."""
    found = checked([1.7976931348623157e308, -1.7e308, 1e100], "loss")
    assert found.tolist() == [math.inf, -math.inf, 1e100]
    assert is_constant(np.array([1e-200, 3e-200]))  # their squares are 0


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
