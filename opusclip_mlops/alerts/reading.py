"""Rules as a file, a mapping or objects give them; what is wrong is said with its line.

limit_per_hour: 30
webhooks:
  team: {url: https://example.com/hooks/training, secret_env: TEAM_SECRET}
rules:
  loss-nan: {kind: not_finite, keys: ["training/*"], severity: error, actions: [stop, team]}
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import yaml

from opusclip_mlops.alerts.rules import ACTIONS, KINDS, Alerts, AnyRule, Rule, Webhook
from opusclip_mlops.errors import ConfigError
from opusclip_mlops.folder import Manifest
from opusclip_mlops.redaction import one_line
from opusclip_mlops.webhooks import Secret, fault_of_url
from opusclip_mlops.written import MOST_BYTES, PolicyError, Written, read_yaml

T = TypeVar("T")

_IN_CODE = "alerts"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_MOST_RULES, _MOST_TEXTS = 100, 100
_SINKS = ("mlflow", "tensorboard", "wandb")
_LONGEST_PATTERN = 250
_OF_EVERY_RULE = {one.name for one in msgspec.structs.fields(Rule)}
_MONTH_S = 30 * 86_400
_STEPS = 999_999_999


class FaultyAlerts(ConfigError):
    """Rules that are not understood; `faults` holds a line for each thing that is wrong."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        super().__init__(f"{faults[0]}{more}")
        self.faults = faults


def alerts_of(
    given: str | os.PathLike[str] | Mapping[str, Any] | Alerts,
    *,
    with_variables: bool = False,
) -> Alerts:
    """The rules of a file, a mapping or an object.

    Args:
        given: A path of YAML, or what such a file would hold.
        with_variables: Demand that the environment variables that are named are set.

    Raises:
        FaultyAlerts: Something is not understood, a line each: `file:line: …`.
    """
    if isinstance(given, str | os.PathLike):
        return read_alerts(_content(Path(given)), source=str(given), with_variables=with_variables)
    plain = msgspec.to_builtins(given) if isinstance(given, Alerts) else given
    try:
        text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise FaultyAlerts((one_line(f"{_IN_CODE}: it is no mapping of words: {error}"),)) from None
    try:
        return read_alerts(text, source=_IN_CODE, with_variables=with_variables)
    except FaultyAlerts as error:
        # What was made in code has no lines.
        told = tuple(re.sub(rf"^{_IN_CODE}:\d+", _IN_CODE, one) for one in error.faults)
        raise FaultyAlerts(told) from None


def watched(manifest: Manifest, given: str | Mapping[str, Any]) -> Manifest:
    """What a run's folder is to remember, with the rules that it is watched by.

    Raises:
        FaultyAlerts: As `alerts_of`, or a variable that is named is not set.
    """
    alerts = alerts_of(given, with_variables=True)
    # As it will be read again, so that two can be compared.
    plain = msgspec.json.decode(msgspec.json.encode(alerts))
    return msgspec.structs.replace(manifest, sinks=[*manifest.sinks, "alerts"], alerts=plain)


def read_alerts(text: str, *, source: str, with_variables: bool = False) -> Alerts:
    """Read a file's text, of 64 KiB at most; `source` is what messages call it.

    Raises:
        FaultyAlerts: As `alerts_of`.
    """
    reader = _Reader(with_variables=with_variables)
    found = reader.read(text, source)
    if reader.faults or found is None:
        raise FaultyAlerts(tuple(reader.faults))
    return found


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise FaultyAlerts((one_line(f"{path}: cannot be read ({reason})"),)) from None


