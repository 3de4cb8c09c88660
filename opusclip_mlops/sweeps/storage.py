"""Where the workers of a sweep share its study: a file on one machine, a server for many."""

import contextlib
import fcntl
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import urlsplit

import optuna
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.faults import attempted
from opusclip_mlops.redaction import one_line
from opusclip_mlops.server.places import stock_uri

_READY_WAIT_S = 20
_BLOCK_BYTES = 64 * 1024
_PAUSE_S = 1.0
_ANSWER_S, _LOOK_S = 60.0, 0.1
# A connection whose other end has vanished ends after half a minute, and the next one is asked.
_CONNECTION = {
    "connect_timeout": 10, "keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5,
    "keepalives_count": 4, "tcp_user_timeout": 30_000,
}  # fmt: skip

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
    if not uri.startswith("postgres"):
        scheme = uri.partition("://")[0]
        raise ConfigError(f"storage is {scheme}://: give a file, postgresql:// or grpc://HOST:PORT")
    opened: list[BaseStorage] = []
    # What a bare `postgresql://` means depends on the version of SQLAlchemy.
    uri = stock_uri(uri)
    connection = _CONNECTION if uri.startswith("postgresql+psycopg2:") else {}
    options = {"pool_pre_ping": True, "connect_args": connection}
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


class Asker:
    """Asks a storage in a thread: a call that is never answered holds up nobody for long.

    It makes one call at a time. One that was not waited for goes on: who makes the same call again
    has its answer, and any other call comes after it.
    """

    def __init__(self) -> None:
        self._call: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None
        self._came: list[tuple[object, Exception | None]] = []

    def ask(
        self,
        call: Callable[[], _Answer],
        *,
        wait_s: float = _ANSWER_S,
        before: Callable[[], object] = lambda: None,
    ) -> _Answer:
        """The answer to a call.

        Args:
            call: Asks the storage.
            wait_s: How long the answer may take.
            before: Called again and again in that time; what it raises ends the waiting.

        Raises:
            TimeoutError: there was no answer.
        """
        deadline_s = time.monotonic() + wait_s
        if self._call != call:
            self._wait(deadline_s, before)
            self._begin(call)
        self._wait(deadline_s, before)
        self._call = None
        [(answer, fault)] = self._came
        if fault:
            raise fault
        return cast("_Answer", answer)

    def _begin(self, call: Callable[[], object]) -> None:
        came: list[tuple[object, Exception | None]] = []
        self._call, self._came = call, came

        def make() -> None:
            answers: list[object] = []
            fault = attempted(lambda: answers.append(call()))
            came.append((None if fault else answers[0], fault))

        # At its end a process waits for no daemon.
        self._thread = threading.Thread(target=make, daemon=True)
        self._thread.start()

    def _wait(self, deadline_s: float, before: Callable[[], object]) -> None:
        while self._thread and self._thread.is_alive():
            if time.monotonic() > deadline_s:
                raise TimeoutError("the storage does not answer")
            self._thread.join(_LOOK_S)
            if self._thread.is_alive():
                before()


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
