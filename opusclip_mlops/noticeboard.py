"""What processes that train together tell each other beside their training.

Notices go through the store of `torch.distributed`, which is there with a process group, and never
through its collectives: they disturb no training step, and a process that does not come leaves the
others a choice.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.ranks import place_in
from opusclip_mlops.redaction import one_line

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PATIENCE_S = 1800.0
"""How long a process is waited for that must come, as by `torch.distributed` itself."""

_TELL_AFTER_S = 30.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.002, 0.1
_FAULT, _FINE = b"!", b"."
_votes = itertools.count()


class Noticeboard:
    """Notices of one purpose, each under a key.

    Args:
        store: Where they are kept; None for that of the process group.
        purpose: Begins all keys, the same in all processes.

    Raises:
        CheckpointError: from each call, when the store does not answer.
    """

    def __init__(self, store: Store | None = None, *, purpose: str) -> None:
        from torch._C._distributed_c10d import PrefixStore
        from torch.distributed.distributed_c10d import _get_default_store

        known = _get_default_store() if store is None else store
        self._store = PrefixStore(f"opusclip/{purpose}", known)

    def post(self, key: str, notice: bytes) -> None:
        """Put up a notice for all."""
        with _answering():
            self._store.set(key, _FINE + notice)  # type: ignore[arg-type]

    def post_fault(self, key: str, fault: str) -> None:
        """Put up why there will be no notice: who waits for it raises that."""
        with _answering():
            self._store.set(key, _FAULT + fault.encode())  # type: ignore[arg-type]

    def look(self, key: str) -> bytes | None:
        """A notice that is there already, else None.

        Raises:
            CheckpointError: another process has put up why there is none.
        """
        with _answering():
            # `get` would wait, and hold up all others that use the store meanwhile.
            if not self._store.check([key]):
                return None
            found = bytes(self._store.get(key))
        if found[:1] == _FAULT:
            raise CheckpointError(found[1:].decode(errors="replace"))
        return found[1:]

    def take_down(self, key: str) -> None:
        """Remove a notice that all have read."""
        with _answering():
            self._store.delete_key(key)

    def wait(self, key: str, *, awaited: str, wait_s: float = PATIENCE_S) -> bytes:
        """Wait for a notice; a long wait is told on stderr once.

        Raises:
            CheckpointError: it has not come within `wait_s` seconds; the message says what was
                `awaited`.
        """
        for _ in pauses(wait_s, told=f"waiting for {awaited}"):
            if (found := self.look(key)) is not None:
                return found
        raise CheckpointError(f"{awaited}: has not come within {wait_s:.0f} s")

    @contextmanager
    def faults_told(self, key: str) -> Iterator[None]:
        """Put up under this key that the block has failed, if it does."""
        done = False
        try:
            yield
            done = True
        finally:
            if not done:
                with suppress(CheckpointError):
                    self.post_fault(key, _fault_text())


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # It goes with the process that keeps it.
        why = one_line((str(error).splitlines() or [""])[0], at_most=200)
        raise CheckpointError(f"the process group's store does not answer: {why}") from error


def pauses(wait_s: float, *, told: str = "") -> Iterator[float]:
    """Pause between looks, a little longer each time, until `wait_s` is over: seconds so far."""
    begin, pause_s, is_told = time.monotonic(), _FIRST_PAUSE_S, not told
    while (waited_s := time.monotonic() - begin) < wait_s:
        yield waited_s
        if waited_s > _TELL_AFTER_S and not is_told:
            print(f"opusclip: {told}", file=sys.stderr, flush=True)
            is_told = True
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)
    yield waited_s


def _fault_text() -> str:
    error = sys.exception()
    kind = "" if isinstance(error, CheckpointError) else f"{type(error).__name__}: "
    return one_line(f"{kind}{error}")


def private_store() -> Store:
    """A store of this process alone."""
    from torch._C._distributed_c10d import HashStore

    return HashStore()


def has_process_group() -> bool:
    """Whether this process can tell others anything."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_available() and dist.is_initialized()


def process_group_place() -> tuple[int, int] | None:
    """This process's number in the process group, and how many it has; None without one."""
    if not has_process_group():
        return None
    import torch.distributed as dist

    return dist.get_rank(), dist.get_world_size()


@contextmanager
def agreed(rank: int, world_size: int, *, what: str) -> Iterator[None]:
    """Do something in all processes, or raise in all of them what went wrong in one.

    Every process comes by here, in the same order.

    Raises:
        CheckpointError: it failed in another process, or one has not come.
    """
    # A launcher's store outlives an attempt.
    attempt = place.attempt if (place := place_in(os.environ)) else 0
    board = Noticeboard(purpose=f"{what}/{attempt}/{next(_votes)}")
    with board.faults_told(str(rank)):
        yield
    board.post(str(rank), b"")
    for other in range(world_size):
        try:
            board.wait(str(other), awaited=f"rank {other}: {what}")
        except CheckpointError as error:
            raise CheckpointError(f"{what} failed on rank {other}: {error}") from None
