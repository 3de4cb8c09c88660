"""A sweep's file, in W&B's own schema: read and checked before anything starts."""

import difflib
import itertools
import json
import operator
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.setting_values import parse_yaml
from opusclip_mlops.sweeps.kinds import (
    MOST_WHOLE,
    Parameter,
    hint,
    is_number,
    is_whole,
    parameter_of,
)

if TYPE_CHECKING:
    from yaml import Node

METHODS = ("grid", "random", "bayes")
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")

_KEYS = (
    "apiVersion", "kind", "controller", "description", "program", "job", "image_uri", "entity",
    "project", "method", "command", "name", "run_cap", "metric", "metrics", "scheduler",
    "early_terminate", "parameters",
)  # fmt: skip
_TEXTS = ("description", "program", "entity", "project", "name", "apiVersion", "kind")
_METRIC_KEYS = ("name", "goal", "target", "impute", "impute_while_running")
_BAND_KEYS = ("type", "min_iter", "max_iter", "s", "eta", "strict")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_ODD = re.compile(r"[\0\ud800-\udfff]")
_MOST_BYTES = 2**20
_DEEPEST = 16
_MOST_BANDS = 100
_LEAST_ETA = 1.1
_MOST_NODES = 1_000_000


@dataclass(frozen=True)
class Metric:
    """What a sweep wants to be small or large; it ends once a trial reaches `target`."""

    name: str
    maximizes: bool = False
    target: float | None = None

    def is_reached_by(self, value: float) -> bool:
        """Whether a trial with this value is good enough to end the sweep."""
        if self.target is None:
            return False
        return value >= self.target if self.maximizes else value <= self.target


@dataclass(frozen=True)
class Hyperband:
    """When trials that fall behind are ended: at `bands`, counted in logged values of the metric.

    Of those that reached a band, the best `1 / eta` go on. With `strict` a trial's value at the
    band counts, otherwise the best one it ever had.
    """

    bands: tuple[int, ...]
    eta: float
    strict: bool


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What a sweep's file says.

    Attributes:
        method: grid, random or bayes.
        parameters: All of them, nested ones by their paths.
        metric: What is looked for, where the file says it.
        hyperband: When trials are ended early, None for never.
        run_cap: How many trials at most.
        command: What starts a trial, with macros.
        document: The file as it was, for W&B.
    """

    method: str
    parameters: tuple[Parameter, ...]
    metric: Metric | None
    hyperband: Hyperband | None
    run_cap: int | None
    name: str
    description: str
    program: str
    command: tuple[str, ...]
    document: Mapping[str, Any]


def read_sweep(path: Path) -> SweepConfig:
    """Read a sweep's file, in YAML or JSON.

    Raises:
        ConfigError: it cannot be read, or a key in it is unknown, malformed or out of range.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path} is larger than {_MOST_BYTES} bytes: that is no sweep's file")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path} cannot be read: {reason}") from None
    _check_nodes(path, text)
    return sweep_of(parse_yaml(path, text), str(path))


def _check_nodes(path: Path, text: str) -> None:
    """Refuse a key that is there twice, and anchors that unfold to more than a file may hold."""
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root and _unfolded(root, {}, str(path)) > _MOST_NODES:
            raise ConfigError(f"{path} unfolds to more than {_MOST_NODES} values by its anchors")
    except yaml.YAMLError:
        # It is told by who reads it.
        return
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply") from None


def _unfolded(node: "Node", known: dict[int, int], origin: str) -> int:
    """How many values a node stands for, each as often as it is named."""
    from yaml import MappingNode

    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _MOST_NODES + 1  # what names itself has no end
    parts = node.value if isinstance(node.value, list) else []
    if isinstance(node, MappingNode):
        names = Counter((key.tag, key.value) for key, _ in parts if isinstance(key.value, str))
        for (_, name), count in names.items():
            if count > 1:
                raise ConfigError(f"{origin}: {name!r:.60} is there twice in one place")
        parts = [one for pair in parts for one in pair]
    known[id(node)] = 1 + sum(_unfolded(one, known, origin) for one in parts)
    return known[id(node)]


def sweep_of(document: Any, origin: str = "the sweep") -> SweepConfig:
    """Check what a sweep's file says.

    Raises:
        ConfigError: a key is unknown, malformed or out of range; it is named with its path.
    """
    found = _mapping(document, origin)
    _refuse_unknown(found, _KEYS, f"{origin}: ")
    try:
        json.dumps(document)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{origin} holds what JSON cannot: {error}; quote dates") from None
    _refuse_odd_texts(document, origin)
    for key in _TEXTS:
        if not isinstance(found.get(key, ""), str):
            raise ConfigError(f"{origin}: {key} must be a text, not {found[key]!r:.60}")
    return SweepConfig(
        method=_method(found, origin),
        parameters=_parameters(found, origin),
        metric=_metric(found, origin),
        hyperband=_hyperband(found, origin),
        run_cap=_run_cap(found, origin),
        name=found.get("name", ""),
        description=found.get("description", ""),
        program=found.get("program", ""),
        command=_command(found, origin),
        document=found,
    )


def _method(found: Mapping[str, Any], origin: str) -> str:
    # That one is W&B's too; the engines say that they can't.
    if (method := found.get("method")) not in (*METHODS, "custom"):
        wrong = f"is {method!r:.60}" if "method" in found else "is missing"
        raise ConfigError(f"{origin}: method {wrong}: choose from {', '.join(METHODS)}")
    return str(method)


