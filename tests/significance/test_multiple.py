"""Facts about several tests at once."""

import math
from typing import Any

import numpy as np
import pytest

from opusclip_mlops.errors import RecordError
from opusclip_mlops.significance import holm


def test_it_is_holms_own_procedure() -> None:
    """The smallest of four times four, the next times three, never below one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.5, 0.9]) == (1.0, 1.0)
    assert holm([0.2]) == (0.2,)
    assert holm([]) == ()


def test_any_true_hypothesis_is_rejected_in_five_of_a_hundred_at_most() -> None:
    """Of ten metrics seven do not differ: one of those is taken for a find as often as promised."""
    rng = np.random.default_rng(0)
    p = rng.random((2000, 10))
    p[:, 7:] **= 8  # three that do
    wrong = np.mean([min(holm(row)[:7]) <= 0.05 for row in p])
    unadjusted = np.mean(p[:, :7].min(axis=1) <= 0.05)
    assert 0.02 < wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert unadjusted > 0.25
    found = np.mean([np.mean(np.array(holm(row))[7:] <= 0.05) for row in p])
    assert found > 0.5


@pytest.mark.parametrize("given", [[math.nan], [-0.1], [1.1], [[0.1]], None, ["a"], [10**400]])
def test_what_is_no_p_is_refused(given: Any) -> None:
    """Nothing is made of it."""
    with pytest.raises(RecordError, match="p-values must be a list of numbers"):
        holm(given)
