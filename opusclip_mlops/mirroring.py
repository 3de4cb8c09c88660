"""One run's mirror in one place: brought up to date, and kept so while the run goes on.

What MLflow has is compared with what the mirror itself says it holds. So a mirror can be
interrupted anywhere, and the next look finds what is left to do.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import msgspec
from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops.contents import Contents, LeftOut, Part, fetch, read_contents
from opusclip_mlops.differences import (
    Difference,
    as_a_tracker_writes,
    difference,
    written_live,
)
from opusclip_mlops.errors import DeliveryError, RecordError, VideoError
from opusclip_mlops.history import Cursor, History
from opusclip_mlops.holdings import Held, Holdings, medium_of, open_holdings
from opusclip_mlops.layout import MIRRORS_TAG
from opusclip_mlops.mirror_state import MirrorState, Noted, is_mirrored_live
from opusclip_mlops.mirror_writer import ENDED, MirrorWriter, in_rows
from opusclip_mlops.points import Points
from opusclip_mlops.records import Record, Row, now_ms
from opusclip_mlops.sinks import Waiting
from opusclip_mlops.targets import Target
from opusclip_mlops.wandb_layout import wandb_mode
from opusclip_mlops.words import words_of

_ARTIFACTS_EVERY_S = 30.0
_SILENT_MS = 10 * 60_000
_NO_POINTS = Points.of(())


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where runs are read, and where notes about their mirrors lie."""

    client: MlflowClient
    history: History
    state: MirrorState


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What a look at a mirror has brought it, and what can't be brought."""

    points: int = 0
    media: int = 0
    words: int = 0
    rebuilt: bool = False
    left_out: tuple[LeftOut, ...] = ()

    @property
    def is_nothing(self) -> bool:
        """Whether the mirror was left as it was."""
        return not (self.points or self.media or self.words or self.rebuilt)


@dataclass(frozen=True, kw_only=True)
class _Load:
    """What is to be sent."""

    points: Points = field(default_factory=lambda: _NO_POINTS)
    media: tuple[Part, ...] = ()
    words: tuple[Part, ...] = ()

    def __len__(self) -> int:
        return len(self.points) + len(self.media) + len(self.words)


@dataclass(frozen=True)
class Comparison:
    """A run in MLflow, its mirror, and how they differ."""

    difference: Difference
    contents: Contents
    held: Held


