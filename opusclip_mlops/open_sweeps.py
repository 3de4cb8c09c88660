"""Sweeps that were cut off: each command that works at one leaves a mark, and takes it away.

A mark is locked as long as its process lives: the kernel lets go of it, whatever ends that.
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec

from opusclip_mlops.redaction import redacted

FOLDER = Path(".opusclip/sweeps")
"""Where sweeps lie on this machine, in the current folder."""

_MARKS = "open-*.json"


class OpenSweep(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep that is not over.

    Attributes:
        name: The sweep's.
        run_id: Its run in MLflow.
        tracking_uri: Where that is; None where the address holds a password.
        is_shared: Whether machines share its study, at a place that is written down nowhere.
    """

    name: str
    run_id: str
    tracking_uri: str | None
    is_shared: bool

    @property
    def resuming(self) -> str:
        """The command that goes on with it."""
        place = " --storage PLACE" if self.is_shared else ""
        return f"opusclip sweep --resume {self.name}{place}"


class Mark:
    """Says that this process works at a sweep.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, sweep: OpenSweep) -> None:
        self._folder = (FOLDER / sweep.name).absolute()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"open-{secrets.token_hex(4)}.json"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._held = contextlib.ExitStack()
        self._held.callback(os.close, descriptor)
        if redacted(uri := sweep.tracking_uri or "", values=()) != uri:
            sweep = msgspec.structs.replace(sweep, tracking_uri=None)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, msgspec.json.encode(sweep))
        except OSError:
            path.unlink(missing_ok=True)
            self.close()
            raise

    def close(self) -> None:
        """Let go of it: it stays, and says that the sweep was cut off; nothing the second time."""
        self._held.close()

    def take_away(self) -> None:
        """Take it away, and those that dead processes have left: MLflow knows how it stands."""
        self.close()
        clear(self._folder)


def clear(folder: Path) -> None:
    """Take away what dead processes have left in a sweep's folder."""
    for path, is_held in _marks(folder):
        if not is_held:
            path.unlink(missing_ok=True)


def cut_off() -> list[OpenSweep]:
    """The sweeps of the current folder whose commands were killed, and nobody went on with."""
    found = (_cut_off(folder) for folder in sorted(FOLDER.glob("*/")))
    return [one for one in found if one is not None]


def _cut_off(folder: Path) -> OpenSweep | None:
    marks = list(_marks(folder))
    if any(is_held for _, is_held in marks):
        return None
    for path, _ in marks:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            found = msgspec.json.decode(path.read_bytes(), type=OpenSweep)
            return found if found.name == folder.name else None
    return None


def _marks(folder: Path) -> Iterator[tuple[Path, bool]]:
    """The marks in a sweep's folder, and whether their process lives."""
    for path in sorted(folder.glob(_MARKS)):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            is_held = False
        except OSError:
            is_held = True
        finally:
            os.close(descriptor)
        yield path, is_held
