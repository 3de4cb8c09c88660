"""MLflow, the record: the run, its params, metrics, tags, datasets, files and checkpoints.

Re-sending is harmless in a database, though the file store keeps a point twice: timestamps and
values are those of the log call, artifacts have the same names each time, and a run made by a
shipper that died is found again by its tag.
"""

import contextlib
import functools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

# The loop around a sink retries; a client that retries by itself would only hide it for minutes.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

import msgspec
import requests
from mlflow import MlflowClient, get_tracking_uri
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from opusclip_mlops import checkpoints, layout, records, vain_waiting
from opusclip_mlops.checkpoint_uploads import CheckpointUploads
from opusclip_mlops.deaths import stale_tags
from opusclip_mlops.errors import CheckpointError, RecordError, VideoError
from opusclip_mlops.faults import PutOff, attempted
from opusclip_mlops.folder import Identity, Manifest, RunFolder
from opusclip_mlops.generations import tags_of_generations
from opusclip_mlops.insight_uploads import set_aside
from opusclip_mlops.layout import (
    LOCAL_ID_TAG,
    MIRROR_ID_TAG,
    MIRROR_OF_TAG,
    MIRRORS_TAG,
    REASON_TAG,
)
from opusclip_mlops.mirror_state import MirrorState, live_mirrors
from opusclip_mlops.mlflow_requests import entities, merged, parts
from opusclip_mlops.new_store import alone_in_store
from opusclip_mlops.pruning import Marks, Pruning
from opusclip_mlops.rank_relay import owners_run, run_by_local_id
from opusclip_mlops.records import Batch, Record, RunEnded
from opusclip_mlops.redaction import one_line
from opusclip_mlops.refusals import EXISTS, is_for_good, reason_of
from opusclip_mlops.run_families import PARENT_TAG, family_of
from opusclip_mlops.sessions import final_end, sessions
from opusclip_mlops.sinks import Refusal, SinkState, Waiting, Written
from opusclip_mlops.uploads import Sendable, Uploads
from opusclip_mlops.wall_shipping import Walls
from opusclip_mlops.wandb_layout import wandb_mode

if TYPE_CHECKING:
    from opusclip_mlops.sinks import Sink

_TOO_LARGE = 413
_FILES_OF_RANKS = records.Crash | records.Checkpoint | records.CheckpointDropped
_FILES = Sendable | records.Checkpoint | records.CheckpointDropped


