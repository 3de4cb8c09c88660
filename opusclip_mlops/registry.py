"""Registering: a run's checkpoint becomes a version of a model that MLflow can serve.

In MLflow a run keeps its checkpoints under `checkpoints/<checkpoint>/`; the run's tags
`opusclip.checkpoint.best` and `opusclip.checkpoint.last` name two of them.

A registered version holds the weights, their metadata, a Python file that builds the model and a
copy of this package, and no pickle. The copy is used only where the package is not installed.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc
from mlflow.entities import LifecycleStage, LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.tracking import MlflowClient

from opusclip_mlops.checkpoints import METADATA, WEIGHTS, CheckpointMetadata, verify
from opusclip_mlops.errors import RegistryError

CHECKPOINTS = "checkpoints"
CHECKPOINT_TAG = "opusclip.checkpoint"

_PACKAGE = Path(__file__).parent
_DESCRIBED_METRICS = 6


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version in the registry and the checkpoint it was made of."""

    name: str
    version: int
    uri: str
    run_id: str
    checkpoint: str


def register(
    run_id: str,
    *,
    name: str,
    checkpoint: str = "best",
    python_model: Path,
    input_example: Any,
    signature: ModelSignature,
    pip_requirements: Sequence[str],
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> RegisteredVersion:
    """Make a checkpoint of a run the next version of the model `name`.

    The checkpoint is downloaded and verified, logged to its run as a model and registered.
    Registering the same checkpoint again makes another version; none is ever changed. The run may
    be running or ended. MLflow's active run is neither used nor changed.

    Args:
        run_id: The MLflow run that holds the checkpoint.
        name: The registered model; it is created when there is none.
        checkpoint: "best", "last" or a checkpoint's name.
        python_model: A models-from-code file; it finds the checkpoint's weights and metadata under
            the artifact "checkpoint".
        input_example: A request's rows as a data frame or a dict, stored with the model.
        signature: What the model takes and returns.
        pip_requirements: What serving needs to have installed.
        tracking_uri: Where the run is, MLflow's default when None.
        registry_uri: Where the model goes, the tracking server when None.

    Raises:
        RegistryError: No such run or checkpoint, a bad name, or MLflow refused or did not answer.
        CheckpointError: The checkpoint is not sealed, or not as it was sealed.
    """
    _check(name, python_model)
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=registry_uri)
    run = _find_run(client, run_id)
    chosen = _find_checkpoint(client, run, checkpoint)
    content = {
        "python_model": str(python_model),
        "code_paths": [str(_PACKAGE)],
        "input_example": input_example,
        "signature": signature,
        "pip_requirements": list(pip_requirements),
    }
    with tempfile.TemporaryDirectory(prefix="opusclip-") as temporary:
        with _one_line(f"cannot fetch checkpoint {chosen} of run {run_id}"):
            fetched = client.download_artifacts(run_id, f"{CHECKPOINTS}/{chosen}", temporary)
        metadata = verify(Path(fetched))
        with _one_line(f"cannot log checkpoint {chosen} of run {run_id} as a model"):
            logged = _log_model(client, run, metadata, Path(fetched), content)
    with _one_line(f"cannot register checkpoint {chosen} of run {run_id} as {name}"):
        version = _create_version(client, name, run, metadata, logged)
    return RegisteredVersion(name, version, f"models:/{name}/{version}", run_id, chosen)


