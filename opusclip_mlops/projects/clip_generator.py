"""What MLflow runs to load a registered clip generator."""

import sys
from pathlib import Path

import mlflow.models

# MLflow puts the model's copy of the package first; an installed one is to be used where there is.
_copy = str(Path(__file__).parent / "code")
if _copy in sys.path:
    sys.path.remove(_copy)
    sys.path.append(_copy)

from opusclip_mlops.projects.serving import ClipGenerator  # noqa: E402

mlflow.models.set_model(ClipGenerator())
