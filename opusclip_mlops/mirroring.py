"""One run's mirror in one place: brought up to date, and kept so while the run goes on.

What MLflow has is compared with what the mirror itself says it holds. So a mirror can be
interrupted anywhere, and the next look finds what is left to do.
"""

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import msgspec
from mlflow import MlflowClient
from mlflow.entities import Run

from opusclip_mlops.contents import (
    OVER,
    Contents,
    LeftOut,
    Part,
    fetch,
    read_contents,
    unreadable,
)
from opusclip_mlops.differences import (
    Difference,
    LastingError,
    as_a_tracker_writes,
    check_removable,
    check_renamed,
    difference,
    points_between,
    written_live,
)
from opusclip_mlops.errors import DeliveryError, RecordError, VideoError
from opusclip_mlops.folder import Identity
from opusclip_mlops.generations import tags_of_generations
from opusclip_mlops.holdings import Held, Holdings, open_holdings
from opusclip_mlops.layout import MIRRORS_TAG
from opusclip_mlops.mirror_load import Load, lacking, load_of, ordered
from opusclip_mlops.mirror_names import names_of
from opusclip_mlops.mirror_state import MirrorState, Noted, is_mirrored_live, open_claim
from opusclip_mlops.mirror_writer import MirrorWriter, in_rows
from opusclip_mlops.points import Points
from opusclip_mlops.records import Record, Row, Tags
from opusclip_mlops.run_history import Cursor, History
from opusclip_mlops.signatures import (
    called,
    digest_of,
    is_heard_of,
    is_long_over,
    name_of,
    signature_of,
    words_signature,
)
from opusclip_mlops.sinks import KeepsAll, Waiting
from opusclip_mlops.targets import Target
from opusclip_mlops.wandb_layout import wandb_mode

