"""Weights & Biases: one row a log call, in the order of the journal.

A row's W&B step is its ordinal, so that late and repeated steps are kept; the run's own step is the
column `global_step`, which every chart uses. Where training goes back, rows that are there keep
their columns until the run has ended: `rewinding` has them renamed then. A row is safe once it
stands in W&B's log on disk or, online, once the server has it; after a crash that log or the server
says which row comes next.
"""

import contextlib
import hashlib
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import wandb

from opusclip_mlops import (
    checkpoints,
    insight_charts,
    media,
    records,
    wandb_client,
    wandb_layout,
    wandb_log,
)
from opusclip_mlops.alerts.events import KEY as ALERTS_KEY
from opusclip_mlops.alerts.events import event_of
from opusclip_mlops.alerts.rules import WANDB
from opusclip_mlops.errors import CheckpointError, DeliveryError, RecordError, VideoError
from opusclip_mlops.folder import Identity, RunFolder
from opusclip_mlops.launch import HUNG_S
from opusclip_mlops.mirror_names import names_in
from opusclip_mlops.records import Batch, Record, RunEnded
from opusclip_mlops.redaction import one_line
from opusclip_mlops.references import checkpoint_files
from opusclip_mlops.repeats import Repeats
from opusclip_mlops.rewinding import CLOSED_AT
from opusclip_mlops.rows_before import Reach
from opusclip_mlops.sinks import KeepsAll, Refusal, SinkState, Spoilt, Waiting, Written
from opusclip_mlops.targets import default_state_dir
from opusclip_mlops.words import PROVENANCE, words_of

if TYPE_CHECKING:
    from opusclip_mlops.sinks import Sink

_STALL_S = 2 * HUNG_S
_POLL_S = 0.2
_LEVELS = {"info": "INFO", "warning": "WARN", "error": "ERROR"}
# The rules have pauses of their own; 0 would be a minute.
_ALERT_PAUSE_S = 1


