"""Weights & Biases: one row a log call, in the order of the journal.

A row's W&B step is its ordinal, so that late and repeated steps are kept; the run's own step is the
column `global_step`, which every chart uses. A row is safe once it stands in W&B's log on disk, and
after a crash that log (or, online, the server) says which row comes next. A client that hangs ends
its process: the client's own threads and its core would outlast any other way.
"""

import contextlib
import faulthandler
import json
import netrc
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import wandb
from wandb.proto.wandb_internal_pb2 import Record as WandbRecord

from opusclip_mlops import checkpoints, media, records, wandb_log
from opusclip_mlops.errors import CheckpointError, DeliveryError, VideoError
from opusclip_mlops.folder import Identity, RunFolder, write_whole
from opusclip_mlops.launch import HUNG_S, children_of, yield_to_training
from opusclip_mlops.records import Batch, Record, RunEnded
from opusclip_mlops.sessions import process_started_s
from opusclip_mlops.sinks import Refusal, SinkState, Waiting, Written

if TYPE_CHECKING:
    from opusclip_mlops.sinks import Sink

STEP_KEY = "global_step"
"""The column that holds the run's own step."""

_RESERVED = (STEP_KEY, "_step", "_timestamp", "_runtime", "_wandb")
_STALL_S = 2 * HUNG_S
_HANG_S = 4 * HUNG_S
_FINISH_WAIT_S = 300
# What a launcher left in the environment must not name, resume or redirect this run.
_STRAY_VARIABLES = (
    "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SERVICE", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH",
    "WANDB_MODE", "WANDB_NAME", "WANDB_DIR", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_RUN_GROUP",
)  # fmt: skip


class WandbSink:
    """Writes a run with the real W&B client, online or offline."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._manifest = folder.manifest()
        self._dir = Path(self._manifest.cwd, self._manifest.wandb_dir)
        self._cores = folder.path / "sinks" / "wandb.cores"
        self._mode: Literal["online", "offline"] = (
            "online" if wandb_mode(self._manifest.wandb_mode) == "online" else "offline"
        )

    def open(self, state: SinkState) -> SinkState:
        """Begin the run, or a further part of it, behind the rows that are already there."""
        identity = self._folder.identity()
        if identity is None:
            raise Waiting("the run's name is not known yet")
        _end_left_cores(self._cores)
        rows_on_disk = _next_row(self._dir, identity.mirror_id)
        with _ended_if_hanging(_HANG_S):
            self._run = self._begin(identity)
        for pid in children_of(os.getpid()):
            # The client gives its core a session of its own.
            yield_to_training(pid)
        _note_cores(self._cores)
        self._log = wandb_log.LogReader(Path(self._run.settings.sync_file))
        self._next_row = self._run.step if self._mode == "online" else rows_on_disk
        self._base = int(state.get("base", self._next_row))
        self._rows_on_disk = self._rows_given = 0
        self._moved_s = time.monotonic()
        self._deferred: list[dict[str, Any]] = list(state.get("deferred", []))
        self._tags: dict[str, str] = dict(state.get("tags", {}))
        self._params: dict[str, str] = dict(state.get("params", {}))
        # What was said before a crash may not have reached the disk.
        self._set_params({})
        self._set_tags({})
        return self._state()

    def write(self, batch: Batch) -> Written:
        """Hand the batch's rows to the client, and see which rows are on disk by now."""
        refused = []
        row = self._base + batch.first_row
        with _ended_if_hanging(_HANG_S):
            for record in batch.records:
                is_row = isinstance(record, records.Row)
                if not is_row or row >= self._next_row:
                    try:
                        self._send(record, row)
                    except (VideoError, CheckpointError) as error:
                        refused.append(Refusal(record, str(error)))
                row += is_row
            self._send_deferred()
        self._look_at_disk()
        left = self._rows_given - self._rows_on_disk
        return Written(
            self._state(), tuple(refused), safe_rows=row - self._base - left, unfinished=left > 0
        )

    def close(self, end: RunEnded) -> None:
        """Finish the run with exit code 0 or 1."""
        while self._deferred and not self._folder.progress("mlflow").done:
            time.sleep(0.2)
            self._send_deferred()
        self._send_deferred()
        for about in self._deferred:
            print(f"checkpoint {about['name']} is not in MLflow: no W&B artifact refers to it")
        if end.reason:
            self._run.config.update({"end_reason": end.reason[:1000]}, allow_val_change=True)
        with _ended_if_hanging(_FINISH_WAIT_S + _HANG_S):
            self._run.finish(exit_code=0 if end.status == "FINISHED" else 1)
            # `finish` returns a moment before the last bytes are on disk.
            while not any(record.HasField("exit") for record in self._log.new_records()):
                time.sleep(0.02)

    def _begin(self, identity: Identity) -> wandb.Run:
        for name in _STRAY_VARIABLES:
            os.environ.pop(name, None)
        self._dir.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            entity=self._manifest.wandb_entity,
            project=self._manifest.project_name or None,
            id=identity.mirror_id,
            name=self._manifest.run_name or identity.run_name or None,
            group=identity.experiment_name[:128],
            notes=self._manifest.notes or None,
            dir=str(self._dir),
            mode=self._mode,
            resume="allow" if self._mode == "online" else None,
            reinit="create_new",
            settings=_settings(),
        )

    def _state(self) -> SinkState:
        return {
            "base": self._base,
            "deferred": self._deferred,
            "tags": self._tags,
            "params": self._params,
        }

    def _send(self, record: Record, row: int) -> None:
        match record:
            case records.Metrics():
                values = {_column(key): value for key, value in record.values.items()}
                self._log_row(record, row, values)
            case records.Video():
                path = media.rendition(self._folder, record, "mp4")
                clip = wandb.Video(str(path), caption=record.caption or None, format="mp4")
                self._log_row(record, row, {_column(record.key): clip})
            case records.Text():
                page = wandb.Html(_as_page(record.text), inject=False)
                self._log_row(record, row, {_column(record.key): page})
            case records.Params():
                self._set_params(record.values)
            case records.Tags():
                self._set_tags(record.values)
            case records.RunStarted():
                words = {key for key, value in record.tags.items() if value == "true"}
                self._run.tags = tuple(sorted({*(self._run.tags or ()), *words}))
                self._set_tags(record.tags)
            case records.Dataset():
                about = {
                    "digest": record.digest,
                    "source": record.source,
                    "profile": record.profile,
                }
                name = f"dataset/{record.context}/{record.name}"
                self._run.config.update({name: about}, allow_val_change=True)
            case records.Checkpoint():
                self._defer(record)

    def _set_params(self, params: dict[str, str]) -> None:
        self._params = {**params, **self._params}
        if self._params:
            self._run.config.update(self._params, allow_val_change=True)

    def _set_tags(self, tags: dict[str, str]) -> None:
        self._tags |= tags
        if self._tags:
            self._run.config.update({"tags": self._tags}, allow_val_change=True)

    def _log_row(self, record: records.Row, row: int, values: dict[str, Any]) -> None:
        values |= {STEP_KEY: record.step, "_timestamp": record.timestamp_ms / 1000}
        self._run.log(values, step=row, commit=True)
        self._rows_given += 1

    def _defer(self, record: records.Checkpoint) -> None:
        """Remember a checkpoint until it stands in MLflow."""
        about = checkpoints.seal(self._folder.checkpoints / Path(record.name).name)
        self._deferred.append(
            {
                "name": record.name,
                "best": record.best,
                "step": record.step,
                "epoch": record.epoch,
                "metrics": {key: str(value) for key, value in record.metrics.items()},
                "files": {name: one.sha256 for name, one in about.files.items()},
            }
        )

    def _send_deferred(self) -> None:
        """Log what has arrived in MLflow as artifacts that refer to it: no second copy is made."""
        arrived = [one for one in self._deferred if self._folder.has_arrived(one["name"])]
        identity = self._folder.identity()
        if not arrived or identity is None:
            return
        for about in arrived:
            artifact = wandb.Artifact(
                f"checkpoint-{identity.mirror_id}", type="model",
                metadata={**about, "mlflow_run_id": identity.run_id},
            )  # fmt: skip
            base = f"{_uri(identity.artifact_uri)}/checkpoints/{about['name']}"
            for name in about["files"]:
                artifact.add_reference(f"{base}/{name}", name=name, checksum=False)
            aliases = ["latest", f"step-{about['step']}", *(["best"] if about["best"] else [])]
            self._run.log_artifact(artifact, aliases=aliases)
        self._deferred = [one for one in self._deferred if one not in arrived]

    def _look_at_disk(self) -> None:
        """Count the rows that have reached the log; none for long is a fault."""
        found = sum(1 for record in self._log.new_records() if record.HasField("history"))
        self._rows_on_disk += found
        if found or self._rows_on_disk >= self._rows_given:
            self._moved_s = time.monotonic()
        elif time.monotonic() - self._moved_s > _STALL_S:
            written = f"{self._rows_on_disk} of {self._rows_given} rows"
            raise DeliveryError(f"W&B has written {written} to {self._dir} and goes no further")


