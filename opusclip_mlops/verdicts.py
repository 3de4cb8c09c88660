"""A gate's verdict: every condition that was looked at, for people and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from opusclip_mlops.errors import RegistryError
from opusclip_mlops.redaction import one_line

_MOST_CHARACTERS = 200
_NON_FINITE = "non_finite"


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing a policy asks for: what was found, what was wanted, and what explains it."""

    name: str
    passed: bool
    measured: float | str | None
    wanted: float | str | None
    note: str = ""

    def line(self) -> str:
        """The condition on one line, for people."""
        note = f" ({self.note})" if self.note else ""
        found = f"{shown(self.measured)}, wanted {shown(self.wanted)}{note}"
        return f"{'passed' if self.passed else 'FAILED'}  {self.name}: {found}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a version may enter a stage, with every condition of the policy."""

    model: str
    version: int
    stage: str
    conditions: tuple[Condition, ...]
    policy_digest: str

    @property
    def passed(self) -> bool:
        """True when every condition passed, also where there are none."""
        return not self.failed

    @property
    def failed(self) -> tuple[Condition, ...]:
        """The conditions that did not pass."""
        return tuple(one for one in self.conditions if not one.passed)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; a number that is not finite is {"non_finite": "nan"}."""
        content: dict[str, Any] = msgspec.to_builtins(self)
        for one in content["conditions"]:
            one["measured"], one["wanted"] = map(_plain, (one["measured"], one["wanted"]))
        return {**content, "conditions": list(content["conditions"]), "passed": self.passed}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Verdict:
        """Read what `to_dict` gave; whether it passed is told by the conditions alone.

        Raises:
            RegistryError: It is no verdict.
        """
        try:
            conditions = [
                {**one, "measured": _number(one["measured"]), "wanted": _number(one["wanted"])}
                for one in content["conditions"]
            ]
            return msgspec.convert({**content, "conditions": conditions}, cls)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RegistryError(f"this is no verdict: {one_line(str(error))}") from error

    def lines(self) -> list[str]:
        """The verdict for people: what came of it, then a line for each condition."""
        about = f"{self.model} {self.version} to {self.stage}"
        if not self.conditions:
            return [f"{about}: passed, the policy asks for nothing"]
        count = len(self.conditions)
        came = f"refused, {len(self.failed)} of {count} conditions failed"
        first = f"{about}: {f'passed, {count} of {count} conditions' if self.passed else came}"
        return [first, *(f"  {one.line()}" for one in self.conditions)]


def condition(
    name: str,
    passed: bool,
    measured: float | str | None,
    wanted: float | str | None,
    note: str = "",
) -> Condition:
    """A condition whose texts are one line of 200 characters each, without credentials."""
    return Condition(_text(name), passed, _value(measured), _value(wanted), _text(note))


def _text(text: str) -> str:
    return one_line(text, at_most=_MOST_CHARACTERS)


def _value(value: float | str | None) -> float | str | None:
    if isinstance(value, str):
        return _text(value)
    return None if value is None else float(value)


def shown(value: float | str | None) -> str:
    """A number with all its digits, and nothing for a whole one's fraction."""
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else repr(value).removesuffix(".0")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_NON_FINITE: repr(value)}
    return value


def _number(value: Any) -> Any:
    if isinstance(value, Mapping):
        return float(value[_NON_FINITE])
    return value
