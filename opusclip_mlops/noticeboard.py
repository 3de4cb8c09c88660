"""What processes that train together tell each other beside their training.

Notices go through the store of `torch.distributed`, which is there with a process group, and never
through its collectives: they disturb no training step, and a process that does not come leaves the
others a choice.
"""

from __future__ import annotations

import itertools
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.redaction import one_line

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

PATIENCE_S = 1800.0
"""How long a process is waited for that must come, as by `torch.distributed` itself."""

_TELL_AFTER_S = 30.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.002, 0.1
_FAULT, _FINE = b"!", b"."
_NOTHING = "-"


class ToldFault(CheckpointError):
    """What another process has put up instead of a notice."""


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
            ToldFault: another process has put up why there is none.
        """
        with _answering():
            # `get` would wait, and hold up all others that use the store meanwhile.
            found = bytes(self._store.compare_set(key, _NOTHING, _NOTHING))
        if found == _NOTHING.encode():
            return None
        if found[:1] == _FAULT:
            raise ToldFault(found[1:].decode(errors="replace"))
        return found[1:]

    def take_down(self, key: str) -> None:
        """Remove a notice that all have read."""
        with _answering():
            self._store.delete_key(key)

    def wait(
        self, key: str, *, awaited: str, wait_s: float = PATIENCE_S, of: int | None = None
    ) -> bytes:
        """Wait for a notice; a long wait is told on stderr once.

        Args:
            key: The notice's.
            awaited: What it is, for people.
            wait_s: For how long.
            of: The rank that is to put it up, where all are `agreed`: if it fails, this fails too.

        Raises:
            CheckpointError: it has not come; the message says what was `awaited`.
        """
        for _ in pauses(wait_s, told=f"waiting for {awaited}"):
            if (found := self.look(key)) is not None:
                return found
            if of is not None:
                self.look(str(of))
        raise CheckpointError(f"{awaited}: has not come within {wait_s:.0f} s")

    @contextmanager
    def faults_told(self, key: str | Callable[[], str]) -> Iterator[None]:
        """Put up under this key that the block has failed, if it does."""
        done = False
        try:
            yield
            done = True
        finally:
            if not done:
                fault = _fault_text()
                with suppress(CheckpointError):
                    self.post_fault(key if isinstance(key, str) else key(), fault)


@contextmanager
def unless_told() -> Iterator[None]:
    """Go on where the store is gone, but not where another process has put up a fault."""
    try:
        yield
    except ToldFault:
        raise
    except CheckpointError:
        pass


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


class CommonWord:
    """A word that processes which train together have in common, and no others before them.

    A launcher's store outlives the processes that it starts anew, and it does not count their
    attempts alike on every machine. So each asks under a word that it has drawn itself, and the
    owner's answer is under that: what dead processes have asked or answered is read by nobody.

    Args:
        board: Where they meet.
        rank: The number of this process.
        others: The numbers of those that ask, for the owner, whose word it is; nobody otherwise.
    """

    def __init__(self, board: Noticeboard, *, rank: int, others: set[int] | None = None) -> None:
        self._board, self._rank, self._drawn = board, rank, secrets.token_hex(16)
        self._is_owner, self._unsure = others is not None, set(others or ())
        self._answered: dict[int, bytes] = {}
        self._told = self._drawn if self._is_owner else ""
        self._has_asked = False

    def answer(self) -> bool:
        """Tell those that have asked since the last look; whether all know it. By the owner."""
        for rank in sorted(self._unsure):
            asked = self._board.look(f"asks/{rank}")
            if asked is not None and asked != self._answered.get(rank):
                self._board.post(f"answer/{asked.decode()}", self._drawn.encode())
                self._answered[rank] = asked
            elif asked is not None and self._board.look(f"knows/{self._drawn}/{rank}") is not None:
                self._unsure.discard(rank)
        return not self._unsure

    def look(self) -> str:
        """The word; empty as long as the owner has not answered. It is asked first."""
        if not self._told and not self._has_asked:
            self._board.post(f"asks/{self._rank}", self._drawn.encode())
            self._has_asked = True
        if not self._told and (found := self._board.look(f"answer/{self._drawn}")) is not None:
            self._board.post(f"knows/{found.decode()}/{self._rank}", b"")
            self._told = found.decode()
        return self._told


def common_word(
    store: Store | None = None, *, rank: int, world_size: int, wait_s: float = PATIENCE_S
) -> str:
    """A word that all processes get, the same for all, whatever earlier ones have left behind.

    Every process calls it, and waits for all others. `store` is where they meet, None for the
    process group's.

    Raises:
        CheckpointError: another one has not come within `wait_s` seconds, or the store is gone.
    """
    others = {*range(1, world_size)}
    board = Noticeboard(store, purpose="word")
    word = CommonWord(board, rank=rank, others=None if rank else others)
    for _ in pauses(wait_s, told=f"rank {rank} waits for the other ranks"):
        if (rank or word.answer()) and (found := word.look()):
            return found
    raise CheckpointError(f"rank {rank} has not met the other ranks within {wait_s:.0f} s")


_votes: tuple[object, Iterator[str]] = (None, iter(()))


def _next_vote(rank: int, world_size: int) -> str:
    """A name for a vote, the same in all processes of the process group."""
    global _votes
    from torch.distributed.distributed_c10d import _get_default_store

    if (store := _get_default_store()) is not _votes[0]:
        word = common_word(rank=rank, world_size=world_size)
        _votes = store, (f"{word}/{number}" for number in itertools.count())
    return next(_votes[1])


@contextmanager
def agreed(rank: int, world_size: int, *, what: str) -> Iterator[Noticeboard]:
    """Do something in all processes, or raise in all of them what went wrong in one.

    Gives a board for what they tell each other meanwhile: who waits there for a notice of a rank
    learns, under its number, that this has failed. Every process comes by here, in the same order.

    Raises:
        CheckpointError: it failed in another process, or one has not come.
    """
    board = Noticeboard(purpose=f"{what}/{_next_vote(rank, world_size)}")
    with board.faults_told(str(rank)):
        yield board
    board.post(str(rank), b"")
    for other in range(world_size):
        try:
            board.wait(str(other), awaited=f"rank {other}: {what}")
        except CheckpointError as error:
            raise CheckpointError(f"{what} failed on rank {other}: {error}") from None
