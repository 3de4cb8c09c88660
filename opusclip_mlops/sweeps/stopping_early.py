"""Hyperband as W&B has it: which trial has fallen so far behind that it is ended.

Its bands count the logged values of the metric, not steps: one value for each step. A trial that is
past a band is compared with the values that all trials had there, running ones as well.
"""

import math
from collections.abc import Iterable, Sequence

from opusclip_mlops.sweeps.schema import Hyperband


class Progress:
    """The values of the metric that one trial has logged; infinities and NaN do not count."""

    def __init__(self, hyperband: Hyperband | None, *, maximizes: bool) -> None:
        self._bands = hyperband.bands if hyperband else ()
        self._is_better = max if maximizes else min
        self.count = 0
        self.last: float | None = None
        self.best: float | None = None
        self._best_before: float | None = None
        self._step: int | None = None
        self._newest: int | None = None
        self._steps: set[int] = set()
        self.at_bands: dict[int, float] = {}

    def add(self, step: int, value: float) -> int | None:
        """Take in the next value; the band that it reaches, if any.

        Of several values at one step the last counts. As in W&B a band is reached by the value
        after so many: band 2 by the third.
        """
        if not math.isfinite(value):
            return None
        if step != self._step:
            self._best_before, self._step = self.best, step
        before = self._best_before
        self.last, self.best = value, value if before is None else self._is_better(before, value)
        is_late = step in self._steps and step != self._newest
        if step not in self._steps:
            self.count, self._newest = self.count + 1, step
            self._steps.add(step)
        band = self.count - 1
        if is_late or band not in self._bands:
            return None
        self.at_bands[band] = value
        return band

    @property
    def band(self) -> int | None:
        """The last band that was reached."""
        return max(self.at_bands, default=None)


def is_behind(
    progress: Progress, others: Iterable[float], hyperband: Hyperband, *, maximizes: bool
) -> bool:
    """Whether a trial is worse than the last of the best `1 / eta` at its band.

    Args:
        progress: The trial's.
        others: The values of all trials at its band, its own among them.
        hyperband: The sweep's.
        maximizes: Whether larger values are better.
    """
    if progress.band is None or progress.best is None:
        return False
    own = progress.at_bands[progress.band] if hyperband.strict else progress.best
    ranked = sorted(others, reverse=maximizes)
    if not ranked:
        return False
    threshold = threshold_of(ranked, hyperband.eta)
    return own < threshold if maximizes else own > threshold


def threshold_of(ranked: Sequence[float], eta: float) -> float:
    """The value, of those at a band from the best to the worst, up to which trials go on."""
    return ranked[int(len(ranked) / eta)]