class WandbSink:
    """Writes a run with the real W&B client, online or offline."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._manifest = folder.manifest()
        self._dir = Path(self._manifest.cwd, self._manifest.wandb_dir)
        self._mode: Literal["online", "offline"] = (
            "online"
            if wandb_layout.wandb_mode(self._manifest.wandb_mode) == "online"
            else "offline"
        )

    def open(self, state: SinkState) -> SinkState:
        """Begin the run, or a further part of it, behind the rows that are already there."""
        identity = self._folder.identity()
        if identity is None:
            raise Waiting("the run's name is not known yet")
        self._claim = wandb_client.Claim(self._claim_path(identity.mirror_id))
        try:
            self._claim.take()
        except wandb_client.Taken as error:
            raise Waiting(str(error)) from None
        try:
            rows_on_disk = self._begin_behind(identity, is_new=bool(state.get("rebuild")))
        except wandb.Error as error:
            self._claim.release()
            if wandb_client.is_rewind_refused(str(error)):
                raise KeepsAll(one_line(str(error))) from None
            # What it could not begin, the client believes to be under way from then on.
            raise Spoilt(one_line(str(error) or "W&B could not begin the run")) from None
        except BaseException:
            self._claim.release()
            raise
        self._log = wandb_log.LogReader(Path(self._run.settings.sync_file))
        self._server = wandb_client.ServerSide(
            self._run.entity, self._run.project, identity.mirror_id
        )
        # Its `step` is 0 until the first row.
        self._next_row = self._run.starting_step if self._mode == "online" else rows_on_disk
        self._base = int(state.get("base", self._next_row))
        if CLOSED_AT in state:
            # A mirror may have made the run anew since, of more rows or fewer.
            self._base = self._next_row - int(state[CLOSED_AT])
        self._first_row = self._next_row
        self._rows_safe = self._rows_given = 0
        self._moved_s = time.monotonic()
        self._deferred: list[dict[str, Any]] = list(state.get("deferred", []))
        self._repeats = Repeats()
        self._reach = Reach(state, last_step=identity.last_step)
        self._look_for_generations()
        self._words: dict[str, dict[str, Any]] = dict(state.get("words", {}))
        # A run that is gone on with has not ended yet.
        self._words.pop("end", None)
        if self._manifest.notes:
            self._words.setdefault("notes", {"text": self._manifest.notes})
        # What was said before a crash may not have reached the disk.
        self._say_words()
        return self._state()

    def write(self, batch: Batch) -> Written:
        """Hand the batch's rows to the client, and see which rows are safe by now."""
        refused = []
        row = self._base + batch.first_row
        self._has_news = False
        with wandb_client.ended_if_hanging():
            for record in batch.records:
                is_row = isinstance(record, records.Row)
                if isinstance(record, records.Insight):
                    # What it says for the config may be lost where its row is not.
                    self._learn(record)
                if not is_row or row >= self._next_row:
                    try:
                        self._send(record, row)
                    except (VideoError, CheckpointError, RecordError) as error:
                        refused.append(Refusal(record, str(error)))
                else:
                    self._reach.note_before(self._names)
                row += is_row
            if self._has_news:
                self._say_words()
            self._send_deferred()
            self._look_what_is_safe()
        left = self._rows_given - self._rows_safe
        return Written(
            self._state(), tuple(refused), safe_rows=row - self._base - left, unfinished=left > 0
        )

    def close(self, end: RunEnded | None) -> None:
        """Finish the run with exit code 0 or 1; without an end its state is left as it is.

        Raises:
            DeliveryError: the server has the rows and not all of their files.
        """
        while end and self._deferred and self._may_arrive():
            time.sleep(_POLL_S)
            self._send_deferred()
        self._send_deferred()
        for about in self._deferred:
            print(f"checkpoint {about['name']} is not in MLflow: no W&B artifact refers to it")
        if end:
            self._words["end"] = {"status": end.status, "reason": end.reason[:1000]}
            self._say_words()
        with wandb_client.ended_if_hanging(wandb_client.FINISH_WAIT_S + wandb_client.HANG_S):
            self._run.finish(exit_code=0 if end is None or end.status == "FINISHED" else 1)
            # `finish` returns a moment before the last bytes are on disk.
            while not any(record.HasField("exit") for record in self._log.new_records()):
                time.sleep(0.02)
        self._claim.forget_cores()
        self._claim.release()
        if self._mode == "online":
            self._server.bring_media(Path(self._run.dir))

    def _logs(self, run_id: str) -> list[Path]:
        project = self._manifest.project_name
        return wandb_log.logs_of(self._dir, run_id, project=project)

    def _claim_path(self, run_id: str) -> Path:
        if self._mode == "offline":
            return self._dir / "wandb" / f".opusclip-{run_id}.lock"
        place = f"{self._manifest.wandb_entity}/{self._manifest.project_name}/{run_id}"
        digest = hashlib.sha256(place.encode()).hexdigest()[:32]
        return default_state_dir() / "locks" / f"wandb-{digest}.lock"

    def _begin_behind(self, identity: Identity, *, is_new: bool) -> int:
        """Begin the run, or begin it anew; returns the number of its next row on disk."""
        if is_new and self._mode == "offline":
            for log in self._logs(identity.mirror_id):
                shutil.rmtree(log.parent)
        rows_on_disk = wandb_log.next_row(self._logs(identity.mirror_id))
        with wandb_client.ended_if_hanging():
            self._run = self._begin(identity, rewinds=is_new and self._mode == "online")
        self._claim.note_cores()
        return rows_on_disk

    def _begin(self, identity: Identity, *, rewinds: bool) -> wandb.Run:
        wandb_client.forget_strays()
        self._dir.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            entity=self._manifest.wandb_entity,
            project=self._manifest.project_name or None,
            id=identity.mirror_id,
            name=self._manifest.run_name or identity.run_name or None,
            group=(identity.family or identity.experiment_name)[:128],
            notes=self._manifest.notes or None,
            dir=str(self._dir),
            mode=self._mode,
            resume="allow" if self._mode == "online" and not rewinds else None,
            resume_from=f"{identity.mirror_id}?_step=0" if rewinds else None,
            reinit="create_new",
            settings=wandb_client.settings(
                declares_end=self._manifest.declares_end,
                # Nobody waits for a training run's rows; a replay waits for each batch.
                flush_s=0.5 if "mlflow" in self._manifest.sinks else 0.05,
            ),
        )

    def _state(self) -> SinkState:
        said = {"deferred": self._deferred, "words": self._words}
        return {"base": self._base, **said, **self._reach.state()}

    def _send(self, record: Record, row: int) -> None:
        match record:
            case records.Metrics():
                left = records.Metrics(
                    record.timestamp_ms, record.step, self._repeats.left_of(record)
                )
                values = self._names.record(left).values
                columns = {wandb_layout.column(name): value for name, value in values.items()}
                self._log_row(record, row, columns)
            case records.Video() | records.Image() | records.Text() | records.Table():
                # Before its row: once that is safe, nothing of it is sent again.
                self._pass_on(record)
                name = self._names.record(record).key
                self._log_row(record, row, {wandb_layout.column(name): self._shown(record)})
            case records.Insight():
                named = self._names.record(record)
                self._log_row(record, row, insight_charts.columns_of(named, self._folder.media))
            case records.RunStarted():
                self._look_for_generations()
                words = {key for key, value in record.tags.items() if value == "true"}
                self._run.tags = tuple(sorted({*(self._run.tags or ()), *words}))
                self._learn(records.Tags(record.tags))
            case records.Checkpoint():
                self._defer(record)
            case records.Files():
                self._refer_to(record)
            case _:
                self._learn(record)

    def _look_for_generations(self) -> None:
        self._names = names_in(self._folder)
        self._reach.learn(self._names)

    def _shown(self, record: records.Row) -> Any:
        """A record that is no number, as W&B shows it."""
        match record:
            case records.Video():
                path = media.playable(self._folder, record)
                kind: Any = path.suffix.removeprefix(".")
                return wandb.Video(str(path), caption=record.caption or None, format=kind)
            case records.Image():
                path = self._folder.media / Path(record.file).name
                with _unreadable_is_refused(path):
                    return wandb.Image(str(path))
            case records.Table():
                return wandb.Table(
                    columns=list(record.columns), data=record.rows, allow_mixed_types=True
                )
            case records.Text():
                return wandb.Html(_as_page(record.text), inject=False)
        return None

    def _learn(self, record: Record) -> None:
        """Take in what is said once a run: the first value of a param holds, the last of all."""
        for name, values in (words_of(record) | wandb_layout.hparams_of(record)).items():
            known = self._words.get(name, {})
            if name == "params":
                self._words[name] = {**values, **known}
            else:
                adds = name in ("tags", PROVENANCE)
                self._words[name] = {**known, **values} if adds else dict(values)
            self._has_news = True

    def _say_words(self) -> None:
        others = {name: values for name, values in self._words.items() if name != "params"}
        config: dict[str, Any] = {**wandb_layout.config_of(self._words.get("params", {}))}
        known = dict(self._run.config.get(wandb_layout.WORDS_KEY) or {})
        if others or known:
            config[wandb_layout.WORDS_KEY] = wandb_layout.without_the_old(others, known)
        if config:
            self._run.config.update(config, allow_val_change=True)
        if note := others.get("notes", {}).get("text"):
            self._run.notes = note
        tags = {key for key, value in others.get("tags", {}).items() if value == "true"}
        if tags - {*(self._run.tags or ())}:
            self._run.tags = tuple(sorted({*(self._run.tags or ()), *tags}))

    def _pass_on(self, record: records.Row) -> None:
        """Have W&B tell of an alert where this run's own rules want it; a mirror tells none."""
        if not isinstance(record, records.Text) or record.key != ALERTS_KEY:
            return
        event = event_of(record.text) if "alerts" in self._manifest.sinks else None
        if event and event.state == "raised" and WANDB in event.actions:
            level = _LEVELS[event.severity]
            self._run.alert(event.alert, event.message, level, wait_duration=_ALERT_PAUSE_S)

    def _log_row(self, record: records.Row, row: int, values: dict[str, Any]) -> None:
        values |= {wandb_layout.STEP_KEY: record.step, "_timestamp": record.timestamp_ms / 1000}
        self._run.log(values, step=row, commit=True)
        self._rows_given += 1
        self._reach.note(record)

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
                "sizes_bytes": {name: one.size_bytes for name, one in about.files.items()},
            }
        )

    def _may_arrive(self) -> bool:
        is_record_here = "mlflow" in self._manifest.sinks
        return is_record_here and not self._folder.progress("mlflow").done

    def _send_deferred(self) -> None:
        """Refer to what has arrived in MLflow."""
        arrived = [one for one in self._deferred if self._folder.has_arrived(one["name"])]
        identity = self._folder.identity()
        if not arrived or identity is None:
            return
        for about in arrived:
            try:
                self._refer_to(checkpoint_files(identity, about))
            except CheckpointError as error:
                print(one_line(str(error)), flush=True)
        self._deferred = [one for one in self._deferred if one not in arrived]

    def _refer_to(self, record: records.Files) -> None:
        """Log files as an artifact that refers to them: no second copy is made."""
        name = wandb_layout.artifact_name(record.name)
        artifact = wandb.Artifact(
            name,
            type="model" if record.kind == "model" else "mlflow-artifacts",
            metadata=wandb_layout.artifact_metadata(record),
        )
        for path, uri in record.uris.items():
            try:
                artifact.add_reference(uri, name=path, checksum=False)
            except (ValueError, wandb.Error) as error:
                raise CheckpointError(f"W&B can't refer to {path}: {error}") from None
        logged = self._run.log_artifact(artifact, aliases=list(record.aliases))
        version = record.metadata.get("version")
        if self._mode == "online" and version:
            # An alias that was taken away from a version goes only this way.
            logged.wait(timeout=int(HUNG_S))
            self._server.set_aliases(name, f"mlflow-v{version}", {*record.aliases})

    def _look_what_is_safe(self) -> None:
        """Count the rows that no crash can lose any more; none for long is a fault."""
        found = sum(1 for record in self._log.new_records() if record.HasField("history"))
        safe = self._rows_safe + found
        if self._mode == "online" and self._rows_safe < self._rows_given:
            safe = min(self._server.next_row() - self._first_row, self._rows_given)
        if safe > self._rows_safe or safe >= self._rows_given:
            self._moved_s = time.monotonic()
        elif time.monotonic() - self._moved_s > _STALL_S:
            written = f"{safe} of {self._rows_given} rows"
            where = "its server" if self._mode == "online" else str(self._dir)
            raise DeliveryError(f"W&B has written {written} to {where} and goes no further")
        self._rows_safe = max(safe, self._rows_safe)


@contextlib.contextmanager
def _unreadable_is_refused(path: Path) -> Any:
    try:
        yield
    except (OSError, ValueError) as error:
        raise VideoError(f"picture {path.name} cannot be read: {error}") from None


def _as_page(text: str) -> str:
    import html

    return f"<pre>{html.escape(text)}</pre>"


if TYPE_CHECKING:

    def _conforms(folder: RunFolder) -> Sink:
        return WandbSink(folder)
