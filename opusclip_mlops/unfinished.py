"""Hidden folders in which checkpoints are written, until they are whole."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from opusclip_mlops.errors import CheckpointError


@contextlib.contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A hidden folder beside another to write in, gone afterwards."""
    with as_writer(folder.parent):
        name = tempfile.mkdtemp(_suffix(), f".{folder.name}-", folder.parent)
        try:
            yield Path(name)
        finally:
            shutil.rmtree(name, ignore_errors=True)


@contextlib.contextmanager
def as_writer(parent: Path) -> Iterator[None]:
    """Share the folder with others that write; one that is alone removes what dead ones left."""
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        # Refused while another writes, and where the disk knows no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in parent.glob(f".*-*{_suffix()}"):
                shutil.rmtree(left, ignore_errors=True)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        with contextlib.suppress(OSError):
            # A forked process may have the descriptor still.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def as_checkpoint(temporary: Path, folder: Path) -> None:
    """Give what was written its name.

    Raises:
        CheckpointError: there is one of that name.
    """
    try:
        temporary.rename(folder)
    except OSError as error:
        raise CheckpointError(f"cannot create checkpoint {folder}: {error.strerror}") from error


def add_to_checkpoint(temporary: Path, folder: Path) -> None:
    """Put what another machine than the owner's has written where the owner has put its own.

    Raises:
        OSError: the disk takes no change.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in temporary.iterdir():
        path.replace(folder / path.name)


def _suffix() -> str:
    # Whether a process of another machine still writes can't be told: it has names of its own.
    return f".{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]}.unfinished"
