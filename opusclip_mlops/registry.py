"""Registering: a run's checkpoint becomes a version of a model that MLflow can serve.

In MLflow a run keeps its checkpoints under `checkpoints/<checkpoint>/`; the run's tags
`opusclip.checkpoint.best` and `opusclip.checkpoint.last` name two of them.

A registered version holds the weights, their metadata, a Python file that builds the model and a
copy of this package, and no pickle. The copy is used only where the package is not installed.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import mlflow
import mlflow.pyfunc
from mlflow.entities import LifecycleStage, LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from safetensors import SafetensorError, safe_open

from opusclip_mlops.asking import client_of, registry_meant, told_in_one_line
from opusclip_mlops.checkpoints import METADATA, WEIGHTS, CheckpointMetadata, verify
from opusclip_mlops.consolidating import consolidated
from opusclip_mlops.decisions import present_actor
from opusclip_mlops.drift import InputReference
from opusclip_mlops.errors import RegistryError
from opusclip_mlops.fetching import checkpoint_names, is_there
from opusclip_mlops.layout import CHECKPOINTS, IMAGES, clip_folder, clip_of
from opusclip_mlops.version_page import Sample, VersionPage, latest_sample
from opusclip_mlops.watchable import make_watchable, reference_of

CHECKPOINT_TAG = "opusclip.checkpoint"

_PACKAGE = Path(__file__).parent
Content: TypeAlias = tuple[dict[str, Any], InputReference | None]
# What every database that MLflow knows can hold in its index.
_LONGEST_NAME = 256


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
    serves: Collection[str] = (),
    input_reference: Any = None,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> RegisteredVersion:
    """Make a checkpoint of a run the next version of the model `name`.

    The checkpoint is downloaded and verified, logged to its run as a model and registered. Of one
    that several processes wrote by their shares the version holds the whole weights.
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
        serves: Classes of the models that `python_model` serves; any when empty.
        input_reference: Rows as they are usual, 100 or more, a data frame or an object of columns:
            what is served is compared with them where it is watched. Numbers and values that come
            often are kept with the version.
        tracking_uri: Where the run is, MLflow's default when None.
        registry_uri: Where the model goes, the tracking server when None.

    Raises:
        RegistryError: No such run or checkpoint, a bad name, a model that is not served, or MLflow
            refused or did not answer.
        CheckpointError: The checkpoint is not sealed, or not as it was sealed.
        RecordError: `input_reference` holds nothing that can be compared.
    """
    _check(name, python_model)
    reference = reference_of(input_reference)
    client = client_of(tracking_uri, registry_uri)
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
        with told_in_one_line(f"cannot fetch checkpoint {chosen} of run {run_id}"):
            fetched = Path(client.download_artifacts(run_id, f"{CHECKPOINTS}/{chosen}", temporary))
        metadata = verify(fetched)
        _check_served(metadata, serves)
        if metadata.is_sharded:
            fetched = consolidated(fetched, Path(temporary, "whole"))
            metadata = verify(fetched, only=(WEIGHTS,))
        with told_in_one_line(f"cannot read what run {run_id} has besides its checkpoints"):
            page = _page(client, run, metadata, fetched, registry_uri)
        with told_in_one_line(f"cannot log checkpoint {chosen} of run {run_id} as a model"):
            logged = _log_model(client, run, page, fetched, (content, reference))
    with told_in_one_line(f"cannot register checkpoint {chosen} of run {run_id} as {name}"):
        version = _create_version(client, name, run, page, logged)
    return RegisteredVersion(name, version, f"models:/{name}/{version}", run_id, chosen)


def _check(name: str, python_model: Path) -> None:
    is_long = len(name) > _LONGEST_NAME
    if not name.strip() or name in (".", "..") or not name.isprintable() or is_long:
        rule = f"one line of at most {_LONGEST_NAME} characters that can be seen"
        raise RegistryError(f"bad model name {name!r:.80}: it must be {rule}")
    if "/" in name or ":" in name:
        raise RegistryError(f"bad model name {name!r}: it must not hold / or :")
    if python_model.suffix != ".py" or not python_model.is_file():
        raise RegistryError(f"python_model {python_model} is no Python file")


def _check_served(metadata: CheckpointMetadata, serves: Collection[str]) -> None:
    kind = metadata.model.get("class")
    if serves and kind not in serves:
        raise RegistryError(
            f"checkpoint {metadata.name} is of a {kind}, and what is to serve it serves "
            f"{', '.join(sorted(serves))}: give a model file that serves a {kind}"
        )


def _find_run(client: MlflowClient, run_id: str) -> Run:
    with told_in_one_line(f"cannot find run {run_id!r}"):
        run = client.get_run(run_id)
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        raise RegistryError(f"run {run_id} is deleted: restore it to register its checkpoints")
    return run


def _find_checkpoint(client: MlflowClient, run: Run, checkpoint: str) -> str:
    run_id, tag = run.info.run_id, f"{CHECKPOINT_TAG}.{checkpoint}"
    chosen = run.data.tags.get(tag) if checkpoint in ("best", "last") else checkpoint
    with told_in_one_line(f"cannot list the checkpoints of run {run_id}"):
        files = get_artifact_repository(run.info.artifact_uri, tracking_uri=client.tracking_uri)
        names = checkpoint_names(files)
        if chosen in names and is_there(files, chosen):
            return chosen
        names = [name for name in names if is_there(files, name)]
    wanted = f"no checkpoint {chosen}"
    if chosen is None:
        wanted = f"no checkpoint marked {checkpoint} (tag {tag})"
    raise RegistryError(f"run {run_id} has {wanted}; it has: {', '.join(names) or 'none'}")


def _page(
    client: MlflowClient,
    run: Run,
    metadata: CheckpointMetadata,
    checkpoint: Path,
    registry_uri: str | None,
) -> VersionPage:
    registry_uri = registry_meant(registry_uri)
    datasets = [one.dataset for one in run.inputs.dataset_inputs] if run.inputs else []
    names = [one.name for one in datasets if one.digest == metadata.dataset_digest]
    return VersionPage(
        metadata=metadata,
        weights=metadata.files[WEIGHTS],
        metadata_sha256=hashlib.sha256((checkpoint / METADATA).read_bytes()).hexdigest(),
        value_count=_value_count(checkpoint / WEIGHTS),
        run_id=run.info.run_id,
        run_name=run.info.run_name or "",
        registered_by=present_actor().name,
        experiment_id=run.info.experiment_id,
        is_linked=registry_uri in (None, client.tracking_uri),
        dataset_name=names[0] if names else "",
        sample=_sample(client, run.info.run_id, metadata.step),
    )


def _value_count(weights: Path) -> int:
    """The numbers in a file of weights; 0 where it can't be read as one."""
    try:
        with safe_open(weights, framework="numpy") as file:
            names = file.keys()
            return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    except SafetensorError:
        return 0