class RunMirror:
    """The mirror of one run in one place.

    Its methods raise `Waiting` while another process writes the mirror.
    """

    def __init__(self, source: Source, target: Target, run_id: str) -> None:
        self._source, self._target, self._run_id = source, target, run_id
        self._by_step = target.kind == "tensorboard"
        self._writer: MirrorWriter | None = None
        self._noted: Noted | None = None
        self._artifacts_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether this process holds the mirror."""
        return self._writer is not None

    def compare(self, run: Run, *, as_it_is: bool) -> Comparison:
        """How the mirror differs from MLflow; nothing is sent.

        With `as_it_is` a mirror that only the run's own tracker has written need not hold what a
        tracker can't know.
        """
        contents = read_contents(self._source.client, run)
        points, _ = self._source.history.read(run)
        holdings = open_holdings(self._target, contents.identity)
        held = holdings.read()
        found = difference(contents, points, held, holdings, narrow=self._by_step)
        if as_it_is and written_live(held):
            found = as_a_tracker_writes(found, in_wandb=not self._by_step)
        return Comparison(found, contents, held)

    def catch_up(self, run: Run) -> Sent:
        """Compare everything and send what the mirror lacks.

        A mirror that holds something MLflow does not is made anew.

        Raises:
            DeliveryError: what was sent can't be counted there.
        """
        self.leave()
        if self._writer_is_its_tracker(run):
            raise Waiting("the run's own tracker mirrors it there as it goes on")
        contents = read_contents(self._source.client, run)
        points, cursor = self._source.history.read(run)
        holdings = open_holdings(self._target, contents.identity)
        held = holdings.read()
        found = difference(contents, points, held, holdings, narrow=self._by_step)
        sent = Sent(left_out=contents.left_out)
        if not found.is_empty or _lacks_end(contents, held.end):
            is_new = found.has_extra
            load = self._begin_anew(contents, points, holdings) if is_new else _lacking(found)
            sent = replace(self._send(contents, load), rebuilt=is_new)
            self.leave()
            self._confirm(holdings, points)
        self._note(run, contents, cursor, holdings)
        return sent

    def follow_up(self, run: Run, *, look_at_all: bool = False) -> Sent | None:
        """Send what is new since the last look; None when only `catch_up` can tell.

        Clips, files and the like are looked for now and then, or with `look_at_all`.
        """
        noted = self._noted or self._source.state.read(self._run_id, self._target)
        if noted is None or (run.info.status in ENDED) != noted.is_over:
            return None
        is_quiet = signature_of(run) == noted.signature
        if is_quiet and noted.is_over and not look_at_all:
            return Sent() if self._is_as_left(noted) else None
        return self._news(run, noted, look_at_all=look_at_all)

    def leave(self) -> None:
        """Let others write the mirror."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def abandon(self) -> None:
        """Drop the mirror after a fault, without another word to it."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.abandon()

    def _news(self, run: Run, noted: Noted, *, look_at_all: bool) -> Sent | None:
        news = self._source.history.news(run, noted.cursor)
        if news is None or not self._is_as_left(noted):
            return None
        points, cursor = news
        contents = self._contents(run, noted, look_at_all=look_at_all)
        load = _Load(points=points)
        if contents is not None:
            changed = tuple(p for p in contents.parts if noted.parts.get(_name(p)) != _digest(p))
            load = _load_of(points, changed)
        if not len(load):
            if contents is not None or cursor != noted.cursor:
                self._keep(noted, run, cursor)
            return Sent()
        contents = contents or read_contents(self._source.client, run, with_artifacts=False)
        sent = self._send(contents, load)
        if noted.is_over:
            self.leave()
        holdings = open_holdings(self._target, contents.identity)
        self._note(run, contents, cursor, holdings, known=noted.parts)
        return sent

    def _contents(self, run: Run, noted: Noted, *, look_at_all: bool) -> Contents | None:
        """What the run holds besides points, None where there is no reason to look."""
        is_due = time.monotonic() - self._artifacts_s > _ARTIFACTS_EVERY_S
        if not (look_at_all or is_due or words_signature(run) != noted.words_signature):
            return None
        self._artifacts_s = time.monotonic()
        return read_contents(self._source.client, run)

    def _writer_is_its_tracker(self, run: Run) -> bool:
        """Whether the tracker that logs this run writes its mirror too, and is heard of."""
        said = run.data.tags.get(MIRRORS_TAG, "")
        target = msgspec.structs.replace(self._target, mode=wandb_mode(self._target.mode))
        if run.info.status in ENDED or not is_mirrored_live(said, target):
            return False
        heard_ms = max([run.info.start_time, *(m.timestamp for m in run.data._metric_objs)])
        return bool(now_ms() - heard_ms < _SILENT_MS)

    def _is_as_left(self, noted: Noted) -> bool:
        if self._writer is not None and self._target.kind == "wandb":
            # Nobody else may write it meanwhile; its log grows by what the client adds itself.
            return True
        return open_holdings(self._target, noted.identity).fingerprint() == noted.fingerprint

    def _begin_anew(self, contents: Contents, points: Points, holdings: Holdings) -> _Load:
        """Open the mirror so that nothing which stands there is to stay; what is to be sent then.

        W&B's server keeps the first row of a run that is begun anew.
        """
        self._writer = MirrorWriter(self._target, contents, is_new=True)
        if self._by_step:
            return _load_of(points, contents.parts)
        found = difference(contents, points, holdings.read(), holdings, narrow=False)
        if found.has_extra:
            raise DeliveryError(
                f"{self._target} holds something that can't be taken away there: mirror the run"
                " to another W&B project"
            )
        return _lacking(found)

    def _send(self, contents: Contents, load: _Load) -> Sent:
        if self._writer is None:
            self._writer = MirrorWriter(self._target, contents)
        missed: list[LeftOut] = []
        records = self._records(contents, load, self._writer, missed)
        for refusal in self._writer.send(records):
            missed.append(LeftOut(_called(refusal.record), refusal.reason))
        return Sent(
            points=len(load.points),
            media=len(load.media) - len(missed),
            words=len(load.words),
            left_out=(*contents.left_out, *missed),
        )

    def _records(
        self, contents: Contents, load: _Load, writer: MirrorWriter, missed: list[LeftOut]
    ) -> Iterator[Record]:
        yield from (part.record for part in load.words)
        media = self._fetched(contents, _ordered(load, self._by_step), writer, missed)
        yield from in_rows(load.points, media, by_step=self._by_step)

    def _fetched(
        self, contents: Contents, parts: Iterable[Part], writer: MirrorWriter, missed: list[LeftOut]
    ) -> Iterator[Row]:
        """Records with a step, each with its file; what is broken for good is missed."""
        for part in parts:
            try:
                row = fetch(self._source.client, contents.identity.run_id, part, writer.media)
            except (RecordError, VideoError) as error:
                missed.append(LeftOut(_called(part.record), str(error)))
                continue
            assert isinstance(row, Row)
            yield row

    def _confirm(self, holdings: Holdings, points: Points) -> None:
        """See that the points are there; W&B's rows were counted while they were sent."""
        if self._target.kind == "wandb":
            return
        there = len(holdings.read().points)
        if there != len(points):
            raise DeliveryError(f"{self._target} holds {there} of {len(points)} points")

    def _note(
        self,
        run: Run,
        contents: Contents,
        cursor: Cursor,
        holdings: Holdings,
        known: dict[str, str] | None = None,
    ) -> None:
        self._noted = Noted(
            target=self._target,
            identity=contents.identity,
            fingerprint=holdings.fingerprint(),
            cursor=cursor,
            signature=signature_of(run),
            words_signature=words_signature(run),
            parts={**(known or {}), **{_name(part): _digest(part) for part in contents.parts}},
            is_over=contents.status in ENDED,
        )
        self._source.state.write(self._noted)

    def _keep(self, noted: Noted, run: Run, cursor: Cursor) -> None:
        self._noted = msgspec.structs.replace(
            noted,
            cursor=cursor,
            signature=signature_of(run),
            words_signature=words_signature(run),
        )
        self._source.state.write(self._noted)


