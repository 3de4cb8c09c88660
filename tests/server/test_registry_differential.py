"""Models that nobody has promoted are kept as stock MLflow keeps them, call by call."""

import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import IS_PROMPT_TAG_KEY
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import text

from opusclip_mlops.server.models import RegistryStore
from tests.journeys import store

NAMES = ("clip", "boat", "words", "", None, "a/b", "x" * 300)
VERSIONS = ("1", "2", 1, "7", "01", "x", "", "-1", "1.5")
ALIASES = ("best", "staging", "production", "latest", "v1", "", "a b", None)
STAGES = ("None", "archived", "Archived", "none", "Elsewhere", "")
KEYS = ("a", "b", IS_PROMPT_TAG_KEY, "", None, "k" * 300)
VALUES = ("1", "true", "", "v" * 200)
TABLES = {
    "registered_models": "name, description",
    "registered_model_tags": "name, key, value",
    "registered_model_aliases": "name, alias, version",
    "model_versions": "name, version, current_stage, source, run_id, status, description",
    "model_version_tags": "name, version, key, value",
}
LIKELY = 4
_TIMES = re.compile(r"\b1[0-9]{12}\b")
_CALLS: dict[str, Callable[[Random], tuple[Any, ...]]] = {
    "create_registered_model": lambda draw: (_name(draw), _tags(draw, RegisteredModelTag), "what"),
    "update_registered_model": lambda draw: (_name(draw), draw.choice(VALUES)),
    "rename_registered_model": lambda draw: (_name(draw), _name(draw)),
    "delete_registered_model": lambda draw: (_name(draw),),
    "get_registered_model": lambda draw: (_name(draw),),
    "set_registered_model_tag": lambda draw: (_name(draw), _tag(draw, RegisteredModelTag)),
    "delete_registered_model_tag": lambda draw: (_name(draw), draw.choice(KEYS)),
    "create_model_version": lambda draw: (
        _name(draw), "s3://films/1", None, _tags(draw, ModelVersionTag),
    ),
    "update_model_version": lambda draw: (_name(draw), _version(draw), draw.choice(VALUES)),
    "transition_model_version_stage": lambda draw: (
        _name(draw), _version(draw), draw.choice(STAGES), draw.random() < 0.2,
    ),
    "delete_model_version": lambda draw: (_name(draw), _version(draw)),
    "get_model_version": lambda draw: (_name(draw), _version(draw)),
    "get_latest_versions": lambda draw: (_name(draw),),
    "set_model_version_tag": lambda draw: (
        _name(draw), _version(draw), _tag(draw, ModelVersionTag),
    ),
    "delete_model_version_tag": lambda draw: (_name(draw), _version(draw), draw.choice(KEYS)),
    "set_registered_model_alias": lambda draw: (_name(draw), _free_alias(draw), _version(draw)),
    "delete_registered_model_alias": lambda draw: (_name(draw), draw.choice(ALIASES)),
    "get_model_version_by_alias": lambda draw: (_name(draw), draw.choice(ALIASES)),
}  # fmt: skip


def _name(draw: Random) -> Any:
    return draw.choice(NAMES) if draw.random() < 1 / LIKELY else draw.choice(NAMES[:2])


def _version(draw: Random) -> Any:
    return draw.choice(VERSIONS) if draw.random() < 1 / LIKELY else draw.choice(VERSIONS[:3])


def _free_alias(draw: Random) -> Any:
    """One that goes with no stage: those that do are the guard's."""
    return draw.choice([one for one in ALIASES if one not in ("staging", "production")])


def _tag(draw: Random, kind: Any) -> Any:
    return kind(draw.choice(KEYS), draw.choice(VALUES))


def _tags(draw: Random, kind: Any) -> Any:
    return draw.choice([None, [], [_tag(draw, kind)], [kind("a", "1"), kind("a", "2")]])


def answer(there: SqlAlchemyStore, what: str, asked: tuple[Any, ...]) -> Any:
    """What a call gives or raises, without the times of the clock."""
    try:
        return _plain(getattr(there, what)(*asked))
    except MlflowException as error:
        return error.error_code, _TIMES.sub("<time>", str(error.message))
    except (TypeError, ValueError, AttributeError) as error:
        return type(error).__name__, str(error)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [*map(_plain, value)]
    if hasattr(value, "__dict__"):
        return {name: _plain(one) for name, one in vars(value).items() if "time" not in name}
    return value


def rows(there: SqlAlchemyStore) -> dict[str, list[str]]:
    """All that the database holds of models, but the times."""
    with there.engine.connect() as connection:
        return {
            table: sorted(map(repr, connection.execute(text(f"SELECT {columns} FROM {table}"))))
            for table, columns in TABLES.items()
        }


@pytest.mark.parametrize("seed", range(2))
def test_any_sequence_of_calls_has_the_same_answers_and_leaves_the_same_rows(
    tmp_path: Path, seed: int
) -> None:
    """Where no stage is held, the guard is not to be noticed."""
    stock: Any = SqlAlchemyStore(store(tmp_path / "stock"))  # type: ignore[no-untyped-call]
    ours = RegistryStore(store(tmp_path / "ours"))
    draw = Random(seed)
    for _ in range(200):
        what = draw.choice([*_CALLS])
        asked = _CALLS[what](draw)
        assert answer(ours, what, asked) == answer(stock, what, asked), (what, asked)
    assert rows(ours) == rows(stock)
