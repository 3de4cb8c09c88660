"""What a checkpoint is registered with from the command line, so that MLflow can serve it.

Without files of the user's own it is what serves this package's clip generators.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.models import ModelSignature, infer_signature

from opusclip_mlops.errors import ConfigError, RegistryError
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import reason_of

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

_MOST_BYTES = 16 * 2**20
_COMMENT = re.compile(r"(^|\s)#.*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """The model file, an example of a request, what a request looks like, and what serving needs.

    Attributes:
        python_model: A models-from-code file, see `registry.register`.
        input_example: A request that the model answers.
        signature: What it takes, and where that is known what it returns.
        pip_requirements: Lines as pip takes them.
        serves: Classes of the models that are served, any when empty.
    """

    python_model: Path
    input_example: Any
    signature: ModelSignature
    pip_requirements: list[str]
    serves: frozenset[str] = frozenset()


def clip_generator() -> Packing:
    """What serves this package's own models."""
    from opusclip_mlops.projects import serving

    return Packing(
        python_model=serving.MODEL_FILE,
        input_example=serving.INPUT_EXAMPLE,
        signature=serving.SIGNATURE,
        pip_requirements=serving.pip_requirements(),
        serves=serving.SERVED,
    )


def packing(python_model: Path, *, input_example: Path, requirements: Path) -> Packing:
    """What serves a model of the user's own.

    Args:
        python_model: A models-from-code file, see `registry.register`.
        input_example: JSON: a request's rows, a list of objects; an object alone is one row.
        requirements: Lines as pip takes them; comments and empty lines are left out.

    Raises:
        RegistryError: A file cannot be read, or does not hold what it should.
    """
    table = rows_of(input_example)
    lines = [_COMMENT.sub("", line).strip() for line in _text(requirements).splitlines()]
    return Packing(
        python_model=python_model,
        input_example=table,
        signature=infer_signature(table),
        pip_requirements=[line for line in lines if line],
    )


def chosen(
    python_model: Path | None, input_example: Path | None, requirements: Path | None
) -> Packing:
    """What serves a model of the user's own, where its files are given; see `packing`.

    Raises:
        ConfigError: One is missing.
        RegistryError: One cannot be read, or does not hold what it should.
    """
    if python_model and input_example and requirements:
        return packing(python_model, input_example=input_example, requirements=requirements)
    if python_model or input_example or requirements:
        raise ConfigError("--model-file, --input-example and --requirements go together")
    return clip_generator()


_ROWS = '[{"prompt": "a kite"}]'
_BODIES = {"dataframe_records", "dataframe_split"}
"""What the rows are in, in the body of a request; as a row its name would be a column."""


def rows_of(path: Path) -> pd.DataFrame:
    """The rows of requests that a file holds, a column for each key.

    Args:
        path: JSON: a list of objects; an object alone is one row.

    Raises:
        RegistryError: It cannot be read, or holds no rows.
    """
    import pandas as pd

    try:
        rows = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{path} is no JSON: {one_line(str(error))}") from None
    if isinstance(rows, dict):
        if wrapped := _BODIES & set(rows):
            raise RegistryError(f"{path}: rows alone, such as {_ROWS}, without {min(wrapped)}")
        rows = [rows]
    if not isinstance(rows, list) or not rows or not all(rows):
        raise RegistryError(f"{path} holds no request: give rows like {_ROWS}")
    if not all(isinstance(row, dict) for row in rows):
        raise RegistryError(f"{path}: each row of a request is an object of columns")
    return pd.DataFrame(rows)


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise RegistryError(f"{path} is larger than {_MOST_BYTES // 2**20} MiB")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RegistryError(f"cannot read {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or reason_of(error)
