"""What a legal key, value and step is: checks that raise in the caller's line."""

import math
import numbers
import operator
import posixpath
import re
import time
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from opusclip_mlops.errors import RecordError, RecordTypeError

MAX_KEY_CHARACTERS = 250
"""The longest key MLflow stores."""

MAX_PARAM_CHARACTERS = 6000
"""The longest param value MLflow stores."""

MAX_TAG_CHARACTERS = 8000
"""The longest tag value MLflow stores."""

_LEGAL_CHARACTERS = re.compile(r"[/\w.\- :]+")
_MAX_INT64 = 2**63 - 1
_TIME_KINDS = ("m", "M")  # NumPy gives some of them as plain integers
_KNOWN_KEYS_LIMIT = 100_000
_known_keys: set[str] = set()
_PLAIN = frozenset({float})


def check_key(key: str) -> None:
    """Raise when MLflow would refuse this key.

    Legal: 1 to 250 letters, digits, `_ - . : /` and spaces, as a plain relative path.

    Raises:
        RecordTypeError: the key is not a string.
        RecordError: the key is not legal; the message says why.
    """
    if not isinstance(key, str):
        raise RecordTypeError(f"a key must be a string, not {_described(key)}")
    if key in _known_keys:
        return
    problem = _key_problem(key)
    if problem:
        raise RecordError(f"key {key[:80]!r}{problem}")
    if len(_known_keys) < _KNOWN_KEYS_LIMIT:
        _known_keys.add(key)


def _key_problem(key: str) -> str:
    if not key.strip():
        return " is empty: give it a name"
    if len(key) > MAX_KEY_CHARACTERS:
        return f"… has {len(key)} characters: at most {MAX_KEY_CHARACTERS} are stored"
    if not _LEGAL_CHARACTERS.fullmatch(key):
        return " may hold letters, digits, spaces and _ - . : / only"
    if posixpath.normpath(key) != key or key.startswith(("/", "..")) or key == ".":
        return " must be a plain path: no leading, trailing or double slash, no '..'"
    return ""


def to_float(key: str, value: Any) -> float:
    """Turn a number, NumPy scalar or 0-d tensor into a float; a masked one becomes NaN.

    Raises:
        RecordTypeError: it is anything else, a time or duration too; the message names the key.
        RecordError: an integer too large for a float.
    """
    if type(value) is float:
        return value
    scalar = _item(value) if getattr(value, "shape", None) == () else value
    if not isinstance(scalar, numbers.Real | Decimal):
        raise RecordTypeError(
            f"metric {key!r} must be a number, a NumPy scalar or a 0-d tensor,"
            f" not {_described(value)}"
        )
    try:
        return float(scalar)
    except OverflowError:
        raise RecordError(f"metric {key!r} is too large for a float: above 1.8e308") from None


def _item(value: Any) -> Any:
    """What a NumPy scalar, 0-d array or 0-d tensor holds; None where that is no number."""
    if getattr(getattr(value, "dtype", None), "kind", "") in _TIME_KINDS:
        return None
    if getattr(value, "mask", False):
        return math.nan
    return value.item() if hasattr(value, "item") else None


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    kind = type(value).__name__
    return f"{kind} of shape {tuple(shape)}" if shape is not None else f"{kind} ({value!r:.60})"


def to_values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Check every key and turn every value into a float.

    Raises:
        RecordTypeError: not a mapping, or a value that is no number.
        RecordError: a key MLflow would refuse, or an empty mapping.
    """
    # The usual case, without a loop: nothing is to be checked or turned into anything.
    if (
        type(metrics) is dict
        and metrics
        and _known_keys.issuperset(metrics)
        and _PLAIN.issuperset(map(type, metrics.values()))
    ):
        return metrics
    if not isinstance(metrics, Mapping):
        raise RecordTypeError(
            f"metrics must be a mapping of names to numbers, not {type(metrics).__name__}"
        )
    if not metrics:
        raise RecordError("no metrics given: pass at least one name and value")
    values = {}
    for key, value in metrics.items():
        if key not in _known_keys:
            check_key(key)
        values[key] = value if type(value) is float else to_float(key, value)
    return values


def to_step(step: Any) -> int:
    """Turn a step into an int.

    Raises:
        RecordTypeError: the step is no whole number (2.0 is none).
        RecordError: it does not fit 64 bits.
    """
    try:
        whole = operator.index(step)
    except TypeError:
        raise RecordTypeError(f"step must be a whole number, not {_described(step)}") from None
    if not -_MAX_INT64 - 1 <= whole <= _MAX_INT64:
        raise RecordError("step must lie between -2**63 and 2**63 - 1: it is kept in 64 bits")
    return whole


def check_dataset(name: str, digest: str) -> None:
    """Raise when MLflow would refuse a dataset of this name and digest.

    Raises:
        RecordError: the name has not 1 to 500 characters, or the digest not 1 to 36.
    """
    if not 1 <= len(digest) <= 36:
        raise RecordError(f"dataset digest {digest!r} must have 1 to 36 characters")
    if not 1 <= len(name) <= 500:
        raise RecordError(f"dataset name {name[:40]!r} must have 1 to 500 characters")


def now_ms() -> int:
    """The time of a record that is made now, in Unix milliseconds."""
    return time.time_ns() // 1_000_000


def to_text_values(values: Mapping[str, Any], *, what: str = "param") -> dict[str, str]:
    """Check the keys of params or tags and turn the values into strings.

    Raises:
        RecordTypeError: not a mapping, or a key that is no string.
        RecordError: a key MLflow would refuse, or more characters than MLflow stores: 6000 of a
            param, 8000 of a tag.
    """
    if not isinstance(values, Mapping):
        raise RecordTypeError(
            f"{what}s must be a mapping of names to values, not {type(values).__name__}"
        )
    limit = MAX_PARAM_CHARACTERS if what == "param" else MAX_TAG_CHARACTERS
    texts = {}
    for key, value in values.items():
        check_key(key)
        texts[key] = str(value)
        if len(texts[key]) > limit:
            raise RecordError(
                f"{what} {key!r} has {len(texts[key])} characters: at most {limit} are stored"
            )
    return texts
