"""`TrackingConfig`: what a run is called and where it goes.

A field comes from, first to last: the keyword, `OPUSCLIP_<FIELD>` in the environment, MLflow's or
W&B's own variable for the same thing, the file (`TrackingConfig.from_file`, or the file that
`OPUSCLIP_CONFIG` names), the default.
"""

import contextvars
import difflib
import functools
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.redaction import redacted
from opusclip_mlops.setting_values import (
    MAPPINGS,
    RULES,
    STEPS,
    UNSET,
    converted,
    parse_toml,
    parse_yaml,
    parsed_json,
    parsed_tags,
)

T = TypeVar("T")

_TRAINING_FIELDS = (
    "log_frequency", "save_frequency", "max_epochs", "learning_rate", "batch_size", "device",
)  # fmt: skip
_FOREIGN_VARIABLES = {
    "tracking_uri": "MLFLOW_TRACKING_URI",
    "registry_uri": "MLFLOW_REGISTRY_URI",
    "experiment_name": "MLFLOW_EXPERIMENT_NAME",
    "run_id": "MLFLOW_RUN_ID",
    "run_name": "WANDB_NAME",
    "project_name": "WANDB_PROJECT",
    "wandb_mode": "WANDB_MODE",
    "wandb_entity": "WANDB_ENTITY",
    "wandb_dir": "WANDB_DIR",
}
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_file: contextvars.ContextVar[Path | None] = contextvars.ContextVar("file", default=None)


