"""Writes to one run's mirror through the sink that its tracker would write through."""

import contextlib
import fcntl
import heapq
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from opusclip_mlops.contents import Contents
from opusclip_mlops.errors import DeliveryError
from opusclip_mlops.folder import Manifest, RunFolder
from opusclip_mlops.launch import HUNG_S
from opusclip_mlops.points import Points
from opusclip_mlops.records import (
    Batch,
    Image,
    Insight,
    Metrics,
    Params,
    Record,
    Row,
    RunEnded,
    Video,
)
from opusclip_mlops.sinks import Refusal, SinkState, open_sink
from opusclip_mlops.targets import Target, default_state_dir
from opusclip_mlops.words import words_of

_BATCH_RECORDS, _BATCH_FILES = 2000, 16
_POLL_S = 0.02
_WORK_PREFIX = "mirror-"
# One that is just being made is held by nobody yet.
_NEW_S = 60.0
_GIVEN_UP_S = 10 * HUNG_S


class MirrorWriter:
    """An open mirror of one run.

    Args:
        target: Where the mirror is.
        contents: The run, as MLflow has it now.
        is_new: Nothing that stands there is to stay.

    Raises:
        Waiting: another process writes this mirror.
    """

    def __init__(self, target: Target, contents: Contents, *, is_new: bool = False) -> None:
        self._target, self._contents = target, contents
        self._row = 0
        self._work = Path(tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=_work_dir()))
        self._hold = os.open(self._work, os.O_RDONLY)
        try:
            fcntl.flock(self._hold, fcntl.LOCK_SH)
            self._folder = RunFolder(self._work / "run")
            self._folder.create(_manifest(target, contents, self._work))
            self._folder.write_identity(contents.identity)
            self._sink = open_sink(target.kind, self._folder)
            self._sink.open(_first_state(target, contents, is_new=is_new))
        except BaseException:
            self._remove()
            raise

    @property
    def media(self) -> Path:
        """Where the files of clips and pictures are put before they are sent."""
        return self._folder.media

    def send(self, records: Iterable[Record]) -> Iterator[Refusal]:
        """Send records and return once they are safe there; what can't be sent is yielded."""
        for part in _batches(records):
            batch = Batch(records=part, first_row=self._row)
            self._row += batch.row_count
            yield from self._sink.write(batch).refused
            self._forget_files(part)
        yield from self._settle()

    def close(self) -> None:
        """Declare the run's end there, or leave it open where it still goes on."""
        try:
            self._sink.close(end_of(self._contents))
        finally:
            self._remove()

    def abandon(self) -> None:
        """Drop everything: what stands there is looked at anew."""
        abandon = getattr(self._sink, "abandon", None)
        if abandon is not None:
            abandon()
        self._remove()

    def _settle(self) -> Iterator[Refusal]:
        safe, since_s = -1, time.monotonic()
        while True:
            written = self._sink.write(Batch(records=(), first_row=self._row))
            yield from written.refused
            if not written.unfinished:
                return
            if written.safe_rows != safe:
                safe, since_s = written.safe_rows or 0, time.monotonic()
            elif time.monotonic() - since_s > _GIVEN_UP_S:
                raise DeliveryError(f"{self._target} takes nothing more of what it was sent")
            time.sleep(_POLL_S)

    def _forget_files(self, records: Iterable[Record]) -> None:
        for name in (name for record in records for name in _files_of(record)):
            for path in self.media.glob(f"{Path(name).stem}*"):
                path.unlink(missing_ok=True)

    def _remove(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1


def _files_of(record: Record) -> list[str]:
    """The names in media/ of what a record is made of."""
    if isinstance(record, Insight):
        return list(record.files.values())
    return [record.file] if isinstance(record, Video | Image) else []


def _batches(records: Iterable[Record]) -> Iterator[tuple[Record, ...]]:
    """Records in parts, with few files in each: those are fetched as their part is made up."""
    part: list[Record] = []
    files = 0
    for record in records:
        part.append(record)
        files += not isinstance(record, Metrics)
        if len(part) >= _BATCH_RECORDS or files >= _BATCH_FILES:
            yield tuple(part)
            part, files = [], 0
    if part:
        yield tuple(part)


def remove_left_work() -> None:
    """Remove what processes that were killed have left of their work."""
    for path in _work_dir().glob(f"{_WORK_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime < _NEW_S:
                continue
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def end_of(contents: Contents) -> RunEnded | None:
    """The end of a run as MLflow has it, None while it goes on."""
    if not contents.is_over:
        return None
    ended_ms = contents.end_time_ms or contents.identity.start_time_ms
    return RunEnded("mirror", contents.status, ended_ms)


def in_rows(points: Points, others: Iterable[Row], *, by_step: bool) -> Iterator[Row]:
    """Points cut into log calls, with clips, pictures and texts between them.

    In the order of their steps for TensorBoard, which shows no point behind a higher step; else in
    the order of their times.
    """

    def place(row: Row) -> tuple[int, int]:
        at = (row.timestamp_ms, row.step)
        return (at[1], at[0]) if by_step else at

    calls = (points.in_steps() if by_step else points.in_time()).calls()
    return heapq.merge(calls, others, key=place)


def _manifest(target: Target, contents: Contents, work: Path) -> Manifest:
    keeps_logs = target.kind == "wandb" and target.mode != "online"
    return Manifest(
        local_id=contents.identity.mirror_id,
        cwd=str(work),
        sinks=[target.kind],
        start_time_ms=contents.identity.start_time_ms,
        declares_end=contents.is_over,
        tensorboard_dir=target.folder,
        wandb_dir=target.folder if keeps_logs else str(work / "wandb"),
        wandb_mode=target.mode,
        wandb_entity=target.entity,
        project_name=target.project,
        system_metrics=False,
    )


def _first_state(target: Target, contents: Contents, *, is_new: bool) -> SinkState:
    """What a sink that has nothing to go on with needs to know of the run."""
    state: dict[str, Any] = {"rebuild": True} if is_new else {}
    if target.kind == "wandb":
        # Its config is said as a whole.
        said = [words_of(part.record) for part in contents.parts]
        state["words"] = {name: of[name] for of in said for name in of if "files/" not in name}
    else:
        params = [part.record for part in contents.parts if isinstance(part.record, Params)]
        state["params"] = params[0].values if params else {}
    return state


def _work_dir() -> Path:
    path = default_state_dir() / "work"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
