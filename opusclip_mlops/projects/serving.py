"""A registered model as MLflow serves it: a prompt in, an mp4 out.

A request is a table, one clip a row:

    prompt   text of up to 2,000 characters
    seed     optional, 0 to 2**63-1; the same seed gives the same bytes
    frames   optional, 1 to 256; the trained length when left out
"""

from __future__ import annotations

import base64
import reprlib
import threading
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, Schema

from opusclip_mlops.checkpoints import WEIGHTS, CheckpointMetadata, load_weights, read_metadata
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.projects.models import (
    ModelConfig,
    TransformerModel,
    VideoGenerationModel,
    build_model,
)
from opusclip_mlops.video import encode_mp4

MODEL_FILE = Path(__file__).with_name("clip_generator.py")
"""The file to register, as `python_model` of `registry.register`."""

MAX_ROWS = 8
MAX_FRAMES = 256
MAX_PROMPT_CHARACTERS = 2_000
MAX_SEED = 2**63 - 1
CONTENT_TYPE = "video/mp4"

SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec("string", "prompt"),
            ColSpec("long", "seed", required=False),
            ColSpec("long", "frames", required=False),
        ]
    ),
    outputs=Schema(
        [
            ColSpec("string", "video"),
            ColSpec("long", "seed"),
            ColSpec("long", "frames"),
            ColSpec("double", "fps"),
            ColSpec("long", "model_version", required=False),
            ColSpec("string", "content_type"),
        ]
    ),
)
"""What a request and its answer look like; `video` is base64."""

SERVED = frozenset({VideoGenerationModel.__name__, TransformerModel.__name__})
"""The models it builds, by their classes."""

INPUT_EXAMPLE = pd.DataFrame({"prompt": ["a rabbit in a meadow"], "seed": [0], "frames": [8]})
"""A request that every registered generator answers."""

_REGISTERED = "registered_model_meta"
_SERVED_WITH = (
    "mlflow", "torch", "safetensors", "msgspec", "numpy", "av", "pillow",
    "psutil", "prometheus_client",  # where it is watched
)  # fmt: skip


def pip_requirements() -> list[str]:
    """Return what serving needs, at the versions installed here, without build suffixes."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in _SERVED_WITH]


@dataclass(frozen=True, slots=True)
class Request:
    """One row of a request, checked."""

    prompt: str
    seed: int
    frames: int


class ClipGenerator(PythonModel):
    """Generates clips from prompts; safe to call from several threads."""

    def load_context(self, context: PythonModelContext) -> None:
        """Build the model and load its weights, once per process.

        Raises:
            CheckpointError: The weights are not those that were registered, or do not fit.
        """
        folder = Path(context.artifacts["checkpoint"])
        metadata = read_metadata(folder)
        config = ModelConfig.from_dict(metadata.model["config"])
        self._model = build_model(config)
        load_weights(folder, self._model, only=(WEIGHTS,))
        self._frames = config.frames
        self._fps = _fps(metadata)
        self._version = registered_version(folder.parents[1])
        self._lock = threading.Lock()

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> list[dict[str, Any]]:
        """Generate a clip for each row; the same row gives the same bytes.

        Raises:
            MlflowException: A row cannot be answered (HTTP 400); the message says which and why.
        """
        requests = read_requests(model_input, default_frames=self._frames)
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> dict[str, Any]:
        with self._lock:
            clip = self._model.generate(request.prompt, seed=request.seed, frames=request.frames)
        return {
            "video": base64.b64encode(encode_mp4(clip, fps=self._fps)).decode(),
            "seed": request.seed,
            "frames": request.frames,
            "fps": self._fps,
            "model_version": self._version,
            "content_type": CONTENT_TYPE,
        }


def read_requests(rows: pd.DataFrame, *, default_frames: int) -> list[Request]:
    """Check a request's rows, at least one and at most 8.

    Raises:
        MlflowException: INVALID_PARAMETER_VALUE, with the row, the value and the range.
    """
    if not 1 <= len(rows) <= MAX_ROWS:
        raise _refused(f"a request has 1 to {MAX_ROWS} rows, this one has {len(rows)}")
    return [
        Request(
            prompt=_prompt(index, row.get("prompt")),
            seed=_whole(index, "seed", row.get("seed", 0), 0, MAX_SEED),
            frames=_whole(index, "frames", row.get("frames", default_frames), 1, MAX_FRAMES),
        )
        for index, row in enumerate(rows.to_dict("records"))
    ]


def registered_version(folder: Path) -> int | None:
    """Return the version that a loaded model's folder was fetched as, None when it was not.

    MLflow notes it in the folder when a model is fetched as models:/<name>/<version or alias>.
    """
    try:
        content = yaml.safe_load((folder / _REGISTERED).read_text())
    except FileNotFoundError:
        return None
    number = content["model_version"]
    return None if number is None else int(number)


def _prompt(row: int, value: object) -> str:
    if not isinstance(value, str):
        raise _refused(f"row {row}: prompt must be text, not {reprlib.repr(value)}")
    if len(value) > MAX_PROMPT_CHARACTERS:
        limit = f"{MAX_PROMPT_CHARACTERS:,} characters"
        raise _refused(f"row {row}: prompt must be at most {limit}, it has {len(value):,}")
    return value


def _whole(row: int, name: str, value: object, least: int, most: int) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise _refused(f"row {row}: {name} must be a whole number, not {reprlib.repr(value)}")
    if not least <= value <= most:
        raise _refused(f"row {row}: {name} must be {least} to {most}, not {value}")
    return int(value)


def _refused(reason: str) -> MlflowException:
    return MlflowException(reason, error_code=INVALID_PARAMETER_VALUE)


def _fps(metadata: CheckpointMetadata) -> float:
    for config in (metadata.config, metadata.model["config"]):
        if isinstance(fps := config.get("fps"), int | float) and fps > 0:
            return float(fps)
    raise CheckpointError(f'checkpoint {metadata.name} names no "fps" in its config')