@contextlib.contextmanager
def _ended_if_hanging(limit_s: float) -> Iterator[None]:
    """End this process, with the lines it hung at in its log, when a call takes too long."""
    faulthandler.dump_traceback_later(limit_s, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def wandb_mode(asked: str | None) -> str:
    """`asked`, or `online` where a key for the W&B server is configured, else `offline`."""
    return asked or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _note_cores(path: Path) -> None:
    """Remember the processes the client has started: they may outlive this one."""
    found = {pid: process_started_s(pid) for pid in children_of(os.getpid())}
    write_whole(path, json.dumps(found).encode())


def _end_left_cores(path: Path) -> None:
    """End what a sink that was killed has left: it could still write rows that are given again."""
    try:
        noted = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return
    for pid, started_s in ((int(pid), started_s) for pid, started_s in noted.items()):
        with contextlib.suppress(ProcessLookupError):
            while pid not in children_of(os.getpid()) and process_started_s(pid) == started_s:
                os.kill(pid, signal.SIGKILL)
                time.sleep(0.02)


def _settings() -> wandb.Settings:
    return wandb.Settings(
        console="off",
        silent=True,
        disable_code=True,
        disable_git=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=0.5,
        init_timeout=30,
        finish_timeout=_FINISH_WAIT_S,
        finish_timeout_raises=True,
    )


def _next_row(wandb_dir: Path, run_id: str) -> int:
    steps = [-1]
    for path in wandb_log.logs_of(wandb_dir, run_id):
        steps += [_step_of(one) for one in wandb_log.read_records(path) if one.HasField("history")]
    return max(steps) + 1


def _step_of(record: WandbRecord) -> int:
    return int(wandb_log.row(record).get("_step", -1))


def _column(key: str) -> str:
    return f"metrics/{key}" if key in _RESERVED else key


def _uri(artifact_uri: str) -> str:
    return f"file://{artifact_uri}" if artifact_uri.startswith("/") else artifact_uri


def _as_page(text: str) -> str:
    import html

    return f"<pre>{html.escape(text)}</pre>"


if TYPE_CHECKING:

    def _conforms(folder: RunFolder) -> Sink:
        return WandbSink(folder)
