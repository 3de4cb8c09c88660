"""Going on after a restart: which checkpoint, and where each rank has it from.

torchrun starts all ranks anew when one of them has failed, and a job that was put back into the
queue goes on in the run of the first: the run's last whole checkpoint is where training stands.
"""

import contextlib
from pathlib import Path

import msgspec
from mlflow import MlflowClient

from opusclip_mlops import checkpoints
from opusclip_mlops.asking import told_in_one_line
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.joining import earlier_run
from opusclip_mlops.layout import LAST_TAG
from opusclip_mlops.loading import LoadedCheckpoint, load_checkpoint
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.projects.distributed import Ranks
from opusclip_mlops.tracker import ExperimentTracker

ARRIVAL_WAIT_S = 600.0
"""How long is waited at most until MLflow has what others need of it."""


class _Told(msgspec.Struct, frozen=True):
    """What the owner says of a checkpoint: where its machine has it, and what is known about it."""

    folder: str | None
    metadata: dict[str, object]


def last_checkpoint(config: TrackingConfig, ranks: Ranks) -> LoadedCheckpoint | None:
    """The checkpoint to go on from, the same for all ranks; None for a run that has none yet.

    A rank whose machine does not have it gets it without a folder.

    Raises:
        RegistryError: MLflow does not answer.
        CheckpointError: what MLflow calls the last one is not whole.
    """
    if not ranks.are_launched:
        return None
    found = _of_run(config) if ranks.is_owner else None
    told = ranks.told_by_owner(_text(found))
    if found or not told:
        return found
    said = msgspec.json.decode(told, type=_Told)
    folder = Path(said.folder) if said.folder and Path(said.folder).is_dir() else None
    return LoadedCheckpoint(folder=folder, metadata=CheckpointMetadata.from_dict(said.metadata))


def bring_in(ranks: Ranks, tracker: ExperimentTracker) -> None:
    """Have what only the owner's machine has of the run in MLflow, for the ranks of others."""
    if ranks.are_on_many_nodes:
        if ranks.is_owner:
            tracker.flush(sink="mlflow", timeout_s=ARRIVAL_WAIT_S)
        ranks.follow_owner()


def _text(found: LoadedCheckpoint | None) -> str:
    if found is None:
        return ""
    folder = str(found.folder) if found.folder else None
    return msgspec.json.encode(_Told(folder, found.metadata.to_dict())).decode()


def _of_run(config: TrackingConfig) -> LoadedCheckpoint | None:
    """The last checkpoint of the run that this job goes on with, on the disk or in MLflow."""
    earlier = earlier_run(config)
    if earlier is None and config.run_id is None:
        return None
    run_id = earlier.run_id if earlier else config.run_id
    folder = earlier.folder if earlier else RunFolder(Path(config.journal_dir, str(run_id)))
    staged = (_whole(place, run_id) for place in _newest_first(folder))
    found = next(filter(None, staged), None)
    return found or (_in_mlflow(run_id, config) if run_id else None)


def _newest_first(folder: RunFolder) -> list[Path]:
    """The checkpoints that lie in the run's folder, whole or not."""
    written: dict[Path, int] = {}
    for path in folder.checkpoints.glob(f"[!.]*/{checkpoints.METADATA}"):
        with contextlib.suppress(CheckpointError):
            written[path.parent] = checkpoints.read_metadata(path.parent).created_ms
    return sorted(written, key=lambda place: written[place], reverse=True)


def _whole(place: Path, run_id: str | None) -> LoadedCheckpoint | None:
    """A checkpoint as it was saved; None for one that the end of its process has torn."""
    try:
        checkpoints.seal(place, run_id=run_id)
        return load_checkpoint(place)
    except CheckpointError:
        return None


def _in_mlflow(run_id: str, config: TrackingConfig) -> LoadedCheckpoint | None:
    with told_in_one_line(f"cannot find the last checkpoint of run {run_id}"):
        run = MlflowClient(config.tracking_uri).get_run(run_id)
    if LAST_TAG not in run.data.tags:
        return None
    return load_checkpoint(run_id, which="last", tracking_uri=config.tracking_uri)
