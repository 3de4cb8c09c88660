"""TensorBoard: event files in `<tensorboard_dir>/<experiment>/<mirror id>/`.

One event holds all scalars of a log call, under its own step and wall time. Scalars are 32-bit
floats there. After a crash the file is cut back to what was acknowledged, so no point stands twice.
When the run has ended, what is not in the order of its steps is rewritten so that it is; where
training went back, everything is rewritten under the names that it has then, before a record more
is taken. What the projector shows lies beside it.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from opusclip_mlops import event_files, events, insight_events, media, projector, records
from opusclip_mlops.arrivals import Arrivals
from opusclip_mlops.errors import CheckpointError, RecordError, VideoError
from opusclip_mlops.event_log import EventLog, read_log, write_in_order
from opusclip_mlops.events import Event
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.insight_views import understood
from opusclip_mlops.line_names import is_superseded_name
from opusclip_mlops.mirror_names import names_in
from opusclip_mlops.records import Batch, Record, RunEnded
from opusclip_mlops.repeats import Repeats
from opusclip_mlops.sinks import Refusal, SinkState, Waiting, Written
from opusclip_mlops.words import NOTE_TAG

if TYPE_CHECKING:
    from opusclip_mlops.sinks import Sink

_LOWEST = (-(2**63), -1)


class TensorBoardSink:
    """Writes event files with TensorBoard's own protocol buffers, without torch."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._manifest = folder.manifest()
        self._held = contextlib.ExitStack()

    def open(self, state: SinkState) -> SinkState:
        """Go on behind what was acknowledged; an empty state begins a new file beside others.

        `{"rebuild": True}` begins a file that takes the place of all others when it is closed.
        """
        identity = self._folder.identity()
        if identity is None:
            raise Waiting("the run's name is not known yet")
        self._mirror_id = identity.mirror_id
        base = Path(self._manifest.cwd, self._manifest.tensorboard_dir)
        self._target = event_files.event_folder(base, identity)
        try:
            self._begin_writing()
            self._resume(state)
            return self._state()
        except BaseException:
            self.abandon()
            raise

    def write(self, batch: Batch) -> Written:
        """Append the batch's events and hand them to the operating system.

        Raises:
            Waiting: training went back; opened again, the log is put under its new names first.
        """
        try:
            self._look_for_generations(batch)
            refused = [one for record in batch.records for one in self._take(record)]
            self._say_arrivals()
            return Written(self._state(), tuple(refused), unfinished=self._arrivals.is_waiting)
        except BaseException:
            self.abandon()
            raise

    def close(self, end: RunEnded | None) -> None:
        """Write how the run ended, and put its events in order; None says that it goes on.

        Raises:
            Waiting: training went back; opened again, the log is put under its new names first.
        """
        try:
            self._check_names()
            self._say_arrivals()
            if end is not None:
                self._write_hparams()
                self._write(events.end_event(end))
            self._file.close()
            if self._rebuilds or (end is not None and not self._is_in_order()):
                self._replace_all(end)
            elif end is None:
                event_files.remove_if_empty(self._path)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Let go of the run as it stands, so that another may write it."""
        # What is still in a buffer goes to the file now or never, not behind the next one's back.
        with contextlib.suppress(OSError):
            self._held.close()

    def _look_for_generations(self, batch: Batch) -> None:
        # Here the log holds what was not acknowledged too: only a new start knows what to keep.
        if any(isinstance(record, records.RunStarted) for record in batch.records):
            self._check_names()

    def _check_names(self) -> None:
        if names_in(self._folder) != self._names:
            raise Waiting("training went back: the events are put under their new names")

    def _begin_writing(self) -> None:
        self._target.mkdir(parents=True, exist_ok=True)
        writing = event_files.begin_writing(self._target)
        if writing is None:
            writer = event_files.writer_of(self._target) or "of another machine"
            raise Waiting(f"{self._target} is being written by process {writer}")
        self._held.callback(writing.release)
        event_files.finish_replacing(self._target)
        projector.heal(self._target)

    def _resume(self, state: SinkState) -> None:
        self._rebuilds = bool(state.get("rebuild"))
        self._params: dict[str, str] = dict(state.get("params", {}))
        notes = {NOTE_TAG: self._manifest.notes} if self._manifest.notes else {}
        self._tags: dict[str, str] = dict(state.get("tags", notes))
        self._arrivals = Arrivals(self._folder, state.get("checkpoints", {}))
        self._names = names_in(self._folder)
        path = self._file_to_write(state)
        is_renamed = state.get("names", "") == self._names.digest
        if self._names.generations and not (self._rebuilds or is_renamed):
            path = self._rename_all() or path
        paths = [] if self._rebuilds else event_files.event_files(self._target)
        log = read_log(paths, with_points=False)
        self._standing, self._hparams = log.words, log.hparams
        # What stands in order is known only of what was written from the beginning.
        self._last: dict[str, tuple[int, int]] | None = None if paths else {}
        self._repeats = Repeats()
        self._embeddings: set[str] = set()
        self._log: EventLog | None = None
        self._path, self._file = path, self._held.enter_context(path.open("ab"))
        if self._file.tell() == 0:
            self._write(events.first_event(self._manifest.start_time_ms))
        for event in self._words(records.Tags(self._tags)):
            self._write(event)

    def _file_to_write(self, state: SinkState) -> Path:
        """The file of before, cut back to what was acknowledged, unless that takes from it.

        A TensorBoard that is open may have read what is cut off: then a new file is gone on with.
        """
        if self._rebuilds:
            return self._target / event_files.NEW
        before = self._target / Path(state.get("file") or "-").name
        if before.exists():
            size_bytes = int(state.get("size_bytes", 0))
            if before.stat().st_size == size_bytes:
                return before
            event_files.cut(before, size_bytes)
        return self._target / event_files.fresh_name(self._target)

    def _rename_all(self) -> Path | None:
        """Put one file in the place of all if one is not under its names; returns that file."""
        projector.rename(self._target, self._names)
        log = read_log(event_files.event_files(self._target))
        if log.fits(self._names):
            return None
        self._write_new(log, hparams=None, end=None)
        return event_files.replace_all(self._target)

    def _write(self, event: Event) -> None:
        self._file.write(event_files.frame(event.SerializeToString()))

    def _state(self) -> SinkState:
        self._file.flush()
        if self._rebuilds:
            return {"rebuild": True}
        size_bytes = self._file.tell()
        words = {"params": self._params, "tags": self._tags}
        checkpoints = self._arrivals.state()
        file = {"file": self._path.name, "size_bytes": size_bytes, "names": self._names.digest}
        return {**file, **words, "checkpoints": checkpoints}

    def _take(self, record: Record) -> list[Refusal]:
        if isinstance(record, records.Row):
            self._write_hparams()
        try:
            for event in self._events(record):
                self._write(event)
        except (VideoError, CheckpointError, RecordError) as error:
            return [Refusal(record, str(error))]
        return []

    def _events(self, record: Record) -> list[Event]:
        match record:
            case records.Metrics():
                return self._scalars(record)
            case records.Video() | records.Image() | records.Text() | records.Table():
                named = self._names.record(record)
                event = self._shown(named)
                self._note_place(named, (named.key,))
                return [event]
            case records.Insight():
                return self._insight(self._names.record(record))
            case records.Params():
                self._params = {**record.values, **self._params}
                return self._words(records.Params(self._params))
            case records.Tags():
                self._tags |= record.values
                return self._words(records.Tags(self._tags))
            case records.RunStarted():
                self._tags |= record.tags
                return self._words(records.Tags(self._tags))
            case records.Checkpoint():
                self._arrivals.expect(record)
        return self._words(record)

    def _say_arrivals(self) -> None:
        """Say where checkpoints stand that have arrived in MLflow."""
        for record in self._arrivals.news():
            for event in self._words(record):
                self._write(event)

    def _shown(self, record: records.Video | records.Image | records.Text | records.Table) -> Event:
        match record:
            case records.Text():
                return events.text(record)
            case records.Table():
                return events.table(record)
            case records.Video():
                path = media.rendition(self._folder, record, "gif")
            case records.Image():
                path = media.picture(self._folder, record)
        return events.picture(record, path.read_bytes())

    def _insight(self, record: records.Insight) -> list[Event]:
        """What TensorBoard's own plugins show; the projector reads files beside the events."""
        with understood(record):
            found = insight_events.events_of(record)
        if record.kind == "embedding":
            self._embeddings.add(projector.write(self._target, record, self._folder.media))
        self._note_place(record, (found[0].summary.value[0].tag,))
        if is_superseded_name(record.key):
            # It may have to stand before what was written already.
            self._last = None
        return found

    def _words(self, record: Record) -> list[Event]:
        """The words of a record that do not stand there yet."""
        rendered = events.rendered_words(record)
        news = {name: text for name, text in rendered.items() if self._standing.get(name) != text}
        self._standing.update(news)
        now_ms = records.now_ms()
        return [events.words(name, text, timestamp_ms=now_ms) for name, text in news.items()]

    def _write_hparams(self) -> None:
        """Write the params known by the first point: TensorBoard reads one such event only."""
        if self._hparams is None and self._params:
            self._write(self._hparams_event())
            self._hparams = frozenset(self._params)

    def _hparams_event(self) -> Event:
        return events.hparams(self._params, self._mirror_id, self._manifest.start_time_ms)

    def _scalars(self, record: records.Metrics) -> list[Event]:
        """A log call, without the points that were given a moment ago."""
        values = self._repeats.left_of(record)
        if not values:
            return []
        left = records.Metrics(record.timestamp_ms, record.step, values)
        named = self._names.record(left)
        self._note_place(named, named.values)
        return [events.scalars(named)]

    def _note_place(self, record: records.Row, keys: Iterable[str]) -> None:
        """Notice what no longer stands in the order of steps and times."""
        last, at = self._last, (record.step, record.timestamp_ms)
        if last is None:
            return
        for key in keys:
            if last.get(key, _LOWEST) >= at:
                self._last = None
                return
            last[key] = at

    def _is_in_order(self) -> bool:
        if self._params and self._hparams != self._params.keys():
            return False
        return self._last is not None or self._read_log().is_in_order(self._names)

    def _read_log(self) -> EventLog:
        """What is to stand in one file; read once."""
        if self._log is None:
            rebuilt = [self._path] if self._rebuilds else None
            self._log = read_log(rebuilt or event_files.event_files(self._target))
        return self._log

    def _replace_all(self, end: RunEnded | None) -> None:
        """Put one file, sorted by step, in the place of all."""
        if not self._rebuilds or not self._is_in_order():
            hparams = self._hparams_event() if self._params else None
            last = events.end_event(end) if end else None
            self._write_new(self._read_log(), hparams=hparams, end=last)
        event_files.replace_all(self._target)
        if self._rebuilds:
            projector.keep_only(self._target, self._embeddings)

    def _write_new(self, log: EventLog, *, hparams: Event | None, end: Event | None) -> None:
        """Write everything in order, and under its names, to what is to replace all files."""
        path = self._target / event_files.SORTED
        with path.open("wb") as self._file:
            self._write(events.first_event(self._manifest.start_time_ms))
            write_in_order(log, self._file, hparams=hparams, end=end, names=self._names)
        path.replace(self._target / event_files.NEW)


if TYPE_CHECKING:

    def _conforms(folder: RunFolder) -> Sink:
        return TensorBoardSink(folder)
