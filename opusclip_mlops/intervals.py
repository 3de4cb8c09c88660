"""Confidence intervals of means by the bootstrap: over clips, or over stretches of one clip.

Frames beside each other are alike, so that they tell less than as many clips would: for one clip
whole stretches of neighbours are drawn, not single frames.
"""

import warnings
from collections.abc import Callable, Sequence
from math import ceil, isfinite, sqrt

import numpy as np
import numpy.typing as npt
from scipy import stats

from opusclip_mlops.passports import Interval

LEVEL = 0.95
RESAMPLES = 2000
SEED = 0

_LEAST = 6  # clips or stretches: of fewer, all lie on one side of the mean too often
_MOST_STRETCHES = 1000  # of a longer clip they are longer: the draws shall take milliseconds
_MOST_DRAWN = 2_000_000  # values at once: 16 MB
_MOST_SHARE = 0.999  # of the draws, so that some lie outside

Floats = npt.NDArray[np.float64]


def over_clips(values: Sequence[float], *, seed: int = SEED) -> Interval | None:
    """The interval of the mean of values that do not depend on each other, one a clip.

    Args:
        values: One for each clip.
        seed: Of the draws.

    Returns:
        The percentile interval, made wider for few values as Hesterberg does ("What teachers
        should know about the bootstrap", 2015). None of fewer than 6 values, or where one is not
        finite.
    """
    return _interval(np.asarray(values, float), np.ones(len(values)), _same, "clips", seed)


def over_frames(
    values: Sequence[float] | Floats,
    *,
    transform: Callable[[Floats], Floats] | None = None,
    seed: int = SEED,
) -> Interval | None:
    """The interval of the mean of values that follow each other in time, one a frame.

    Args:
        values: In the order of time.
        transform: What makes the metric of the mean, such as the root; rising or falling.
        seed: Of the draws.

    Returns:
        As `over_clips`, over stretches of `stretch_length` frames; None of fewer than 6 of those.
        It is too narrow where the whole clip is not much longer than what its frames share: of 200
        frames that resemble their neighbours by 0.8 nine of ten such intervals hold the mean, by
        0.95 eight.
    """
    given = np.asarray(values, float)
    if len(given) < _LEAST or not np.isfinite(given).all():
        return None
    length = max(stretch_length(given), ceil(len(given) / _MOST_STRETCHES))
    parts = np.array_split(given, len(given) // length)
    sums, lengths = (np.array([make(part) for part in parts], float) for make in (np.sum, len))
    what = f"stretches of {length} frame{'' if length == 1 else 's'}"
    return _interval(sums, lengths, transform or _same, what, seed)


def stretch_length(values: Floats) -> int:
    """How many neighbouring frames are drawn together: more, the more alike they are.

    Twice (√6 r / (1 - r²))^(2/3) · n^(1/3), with r the correlation of neighbours: Carlstein, "The
    use of subseries values for estimating the variance of a general statistic" (1986). Twice,
    because stretches that are too short make intervals too narrow, and long ones only wide; but
    never so long that there are fewer than 6.
    """
    centred = values - values.mean()
    power = float(centred @ centred)
    alike = float(centred[1:] @ centred[:-1]) / power if power else 0.0
    alike = min(max(alike, 0.0), 0.99)
    length = float((sqrt(6) * alike / (1 - alike**2)) ** (2 / 3) * len(values) ** (1 / 3))
    return max(1, min(ceil(2 * length), len(values) // _LEAST))


def _same(values: Floats) -> Floats:
    return values


def _interval(
    sums: Floats, lengths: Floats, transform: Callable[[Floats], Floats], what: str, seed: int
) -> Interval | None:
    if len(sums) < _LEAST or not np.isfinite(sums).all():
        return None

    def mean(sums: Floats, lengths: Floats, axis: int = -1) -> Floats:
        found: Floats = transform(sums.sum(axis=axis) / lengths.sum(axis=axis))
        return found

    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.simplefilter("ignore")  # all values equal: the interval is a point
        found = stats.bootstrap(
            (sums, lengths),
            mean,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=max(1, _MOST_DRAWN // len(sums)),
            confidence_level=_widened(len(sums)),
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    low, high = sorted((float(found.low), float(found.high)))
    if not (isfinite(low) and isfinite(high)):
        return None
    return Interval(
        low=low,
        high=high,
        level=LEVEL,
        method=f"percentile bootstrap over {what}",
        resamples=RESAMPLES,
        seed=seed,
    )


def _widened(count: int) -> float:
    """The level at which the percentiles of few draws hold what Student's t asks for."""
    wide = stats.t.ppf((1 + LEVEL) / 2, count - 1) * sqrt(count / (count - 1))
    return min(float(2 * stats.norm.cdf(wide) - 1), _MOST_SHARE)
