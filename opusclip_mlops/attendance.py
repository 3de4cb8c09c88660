"""Which of the processes that save together are there, and the word that they have in common.

As long as a process saves, a thread of its own shows the others that it lives: one that writes for
an hour is told from one that is gone.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.faults import attempted
from opusclip_mlops.noticeboard import PATIENCE_S, CommonWord, Noticeboard, pauses

OWNER = "owner"
"""What the process is called whose checkpoints are the run's."""

_BEAT_S = 1.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.05, 2.0
_KEPT = 8
"""How many notices of one process nobody may have read yet."""

_IN_VAIN = (
    "nothing was saved of what this rank called save_checkpoint for: the owner has not called it, "
    "or is gone"
)


class Attendance:
    """Which processes are there, as far as they save.

    Args:
        board: Where they meet.
        rank: The number of this process.
        world_size: How many they are.
        is_owner: Whether all take its word.
    """

    def __init__(self, board: Noticeboard, *, rank: int, world_size: int, is_owner: bool) -> None:
        self._board, self._name = board, OWNER if is_owner else str(rank)
        others = {*range(world_size)} - {rank} if is_owner else None
        self._word = CommonWord(board, rank=rank, others=others)
        self._is_owner, self._is_over = is_owner, threading.Event()
        self._answering: threading.Thread | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._beats: dict[str, tuple[bytes | None, float]] = {}

    def open(self) -> None:
        """Answer those that ask for the word, soon, until all know it; by the owner."""
        self._pause_s = _FIRST_PAUSE_S
        if self._is_owner and self._answering is None:
            self._answering = threading.Thread(
                target=self._answer, name="opusclip-attendance", daemon=True
            )
            self._answering.start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._is_over.set()

    def _answer(self) -> None:
        # Where the store is gone nobody asks.
        while not self._is_over.wait(self._pause_s) and attempted(self._look_for_asking) is None:
            self._pause_s = min(1.2 * self._pause_s, _LAST_PAUSE_S)

    def _look_for_asking(self) -> None:
        if self._word.answer():
            self._is_over.set()

    def word(self, *, awaited: str, wait_s: float = PATIENCE_S) -> str:
        """The word of all; waits until the owner has come.

        Raises:
            CheckpointError: it has not come, or the store is gone.
        """
        for _ in pauses(wait_s, told=f"waiting for {awaited}"):
            if found := self._word.look():
                return found
        raise CheckpointError(f"{awaited}: has not come within {wait_s:.0f} s")

    def look(self) -> str:
        """The word of all; empty as long as the owner has not come."""
        return self._word.look()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the others that this process lives, until the block is done, in any thread."""
        is_over = threading.Event()
        threading.Thread(
            target=self._show, args=(is_over,), name="opusclip-attendance", daemon=True
        ).start()
        try:
            yield
        finally:
            is_over.set()

    def _show(self, is_over: threading.Event) -> None:
        while attempted(self._beat) is None and not is_over.wait(_BEAT_S):
            pass

    def _beat(self) -> None:
        self._board.post(f"lives/{self._name}", secrets.token_bytes(8))

    def silent_s(self, name: str) -> float:
        """For how long a process, a number or the owner, has shown no life since first asked."""
        found, now_s = self._board.look(f"lives/{name}"), time.monotonic()
        last = self._beats.get(name)
        if last is None or last[0] != found:
            last = self._beats[name] = found, now_s
        return now_s - last[1]


class Courier:
    """Brings the owner what it can do without, and keeps nobody waiting for that.

    Only the newest notices stay, and those that nobody has read are removed in the end.
    """

    def __init__(self, board: Noticeboard, attendance: Attendance) -> None:
        self._board, self._attendance = board, attendance
        self._waiting: deque[tuple[str, bytes]] = deque(maxlen=_KEPT)
        self._posted: deque[str] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_over = self._is_abandoned = False

    def bring(self, key: str, notice: bytes) -> None:
        """Have a notice put up under a key, behind the word of all, once that is known."""
        with self._changed:
            self._waiting.append((key, notice))
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._go, name="opusclip-courier", daemon=True)
            self._thread.start()

    def close(self, *, wait_s: float) -> list[str]:
        """Wait until all is put up, and end; a line of what nobody ever came to read."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(wait_s)
        self._is_abandoned = True
        return [_IN_VAIN] if self._waiting else []

    def _go(self) -> None:
        while self._is_wanted():
            # The store may be gone with the process that kept it; then so is who would read.
            if attempted(self._put_up) is not None or self._is_abandoned:
                return

    def _is_wanted(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_over)
            return bool(self._waiting)

    def _put_up(self) -> None:
        for _ in pauses(math.inf):
            if (word := self._attendance.look()) or self._is_abandoned:
                break
        if not word:
            return
        while self._waiting:
            key, notice = self._waiting.popleft()
            self._board.post(f"{word}/{key}", notice)
            self._posted.append(f"{word}/{key}")
        while len(self._posted) > _KEPT:
            self._board.take_down(self._posted.popleft())
