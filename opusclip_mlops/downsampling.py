"""Curves of a million points made short enough to be drawn, with every spike still in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_OF_BUCKET = 4


class Shown(Protocol):
    """What is drawn of a curve: its positions, and how many points there were."""

    @property
    def x(self) -> npt.ArrayLike:
        """Where the points are that are left."""

    @property
    def of(self) -> int:
        """How many there were."""


@dataclass(frozen=True, eq=False)
class Thinned:
    """A curve for the eye.

    Attributes:
        x: Where its points are, rising.
        y: Their values.
        of: How many points there were before.
    """

    x: Floats
    y: Floats
    of: int


def thinned(x: npt.ArrayLike, y: npt.ArrayLike, *, most: int = 1500) -> Thinned:
    """A curve with at most so many points, every low and high of it kept.

    The span of x is cut into equal buckets. Of each the first, the last, the lowest and the highest
    point stay, so that at a width of `most` / 4 pixels or less the line covers the pixels that the
    whole one would cover. A curve that is short enough stays as it is.

    Args:
        x: Where the points are, finite and never falling.
        y: Their values, finite; as many.
        most: How many points may be left, 4 or more.

    Raises:
        ValueError: `most` is less than 4, or x and y are not of one length.
    """
    places, values = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if most < _OF_BUCKET or places.shape != values.shape:
        raise ValueError("thinned takes 4 points or more, and as many of x as of y")
    if len(places) <= most:
        return Thinned(places, values, len(places))
    kept = np.unique(list(_kept(places, values, most // _OF_BUCKET)))
    return Thinned(places[kept], values[kept], len(places))


def _kept(x: Floats, y: Floats, buckets: int) -> Iterator[int]:
    """Which points stay; some are told twice."""
    inner = np.linspace(x[0], x[-1], buckets + 1)[1:-1]
    edges = [0, *np.searchsorted(x, inner).tolist(), len(x)]
    for begin, end in pairwise(edges):
        if begin < end:
            part = y[begin:end]
            yield from (begin, begin + int(np.argmin(part)), begin + int(np.argmax(part)), end - 1)


def note_of(*every: Shown) -> str:
    """How much of the curves is drawn, in words; "" where all of it is."""
    shown = sum(len(np.asarray(one.x)) for one in every)
    of = sum(one.of for one in every)
    return f"{shown:,} of {of:,} points shown, every low and high kept" if shown < of else ""
