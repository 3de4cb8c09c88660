"""How a report writes times, lengths, numbers and what somebody else has written."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from opusclip_mlops import compare_words
from opusclip_mlops.compare_words import duration_text, shortened
from opusclip_mlops.comparing import LEFT_OUT
from opusclip_mlops.contrasts import shown_of
from opusclip_mlops.curves import At, Curve
from opusclip_mlops.policy import better_of

NOTHING = "-"
"""What stands where there is nothing to say."""

MAIN_METRICS = 12
"""How many metrics a summary has."""

FIRST = ("val", "valid", "validation", "test", "eval", "train")
"""The groups of metrics that are asked for first, in this order."""

_FIRST = ("val", "valid", "test", "eval")


def plain(text: object, *, at_most: int = 300) -> str:
    """A text of a run on one line, without credentials; a long one is cut, and shows it."""
    return shortened(str(text), at_most)


def valued(name: str, text: object, *, at_most: int = 300) -> str:
    """The value of a param or a tag as `plain`; `***` where its name says that it is secret."""
    return plain(shown_of(name, str(text)), at_most=at_most)


def moment(timestamp_ms: int | None) -> str:
    """A Unix time in milliseconds, in UTC to the second."""
    try:
        at = datetime.fromtimestamp((timestamp_ms or 0) / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{timestamp_ms} ms"
    return at.strftime("%Y-%m-%d %H:%M:%S UTC") if timestamp_ms else NOTHING


def length(seconds: float | None) -> str:
    """A length of time in its largest fitting unit."""
    return NOTHING if seconds is None else duration_text(seconds)


def figures(value: float | None) -> str:
    """A value with five figures that count."""
    return NOTHING if value is None else compare_words.figures(value)


def value_of(point: At | None) -> str:
    """The value of a point."""
    return NOTHING if point is None else figures(point.value)


def last_of(curve: Curve) -> str:
    """The last value that is a number, and that NaN or infinite ones came behind it."""
    said = value_of(curve.last)
    if not len(curve):
        return "NaN or infinite only" if curve.not_finite else said
    return said if curve.ends_finite else f"{said}, then NaN or infinite"


def step_of(point: At | None) -> str:
    """The step of a point."""
    return NOTHING if point is None else f"{point.step:,}"


def best_of(key: str, curve: Curve) -> At | None:
    """The best point of a metric, None where its name does not say which way is better."""
    return {"lower": curve.lowest, "higher": curve.highest}.get(better_of(key))


def main_keys(curves: Mapping[str, Curve]) -> list[str]:
    """The metrics a reader asks for first: of validation, then those known to be better one way.

    What the machine, the loop and the profiler are measured to do is not among them.
    """
    keys = [key for key in curves if not any(fnmatchcase(key, one) for one in LEFT_OUT)]
    return sorted(keys, key=lambda key: (not key.startswith(_FIRST), not better_of(key), key))