def _check(name: str, python_model: Path) -> None:
    if not name.strip() or name in (".", "..") or "/" in name or ":" in name:
        raise RegistryError(f"bad model name {name!r}: it must not be empty, nor hold / or :")
    if python_model.suffix != ".py" or not python_model.is_file():
        raise RegistryError(f"python_model {python_model} is no Python file")


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    try:
        yield
    except (MlflowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RegistryError(f"{what}: {reason}") from error


def _find_run(client: MlflowClient, run_id: str) -> Run:
    with _one_line(f"cannot find run {run_id!r}"):
        run = client.get_run(run_id)
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        raise RegistryError(f"run {run_id} is deleted: restore it to register its checkpoints")
    return run


def _find_checkpoint(client: MlflowClient, run: Run, checkpoint: str) -> str:
    run_id = run.info.run_id
    with _one_line(f"cannot list the checkpoints of run {run_id}"):
        entries = client.list_artifacts(run_id, CHECKPOINTS)
    names = sorted(Path(entry.path).name for entry in entries if entry.is_dir)
    tag = f"{CHECKPOINT_TAG}.{checkpoint}"
    chosen = run.data.tags.get(tag) if checkpoint in ("best", "last") else checkpoint
    if chosen is None:
        wanted = f"no checkpoint marked {checkpoint} (tag {tag})"
    elif chosen in names:
        return chosen
    else:
        wanted = f"no checkpoint {chosen}"
    raise RegistryError(f"run {run_id} has {wanted}; it has: {', '.join(names) or 'none'}")


def _log_model(
    client: MlflowClient,
    run: Run,
    metadata: CheckpointMetadata,
    checkpoint: Path,
    content: dict[str, Any],
) -> LoggedModel:
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=re.sub(r"[/:.%\"']", "_", metadata.name),
        source_run_id=run.info.run_id,
        tags=_tags(run, metadata),
        model_type=metadata.model.get("class"),
    )
    status = LoggedModelStatus.FAILED
    try:
        with tempfile.TemporaryDirectory(prefix="opusclip-") as folder:
            _save_model(logged, checkpoint, Path(folder), content)
            client.log_model_artifacts(logged.model_id, str(Path(folder, "model")))
        status = LoggedModelStatus.READY
    finally:
        client.finalize_logged_model(logged.model_id, status)
    client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, metadata.step)])
    return logged


def _save_model(
    logged: LoggedModel, checkpoint: Path, folder: Path, content: dict[str, Any]
) -> None:
    served = folder / "checkpoint"
    served.mkdir()
    # The training state is left out: it is most of a checkpoint, and serving does not read it.
    for name in (WEIGHTS, METADATA):
        shutil.copyfile(checkpoint / name, served / name)
    model = Model(
        artifact_path=logged.artifact_location,
        run_id=logged.source_run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
    )
    artifacts = {"checkpoint": str(served)}
    path = str(folder / "model")
    mlflow.pyfunc.save_model(path=path, mlflow_model=model, artifacts=artifacts, **content)


def _create_version(
    client: MlflowClient,
    name: str,
    run: Run,
    metadata: CheckpointMetadata,
    logged: LoggedModel,
) -> int:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
            raise
    version = client.create_model_version(
        name,
        source=_source(client, logged),
        run_id=run.info.run_id,
        tags=_tags(run, metadata),
        description=_description(run, metadata),
        model_id=logged.model_id,
    )
    return int(version.version)


def _source(client: MlflowClient, logged: LoggedModel) -> str:
    # A database registry looks "models:/<id>" up in the process's tracking URI, not the client's.
    if client.tracking_uri == mlflow.get_tracking_uri():
        return logged.model_uri
    return logged.artifact_location


def _tags(run: Run, metadata: CheckpointMetadata) -> dict[str, str]:
    values = {
        "checkpoint": metadata.name,
        "step": metadata.step,
        "epoch": metadata.epoch,
        "weights_sha256": metadata.files[WEIGHTS].sha256,
        "git_commit": metadata.git_commit,
        "git_dirty": None if metadata.git_dirty is None else str(metadata.git_dirty).lower(),
        "dataset_digest": metadata.dataset_digest,
        "source_run": run.info.run_id,
    }
    values |= {f"metric.{key}": f"{value:.6g}" for key, value in metadata.metrics.items()}
    return {f"opusclip.{key}": str(value) for key, value in values.items() if value is not None}


def _description(run: Run, metadata: CheckpointMetadata) -> str:
    kind = metadata.model.get("class", "Model")
    text = f"{kind} from run {run.info.run_name}, epoch {metadata.epoch}, step {metadata.step}."
    if metadata.metrics:
        shown = sorted(metadata.metrics.items())[:_DESCRIBED_METRICS]
        text += f" Measured: {', '.join(f'{key} {value:.4g}' for key, value in shown)}."
    if metadata.dataset_digest:
        text += f" Trained on dataset {metadata.dataset_digest}."
    if metadata.git_commit:
        changed = " with uncommitted changes" if metadata.git_dirty else ""
        text += f" Code at commit {metadata.git_commit[:12]}{changed}."
    return text