def _setting(default: T) -> T:
    """A dataclass field that falls back on environment, file and default, in this order."""
    return field(
        default=typing.cast(T, UNSET),
        metadata={"default": default},
        hash=not isinstance(default, Mapping),
    )


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """What a run is called and where it goes; every field is keyword-only.

    Args:
        experiment_name: MLflow experiment; made when it is not there.
        project_name: W&B project.
        run_name: the run's name; MLflow invents one otherwise.
        run_id: an MLflow run to go on with.
        tags: mapping, or a list of words.
        notes: free text, shown as the run's description.
        tracking_uri: MLflow server or store; MLflow's own default otherwise.
        registry_uri: MLflow model registry; the tracking server otherwise.
        use_tensorboard: mirror the run into event files under `tensorboard_dir`.
        tensorboard_dir: folder for event files.
        use_wandb: mirror the run into W&B.
        wandb_mode: `online`, `offline` or `disabled`; by default online where a key is configured.
        wandb_entity: W&B team or user.
        wandb_dir: folder in which W&B keeps its `wandb/`.
        journal_dir: folder of the local journal.
        drain_timeout_s: how long `close()` waits for delivery, in seconds.
        priorities: `high`, `medium` or `low` by key pattern (`"video/*": "high"`), the first that
            fits; then the built-in ones: losses, validation and learning rate are high, `system/`,
            `performance/` and `profiling/` low, the rest medium.
        log_intervals: steps between two points of a key, by priority; 1 logs everything.
        backlog_quota_bytes: what may wait for delivery before points are left out: low ones first,
            medium ones at 1.25 times as much, high ones never.
        system_metrics: measure CPU, memory and GPU while the run goes on.
        system_metrics_interval_s: seconds between two measurements.
        alerts: what the run is watched for: a YAML file, or what it would hold (docs/alerts.md).
        ranks: `one` run of all processes that a launcher starts together (docs/ranks.md), or each
            its `own`.
        metric_rank: the rank whose points, clips and tables make their run.
        profile_operations: time what `profile_operation` names, and the parts of the loop.
        profile_interval_s: seconds of which the times are added up before they are logged.
        profile_steps: the first step that torch.profiler looks at, and the step after the last, at
            most 100 later; `log_metrics` says which step it is. None for no profile.
        log_frequency: a training loop's steps between logs; when it is set, the interval of medium
            and low keys too, unless `log_intervals` says otherwise.
        save_frequency: a training loop's steps between checkpoints.
        max_epochs: a training loop's epochs.
        learning_rate: a training loop's learning rate.
        batch_size: a training loop's batch size.
        device: a training loop's device.

    Raises:
        ConfigError: an unknown field (the nearest known one is named), a wrong type, or a value
            out of range.
    """

    experiment_name: str | None = _setting(None)
    project_name: str = _setting("video-opusclip")
    run_name: str | None = _setting(None)
    run_id: str | None = _setting(None)
    tags: Mapping[str, str] | Sequence[str] | None = _setting(None)
    notes: str = _setting("")
    tracking_uri: str | None = _setting(None)
    registry_uri: str | None = _setting(None)
    use_tensorboard: bool = _setting(True)
    tensorboard_dir: str = _setting("runs")
    use_wandb: bool = _setting(True)
    wandb_mode: str | None = _setting(None)
    wandb_entity: str | None = _setting(None)
    wandb_dir: str = _setting(".")
    journal_dir: str = _setting(".opusclip/journal")
    drain_timeout_s: float = _setting(60.0)
    priorities: Mapping[str, str] = _setting(MappingProxyType({}))
    log_intervals: Mapping[str, int] = _setting(MappingProxyType({}))
    backlog_quota_bytes: int = _setting(4 * 1024**3)
    system_metrics: bool = _setting(True)
    system_metrics_interval_s: float = _setting(10.0)
    alerts: str | Mapping[str, Any] | None = _setting(None)
    ranks: str = _setting("one")
    metric_rank: int = _setting(0)
    profile_operations: bool = _setting(True)
    profile_interval_s: float = _setting(10.0)
    profile_steps: tuple[int, int] | None = _setting(None)
    log_frequency: int = _setting(100)
    save_frequency: int = _setting(1000)
    max_epochs: int = _setting(100)
    learning_rate: float = _setting(0.001)
    batch_size: int = _setting(32)
    device: str = _setting("cpu")

    def __new__(cls, **given: Any) -> Self:
        """Name the nearest known field where one is unknown."""
        _refuse_unknown(given, [one.name for one in fields(cls)], "TrackingConfig")
        config = super().__new__(cls)
        object.__setattr__(config, "_given", frozenset(given))
        return config

    def __post_init__(self) -> None:
        unset = [one for one in fields(TrackingConfig) if getattr(self, one.name) is UNSET]
        file, settings = _read_settings() if unset else (None, {})
        elsewhere = set()
        for one in fields(TrackingConfig):
            value, origin = getattr(self, one.name), one.name
            if value is UNSET:
                value, origin = _found(one, file, settings)
            if origin != one.name:
                elsewhere.add(one.name)
            object.__setattr__(self, one.name, _checked(one.name, value, origin))
        object.__setattr__(self, "_elsewhere", frozenset(elsewhere))

    def __init_subclass__(cls) -> None:
        # Else `@dataclass` would give the subclass one that shows passwords.
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        """The fields and their values, without the passwords in URIs."""
        shown = (f"{one.name}={_shown(getattr(self, one.name))}" for one in fields(self))
        return f"{type(self).__qualname__}({', '.join(shown)})"

    @property
    def given(self) -> frozenset[str]:
        """The fields that were given by keyword.

        `dataclasses.replace` gives every field again: then those that differ from their default.
        """
        names = typing.cast("frozenset[str]", self._given)  # type: ignore[attr-defined]
        defaults = {one.name: one.metadata.get("default") for one in fields(self)}
        if len(names) < len(defaults):
            return names
        return frozenset(name for name in names if getattr(self, name) != defaults[name])

    @property
    def given_params(self) -> dict[str, Any]:
        """The training loop's own settings that were given by keyword: params of the run."""
        return {name: getattr(self, name) for name in _TRAINING_FIELDS if name in self.given}

    @property
    def intervals(self) -> dict[str, int]:
        """Steps between two points of a key, by priority.

        What `log_intervals` leaves open is `log_frequency` for medium and low, where a keyword, the
        environment or the file set it, and otherwise 1.
        """
        is_set = "log_frequency" in self.given | self._elsewhere  # type: ignore[attr-defined]
        rest = self.log_frequency if is_set else 1
        return {"high": 1, "medium": rest, "low": rest, **self.log_intervals}

    @property
    def tag_values(self) -> dict[str, str]:
        """Tags as a mapping; a plain word becomes a tag of value `true`."""
        if isinstance(self.tags, Mapping):
            return {str(key): str(value) for key, value in self.tags.items()}
        return {str(word): "true" for word in self.tags or ()}

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **given: Any) -> Self:
        """Read a TOML or YAML file; keywords and the environment go before it.

        Raises:
            ConfigError: no such file, not TOML or YAML, or an unknown field in it.
        """
        token = _file.set(Path(path))
        try:
            return cls(**given)
        finally:
            _file.reset(token)


