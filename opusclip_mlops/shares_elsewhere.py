"""How long it makes sense to wait for what other machines have of a checkpoint.

Those that wrote it may have ended, and their machine be silent: it sends what lies on its disk once
it can. So no sign says that nothing comes any more, only time does: longer than most links are
down, and since the last word of any other machine, for words come before large files.

Only the time in which MLflow answers counts, and it outlives the process that counts it: that lies
on the disk, beside the notes of uploads.
"""

import contextlib
import re
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from opusclip_mlops.folder import RunFolder, write_whole
from opusclip_mlops.sessions import ELSEWHERE, Session, all_ended, sessions

_WAIT_S = 3600.0
"""How long other machines have at least to send the next file of any checkpoint."""

_GONE_WAIT_S, _LEAST_BYTES_PER_S = 900.0, 2 * 2**20
"""How long behind the last word of another machine where those that wrote it have ended, and how
fast their machines send at least."""

_MOST_PAUSE_S = 60.0
"""How much of the time since the last look counts: for longer nobody looked."""

_RANK = re.compile(r"[a-z]+-(\d{5})-of-\d{5}\.safetensors", re.ASCII)
_SUFFIX = ".awaited"


class _Waited(msgspec.Struct, frozen=True, array_like=True):
    """How long `count` files were waited for.

    For `gone_s` of it those that wrote them were known to have ended, and other machines had said
    so many bytes.
    """

    waited_s: float
    count: int
    gone_s: float = 0.0
    said_bytes: int | None = None


class SharesElsewhere:
    """What is waited for, of all checkpoints of a run.

    Args:
        folder: The run's folder on the machine that owns it.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._marks = folder, folder.path / "uploads"
        self._looked_s: dict[str, float] = {}
        self._come: set[str] = set()

    def is_vain(self, checkpoint: str, created_ms: int, absent: Mapping[str, int]) -> bool:
        """Whether these files come no more, as far as can be told; asked behind each look.

        Args:
            checkpoint: Its name.
            created_ms: When it was made, in Unix milliseconds.
            absent: The sizes of its files that are not there yet.
        """
        said_bytes = self._said_bytes() if self._have_ended(created_ms, absent) else None
        waited = self._waited(checkpoint, len(absent), said_bytes)
        # Files come one after the other.
        gone_wait_s = _GONE_WAIT_S + max(absent.values()) / _LEAST_BYTES_PER_S
        return waited.waited_s >= max(_WAIT_S, gone_wait_s) or waited.gone_s >= gone_wait_s

    def has_come(self, checkpoint: str) -> None:
        """All of it is there: what else is waited for has the whole time again."""
        if checkpoint not in self._come:
            self._come.add(checkpoint)
            self._forget_all()

    def forget(self, checkpoint: str) -> None:
        """Nothing of it is waited for any more."""
        with contextlib.suppress(OSError):
            self._mark(checkpoint).unlink()

    def _waited(self, checkpoint: str, count: int, said_bytes: int | None) -> _Waited:
        """How long MLflow has had no new file of any checkpoint, as far as that was looked at."""
        self._come.discard(checkpoint)
        now_s = time.monotonic()
        pause_s = min(now_s - self._looked_s.get(checkpoint, now_s), _MOST_PAUSE_S)
        self._looked_s[checkpoint] = now_s
        before = self._read(checkpoint) or _Waited(0.0, count)
        if count < before.count:
            self._forget_all()
            before, pause_s = _Waited(0.0, count), 0.0
        is_quiet = said_bytes is not None and said_bytes == before.said_bytes
        gone_s = before.gone_s + pause_s if is_quiet else 0.0
        waited = _Waited(before.waited_s + pause_s, count, gone_s, said_bytes)
        # On a full disk it is waited for longer.
        with contextlib.suppress(OSError):
            self._marks.mkdir(mode=0o700, exist_ok=True)
            write_whole(self._mark(checkpoint), msgspec.json.encode(waited))
        return waited

    def _forget_all(self) -> None:
        for path in self._marks.glob(f"*{_SUFFIX}"):
            self.forget(path.name.removesuffix(_SUFFIX))

    def _read(self, checkpoint: str) -> _Waited | None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode(self._mark(checkpoint).read_bytes(), type=_Waited)
        return None

    def _mark(self, checkpoint: str) -> Path:
        return self._marks / f"{checkpoint}{_SUFFIX}"

    def _have_ended(self, created_ms: int, absent: Mapping[str, int]) -> bool:
        """Whether the processes that have written it have all ended, for all that is known.

        That ranks were started anew since says nothing of what their machine has on its disk.
        """
        every = sessions(self._folder)
        attempt = _attempt_at(every, created_ms)
        ranks = {int(found[1]) for name in absent if (found := _RANK.fullmatch(name))}
        theirs = [one for one in every if one.start.rank in ranks and one.start.attempt == attempt]
        are_known = ranks == {one.start.rank for one in theirs}
        return (are_known and all(one.end for one in theirs)) or all_ended(self._folder)

    def _said_bytes(self) -> int:
        """How much has come from other machines."""
        sizes = self._folder.size_bytes().items()
        return sum(size for name, size in sizes if name.startswith(ELSEWHERE))


def _attempt_at(every: list[Session], created_ms: int) -> int:
    """The attempt whose owner has made it: by the clock of this machine, on which it trains."""
    starts = [one.start for one in every if not one.is_elsewhere]
    return max((one.attempt for one in starts if one.start_time_ms <= created_ms), default=0)
