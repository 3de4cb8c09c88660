"""How long it makes sense to wait for what other machines have of a checkpoint.

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
from opusclip_mlops.sessions import Session, all_ended, sessions

_WAIT_S = 3600.0
"""How long other machines have to send the next file of any checkpoint."""

_GONE_WAIT_S, _LEAST_BYTES_PER_S = 180.0, 2 * 2**20
"""How long where those that wrote it have ended, and how fast their machines send at least."""

_MOST_PAUSE_S = 60.0
"""How much of the time since the last look counts: for longer nobody looked."""

_RANK = re.compile(r"[a-z]+-(\d{5})-of-\d{5}\.safetensors", re.ASCII)
_SUFFIX = ".awaited"


class SharesElsewhere:
    """What is waited for, of all checkpoints of a run.

    Args:
        folder: The run's folder on the machine that owns it.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._marks = folder, folder.path / "uploads"
        self._looked_s: dict[str, float] = {}

    def is_vain(self, checkpoint: str, created_ms: int, absent: Mapping[str, int]) -> bool:
        """Whether these files come no more, as far as can be told; asked behind each look.

        Args:
            checkpoint: Its name.
            created_ms: When it was made, in Unix milliseconds.
            absent: The sizes of its files that are not there yet.
        """
        waited_s = self._waited_s(checkpoint, len(absent))
        # Files come one after the other.
        gone_wait_s = _GONE_WAIT_S + max(absent.values()) / _LEAST_BYTES_PER_S
        if waited_s < min(_WAIT_S, gone_wait_s):
            return False
        return waited_s >= _WAIT_S or self._are_gone(created_ms, absent)

    def forget(self, checkpoint: str) -> None:
        """Nothing of it is waited for any more."""
        with contextlib.suppress(OSError):
            self._mark(checkpoint).unlink()

    def _waited_s(self, checkpoint: str, count: int) -> float:
        """How long MLflow has had no new file of any checkpoint, as far as that was looked at."""
        now_s = time.monotonic()
        pause_s = min(now_s - self._looked_s.get(checkpoint, now_s), _MOST_PAUSE_S)
        self._looked_s[checkpoint] = now_s
        before_s, before = self._read(checkpoint) or (0.0, count)
        if count < before:
            for path in self._marks.glob(f"*{_SUFFIX}"):
                self.forget(path.name.removesuffix(_SUFFIX))
        waited_s = 0.0 if count < before else before_s + pause_s
        # On a full disk it is waited for longer.
        with contextlib.suppress(OSError):
            self._marks.mkdir(mode=0o700, exist_ok=True)
            write_whole(self._mark(checkpoint), msgspec.json.encode((waited_s, count)))
        return waited_s

    def _read(self, checkpoint: str) -> tuple[float, int] | None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            content = self._mark(checkpoint).read_bytes()
            return msgspec.json.decode(content, type=tuple[float, int])
        return None

    def _mark(self, checkpoint: str) -> Path:
        return self._marks / f"{checkpoint}{_SUFFIX}"

    def _are_gone(self, created_ms: int, absent: Mapping[str, int]) -> bool:
        """Whether the processes that have written it have all ended, for all that is known."""
        every = sessions(self._folder)
        attempt = _attempt_at(every, created_ms)
        if any(one.start.attempt > attempt for one in every):
            return True
        ranks = {int(found[1]) for name in absent if (found := _RANK.fullmatch(name))}
        theirs = [one for one in every if one.start.rank in ranks and one.start.attempt == attempt]
        are_known = ranks == {one.start.rank for one in theirs}
        return (are_known and all(one.end for one in theirs)) or all_ended(self._folder)


def _attempt_at(every: list[Session], created_ms: int) -> int:
    """The attempt whose owner has made it: by the clock of this machine, on which it trains."""
    starts = [one.start for one in every if not one.is_elsewhere]
    return max((one.attempt for one in starts if one.start_time_ms <= created_ms), default=0)