_ARTIFACTS_EVERY_S = 30.0
_BY_ITS_TRACKER = "the run's own tracker mirrors it there as it goes on"


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
        self._claim: int | None = None
        self._artifacts_s = 0.0
        self._last: Contents | None = None

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
        if not held.is_empty:
            found, contents = self._without_broken(found, contents)
        return Comparison(found, contents, held)

    def _without_broken(self, found: Difference, contents: Contents) -> tuple[Difference, Contents]:
        """Leave out what can't be read: no mirror can hold it."""
        broken = unreadable(self._source.client, self._run_id, found.lacking_media)
        names = {one.name for one in broken}
        kept = tuple(part for part in found.lacking_media if part.artifact_path not in names)
        left_out = (*contents.left_out, *broken)
        return replace(found, lacking_media=kept), replace(contents, left_out=left_out)

    def catch_up(self, run: Run, *, only_renames: bool = False) -> Sent:
        """Compare everything and send what the mirror lacks.

        A mirror that holds something MLflow does not is made anew; with `only_renames` only where
        it is equal but for the names of before the run went back, and the run is over.

        Raises:
            DeliveryError: what was sent can't be counted there.
            LastingError: it can't be made anew, or is not to be.
        """
        self.leave()
        if run.info.status not in OVER and not only_renames and self._is_heard_of(run):
            raise Waiting(_BY_ITS_TRACKER)
        contents = read_contents(self._source.client, run)
        # Before the mirror is read: another process may be about to write it.
        self._take(contents.identity)
        try:
            return self._caught_up(run, contents, only_renames=only_renames)
        finally:
            self._release()

    def _caught_up(self, run: Run, contents: Contents, *, only_renames: bool) -> Sent:
        points, cursor = self._source.history.read(run)
        holdings = open_holdings(self._target, contents.identity)
        held = holdings.read()
        found = difference(contents, points, held, holdings, narrow=self._by_step)
        if only_renames and not found.is_empty:
            check_renamed(contents, points, held, self._target, narrow=self._by_step)
        if self._is_its_trackers(run, held, found):
            raise Waiting(_BY_ITS_TRACKER)
        if not held.is_empty and found.lacks_only_media:
            # A mirror that lacks nothing but what is broken is not opened for it.
            found, contents = self._without_broken(found, contents)
        sent = Sent(left_out=contents.left_out)
        if not found.is_empty:
            is_new = found.has_extra
            if is_new:
                check_removable(contents, points, held, holdings, self._target)
            load = self._begin_anew(contents, points, holdings) if is_new else lacking(found)
            sent = replace(self._send(contents, load), rebuilt=is_new)
            self._close()
            self._confirm(holdings, contents, points)
        self._note(run, contents, cursor, holdings)
        return sent

    def follow_up(self, run: Run, *, look_at_all: bool = False) -> Sent | None:
        """Send what is new since the last look; None when only `catch_up` can tell.

        Clips, files and the like are looked for now and then, or with `look_at_all`.
        """
        noted = self._noted or self._source.state.read(self._run_id, self._target)
        if noted is None or (run.info.status in OVER) != noted.is_over:
            return None
        if tags_of_generations(run.data.tags) != noted.identity.generations:
            # Another name may be that of anything which stands there.
            return None
        is_quiet = signature_of(run) == noted.signature
        if is_quiet and noted.is_over and not look_at_all and is_long_over(run):
            return Sent() if self._is_as_left(noted) else None
        self._take(noted.identity)
        try:
            return self._news(run, noted, look_at_all=look_at_all)
        finally:
            self._release()

    def leave(self) -> None:
        """Let others write the mirror."""
        try:
            self._close()
        finally:
            self._release()

    def _close(self) -> None:
        self._last = None
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def abandon(self) -> None:
        """Drop the mirror after a fault, without another word to it."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.abandon()
        self._release()

    def _take(self, identity: Identity) -> None:
        """Keep other processes that mirror from this mirror."""
        if self._claim is None:
            claim = open_claim(self._target, identity)
            if claim is None:
                raise Waiting("another process brings this mirror up to date")
            self._claim = claim

    def _release(self) -> None:
        if self._claim is not None and self._writer is None:
            os.close(self._claim)
            self._claim = None

    def _news(self, run: Run, noted: Noted, *, look_at_all: bool) -> Sent | None:
        news = self._source.history.news(run, noted.cursor)
        if news is None or not self._is_as_left(noted):
            return None
        points, cursor = news
        contents = self._contents(run, noted, look_at_all=look_at_all)
        load = Load(points=points)
        if contents is not None:
            if noted.parts.keys() - {name_of(part) for part in contents.parts}:
                # What MLflow has no more is found where all is compared.
                return None
            changed = tuple(
                p for p in contents.parts if noted.parts.get(name_of(p)) != digest_of(p)
            )
            load = load_of(points, changed)
            if any(isinstance(part.record, Tags) for part in changed):
                # A tag may be gone; a sink that is open only adds.
                self._close()
        if not len(load):
            if contents is not None or cursor != noted.cursor:
                self._keep(noted, run, cursor)
            return Sent()
        # Where there was no reason to look, nothing but points has changed since; a mirror that
        # is opened is told everything anew.
        contents = contents or (self._last if self.is_open else None)
        contents = contents or read_contents(self._source.client, run)
        sent = self._send(contents, load)
        if noted.is_over:
            self._close()
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

    def _is_its_trackers(self, run: Run, held: Held, found: Difference) -> bool:
        """Whether the tracker that logs this run writes its mirror too, and may go on doing so."""
        is_over = run.info.status in OVER
        # Its sinks are apart: a mirror may get the tail of a run that MLflow calls ended.
        if is_over and (held.end or self._source.state.is_made_anew(self._run_id, self._target)):
            return False
        return self._is_heard_of(run) or (
            found.has_extra and not is_over and self._has_live_writer(run)
        )

    def _is_heard_of(self, run: Run) -> bool:
        """Whether the run's tracker mirrors it to this place, and has logged of late."""
        return self._has_live_writer(run) and is_heard_of(run)

    def _has_live_writer(self, run: Run) -> bool:
        target = self._target.resolved(wandb_mode(self._target.mode))
        return is_mirrored_live(run.data.tags.get(MIRRORS_TAG, ""), target)

    def _is_as_left(self, noted: Noted) -> bool:
        if self._writer is not None and self._target.kind == "wandb":
            # Nobody else may write it meanwhile; its log grows by what the client adds itself.
            return True
        return open_holdings(self._target, noted.identity).fingerprint() == noted.fingerprint

    def _begin_anew(self, contents: Contents, points: Points, holdings: Holdings) -> Load:
        """Open the mirror so that nothing which stands there is to stay; what is to be sent then.

        W&B's server keeps the first row.
        """
        # Killed in its midst, it is not to be taken for what the tracker still writes.
        self._source.state.note_anew(self._run_id, self._target)
        try:
            self._writer = MirrorWriter(self._target, contents, is_new=True)
        except KeepsAll as error:
            self._source.state.forget_anew(self._run_id, self._target)
            raise LastingError(f"{self._target} is as it was: {error}") from None
        if self._by_step:
            return load_of(points, contents.parts)
        found = difference(contents, points, holdings.read(), holdings, narrow=False)
        if found.has_extra:
            raise DeliveryError(f"{self._target} has not let go of what was to be taken away")
        return lacking(found)

    def _send(self, contents: Contents, load: Load) -> Sent:
        if self._writer is None:
            self._writer = MirrorWriter(self._target, contents)
        missed: list[LeftOut] = []
        names = {called(part.record) for part in load.media}
        records = self._records(contents, load, self._writer, missed)
        for refusal in self._writer.send(records):
            missed.append(LeftOut(called(refusal.record), refusal.reason))
        return Sent(
            points=len(load.points),
            media=len(load.media) - sum(one.name in names for one in missed),
            words=len(load.words),
            left_out=(*contents.left_out, *missed),
        )

    def _records(
        self, contents: Contents, load: Load, writer: MirrorWriter, missed: list[LeftOut]
    ) -> Iterator[Record]:
        yield from (part.record for part in load.words)
        media = self._fetched(contents, ordered(load, self._by_step), writer, missed)
        yield from in_rows(load.points, media, by_step=self._by_step)

    def _fetched(
        self, contents: Contents, parts: Iterable[Part], writer: MirrorWriter, missed: list[LeftOut]
    ) -> Iterator[Row]:
        """Records with a step, each with its file; what is broken for good is missed."""
        for part in parts:
            try:
                row = fetch(self._source.client, contents.identity.run_id, part, writer.media)
            except (RecordError, VideoError) as error:
                missed.append(LeftOut(called(part.record), str(error)))
                continue
            assert isinstance(row, Row)
            yield row

    def _confirm(self, holdings: Holdings, contents: Contents, points: Points) -> None:
        """See that the points are there; W&B's rows were counted while they were sent."""
        if self._target.kind == "wandb":
            return
        names = names_of(contents.identity.generations)
        lacking, extra = points_between(points, holdings.read().points, names, narrow=True)
        if len(lacking) or len(extra):
            counts = f"lacks {len(lacking)} points and has {len(extra)} too many"
            raise DeliveryError(f"{self._target} {counts} after all was sent")

    def _note(
        self,
        run: Run,
        contents: Contents,
        cursor: Cursor,
        holdings: Holdings,
        known: dict[str, str] | None = None,
    ) -> None:
        self._last = contents
        self._noted = Noted(
            target=self._target,
            identity=contents.identity,
            fingerprint=holdings.fingerprint(),
            cursor=cursor,
            signature=signature_of(run),
            words_signature=words_signature(run),
            parts={**(known or {}), **{name_of(part): digest_of(part) for part in contents.parts}},
            is_over=contents.is_over,
        )
        self._source.state.write(self._noted)
        self._source.state.forget_anew(self._run_id, self._target)

    def _keep(self, noted: Noted, run: Run, cursor: Cursor) -> None:
        self._noted = msgspec.structs.replace(
            noted,
            cursor=cursor,
            signature=signature_of(run),
            words_signature=words_signature(run),
        )
        self._source.state.write(self._noted)
