"""What TensorBoard's event files hold of a run, read back from the files themselves."""

import contextlib
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from opusclip_mlops import event_files, events, projector
from opusclip_mlops.event_log import EventLog, Kept, read_log
from opusclip_mlops.folder import Identity
from opusclip_mlops.holdings import Held, Medium
from opusclip_mlops.records import Record
from opusclip_mlops.targets import Target

if TYPE_CHECKING:
    from opusclip_mlops.holdings import Holdings

_READS, _WAIT_S = 20, 0.1
_MEDIA = frozenset({"video", "image", "text", "table", "insight"})
_EMBEDDING = "insight/embedding"


class TensorBoardHoldings:
    """Reads every event file of a run."""

    def __init__(self, target: Target, identity: Identity) -> None:
        self._folder = event_files.event_folder(Path(target.folder), identity)

    def read(self) -> Held:
        """All that the run's event files hold, nothing where there are none."""
        self._heal()
        log = self._read_log()
        media = Counter(_medium(one) for one in log.kept if one.kind in _MEDIA)
        self._count_embeddings(media)
        return Held(log.points, media, log.words, log.point_events, log.end)

    def fingerprint(self) -> str:
        """The names and sizes of the event files."""
        sizes = []
        for path in event_files.event_files(self._folder):
            with contextlib.suppress(FileNotFoundError):
                sizes.append(f"{path.name}:{path.stat().st_size}")
        return " ".join(sizes)

    def rendered(self, record: Record) -> dict[str, str]:
        """The texts that stand in the Text tab for a record without a step, by their names."""
        return events.rendered_words(record)

    def _count_embeddings(self, media: Counter[Medium]) -> None:
        """An embedding is held where its files are: they are all that the projector reads."""
        for one in [one for one in media if one.kind == _EMBEDDING]:
            del media[one]
        for place, count in projector.embeddings_in(self._folder).items():
            media[Medium(_EMBEDDING, *place)] = count

    def _read_log(self) -> EventLog:
        """Read all files; again where one was replaced before it was opened."""
        for _ in range(_READS):
            paths = event_files.event_files(self._folder)
            # Old and new stand beside each other for a moment.
            if not event_files.is_replacing(self._folder):
                with contextlib.suppress(FileNotFoundError):
                    return read_log(paths)
            time.sleep(_WAIT_S)
        return read_log(event_files.event_files(self._folder))

    def _heal(self) -> None:
        """Complete a replacement that a process was killed in."""
        if event_files.is_replacing(self._folder):
            writing = event_files.begin_writing(self._folder)
            if writing is not None:
                event_files.finish_replacing(self._folder)
                writing.release()


def _medium(one: Kept) -> Medium:
    if one.kind != "insight":
        return Medium(one.kind, one.tag, one.step, one.timestamp_ms)
    kind, key = events.insight_of(one.tag)
    return Medium(f"insight/{kind}", key, one.step, one.timestamp_ms)


if TYPE_CHECKING:

    def _conforms(target: Target, identity: Identity) -> Holdings:
        return TensorBoardHoldings(target, identity)
