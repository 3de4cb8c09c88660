"""What a parameter of a sweep may be: W&B's distributions, and the fields that each of them has.

As W&B's schema of a sweep, https://docs.wandb.ai/guides/sweeps/sweep-config-keys, has them.
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from opusclip_mlops.errors import ConfigError

CONSTANT, CATEGORICAL, WEIGHED, INT = (
    "constant", "categorical", "categorical_w_probabilities", "int_uniform",
)  # fmt: skip

MOST_WHOLE = 2**53
"""Beyond it numbers of Optuna, JSON and programs are no longer exact."""

_Rule = tuple[Callable[[Any], bool], str]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no truth value."""
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and abs(value) <= sys.float_info.max


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


_NUMBER: _Rule = (is_number, "a number")
_WHOLE: _Rule = (
    lambda value: is_whole(value) and abs(value) <= MOST_WHOLE,
    "a whole number, at most 2**53",
)
_ABOVE_0: _Rule = (lambda value: is_number(value) and value > 0, "a number above 0")
_FROM_0: _Rule = (lambda value: is_number(value) and value >= 0, "a number, 0 or more")
_LIST: _Rule = (lambda value: isinstance(value, list) and bool(value), "a list of one or more")
_WEIGHTS: _Rule = (
    lambda value: _LIST[0](value) and all(map(_FROM_0[0], value)),
    "a list of numbers, 0 or more each",
)
_ANY: _Rule = (lambda _: True, "a value")

_SPAN = {"min": _NUMBER, "max": _NUMBER}
_SPAN_ABOVE_0 = {"min": _ABOVE_0, "max": _ABOVE_0}
_Q = {"q": _ABOVE_0}
_BELL = {"mu": _NUMBER, "sigma": _FROM_0}
_BETA = {"a": _ABOVE_0, "b": _ABOVE_0}

FIELDS: Mapping[str, Mapping[str, _Rule]] = {
    CONSTANT: {"value": _ANY},
    CATEGORICAL: {"values": _LIST},
    WEIGHED: {"values": _LIST, "probabilities": _WEIGHTS},
    INT: {"min": _WHOLE, "max": _WHOLE},
    "uniform": _SPAN,
    "q_uniform": _SPAN | _Q,
    "log_uniform": _SPAN,
    "log_uniform_values": _SPAN_ABOVE_0,
    "inv_log_uniform": _SPAN,
    "inv_log_uniform_values": _SPAN_ABOVE_0,
    "q_log_uniform": _SPAN | _Q,
    "q_log_uniform_values": _SPAN_ABOVE_0 | _Q,
    "normal": _BELL,
    "q_normal": _BELL | _Q,
    "log_normal": _BELL,
    "q_log_normal": _BELL | _Q,
    "beta": _BETA,
    "q_beta": _BETA | _Q,
}
"""The fields of each distribution, each with the rule that its value keeps."""

DEFAULTS: Mapping[str, Any] = {"q": 1.0, "mu": 0.0, "sigma": 1.0, "a": 1.0, "b": 1.0}
"""The fields that may be left out."""


@dataclass(frozen=True)
class Parameter:
    """What one parameter may be.

    Attributes:
        path: Its name, behind those of the parameters it is nested in.
        kind: The distribution, by W&B's name.
        fields: The distribution's own fields, all of them.
    """

    path: tuple[str, ...]
    kind: str
    fields: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The path in one word, with points."""
        return ".".join(self.path)


def parameter_of(path: tuple[str, ...], given: Mapping[str, Any], where: str) -> Parameter:
    """Read a parameter; without a distribution its fields say which one is meant.

    Args:
        path: Its name, behind those it is nested in.
        given: What the file says of it.
        where: What to call it in an error.

    Raises:
        ConfigError: no such distribution, or fields that are none of it or out of range.
    """
    kind = given.get("distribution", _implied(given))
    if not isinstance(kind, str) or kind not in FIELDS:
        known = ", ".join(FIELDS)
        wrong = f"{where}.distribution is {kind!r:.60}" if kind else f"{where} has no distribution"
        raise ConfigError(f"{wrong}: choose from {known}; or give value, values, or min and max")
    rules = FIELDS[kind]
    for name in given:
        if name not in rules and name != "distribution":
            raise ConfigError(f"{where}.{name} is no field of {kind}: it has {', '.join(rules)}")
    fields = {name: _field(name, given, rules[name], where, kind) for name in rules}
    _check_together(fields, where)
    return Parameter(path, kind, fields)


def _implied(given: Mapping[str, Any]) -> str:
    if "value" in given:
        return CONSTANT
    if "values" in given:
        return WEIGHED if "probabilities" in given else CATEGORICAL
    if "min" in given and "max" in given:
        return INT if is_whole(given["min"]) and is_whole(given["max"]) else "uniform"
    return ""


def _field(name: str, given: Mapping[str, Any], rule: _Rule, where: str, kind: str) -> Any:
    if name not in given and name not in DEFAULTS:
        raise ConfigError(f"{where}.{name} is missing: {kind} needs it")
    value = given.get(name, DEFAULTS.get(name))
    is_legal, meant = rule
    if is_legal(value):
        return value
    raise ConfigError(f"{where}.{name} must be {meant}, not {value!r:.60}{hint(value)}")


def hint(value: Any) -> str:
    """What to write where YAML takes a number such as 1e-3 for a text; empty otherwise."""
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        return ""
    if number is None or not math.isfinite(number):
        return ""
    shown = format(number, "f").rstrip("0") if abs(number) >= 1e-6 else f"{number:.1e}"
    return f": YAML reads that as a text; write {shown if shown[-1] != '.' else shown + '0'}"


def _check_together(fields: Mapping[str, Any], where: str) -> None:
    if "min" in fields and fields["min"] > fields["max"]:
        raise ConfigError(
            f"{where}.min is {fields['min']}, above {where}.max, which is {fields['max']}"
        )
    weights = fields.get("probabilities")
    if weights is None:
        return
    if len(weights) != len(fields["values"]):
        count = f"{len(weights)} for {len(fields['values'])} values"
        raise ConfigError(f"{where}.probabilities are {count}: give one each")
    if not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise ConfigError(f"{where}.probabilities must add up to 1, not {sum(weights):g}")
