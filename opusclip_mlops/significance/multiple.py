"""Several tests at once: the more of them, the likelier one of them rejects by chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opusclip_mlops.errors import RecordError
from opusclip_mlops.significance.results import numbers_of


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values adjusted so that all tests together reject a true hypothesis in 5 of 100 at most.

    The smallest of m is multiplied by m, the next by m - 1 and so on; none becomes smaller than
    one before it, or larger than 1. Holm, "A simple sequentially rejective multiple test
    procedure" (1979); the tests may depend on each other in any way.

    Raises:
        RecordError: One is no number from 0 to 1.
    """
    given = numbers_of(p_values, "p-values")
    if given.ndim != 1 or not ((given >= 0) & (given <= 1)).all():
        raise RecordError("p-values must be a list of numbers from 0 to 1")
    order = np.argsort(given, kind="stable")
    raised = given[order] * np.arange(len(given), 0, -1)
    found = np.empty_like(given)
    found[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return tuple(float(one) for one in found)
