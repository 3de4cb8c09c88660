"""Checkpoints that several processes load together.

The first of them chooses which one it is, each machine fetches it once, and its processes share out
the hashing of its files.
"""

from __future__ import annotations

import hashlib
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from opusclip_mlops.errors import CheckpointError
from opusclip_mlops.flight import boot_id
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.noticeboard import Noticeboard

_FIRST = 0


class _Chosen(msgspec.Struct, frozen=True):
    """What the first process says: the checkpoint's name, and the machine of each process."""

    name: str
    machines: list[str]


class JointLoad:
    """One process's part in loading a checkpoint.

    Args:
        board: Where the processes tell each other, about this checkpoint alone.
        rank: The number of this process.
        world_size: How many there are.
    """

    def __init__(self, board: Noticeboard, rank: int, world_size: int) -> None:
        self._board, self._rank, self._world_size = board, rank, world_size
        self._machine = _here()
        self._crew = [rank]
        board.post(f"came/{rank}", self._machine.encode())

    @property
    def share(self) -> tuple[int, int]:
        """The number of this process among those of its machine, and how many these are."""
        return self._crew.index(self._rank), len(self._crew)

    @property
    def is_first_here(self) -> bool:
        """Whether this process does what a machine does once."""
        return self._crew[0] == self._rank

    def chosen(self, choose: Callable[[], str]) -> str:
        """What the first process has chosen; every process asks this first.

        Raises:
            CheckpointError: it could not choose, or has not come.
        """
        if self._rank == _FIRST:
            found = _Chosen(choose(), [*map(self._machine_of, range(self._world_size))])
            self._board.post("chosen", msgspec.json.encode(found))
        else:
            told = self._wait("chosen", "the checkpoint that rank 0 chooses", of=_FIRST)
            found = msgspec.json.decode(told, type=_Chosen)
        self._crew = [rank for rank, one in enumerate(found.machines) if one == self._machine]
        return found.name

    def _machine_of(self, rank: int) -> str:
        return self._wait(f"came/{rank}", f"rank {rank}: load_checkpoint", of=rank).decode()

    def check_same(self, metadata: CheckpointMetadata) -> None:
        """Check that this process has found the same checkpoint as the first.

        Raises:
            CheckpointError: it has another one.
        """
        found = _fingerprint(metadata)
        if self._rank == _FIRST:
            self._board.post("fingerprint", found)
        elif self._wait("fingerprint", "what rank 0 has found", of=_FIRST) != found:
            raise CheckpointError(
                f"rank {self._rank} has found another checkpoint {metadata.name} than rank "
                f"{_FIRST}: give all of them the same source"
            )

    @contextmanager
    def lent(self, folder: Path) -> Iterator[None]:
        """Let the other processes of this machine read a folder, and wait until they have."""
        self._board.post(f"lent/{self._machine}", str(folder).encode())
        try:
            # Who waits for this process ends its reading.
            with self._board.faults_told(str(self._rank)):
                yield
        finally:
            for rank in self._crew[1:]:
                with suppress(CheckpointError):
                    self._wait_until_read(rank)

    def borrowed(self) -> Path:
        """The folder that the first process of this machine lends.

        Raises:
            CheckpointError: it could not fetch one, or has not come.
        """
        lender = self._crew[0]
        fetches = f"rank {lender}, which fetches the checkpoint"
        return Path(self._wait(f"lent/{self._machine}", fetches, of=lender).decode())

    def kept(self, keep: Callable[[], Path | None]) -> Path | None:
        """Where the folder stays once all of this machine have read it: what the first has done.

        Raises:
            CheckpointError: another one could not read it, or it cannot be kept.
        """
        if not self.is_first_here:
            self._board.post(f"read/{self._rank}", b"")
            lender = self._crew[0]
            fetched = f"rank {lender}, which has fetched the checkpoint"
            told = self._wait(f"kept/{self._machine}", fetched, of=lender)
            return Path(told.decode()) if told else None
        for rank in self._crew[1:]:
            self._wait_until_read(rank)
        place = keep()
        self._board.post(f"kept/{self._machine}", str(place or "").encode())
        return place

    def _wait_until_read(self, rank: int) -> None:
        self._wait(f"read/{rank}", f"rank {rank}, which reads the checkpoint", of=rank)

    def _wait(self, key: str, awaited: str, *, of: int) -> bytes:
        """A notice of another process, or the fault with which that one has left."""
        return self._board.wait(key, awaited=awaited, of=of)


def _here() -> str:
    """What processes have in common that see the same temporary folder of the same machine."""
    about = Path(tempfile.gettempdir()).stat()
    return f"{socket.gethostname()}/{boot_id()}/{about.st_dev}-{about.st_ino}"


def _fingerprint(metadata: CheckpointMetadata) -> bytes:
    """What tells a checkpoint from any other; sealing it does not change that."""
    files = sorted((name, one.sha256) for name, one in metadata.files.items())
    said = msgspec.json.encode([metadata.name, metadata.step, metadata.epoch, files])
    return hashlib.sha256(said).hexdigest().encode()
