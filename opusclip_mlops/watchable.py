"""What a registered version holds so that it can be watched where it is served.

A file of ours stands before the model's own one, which it loads; it asks for the watching only
where OPUSCLIP_MONITOR is set. What inputs are usually like is kept beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME

from opusclip_mlops.drift import REFERENCE_FILE, InputReference, features

_ENTRY = Path(__file__).with_name("monitoring") / "entry.py"
_FLAVOUR, _CODE = "python_function", "model_code_path"


def reference_of(inputs: Any) -> InputReference | None:
    """What inputs are usually like, from rows as a data frame or an object of columns.

    Raises:
        RecordError: They are no such rows, or have no column that can be compared.
    """
    if inputs is None:
        return None
    columns = inputs.to_dict("list") if hasattr(inputs, "to_dict") else inputs
    usable = columns if isinstance(columns, Mapping) else {}
    return InputReference.of(features(usable))


def make_watchable(folder: Path, model: Model, reference: InputReference | None) -> None:
    """Put our file before a saved model's own one, and what its inputs are like beside it.

    Args:
        folder: Where the model was saved, from code.
        model: What MLflow wrote about it there; written anew.
        reference: What its inputs are usually like, where that is known.
    """
    own = Path(model.flavors[_FLAVOUR][_CODE]).name
    entry = f"{own.removesuffix('.py')}.watched.py"
    shutil.copyfile(_ENTRY, folder / entry)
    model.flavors[_FLAVOUR][_CODE] = entry
    model.save(str(folder / MLMODEL_FILE_NAME))
    if reference is not None:
        path = folder / REFERENCE_FILE
        path.parent.mkdir(exist_ok=True)
        path.write_text(reference.as_json(), encoding="utf-8")
