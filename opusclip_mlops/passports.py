"""How a value was measured: what it takes for two values to be compared.

A score is a float that carries its passport. Two passports are alike when everything agrees but
the confidence interval, which belongs to the value: another extractor, other weights, another
number of frames or clips, another sampling, size or colour range make another metric.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Self

import msgspec

from opusclip_mlops.errors import PassportError
from opusclip_mlops.redaction import one_line

PASSPORTS_KEY = "opusclip/passports"
"""The key of the text that holds the passports of one log call's values."""

Setting = str | int | float | bool
_MOST_CHARACTERS = 400
_MOST_OF_A_VALUE = 100
_NOTHING: tuple[Any, ...] = (None, {}, [], ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A confidence interval of a value, with how it was found.

    Attributes:
        low: Its lower end, in the metric's unit.
        high: Its upper end.
        level: The share of such intervals that hold the true value, such as 0.95.
        method: How, in words: "percentile bootstrap over clips".
        resamples: How many samples were drawn.
        seed: Of the random numbers.

    Raises:
        PassportError: One of them is no number, or the method no text.
    """

    low: float
    high: float
    level: float
    method: str
    resamples: int
    seed: int

    def __post_init__(self) -> None:
        _bring(self, "low high level", float)
        _bring(self, "method", _text)
        _bring(self, "resamples seed", operator.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passport:
    """How a value was measured.

    Attributes:
        metric: The metric's name, such as "fid".
        version: Of its definition here; another version may give another value.
        count: How many of `unit` it is over, the N of the literature.
        unit: What was counted: "frames", "frame pairs", "clips".
        extractor: The network whose features it is made of, "" for none.
        weights_sha256: SHA-256 of that network's weights, 64 hexadecimal digits, "" for none.
        sampling: Which frames of a video were taken, such as "every frame".
        resize: How pictures were brought to a size, "none" where they were not.
        colour_range: What the pixels are, such as "RGB 0..255".
        reference: Digest of what it was measured against, "" where that is not fixed.
        settings: All else that the value depends on: windows, subsets, splits, seeds.
        interval: The value's confidence interval, None where there is none.
        notes: What keeps the value from being read as it is, a sentence each.

    Raises:
        PassportError: A field is of another type, or the count below 0.
    """

    metric: str
    version: str
    count: int
    unit: str
    extractor: str = ""
    weights_sha256: str = ""
    sampling: str = "every frame"
    resize: str = "none"
    colour_range: str = "RGB 0..255"
    reference: str = ""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    interval: Interval | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        texts = [one.name for one in fields(self) if one.type == "str"]
        _bring(self, " ".join(texts), _text)
        _bring(self, "weights_sha256", str.lower)
        _bring(self, "count", _counted)
        _bring(self, "settings", _settings)
        _bring(self, "interval", _interval)
        _bring(self, "notes", _notes)

    @property
    def digest(self) -> str:
        """Names the way of measuring: equal for passports that are alike, 12 digits.

        A field as it is made stays out of it: one more of them leaves every digest as it is.
        """
        as_made = {one.name: one.default for one in fields(self) if one.default is not MISSING}
        said = self._protocol().items()
        changed = {name: one for name, one in said if (name, one) not in as_made.items()}
        canonical = json.dumps(changed, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def differences(self, other: Passport) -> tuple[str, ...]:
        """What is not alike, each as "frames: 16 and 32"; empty when the values can be compared."""
        mine, theirs = self._protocol(), other._protocol()
        names = sorted(mine.keys() | theirs.keys())
        return tuple(
            f"{_said(name)}: {_said(mine.get(name))} and {_said(theirs.get(name))}"
            for name in names
            if json.dumps(mine.get(name)) != json.dumps(theirs.get(name))
        )

    def _protocol(self) -> dict[str, Any]:
        """Every field but the interval and the notes, each setting by itself."""
        plain = {one.name: getattr(self, one.name) for one in fields(self)}
        del plain["interval"], plain["notes"], plain["settings"]
        settings = {f"setting {key}": _exact(value) for key, value in self.settings.items()}
        return {**plain, **settings}

    def to_dict(self) -> dict[str, Any]:
        """The passport as JSON values; what is not finite is a string."""
        content: dict[str, Any] = msgspec.to_builtins(self)
        if content["interval"]:
            content["interval"] = {k: _plain(v) for k, v in content["interval"].items()}
        content["settings"] = {key: _plain(value) for key, value in self.settings.items()}
        return {key: value for key, value in content.items() if value not in _NOTHING}

    @classmethod
    def from_dict(cls, content: Any) -> Self:
        """Read what `to_dict` gave.

        Raises:
            PassportError: It is no passport, or has a field that is not known here: two values may
                differ in it.
        """
        try:
            given = dict(content)
            interval = given.get("interval")
            if interval:
                numbers = {key: float(interval[key]) for key in ("low", "high", "level")}
                given["interval"] = {**interval, **numbers}
            _check_known(given, cls)
            _check_known(interval or {}, Interval)
            return msgspec.convert(given, cls)
        except (msgspec.ValidationError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise PassportError(f"this is no passport: {one_line(str(error))}") from error


def _bring(passport: Passport | Interval, names: str, to_plain: Callable[[Any], Any]) -> None:
    """Make fields of Python's own types, which JSON can hold."""
    for name in names.split():
        value = getattr(passport, name)
        try:
            object.__setattr__(passport, name, to_plain(value))
        except (TypeError, ValueError, OverflowError) as error:
            kind = type(passport).__name__.lower()
            said = one_line(f"{name} of a {kind} cannot be {value!r:.60}: {error}")
            raise PassportError(said) from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("give a text")
    return str.__str__(value)


def _counted(value: Any) -> int:
    if (count := operator.index(value)) < 0:
        raise ValueError("give 0 or more")
    return count


def _settings(values: Any) -> dict[str, Setting]:
    if not isinstance(values, Mapping):
        raise TypeError("give a mapping")
    return {_text(key): _setting(value) for key, value in values.items()}


def _setting(value: Any) -> Setting:
    plain = value.item() if getattr(value, "shape", None) == () else value
    if not isinstance(plain, str | int | float):
        raise TypeError("a setting is a text, a number, True or False")
    kind = next(one for one in (bool, int, float, str) if isinstance(plain, one))
    return kind(plain)


def _interval(value: Any) -> Interval | None:
    if not isinstance(value, Interval | None):
        raise TypeError("give an Interval or None")
    return value


def _notes(values: Any) -> tuple[str, ...]:
    if isinstance(values, str):
        raise TypeError("give a list of texts")
    return tuple(one_line(_text(one), at_most=_MOST_CHARACTERS) for one in values)


def _check_known(given: Mapping[str, Any], kind: type[Passport | Interval]) -> None:
    unknown = given.keys() - {one.name for one in fields(kind)}
    if unknown:
        raise ValueError(f"unknown here: {', '.join(sorted(unknown))}")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _exact(value: Setting) -> Setting:
    """A setting as it is compared: a whole number is the same whether it is a float or not."""
    is_whole = isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else _plain(value)


def _said(value: Any) -> str:
    return one_line("" if value is None else str(value), at_most=_MOST_OF_A_VALUE) or "nothing"


class Score(float):
    """A measured value with its passport; a float in every other way.

    Arithmetic gives plain floats: what is computed from a score was not measured so.
    """

    __slots__ = ("passport",)
    passport: Passport

    def __new__(cls, value: float, passport: Passport) -> Self:
        """A value, and how it was measured.

        Raises:
            TypeError: There is no passport.
        """
        if not isinstance(passport, Passport):
            raise TypeError(f"a score needs its Passport, not {type(passport).__name__}")
        score = super().__new__(cls, value)
        score.passport = passport
        return score

    def __reduce__(self) -> tuple[Any, ...]:
        return Score, (float(self), self.passport)

    def __repr__(self) -> str:
        return f"Score({float(self)!r}, {self.passport.metric} v{self.passport.version})"

    __str__ = float.__repr__


def passports_of(values: Mapping[str, Any]) -> dict[str, Passport]:
    """The passports of those values that carry one, by key."""
    return {key: one.passport for key, one in values.items() if isinstance(one, Score)}


def encoded(passports: Mapping[str, Passport]) -> str:
    """Passports of one log call as the text that is kept beside its values."""
    return json.dumps({key: one.to_dict() for key, one in sorted(passports.items())}, indent=1)


def decoded(text: str, *, key: str | None = None) -> dict[str, Passport]:
    """Read what `encoded` gave, or of it only the passport of one key, if there is one.

    Raises:
        PassportError: It is no such text, or what is read of it no passport.
    """
    try:
        content = json.loads(text)
        items = content.items()
    except (ValueError, AttributeError, RecursionError) as error:
        raise PassportError(f"these are no passports: {one_line(str(error))}") from error
    return {name: Passport.from_dict(one) for name, one in items if key in (None, name)}


def check_alike(
    passports: Mapping[str, Passport | None], *, of: str, allow_unlike: bool = False
) -> None:
    """Accept values that may be compared with each other.

    Args:
        passports: By who the value is of: a run, a version, a file. None for no passport.
        of: The metric's key, for the message.
        allow_unlike: Accept them in any case.

    Raises:
        PassportError: They were not measured alike; the message says what differs.
    """
    if allow_unlike:
        return
    (first, known), *others = passports.items() or [("", None)]
    for name, passport in others:
        if found := differences(known, passport):
            problem = one_line("; ".join(found), at_most=_MOST_CHARACTERS)
            raise PassportError(
                f"{one_line(f'{of} of {first} and {name} were not measured alike')}: {problem}; "
                "measure them alike, or allow unlike passports"
            )


def differences(first: Passport | None, second: Passport | None) -> tuple[str, ...]:
    """In what two values were not measured alike; of two without passports nothing is known."""
    if first is None or second is None:
        return () if first is second else ("passport: one has none",)
    return first.differences(second)


def with_interval(score: Score, interval: Interval | None) -> Score:
    """The same score with a confidence interval."""
    return Score(float(score), replace(score.passport, interval=interval))