class _Reader:
    """Reads all of a file and collects what is wrong with it."""

    def __init__(self, *, with_variables: bool) -> None:
        self.faults: list[str] = []
        self._with_variables = with_variables

    def read(self, text: str, source: str) -> Alerts | None:
        """The rules; None where something is wrong."""
        with self._telling():
            return self._alerts(read_yaml(text, source=source))
        return None

    def _tell(self, fault: PolicyError) -> None:
        self.faults.append(str(fault))

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell what is raised in the block, and go on behind it."""
        try:
            yield
        except PolicyError as error:
            self._tell(error)

    def _alerts(self, given: Written) -> Alerts:
        known = given.entries(("rules", "webhooks", "limit_per_hour"), tell=self._tell)
        if "rules" not in known:
            self._tell(given.error("it has no rules: name one with its kind"))
        named = self._entries(known.get("webhooks"))
        for name in (one for one in named if one in ACTIONS):
            self._tell(named[name].error(f"{name} is an action: take another name"))
        webhooks = self._each(named, self._webhook)
        read = functools.partial(self._rule, webhooks=tuple(named))
        rules: dict[str, AnyRule] = self._each(self._entries(known.get("rules")), read)
        limits = {name: one for name, one in known.items() if name in _LIMITS}
        return Alerts(rules=rules, webhooks=webhooks, **self._values(limits, _LIMITS))

    def _entries(self, given: Written | None) -> dict[str, Written]:
        """What stands under a name of the file, with its whole path in what is told of it."""
        if given is None:
            return {}
        with self._telling():
            found = given.entries(tell=self._tell)
            if not 1 <= len(found) <= _MOST_RULES:
                raise given.error(f"it must have 1 to {_MOST_RULES} entries")
            return {name: replace(one, label=one.title) for name, one in found.items()}
        return {}

    def _each(
        self, entries: Mapping[str, Written], read: Callable[[Written], T | None]
    ) -> dict[str, T]:
        found: dict[str, T] = {}
        for name, given in entries.items():
            if not _NAME.fullmatch(name):
                self._tell(given.error("a name is small letters, digits, - and _, 40 at most"))
            with self._telling():
                one = read(given)
                found |= {} if one is None else {name: one}
        return found

    def _values(
        self, known: Mapping[str, Written], read: Mapping[str, Callable[[Written], Any]]
    ) -> dict[str, Any]:
        """The values that can be read; what is wrong with the others is told."""
        found: dict[str, Any] = {}
        for name, given in known.items():
            with self._telling():
                found[name] = read[name](given)
        return found

    def _webhook(self, given: Written) -> Webhook | None:
        known = given.entries(_WEBHOOK, tell=self._tell)
        values = self._values(known, _WEBHOOK)
        if len(values) < given.count:
            return None
        found = Webhook(**values)
        if fault := found.fault():
            self._tell(given.error(fault))
        if found.url and (fault := fault_of_url(found.url, allow_http=found.allow_http)):
            self._tell(known["url"].error(fault))
        if self._with_variables:
            self._check_variables(found, known)
        return found

    def _rule(self, given: Written, *, webhooks: tuple[str, ...]) -> AnyRule | None:
        kind = _kind_of(given)
        fields = {one.name: one for one in msgspec.structs.fields(kind)}
        known = given.entries(("kind", *fields), tell=self._tell)
        values = self._values(known, _RULE)
        if "actions" in values:
            self._check_actions(known["actions"], webhooks)
        lacking = [name for name, one in fields.items() if one.required and name not in known]
        if lacking:
            raise given.error(f"it needs {' and '.join(lacking)}")
        if len(known) < given.count or known.keys() - values.keys() - _OF_EVERY_RULE:
            # What goes together with what is not understood is not known.
            return None
        found = kind(**{name: value for name, value in values.items() if name != "kind"})
        if fault := found.fault():
            raise given.error(fault)
        return cast("AnyRule", found)

    def _check_actions(self, given: Written, webhooks: tuple[str, ...]) -> None:
        legal = (*ACTIONS, *webhooks)
        for one in _listed(given):
            if one.text() not in legal:
                problem = f"no webhook is called {one.text()!r}: known is {', '.join(legal)}"
                self._tell(one.error(problem))

    def _check_variables(self, found: Webhook, known: Mapping[str, Written]) -> None:
        for name in ("url_env", "secret_env"):
            variable = getattr(found, name)
            if variable and (fault := _VARIABLES[name](variable, found)):
                self._tell(known[name].error(fault))


def _kind_of(given: Written) -> type[Rule]:
    # What else is wrong with its keys is told once the kind is known.
    kind = given.entries(tell=lambda _: None).get("kind")
    if kind is None:
        raise given.error(f"it needs a kind: {', '.join(KINDS)}")
    return KINDS[kind.one_of(*KINDS)]


def _fault_of_address(variable: str, webhook: Webhook) -> str:
    """What is wrong with a variable that holds an address; empty for nothing."""
    if not os.environ.get(variable):
        return f"the variable {variable} is not set"
    fault = fault_of_url(os.environ[variable].strip(), allow_http=webhook.allow_http)
    return f"what is in {variable}: {fault}" if fault else ""


def _fault_of_secret(variable: str, _: Webhook) -> str:
    """What is wrong with a variable that holds a secret; empty for nothing."""
    if not os.environ.get(variable):
        return f"the variable {variable} is not set"
    try:
        Secret(variable=variable).signing_keys()
    except ConfigError as error:
        return str(error)
    return ""


_VARIABLES = {"url_env": _fault_of_address, "secret_env": _fault_of_secret}


def _listed(given: Written) -> list[Written]:
    """The values of a list, or the one that stands without one."""
    return given.items() if isinstance(given.node, yaml.SequenceNode) else [given]


def _texts(given: Written) -> tuple[str, ...]:
    """A list of texts, or one text."""
    found = tuple(one.text() for one in _listed(given))
    if any(len(one) > _LONGEST_PATTERN for one in found) or len(found) > _MOST_TEXTS:
        raise given.error(
            f"it must be {_MOST_TEXTS} texts of {_LONGEST_PATTERN} characters at most"
        )
    return found


def _sinks(given: Written) -> tuple[str, ...]:
    """Names of sinks, or patterns that fit some."""
    found = _texts(given)
    if any(not any(fnmatchcase(sink, one) for sink in _SINKS) for one in found):
        raise given.error(f"known is {', '.join(_SINKS)}")
    return found


def _variable(given: Written) -> str:
    if not _VARIABLE.fullmatch(given.text()):
        # It is not shown: it may be the secret itself.
        raise given.error("it must be the name of an environment variable, not what is in it")
    return given.text()


def _between(lowest: float, highest: float) -> Callable[[Written], float]:
    def read(given: Written) -> float:
        value = given.number()
        if not lowest <= value <= highest:
            raise given.error(f"it must be from {lowest:g} to {highest:g}")
        return value

    return read


def _whole(lowest: int, highest: int) -> Callable[[Written], int]:
    return lambda given: given.whole(lowest, highest)


def _one_of(*words: str) -> Callable[[Written], str]:
    return lambda given: given.one_of(*words)


_minutes = _between(0.01, _MONTH_S / 60)
_percent = _between(0, 100)

_LIMITS: dict[str, Callable[[Written], Any]] = {"limit_per_hour": _whole(1, 1000)}
_RULE: dict[str, Callable[[Written], Any]] = {
    "kind": _one_of(*KINDS),
    "keys": _texts,
    "severity": _one_of("info", "warning", "error"),
    "cooldown_s": _between(0, _MONTH_S),
    "actions": _texts,
    "above": Written.number,
    "below": Written.number,
    "recover_at": Written.number,
    "points": _whole(1, 10_000),
    "recover_points": _whole(1, 10_000),
    "factor": _between(1.001, 1e9),
    "window": _whole(5, 200),
    "against": _one_of("median", "best"),
    "goal": _one_of("minimize", "maximize"),
    "steps": _whole(1, _STEPS),
    "min_delta": _between(0, 1e300),
    "minutes": _minutes,
    "quiet_minutes": _minutes,
    "model": Written.text,
    "by": _between(0, 1e300),
    "below_percent": _percent,
    "above_percent": _percent,
    "sinks": _sinks,
}
_WEBHOOK: dict[str, Callable[[Written], Any]] = {
    "url": Written.text,
    "url_env": _variable,
    "secret_env": _variable,
    "format": _one_of("standard", "slack"),
    "give_up_after_s": _whole(1, _MONTH_S),
    "allow_http": Written.truth,
    "allow_private": Written.truth,
}