def signature_of(run: Run) -> str:
    """A short text that changes with anything that a listing of runs shows of this one."""
    latest = sorted((m.key, m.step, m.timestamp, repr(m.value)) for m in run.data._metric_objs)
    return _short([words_signature(run), latest])


def words_signature(run: Run) -> str:
    """The same without its points."""
    info = run.info
    about = [info.run_name, info.status, info.end_time, info.lifecycle_stage]
    inputs = [one.dataset.digest for one in run.inputs.dataset_inputs] if run.inputs else []
    outputs = [one.model_id for one in run.outputs.model_outputs] if run.outputs else []
    return _short([about, run.data.params, run.data.tags, inputs, outputs])


def _lacking(found: Difference) -> _Load:
    return _Load(points=found.lacking, media=found.lacking_media, words=found.words)


def _load_of(points: Points, parts: Iterable[Part]) -> _Load:
    every = tuple(parts)
    media = tuple(part for part in every if isinstance(part.record, Row))
    words = tuple(part for part in every if not isinstance(part.record, Row))
    return _Load(points=points, media=media, words=words)


def _ordered(load: _Load, by_step: bool) -> list[Part]:
    def place(part: Part) -> tuple[int, int]:
        row = part.record
        assert isinstance(row, Row)
        return (row.step, row.timestamp_ms) if by_step else (row.timestamp_ms, row.step)

    return sorted(load.media, key=place)


def _lacks_end(contents: Contents, end: str) -> bool:
    return contents.status in ENDED and not end


def _name(part: Part) -> str:
    medium = medium_of(part.record)
    if medium is not None:
        return f"{medium.kind} {medium.step} {medium.timestamp_ms} {medium.key}"
    return " ".join(words_of(part.record))


def _called(record: Record) -> str:
    medium = medium_of(record)
    return f"{medium.kind} {medium.key} at step {medium.step}" if medium else type(record).__name__


def _digest(part: Part) -> str:
    return hashlib.sha256(msgspec.msgpack.encode(part.record)).hexdigest()[:16]


def _short(content: object) -> str:
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()[:24]