def _sample(client: MlflowClient, run_id: str, step: int) -> Sample | None:
    """What the run showed at a step or last before it, and the clip that it was made of."""
    pictures = client.list_artifacts(run_id, IMAGES)
    sample = latest_sample((one.path for one in pictures), step=step)
    if sample is None:
        return None
    clips = [one.path for one in client.list_artifacts(run_id, clip_folder(sample.key))]
    known = ((path, clip_of(path)) for path in clips)
    shown = [path for path, clip in known if clip and clip.mark == sample.mark]
    return replace(sample, clip=shown[0]) if shown else sample


def _log_model(
    client: MlflowClient,
    run: Run,
    page: VersionPage,
    checkpoint: Path,
    content: Content,
) -> LoggedModel:
    metadata = page.metadata
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=re.sub(r"[/:.%\"']", "_", metadata.name),
        source_run_id=run.info.run_id,
        tags=page.tags(),
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


def _save_model(logged: LoggedModel, checkpoint: Path, folder: Path, content: Content) -> None:
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
    path, (given, reference) = folder / "model", content
    mlflow.pyfunc.save_model(path=str(path), mlflow_model=model, artifacts=artifacts, **given)
    make_watchable(path, model, reference)


def _create_version(
    client: MlflowClient,
    name: str,
    run: Run,
    page: VersionPage,
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
        tags=page.tags(),
        description=page.description(),
        model_id=logged.model_id,
    )
    return int(version.version)


def _source(client: MlflowClient, logged: LoggedModel) -> str:
    # A database registry looks "models:/<id>" up in the process's tracking URI, not the client's.
    if client.tracking_uri == mlflow.get_tracking_uri():
        return logged.model_uri
    return logged.artifact_location
