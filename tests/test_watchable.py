"""What a version holds to be watched: our file first, its own one as it was."""

import subprocess
import sys
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import pytest
import yaml
from mlflow.models import Model

from opusclip_mlops.drift import REFERENCE_FILE, InputReference
from opusclip_mlops.errors import RecordError
from opusclip_mlops.watchable import make_watchable, reference_of

OWN = """
import mlflow.models
import mlflow.pyfunc
from dataclasses import dataclass

@dataclass
class Twice(mlflow.pyfunc.PythonModel):
    factor: "int" = 2

    def predict(self, context, model_input, params=None):
        return [self.factor * one for one in model_input["x"]]

mlflow.models.set_model(Twice())
"""
LISTED = (
    "import runpy, sys; found = runpy.run_path(sys.argv[1], run_name='model');"
    "print(found['_own'].LOADED, any('monitoring' in name for name in sys.modules))"
)


def test_a_saved_model_answers_as_before(tmp_path: Path) -> None:
    """It is loaded through our file, and its own one is not changed."""
    own = tmp_path / "twice.py"
    own.write_text(OWN)
    model, folder = Model(), tmp_path / "model"
    mlflow.pyfunc.save_model(folder, python_model=str(own), mlflow_model=model, pip_requirements=[])
    reference = reference_of(pd.DataFrame({"x": range(100)}))
    make_watchable(folder, model, reference)
    assert (folder / "twice.py").read_text() == OWN
    about = yaml.safe_load((folder / "MLmodel").read_text())
    assert about["flavors"]["python_function"]["model_code_path"] == "twice.watched.py"
    assert InputReference.from_json((folder / REFERENCE_FILE).read_text()) == reference
    loaded = mlflow.pyfunc.load_model(str(folder))
    assert loaded.predict(pd.DataFrame({"x": [1, 2]})) == [2, 4]


@pytest.mark.parametrize(
    ("asked", "words"),
    [(None, ["True", "False"]), ("1", ["True", "True"]), ("0", ["True", "True"])],
)
def test_nothing_of_the_watching_is_loaded_unless_it_is_asked_for(
    asked: str | None, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the variable is not set, the model's own file is all that runs."""
    entry = Path(sys.modules["opusclip_mlops.watchable"].__file__ or "").parent / "monitoring"
    (tmp_path / "m.watched.py").write_text((entry / "entry.py").read_text())
    (tmp_path / "m.py").write_text("LOADED = True\n")
    if asked is not None:
        monkeypatch.setenv("OPUSCLIP_MONITOR", asked)
    argv = [sys.executable, "-c", LISTED, str(tmp_path / "m.watched.py")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.split() == words
    assert done.stderr == ""


def test_rows_of_either_form_are_a_reference() -> None:
    """A data frame, or an object of columns."""
    frame = pd.DataFrame({"x": [1.0, 2.0]})
    assert reference_of(frame) == reference_of({"x": [1.0, 2.0]})
    assert reference_of(None) is None


@pytest.mark.parametrize("inputs", [[1, 2], "text", {}, {"x": []}, pd.DataFrame()])
def test_what_cannot_be_compared_is_refused(inputs: object) -> None:
    """It is said what to give."""
    with pytest.raises(RecordError, match="give rows"):
        reference_of(inputs)