def _parameters(found: Mapping[str, Any], origin: str) -> tuple[Parameter, ...]:
    parameters = tuple(_nested(found.get("parameters"), (), f"{origin}: parameters"))
    names = [one.name for one in parameters]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{origin}: parameters.{name} is there twice, once by nesting")
    return parameters


def _nested(given: Any, above: tuple[str, ...], where: str) -> Iterator[Parameter]:
    for name, fields in _mapping(given, where).items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{where} has {name!r:.60}: a name is of letters, digits and _ . -, and begins "
                "with a letter or _"
            )
        path, here = (*above, name), f"{where}.{name}"
        fields = _mapping(fields, here)
        if "parameters" not in fields:
            yield parameter_of(path, fields, here)
            continue
        _refuse_unknown(fields, ("parameters",), f"{here}.")
        if len(path) > _DEEPEST:
            raise ConfigError(f"{here} is nested more than {_DEEPEST} times")
        yield from _nested(fields["parameters"], path, f"{here}.parameters")


def _metric(found: Mapping[str, Any], origin: str) -> Metric | None:
    if "metric" not in found:
        return None
    where = f"{origin}: metric"
    given = _mapping(found["metric"], where)
    _refuse_unknown(given, _METRIC_KEYS, f"{where}.")
    name, goal, target = given.get("name"), given.get("goal", "minimize"), given.get("target")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}.name must be the name of a logged metric, not {name!r:.60}")
    if goal not in ("minimize", "maximize"):
        raise ConfigError(f"{where}.goal must be minimize or maximize, not {goal!r:.60}")
    if "target" in given and not is_number(target):
        raise ConfigError(f"{where}.target must be a number, not {target!r:.60}{hint(target)}")
    return Metric(name, goal == "maximize", target)


def _hyperband(found: Mapping[str, Any], origin: str) -> Hyperband | None:
    if "early_terminate" not in found:
        return None
    where = f"{origin}: early_terminate"
    given = _mapping(found["early_terminate"], where)
    _refuse_unknown(given, _BAND_KEYS, f"{where}.")
    if given.get("type") != "hyperband":
        raise ConfigError(f"{where}.type must be hyperband, not {given.get('type')!r:.60}")
    if "metric" not in found:
        raise ConfigError(f"{origin}: metric is missing: early_terminate needs it")
    eta, strict = given.get("eta", 3), given.get("strict", False)
    if not is_number(eta) or eta < _LEAST_ETA:
        raise ConfigError(
            f"{where}.eta must be a number from {_LEAST_ETA} on, not {eta!r:.60}{hint(eta)}: "
            "nearer to 1 the bands fall together"
        )
    if not isinstance(strict, bool):
        raise ConfigError(f"{where}.strict must be true or false, not {strict!r:.60}")
    return Hyperband(_bands(given, float(eta), where), float(eta), strict)


def _bands(given: Mapping[str, Any], eta: float, where: str) -> tuple[int, ...]:
    """How many values of the metric a trial has logged when it is looked at.

    With `max_iter` and `s`: max_iter / eta**i for i of 1..s; otherwise min_iter * eta**i, i from 0.
    """
    for key in ("min_iter", "max_iter", "s"):
        if key in given and not (is_whole(given[key]) and 1 <= given[key] <= MOST_WHOLE):
            raise ConfigError(
                f"{where}.{key} must be a whole number from 1 to 2**53, not {given[key]!r:.60}"
            )
    # A product becomes infinite where a power would raise.
    powers = itertools.accumulate(itertools.repeat(eta, _MOST_BANDS), operator.mul, initial=1.0)
    if "max_iter" in given and "s" in given:
        found = (given["max_iter"] / one for one in itertools.islice(powers, 1, given["s"] + 1))
    elif "min_iter" in given:
        found = (given["min_iter"] * one for one in powers)
    else:
        raise ConfigError(f"{where}.min_iter is missing: give it, or max_iter with s")
    bands = sorted({int(band) for band in found if 1 <= band < 2**53})
    if not bands:
        raise ConfigError(f"{where}.max_iter is too small: no trial would ever be looked at")
    return tuple(bands)


def _run_cap(found: Mapping[str, Any], origin: str) -> int | None:
    if "run_cap" not in found:
        return None
    cap = found["run_cap"]
    if not is_whole(cap) or cap < 1:
        raise ConfigError(f"{origin}: run_cap must be a whole number above 0, not {cap!r:.60}")
    return int(cap)


def _command(found: Mapping[str, Any], origin: str) -> tuple[str, ...]:
    command = found.get("command", list(DEFAULT_COMMAND))
    is_legal = isinstance(command, list) and command
    if not is_legal or not all(isinstance(one, str | int | float) for one in command):
        raise ConfigError(f"{origin}: command must be a list of words, not {command!r:.60}")
    return tuple(map(str, command))


def _refuse_odd_texts(given: Any, origin: str) -> None:
    """No word of a command may hold a NUL, nor what is no Unicode."""
    if isinstance(given, Mapping):
        given = [*given, *given.values()]
    if isinstance(given, list):
        for one in given:
            _refuse_odd_texts(one, origin)
    elif isinstance(given, str) and _ODD.search(given):
        raise ConfigError(f"{origin} holds {given!r:.60}: no text may have NUL or half a character")


def _mapping(given: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{where} must hold names and values, not {given!r:.60}")
    return given


def _refuse_unknown(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{where}{key!s:.60} is no key: did you mean {near!r}?")
