"""Signs of life that the machines of a run give one another: a small file each, written anew.

    opusclip/ranks/<machine>/alive.bin      of a machine that sends what its ranks log
    opusclip/ranks/owner/alive.bin          of the machine that owns the run

Each content differs from the one before, and nobody reads another machine's clock: who sees a new
one knows that there was life since the last look. However long a run takes, there is one file of
each machine.
"""

import math
import os
import socket
import time
import uuid
from pathlib import Path

import msgspec
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from opusclip_mlops.faults import attempted
from opusclip_mlops.layout import RANKS
from opusclip_mlops.listing import download, problem_with
from opusclip_mlops.redaction import one_line

OWNER = "owner"
"""Where the machine that owns the run gives its signs."""
INTERVAL_S = 20.0
"""How often a machine that sends nothing else gives a sign, at most."""

_NAME = "alive.bin"
_MOST_BYTES = 4096
_SIGN_BYTES = 1024
_MOST_CHARACTERS = 80


class Sign(msgspec.Struct, frozen=True, kw_only=True):
    """That a machine lived: its name, a mark that no other sign has, and whether it leaves now."""

    host: str
    mark: str
    is_over: bool = False


class Showing:
    """Shows that this machine lives, as often as is due.

    A sign that cannot be given now is left out: what is logged goes by another road, and its
    faults are told there. Only the last one is tried again.

    Args:
        folder: The run's on this machine.
        machine: Where the signs are given.
        interval_s: How long one holds.
    """

    def __init__(self, folder: Path, machine: str, *, interval_s: float) -> None:
        self._file, self._place = folder / _NAME, f"{RANKS}/{machine}"
        self._interval_s = interval_s
        self._next_s = 0.0
        self._has_left = self._is_leaving = False

    @property
    def has_shown(self) -> bool:
        """Whether a sign was given, or tried, also before this process."""
        return self._file.exists()

    @property
    def is_due(self) -> bool:
        """Whether the last sign does not hold any more."""
        return time.monotonic() >= self._next_s

    def put_off(self) -> None:
        """Note that something else has just shown it."""
        self._next_s = time.monotonic() + self._interval_s

    def renew(self, repository: ArtifactRepository) -> None:
        """Give a sign if the last does not hold any more."""
        if self.is_due:
            self._has_left = self._is_leaving = False
            attempted(lambda: self.give(repository))

    def take_leave(self, repository: ArtifactRepository, *, again: bool = False) -> bool:
        """Give the last sign: nobody need look for another. It is given once, but for `again`.

        One that could not be given is tried again, by who asks, as often as a sign is due.

        Returns:
            Whether it is given.
        """
        self._has_left &= not again
        if not self._has_left and (self.is_due or not self._is_leaving):
            self._is_leaving = True
            self._has_left = attempted(lambda: self.give(repository, is_over=True)) is None
        if self._has_left:
            # Who begins again shows it at once.
            self._next_s, self._is_leaving = 0.0, False
        return self._has_left

    def give(self, repository: ArtifactRepository, *, is_over: bool = False) -> None:
        """Give a sign now.

        Raises:
            Any fault of the artifact store, and of the disk.
        """
        self.put_off()
        host = socket.gethostname()[:_MOST_CHARACTERS]
        sign = Sign(host=host, mark=uuid.uuid4().hex, is_over=is_over)
        _write_over(self._file, msgspec.json.encode(sign).ljust(_SIGN_BYTES))
        repository.log_artifact(str(self._file), self._place)


def _write_over(path: Path, content: bytes) -> None:
    """Write a content over one of the same size: that needs no room on a full disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(descriptor, content, 0)
    finally:
        os.close(descriptor)


def last_sign(repository: ArtifactRepository, machine: str, folder: Path) -> Sign | None:
    """The last sign that a machine gave; None where there is none, or it cannot be read.

    Args:
        repository: Where the run's artifacts lie.
        machine: Where it gives its signs.
        folder: The run's on this machine.

    Raises:
        Any fault of the artifact store.
    """
    place = f"{RANKS}/{machine}"
    listed = [one for one in repository.list_artifacts(place) if not problem_with(one, place)]
    sizes = [int(one.file_size or 0) for one in listed if one.path == f"{place}/{_NAME}"]
    if not sizes or sizes[0] > _MOST_BYTES:
        return None
    local = folder / f"{_NAME}.fetched"
    download(repository, f"{place}/{_NAME}", local)
    try:
        content = local.read_bytes()[: _MOST_BYTES + 1]
        sign = msgspec.json.decode(content, type=Sign)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # It is being written just now.
        return None
    finally:
        local.unlink()
    host = one_line(sign.host)[:_MOST_CHARACTERS]
    return msgspec.structs.replace(sign, host=host)


class Listening:
    """Looks, as often as is due, whether a machine has given a new sign.

    Attributes:
        heard_s: When the last new one was seen, by this machine's monotonic clock; before the
            first, when this began.
        news: How many new ones were seen.
        last: The last sign, None before the first.
    """

    def __init__(self, folder: Path, machine: str) -> None:
        self._folder, self._machine = folder, machine
        self._looked_s = -math.inf
        self.heard_s = time.monotonic()
        self.news = 0
        self.last: Sign | None = None

    def look(self, repository: ArtifactRepository, *, every_s: float) -> bool:
        """Look if the last look was so long ago; whether there is another sign than before.

        The first one that is seen is none: it may have been given long ago.

        Raises:
            Any fault of the artifact store.
        """
        if time.monotonic() - self._looked_s < every_s:
            return False
        sign = last_sign(repository, self._machine, self._folder)
        self._looked_s = time.monotonic()
        before, self.last = self.last, sign or self.last
        if sign is None or before is None or sign == before:
            return False
        self.heard_s = time.monotonic()
        self.news += 1
        return True


class Pauses:
    """For how long this process stood still: stopped, or held up by a store that raised nothing.

    Nobody was listened to meanwhile, so nobody was silent. Where every round takes long, as that of
    a slow store, a part of each counts all the same.

    Args:
        most_s: How long it may be between two questions.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s, self._asked_s = most_s, time.monotonic()

    def lost_s(self) -> float:
        """How much of the time since it was asked last does not count."""
        before_s, self._asked_s = self._asked_s, time.monotonic()
        gone_s = self._asked_s - before_s
        return gone_s - self._most_s / 10 if gone_s > self._most_s else 0.0