class MlflowSink:
    """Writes a run through `MlflowClient`, always by its run id."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._manifest = folder.manifest()
        with alone_in_store(self._manifest.tracking_uri or get_tracking_uri()):
            self._client = MlflowClient(self._manifest.tracking_uri, self._manifest.registry_uri)
        self._owns_run = self._manifest.owns_run
        self._no_run = ""
        self._refused: list[Refusal] = []
        self._put_off = PutOff()

    def open(self, state: SinkState) -> SinkState:
        """Find the run, or make it with its true start time."""
        slim = functools.partial(set_aside, self._folder)
        self._put_off = PutOff(state.get("put_off", ()), slim=slim)
        try:
            run = self._run()
        except MlflowException as error:
            named = self._manifest.run_id or self._made_before()
            if not named or not is_for_good(error):
                raise
            self._no_run = f"MLflow run {named}: {reason_of(error)}"
            if not self._made_before():
                # The mirrors wait for a name: they keep what the record refuses.
                name = self._manifest.experiment_name or "Default"
                self._folder.write_identity(
                    Identity(mirror_id=self._manifest.local_id, experiment_name=name)
                )
            return state
        self._run_id = run.info.run_id
        if self._owns_run and run.data.tags.get(MIRROR_OF_TAG) != self._run_id:
            self._client.set_tag(self._run_id, MIRROR_OF_TAG, self._run_id)
        self._params = dict(run.data.params)
        self._uploads = Uploads(self._client, self._run_id, self._folder)
        due = state.get("walls", ())
        self._checkpoints = CheckpointUploads(
            self._run_id, self._folder, owns_run=self._owns_run,
            artifact_uri=run.info.artifact_uri, tracking_uri=self._client.tracking_uri,
        )  # fmt: skip
        self._walls = Walls(
            self._client, self._run_id, self._folder, here=self._uploads.here, due=due
        )
        self._pruning = Pruning(self._client, self._run_id)
        goes_on = self._manifest.run_id is not None
        self._marks = Marks(self._client, self._run_id, self._folder, goes_on=goes_on)
        # The process that trains is told; what fails now is tried again later.
        attempted(self._marks.look)
        self._folder.write_identity(self._identity(run))
        if not self._owns_run:
            return self._state()
        with contextlib.suppress(OSError):
            # For whoever compares the mirrors on this machine.
            MirrorState().note_live(self._run_id, self._as_it_mirrors())
        return self._state()

    def write(self, batch: Batch) -> Written:
        """Send the batch; metrics of many log calls share one request.

        A file that the artifact store does not take now is put off, and tried again later.
        """
        self._refused = []
        faults_before = self._put_off.faults
        self._put_off.try_again(self._send_checked)
        for record_or_metrics in merged(self._own_part(batch)):
            if self._no_run:
                self._refuse(record_or_metrics, self._no_run)
            elif isinstance(record_or_metrics, list):
                self._send_metrics(record_or_metrics)
            elif isinstance(record_or_metrics, _FILES) or _has_file(record_or_metrics):
                self._put_off.send_or_keep(record_or_metrics, self._send_checked)
            else:
                self._send_checked(record_or_metrics)
        if not self._no_run:
            self._walls.look()
        return Written(
            self._state(),
            tuple(self._refused),
            unfinished=not self._put_off.is_empty,
            fault=self._put_off.fault,
            faults=self._put_off.faults - faults_before,
        )

    def close(self, end: RunEnded | None) -> None:
        """Set the run's status, end time and the reason for its end."""
        if self._no_run:
            return
        self._walls.finish()
        self._checkpoints.abandon()
        if end is None or not self._owns_run:
            return
        if end.reason:
            self._client.set_tag(self._run_id, REASON_TAG, end.reason[:5000])
        if stale := stale_tags(end, ranks=self._manifest.ranks):
            # An earlier part of the run may have ended badly.
            tags = self._client.get_run(self._run_id).data.tags
            for name in stale & tags.keys():
                self._client.delete_tag(self._run_id, name)
        if end.owned:
            self._client.set_terminated(self._run_id, end.status, end.end_time_ms)

    def _state(self) -> SinkState:
        due = [] if self._no_run else self._walls.due
        return {"put_off": self._put_off.encoded(), "walls": due}

    def _own_part(self, batch: Batch) -> tuple[Record, ...]:
        """What is sent from here: from a machine that does not own the run, files alone."""
        if self._owns_run:
            return batch.records
        return tuple(one for one in batch.records if isinstance(one, _FILES_OF_RANKS))

    def _run(self) -> Run:
        if not self._owns_run:
            return self._run_of_others()
        return self._given_run() if self._manifest.run_id else self._own_run()

    def _run_of_others(self) -> Run:
        """The run that another machine makes and ends.

        Raises:
            Waiting: it has not made it yet.
            OpusclipError: it was waited for long enough.
        """
        if found := owners_run(self._client, self._manifest):
            return found
        time.sleep(vain_waiting.pause_s(self._folder))
        raise Waiting("the machine that owns the run has not made it yet")

    def _given_run(self) -> Run:
        run = self._client.get_run(str(self._manifest.run_id))
        if MIRROR_ID_TAG not in run.data.tags:
            # By this name it may have been mirrored before.
            self._client.set_tag(run.info.run_id, MIRROR_ID_TAG, run.info.run_id)
            run = self._client.get_run(run.info.run_id)
        self._client.set_tag(run.info.run_id, MIRRORS_TAG, self._mirrors())
        # Who adopted another's run does not end it, and so must not begin it again either.
        is_owned = any(one.start.owned for one in sessions(self._folder))
        if is_owned and run.info.status != "RUNNING":
            self._client.update_run(run.info.run_id, status="RUNNING")
        return run

    def _begin_again(self, run: Run) -> None:
        """Have a run go on whose ranks were started anew after an end."""
        goes_on = self._manifest.owns_run and final_end(self._folder) is None
        if goes_on and run.info.status != "RUNNING":
            self._client.update_run(run.info.run_id, status="RUNNING")

    def _mirrors(self) -> str:
        return live_mirrors(self._as_it_mirrors())

    def _as_it_mirrors(self) -> Manifest:
        mode = wandb_mode(self._manifest.wandb_mode)
        return msgspec.structs.replace(self._manifest, wandb_mode=mode)

    def _own_run(self) -> Run:
        experiment_id = self._manifest.experiment_id or self._experiment_id(
            self._manifest.experiment_name or "Default"
        )
        if found := run_by_local_id(self._client, experiment_id, self._manifest.local_id):
            self._begin_again(found)
            return found
        if made := self._made_before():
            return self._active_run(made)
        return self._client.create_run(
            experiment_id,
            start_time=self._manifest.start_time_ms,
            run_name=self._manifest.run_name,
            tags={
                LOCAL_ID_TAG: self._manifest.local_id,
                MIRROR_ID_TAG: self._manifest.local_id,
                MIRRORS_TAG: self._mirrors(),
                **({"mlflow.note.content": self._manifest.notes} if self._manifest.notes else {}),
            },
        )

    def _made_before(self) -> str:
        """The run's id, if it was made; another one in its place would be but a part of it."""
        identity = self._folder.identity()
        return identity.run_id if identity else ""

    def _active_run(self, run_id: str) -> Run:
        run = self._client.get_run(run_id)
        if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
            raise MlflowException("it was deleted", RESOURCE_DOES_NOT_EXIST)
        return run

    def _experiment_id(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment:
            return str(experiment.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException as error:
            # Another process made it in between.
            if error.error_code != EXISTS:
                raise
            return self._experiment_id(name)

    def _identity(self, run: Run) -> Identity:
        experiment = self._client.get_experiment(run.info.experiment_id)
        latest = run.data._metric_objs
        steps = [metric.step for metric in latest if not metric.key.startswith("system/")]
        return Identity(
            mirror_id=run.data.tags[MIRROR_ID_TAG],
            experiment_name=experiment.name,
            run_name=run.info.run_name or "",
            run_id=run.info.run_id,
            experiment_id=run.info.experiment_id,
            artifact_uri=run.info.artifact_uri or "",
            last_step=max(steps, default=-1),
            start_time_ms=run.info.start_time,
            # Who has no parent has no nested runs either when it begins.
            family=family_of(self._client, run) if PARENT_TAG in run.data.tags else "",
            generations=tags_of_generations(run.data.tags),
        )

    def _send_checked(self, record: Record) -> None:
        """Send one record; what MLflow will never take is refused, other faults are raised."""
        if self._no_run:
            self._refuse(record, self._no_run)
            return
        try:
            self._send(record)
        except (VideoError, CheckpointError, RecordError) as error:
            self._refuse(record, str(error))
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code != _TOO_LARGE:
                raise
            self._refuse(record, one_line(str(error)))
        except MlflowException as error:
            if not is_for_good(error):
                raise
            self._refuse(record, reason_of(error))

    def _refuse(self, records_: Record | list[records.Metrics], reason: str) -> None:
        for record in records_ if isinstance(records_, list) else [records_]:
            if isinstance(record, records.Checkpoint) and not self._no_run:
                self._pruning.awaited.discard(record.name)
            if not isinstance(record, records.RunStarted | records.RunEnded):
                self._refused.append(Refusal(record, reason))

    def _send_metrics(self, calls: list[records.Metrics]) -> None:
        """Send many log calls in one request; if it is refused, each by itself."""
        try:
            self._client.log_batch(
                self._run_id, metrics=[m for call in calls for m in entities(call)]
            )
        except MlflowException as error:
            if not is_for_good(error):
                raise
            for call in calls:
                self._send_checked(call)

    def _send(self, record: Record) -> None:
        match record:
            case records.Metrics():
                self._client.log_batch(self._run_id, metrics=list(entities(record)))
            case records.Params():
                self._send_params(record)
            case records.Tags():
                self._send_tags(record.values)
            case records.RunStarted():
                self._send_tags(record.tags | self._marks.at_start(record.tags))
            case records.Dataset():
                self._send_dataset(record)
            case _ if isinstance(record, Sendable):
                self._uploads.send(record)
                self._walls.note(record)
            case records.Checkpoint():
                self._pruning.awaited.add(record.name)
                self._send_checkpoint(record)
                self._pruning.awaited.discard(record.name)
            case records.CheckpointDropped():
                with contextlib.suppress(FileNotFoundError):
                    checkpoints.drop(self._checkpoint_folder(record.name))
                if self._owns_run:
                    self._pruning.remove(record.name)

    def _send_params(self, record: records.Params) -> None:
        """Send params; one that is there already as the same number is left as it is."""
        known = {key: self._params[key] for key in record.values if key in self._params}
        changed = [key for key, old in known.items() if not _same(old, record.values[key])]
        for key in changed:
            reason = f"param {key!r} is {known[key]!r} already and cannot change"
            self._refused.append(Refusal(records.Params({key: record.values[key]}), reason))
        fresh = {key: value for key, value in record.values.items() if key not in known}
        for part in parts(fresh, 100):
            self._client.log_batch(self._run_id, params=[Param(*item) for item in part])
        self._params.update(fresh)

    def _send_tags(self, values: dict[str, str]) -> None:
        for part in parts(values, 100):
            self._client.log_batch(self._run_id, tags=[RunTag(*item) for item in part])

    def _send_dataset(self, record: records.Dataset) -> None:
        dataset = Dataset(
            record.name, record.digest, record.source_type, record.source,
            schema=record.schema or None, profile=record.profile or None,
        )  # fmt: skip
        tags = [InputTag("mlflow.data.context", record.context)]
        self._client.log_inputs(self._run_id, datasets=[DatasetInput(dataset, tags)])
        if record.sources:
            listed = self._folder.media / Path(record.sources).name
            self._client.log_artifact(self._run_id, str(listed), layout.DATASETS)

    def _send_checkpoint(self, record: records.Checkpoint) -> None:
        source = self._checkpoint_folder(record.name)
        about = self._checkpoints.send(source)
        if about is None or checkpoints.is_dropped(source):
            # In this moment: what has arrived is removed by the record that follows.
            return
        self._send_tags(self._marks.at_arrival(record, about))
        self._folder.note_arrival(record.name)

    def _checkpoint_folder(self, name: str) -> Path:
        return self._folder.checkpoints / Path(name).name


def _has_file(record: Record) -> bool:
    return isinstance(record, records.Dataset) and bool(record.sources)


def _same(old: str, new: str) -> bool:
    try:
        return old == new or float(old) == float(new)
    except ValueError:
        return False


if TYPE_CHECKING:

    def _conforms(folder: RunFolder) -> Sink:
        return MlflowSink(folder)
