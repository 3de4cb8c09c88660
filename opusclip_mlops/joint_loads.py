"""Checkpoints that several processes load together.

The first of them chooses which one it is, each machine fetches it once, and its processes share out
the hashing of its files.
"""

from __future__ import annotations

import hashlib
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
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
            with self._board.faults_told("chosen"):
                found = _Chosen(choose(), [*map(self._machine_of, range(self._world_size))])
            self._board.post("chosen", msgspec.json.encode(found))
        else:
            told = self._board.wait("chosen", awaited=f"the checkpoint that rank {_FIRST} chooses")
            found = msgspec.json.decode(told, type=_Chosen)
        self._crew = [rank for rank, one in enumerate(found.machines) if one == self._machine]
        return found.name

    def _machine_of(self, rank: int) -> str:
        return self._board.wait(f"came/{rank}", awaited=f"rank {rank}: load_checkpoint").decode()

    def check_same(self, metadata: CheckpointMetadata) -> None:
        """Check that this process has found the same checkpoint as the first.

        Raises:
            CheckpointError: it has another one.
        """
        found = _fingerprint(metadata)
        if self._rank == _FIRST:
            self._board.post("fingerprint", found)
        elif self._board.wait("fingerprint", awaited=f"what rank {_FIRST} has found") != found:
            raise CheckpointError(
                f"rank {self._rank} has found another checkpoint {metadata.name} than rank "
                f"{_FIRST}: give all of them the same source"
            )

    def lending(self) -> AbstractContextManager[None]:
        """Tell the other processes of this machine if it comes to no `lent`."""
        return self._board.faults_told(f"lent/{self._machine}")

    @contextmanager
    def lent(self, folder: Path) -> Iterator[None]:
        """Let the other processes of this machine read a folder, and wait until they have."""
        self._board.post(f"lent/{self._machine}", str(folder).encode())
        try:
            with self._board.faults_told(f"kept/{self._machine}"):
                yield
        finally:
            for rank in self._crew[1:]:
                with suppress(CheckpointError):
                    self._wait_until_read(rank)

    @contextmanager
    def borrowed(self) -> Iterator[Path]:
        """The folder that the first process of this machine lends.

        Raises:
            CheckpointError: it could not fetch one, or has not come.
        """
        lender = f"rank {self._crew[0]}, which fetches the checkpoint"
        told = self._board.wait(f"lent/{self._machine}", awaited=lender)
        with self._board.faults_told(f"read/{self._rank}"):
            yield Path(told.decode())

    def kept(self, keep: Callable[[], Path | None]) -> Path | None:
        """Where the folder stays once all of this machine have read it: what the first has done.

        Raises:
            CheckpointError: another one could not read it, or it cannot be kept.
        """
        if not self.is_first_here:
            self._board.post(f"read/{self._rank}", b"")
            lender = f"rank {self._crew[0]}, which has fetched the checkpoint"
            told = self._board.wait(f"kept/{self._machine}", awaited=lender)
            return Path(told.decode()) if told else None
        for rank in self._crew[1:]:
            self._wait_until_read(rank)
        place = keep()
        self._board.post(f"kept/{self._machine}", str(place or "").encode())
        return place

    def _wait_until_read(self, rank: int) -> None:
        self._board.wait(f"read/{rank}", awaited=f"rank {rank}, which reads the checkpoint")


def _here() -> str:
    """What processes have in common that see the same temporary folder of the same machine."""
    about = Path(tempfile.gettempdir()).stat()
    return f"{socket.gethostname()}/{boot_id()}/{about.st_dev}-{about.st_ino}"


def _fingerprint(metadata: CheckpointMetadata) -> bytes:
    """What tells a checkpoint from any other; sealing it does not change that."""
    files = sorted((name, one.sha256) for name, one in metadata.files.items())
    said = msgspec.json.encode([metadata.name, metadata.step, metadata.epoch, files])
    return hashlib.sha256(said).hexdigest().encode()
