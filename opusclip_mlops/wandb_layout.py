"""How a run is laid out in W&B: its columns, its config and its artifacts, there and back.

Params stand at the top of the config, all other words below one key; a file set is an artifact of
references whose metadata says what it is.
"""

import functools
import json
import netrc
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from opusclip_mlops.records import Files, Insight, Record
from opusclip_mlops.words import words_of

STEP_KEY = "global_step"
"""The column that holds the run's own step."""

INSIGHT_KEY = "opusclip_insight"
"""The column that says which insight a row is."""

WORDS_KEY = "opusclip"
"""The key of the config that holds tags, notes, datasets and what MLflow says of the run."""

ABOUT_KEY = "opusclip_files"
"""The key of an artifact's metadata that says which files it refers to."""

_RESERVED_COLUMNS = frozenset({STEP_KEY, INSIGHT_KEY, "_step", "_timestamp", "_runtime", "_wandb"})
_RESERVED_PARAMS = frozenset({WORDS_KEY, "_wandb"})
_OF_METRIC, _OF_PARAM = "metrics/", "params/"
_NOT_IN_NAME = re.compile(r"[^a-zA-Z0-9_\-.]")


@functools.lru_cache(maxsize=65_536)
def column(key: str) -> str:
    """The column of a metric or medium; one that W&B keeps for itself gets a prefix."""
    return _escaped(key, _RESERVED_COLUMNS, _OF_METRIC)


def key_of(column: str) -> str | None:
    """The key that has this column, None for a column that is none of ours."""
    return None if column in _RESERVED_COLUMNS else _plain(column, _RESERVED_COLUMNS, _OF_METRIC)


def insight_mark(kind: str, key: str) -> str:
    """What `INSIGHT_KEY` says of a row."""
    return json.dumps({"kind": kind, "key": key}, ensure_ascii=False)


def insight_of_mark(mark: Any) -> tuple[str, str] | None:
    """The kind and key that a mark says, None where it is none of ours."""
    try:
        said = json.loads(mark)
        return str(said["kind"]), str(said["key"])
    except (TypeError, ValueError, KeyError):
        return None


def config_of(params: Mapping[str, str]) -> dict[str, str]:
    """The config that says a run's params."""
    return {_escaped(key, _RESERVED_PARAMS, _OF_PARAM): params[key] for key in params}


def hparams_of(record: Record) -> dict[str, dict[str, Any]]:
    """What the config says of hyperparameters, as numbers and with their goals; {} for all else."""
    if not isinstance(record, Insight) or record.kind != "hparams":
        return {}
    said = {"hparams": record.content.get("params"), "hparams_goals": record.content.get("goal")}
    return {name: values for name, values in said.items() if values and isinstance(values, dict)}


def words_of_config(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """All words that a config says, by their names; no params where there are none."""
    params = {
        _plain(key, _RESERVED_PARAMS, _OF_PARAM): str(value)
        for key, value in config.items()
        if key not in _RESERVED_PARAMS
    }
    others = {name: _said(values) for name, values in (config.get(WORDS_KEY) or {}).items()}
    found = {name: values for name, values in others.items() if values}
    return ({"params": params} if params else {}) | found


def without_the_old(words: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What the config is to say so that nothing of what it said before stays beside it.

    The client joins a config with what the server has of it, key by key, at every depth.
    """
    return {
        name: {**dict.fromkeys(known.get(name) or {}), **words.get(name, {})}
        for name in {**known, **words}
    }


def _said(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: value for key, value in values.items() if value is not None}


def artifact_name(name: str) -> str:
    """A name that W&B takes for an artifact."""
    return _NOT_IN_NAME.sub("_", name)[:128]


def artifact_metadata(record: Files) -> dict[str, Any]:
    """What an artifact's metadata says of its files."""
    about = {"name": record.name, "sizes_bytes": record.sizes_bytes, "metadata": record.metadata}
    return {**record.metadata, ABOUT_KEY: about}


def words_of_artifact(
    metadata: Mapping[str, Any], kind: str, uris: Mapping[str, str], aliases: list[str]
) -> dict[str, dict[str, str]]:
    """The words that an artifact of ours says, nothing for another's artifact."""
    about = metadata.get(ABOUT_KEY)
    if not about:
        return {}
    plain = [alias for alias in aliases if alias != "latest" and not _is_version(alias)]
    return words_of(
        Files(
            about["name"], kind, dict(uris), dict(about["sizes_bytes"]), dict(about["metadata"]),
            plain,
        )
    )  # fmt: skip


def _is_version(alias: str) -> bool:
    return bool(re.fullmatch(r"v\d+", alias))


def wandb_mode(asked: str | None) -> str:
    """`asked`, or `online` where a key for the W&B server is configured, else `offline`."""
    return asked or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _escaped(key: str, reserved: frozenset[str], prefix: str) -> str:
    """A prefix before what is reserved, and before what such a prefix makes it look like."""
    return prefix + key if _stripped(key, prefix) in reserved else key


def _plain(key: str, reserved: frozenset[str], prefix: str) -> str:
    return key.removeprefix(prefix) if _stripped(key, prefix) in reserved else key


def _stripped(key: str, prefix: str) -> str:
    while key.startswith(prefix):
        key = key.removeprefix(prefix)
    return key
