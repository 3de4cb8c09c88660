"""What a setting may be: its rule, and what a file, a variable or a caller gives as its value."""

import json
import numbers
import os
import tomllib
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from opusclip_mlops.errors import ConfigError

WANDB_MODES = ("online", "offline", "disabled")
PRIORITIES = ("high", "medium", "low")
LEAST_QUOTA_BYTES = 1024**2

MAPPINGS: dict[str, Any] = {"priorities": Mapping[str, str], "log_intervals": Mapping[str, int]}
"""The fields that are mappings, by the types of what they hold."""

STEPS: Any = tuple[int, int] | None
"""The type of a span of steps: the first, and the one after the last."""

MOST_PROFILED_STEPS = 100

RULES_HINT: Any = str | Mapping[str, Any] | None
"""The type of a field that names a file of rules, or holds them."""

UNSET: Any = object()
"""Stands for a field that nobody gave, and for a value that is of another type."""

RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "drain_timeout_s": (lambda v: 0 <= v < float("inf"), "0 or more seconds"),
    "priorities": (
        lambda v: all(one in PRIORITIES for one in v.values()),
        "a mapping of key patterns to high, medium or low",
    ),
    "log_intervals": (
        lambda v: all(one in PRIORITIES and steps >= 1 for one, steps in v.items()),
        "a mapping of high, medium or low to 1 or more steps",
    ),
    "backlog_quota_bytes": (
        lambda v: v >= LEAST_QUOTA_BYTES,
        f"{LEAST_QUOTA_BYTES} or more bytes (1 MiB)",
    ),
    "system_metrics_interval_s": (lambda v: 0.5 <= v < float("inf"), "0.5 or more seconds"),
    "profile_interval_s": (lambda v: 0.1 <= v < float("inf"), "0.1 or more seconds"),
    "profile_steps": (
        lambda v: v is None or 0 <= v[0] < v[1] <= v[0] + MOST_PROFILED_STEPS,
        f"a first step and a later one, such as 10,13, at most {MOST_PROFILED_STEPS} apart",
    ),
    "ranks": (lambda v: v in ("one", "own"), "one or own"),
    "metric_rank": (lambda v: v >= 0, "0 or more"),
    "log_frequency": (lambda v: v >= 1, "1 or more"),
    "save_frequency": (lambda v: v >= 1, "1 or more"),
    "max_epochs": (lambda v: v >= 1, "1 or more"),
    "learning_rate": (lambda v: 0 < v < float("inf"), "above 0"),
    "batch_size": (lambda v: v >= 1, "1 or more"),
    "wandb_mode": (lambda v: v is None or v in WANDB_MODES, f"one of {', '.join(WANDB_MODES)}"),
    # As much as MLflow's columns hold: PostgreSQL would refuse to make the run.
    "experiment_name": (
        lambda v: v is None or (v.strip() and len(v) <= 256),
        "a name of at most 256 characters",
    ),
    "run_name": (lambda v: v is None or len(v) <= 250, "at most 250 characters"),
    "notes": (lambda v: len(v) <= 8000, "at most 8000 characters"),
    "run_id": (lambda v: v is None or v.isalnum(), "an MLflow run id (letters and digits)"),
}


def parse_toml(path: Path, text: str) -> Any:
    """What a TOML file sets; `ConfigError` where it is none."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config file {path} is not TOML: {error}") from None


def parse_yaml(path: Path, text: str) -> Any:
    """What a YAML file sets; `ConfigError` where it is none."""
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"config file {path} is not YAML: {reason}") from None


def parsed_tags(text: str, origin: str) -> dict[str, str] | list[str]:
    """Tags as JSON, or as words and names=values between commas."""
    if text.lstrip().startswith(("{", "[")):
        return typing.cast("dict[str, str] | list[str]", parsed_json(text, origin))
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not any("=" in word for word in words):
        return words
    pairs = (word.partition("=") for word in words)
    return {name.strip(): value.strip() if equals else "true" for name, equals, value in pairs}


def parsed_json(text: str, origin: str) -> Any:
    """A text as JSON; `ConfigError` where it is none."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{origin} is not JSON: {error}: {text!r:.80}") from None


def converted(value: Any, hint: Any) -> Any:
    """NumPy's numbers and paths as Python's own, tags as a copy; `UNSET` for another type."""
    if hint is bool:
        return value if isinstance(value, bool) else UNSET
    if hint in MAPPINGS.values():
        return _converted_mapping(value, *typing.get_args(hint))
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        is_number = isinstance(value, kind) and not isinstance(value, bool)
        try:
            return hint(value) if is_number else UNSET
        except OverflowError:
            return UNSET
    if value is None and hint is not str:
        return None
    if hint == RULES_HINT:
        return _converted_rules(value)
    if hint == STEPS:
        return _converted_pair(value)
    if hint in (str, str | None):
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        return text if isinstance(text, str) and _is_utf8(text) else UNSET
    if isinstance(value, Mapping):
        return dict(value)
    return (
        list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else UNSET
    )


def _is_utf8(text: str) -> bool:
    """Whether a text can be written down; one of a file's odd name, or half a sign, can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _converted_pair(value: Any) -> Any:
    """Two whole numbers as a tuple; `UNSET` for anything else."""
    if not isinstance(value, Sequence) or len(value) != 2:
        return UNSET
    pair = tuple(converted(one, int) for one in value)
    return UNSET if UNSET in pair else pair


def _converted_rules(value: Any) -> Any:
    """Rules of alerts: a path, or what their file would hold."""
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if isinstance(value, Mapping):
        return dict(value)
    return converted(value, str)


def _converted_mapping(value: Any, *hints: Any) -> Any:
    """A copy of a mapping, names and values in their types; `UNSET` for anything else."""
    if not isinstance(value, Mapping):
        return UNSET
    pairs = [tuple(map(converted, pair, hints)) for pair in value.items()]
    return UNSET if any(UNSET in pair for pair in pairs) else dict(pairs)