def _refuse_unknown(given: Mapping[str, Any], known: list[str], where: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{where} has no field {name!r}: did you mean {near!r}?")


def _read_settings() -> tuple[Path | None, Mapping[str, Any]]:
    """The file that is asked for, if any, and what it sets."""
    path = _file.get()
    if path is None and os.environ.get("OPUSCLIP_CONFIG"):
        path = Path(os.environ["OPUSCLIP_CONFIG"])
    return path, _read_file(path) if path else {}


def _found(one: "Field[Any]", file: Path | None, settings: Mapping[str, Any]) -> tuple[Any, str]:
    """A field's value where no keyword gave it, and what to call its origin in a message."""
    for variable in (f"OPUSCLIP_{one.name.upper()}", _FOREIGN_VARIABLES.get(one.name)):
        if variable and os.environ.get(variable):
            return _parsed(one.name, os.environ[variable], variable), variable
    if one.name not in settings:
        return one.metadata["default"], one.name
    value, origin = settings[one.name], f"{one.name} in {file}"
    return (_parsed(one.name, value, origin) if isinstance(value, str) else value), origin


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"config file {path} cannot be read: {reason}") from None
    is_toml = path.suffix.lower() == ".toml"
    settings = parse_toml(path, text) if is_toml else parse_yaml(path, text)
    if not isinstance(settings, Mapping):
        raise ConfigError(f"config file {path} must hold names and values")
    _refuse_unknown(settings, list(_hints()), f"config file {path}")
    return settings


@functools.cache
def _hints() -> Mapping[str, Any]:
    return typing.get_type_hints(TrackingConfig)


def _parsed(name: str, text: str, origin: str) -> Any:
    """The text of an environment variable, or of a file, as a value of the field's type."""
    if name == "tags":
        return parsed_tags(text, origin)
    if name in MAPPINGS:
        return parsed_json(text, origin)
    if name == "wandb_mode" and origin == "WANDB_MODE":
        return {"dryrun": "offline", "run": "online"}.get(text, text)
    hint = _hints()[name]
    try:
        if hint is bool:
            words = {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}
            return words[text.strip().lower()]
        if hint == STEPS:
            return tuple(int(one) for one in text.strip(" ()[]").split(","))
        return hint(text) if hint in (int, float) else text
    except (KeyError, ValueError):
        raise ConfigError(f"{origin} must be {_expected(name)}, not {text!r}") from None


def _checked(name: str, value: Any, origin: str) -> Any:
    """A value in the field's own type.

    Raises:
        ConfigError: it is of another type, or out of range.
    """
    checked = converted(value, _hints()[name])
    if checked is UNSET:
        raise ConfigError(f"{origin} must be {_expected(name)}, not {value!r:.80}")
    is_legal, rule = RULES.get(name, (None, ""))
    if is_legal and not is_legal(checked):
        raise ConfigError(f"{origin} must be {rule}, not {value!r:.80}")
    return checked


def _shown(value: Any) -> str:
    return repr(redacted(value)) if isinstance(value, str) else redacted(repr(value))


def _expected(name: str) -> str:
    plain = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
    if name in MAPPINGS or _hints()[name] == STEPS:
        return RULES[name][1]
    if name == "tags":
        return "a mapping or a list of words"
    return plain.get(_hints()[name], "a text")
