"""Where the workers of a sweep share its study: a file on one machine, a server for many."""

import contextlib
import fcntl
import os
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import optuna
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.faults import attempted
from opusclip_mlops.redaction import one_line

_READY_WAIT_S = 20
_BLOCK_BYTES = 64 * 1024
_PAUSE_S = 1.0

_Answer = TypeVar("_Answer")


class KernelLock(JournalFileOpenLock):
    """Lets one process write a study's file, and ends with that process however it dies.

    What a process that was killed has left of a line is cut off before the next line is written.
    """

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self._journal = file
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Wait for the others, and take the file."""
        self._descriptor = os.open(self._journal, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        _cut_torn_line(self._descriptor)
        return True

    def release(self) -> None:
        """Let the others write."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


def _cut_torn_line(descriptor: int) -> None:
    behind = os.fstat(descriptor).st_size
    if not behind or os.pread(descriptor, 1, behind - 1) == b"\n":
        return
    while behind:
        start = max(0, behind - _BLOCK_BYTES)
        place = os.pread(descriptor, behind - start, start).rfind(b"\n")
        if place >= 0:
            os.ftruncate(descriptor, start + place + 1)
            return
        behind = start
    os.ftruncate(descriptor, 0)


def open_storage(place: str) -> BaseStorage:
    """Open the place where a study is shared.

    Args:
        place: A file; `postgresql://…`; or `grpc://HOST:PORT`, Optuna's proxy.

    Raises:
        ConfigError: no such place, or it does not answer.
    """
    with _quietly():
        if place.startswith("grpc://"):
            return _proxy(place)
        if "://" in place:
            return _database(place)
        return _file(Path(place))


def _file(path: Path) -> BaseStorage:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from None
    return JournalStorage(JournalFileBackend(str(path), lock_obj=KernelLock(str(path))))


def _database(uri: str) -> BaseStorage:
    if not uri.startswith("postgresql"):
        scheme = uri.partition("://")[0]
        raise ConfigError(f"storage is {scheme}://: give a file, postgresql:// or grpc://HOST:PORT")
    opened: list[BaseStorage] = []
    options = {"pool_pre_ping": True}
    if fault := attempted(lambda: opened.append(get_storage(RDBStorage(uri, options)))):
        raise ConfigError(f"storage does not answer: {one_line(str(fault))}") from None
    return opened[0]


def _proxy(uri: str) -> BaseStorage:
    parts = urlsplit(uri)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or parts.path not in ("", "/"):
        raise ConfigError(f"storage is {one_line(uri)}: give grpc://HOST:PORT")
    opened = GrpcStorageProxy(host=host, port=port)
    if attempted(lambda: opened.wait_server_ready(timeout=_READY_WAIT_S)):
        raise ConfigError(f"storage {host}:{port} does not answer: is optuna's gRPC proxy there?")
    return opened


def insisted(
    call: Callable[[], _Answer], *, wait_s: float, before: Callable[[], object] = lambda: None
) -> _Answer:
    """Ask a storage that may be away for a moment, again and again; its answer.

    Args:
        call: Asks it.
        wait_s: For how long; then the last fault is raised.
        before: Called before each try; what it raises ends the asking.
    """
    answers: list[_Answer] = []
    deadline_s = time.monotonic() + wait_s
    before()
    while fault := attempted(lambda: answers.append(call())):
        if time.monotonic() > deadline_s:
            raise fault
        time.sleep(_PAUSE_S)
        before()
    return answers[0]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
