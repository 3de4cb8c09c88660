"""Rules as a file, a mapping or objects give them; what is wrong is said with its line.

limit_per_hour: 30
webhooks:
  team: {url: https://example.com/hooks/training, secret_env: TEAM_SECRET}
rules:
  loss-nan: {kind: not_finite, keys: ["training/*"], severity: error, actions: [stop, team]}
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

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
        return self._kept(lambda: self._alerts(read_yaml(text, source=source)))

    def _alerts(self, given: Written) -> Alerts:
        known = given.entries(("rules", "webhooks", "limit_per_hour"))
        if "rules" not in known:
            raise given.error("it has no rules: name one with its kind")
        webhooks = self._each(known["webhooks"], self._webhook) if "webhooks" in known else {}
        names = known["webhooks"].entries() if "webhooks" in known else {}
        rules = self._each(known["rules"], functools.partial(_rule, webhooks=tuple(names)))
        limit = known["limit_per_hour"].whole(1, 1000) if "limit_per_hour" in known else 30
        return Alerts(rules=rules, webhooks=webhooks, limit_per_hour=limit)

    def _each(self, given: Written, read: Callable[[Written], T]) -> dict[str, T]:
        entries = given.entries()
        if not entries or len(entries) > _MOST_RULES:
            raise given.error(f"it must have 1 to {_MOST_RULES} entries")
        pairs = ((name, self._kept(functools.partial(read, one))) for name, one in entries.items())
        return {name: found for name, found in pairs if found is not None}

    def _kept(self, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except PolicyError as error:
            self.faults.append(str(error))
            return None

    def _webhook(self, given: Written) -> Webhook:
        _check_name(given)
        if given.label in ACTIONS:
            raise given.error(f"{given.label} is an action: take another name")
        known = given.entries(_WEBHOOK)
        found = Webhook(**{name: _WEBHOOK[name](one) for name, one in known.items()})
        if fault := found.fault():
            raise given.error(fault)
        if found.url and (fault := fault_of_url(found.url, allow_http=found.allow_http)):
            raise known["url"].error(fault)
        if self._with_variables:
            _check_variables(found, known)
        return found


def _rule(given: Written, *, webhooks: tuple[str, ...]) -> AnyRule:
    _check_name(given)
    every = given.entries()
    if "kind" not in every:
        raise given.error(f"it needs a kind: {', '.join(KINDS)}")
    kind = KINDS[every["kind"].one_of(*KINDS)]
    fields = {one.name: one for one in msgspec.structs.fields(kind)}
    known = given.entries(("kind", *fields))
    lacking = [name for name, one in fields.items() if one.required and name not in known]
    if lacking:
        raise given.error(f"it needs {' and '.join(lacking)}")
    values = {name: _RULE[name](one) for name, one in known.items() if name != "kind"}
    found = kind(**values)
    if fault := found.fault():
        raise given.error(fault)
    _check_actions(found, known, webhooks)
    return found  # type: ignore[return-value]


def _check_name(given: Written) -> None:
    if not _NAME.fullmatch(given.label):
        raise given.error("a name is small letters, digits, - and _, 40 at most")


def _check_actions(rule: Rule, known: Mapping[str, Written], webhooks: tuple[str, ...]) -> None:
    for action in rule.actions:
        if action not in (*ACTIONS, *webhooks):
            legal = ", ".join((*ACTIONS, *webhooks))
            raise known["actions"].error(f"no webhook is called {action!r}: known is {legal}")


def _check_variables(found: Webhook, known: Mapping[str, Written]) -> None:
    for field in ("url_env", "secret_env"):
        name = getattr(found, field)
        if name and not os.environ.get(name):
            raise known[field].error(f"the variable {name} is not set")
    if found.url_env and (
        fault := fault_of_url(os.environ[found.url_env].strip(), allow_http=found.allow_http)
    ):
        raise known["url_env"].error(f"what is in {found.url_env}: {fault}")
    try:
        Secret(variable=found.secret_env).signing_keys()
    except ConfigError as error:
        raise known["secret_env"].error(str(error)) from error


def _texts(given: Written) -> tuple[str, ...]:
    """A list of texts, or one text."""
    items = given.items() if isinstance(given.node, yaml.SequenceNode) else [given]
    found = tuple(one.text() for one in items)
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

_RULE: dict[str, Callable[[Written], Any]] = {
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
