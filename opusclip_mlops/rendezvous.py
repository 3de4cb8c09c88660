"""Where the ranks of a job learn which run they log to: the owner says it, the others read it.

They meet at the store by which PyTorch's processes find each other, at MASTER_ADDR:MASTER_PORT;
where there is none, on one machine or a disk that all see, in files of the journal's folder.
"""

import contextlib
import datetime
import hashlib
import importlib.util
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.folder import RunFolder, write_whole
from opusclip_mlops.ranks import Place
from opusclip_mlops.redaction import one_line
from opusclip_mlops.sessions import process_started_s

WAIT_S = 300.0
with contextlib.suppress(KeyError, ValueError):
    WAIT_S = float(os.environ["OPUSCLIP_RANKS_WAIT_S"])
"""How long a rank waits for the store, and for the owner to begin the run, in seconds."""

FOLDER = ".ranks"
"""The folder beside the runs' own where a machine keeps what was agreed on."""

_ANSWER_S = 20.0
_FIRST_POLL_S, _LAST_POLL_S = 0.02, 0.5
_KEPT_S = 30 * 24 * 3600.0
_UNNAMED = ("", "none")
_hosted: list[Any] = []


class Meeting(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner of a run says of it; nothing in it is secret.

    `journal_dir` and `node` are the owner's; `attempt` counts how often it began anew, and
    `launched` is how often its launcher says so. `said_ms` is when it was said by the owner's
    clock, in Unix milliseconds.
    """

    local_id: str
    run_id: str | None
    run_name: str | None
    experiment_name: str | None
    experiment_id: str | None
    start_time_ms: int
    host: str
    node: int
    journal_dir: str
    attempt: int
    launched: int = 0
    said_ms: int = 0


class Board(Protocol):
    """A place where one process writes what others read."""

    def read(self, name: str) -> bytes | None:
        """What was written last by this name; None for nothing."""

    def write(self, name: str, content: bytes) -> None:
        """Write it for all to see."""

    def claim(self, name: str) -> bool:
        """Whether no other process has claimed this name; who asks has it from then on."""


class FileBoard:
    """Files in the journal's folder, private to the user; `mark` is a part of their names."""

    def __init__(self, journal_dir: Path, *, mark: str = "") -> None:
        self._folder, self._mark = journal_dir / FOLDER, mark

    def read(self, name: str) -> bytes | None:
        """What the file of this name holds."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return self._file(name).read_bytes()
        return None

    def write(self, name: str, content: bytes) -> None:
        """Write the file whole, and remove what is a month old."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self._file(name), content)
        self._tidy()

    def claim(self, name: str) -> bool:
        """Whether no other process has a file of this name."""
        owner = _own_word().encode()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(self._file(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return self.read(name) == owner
        with open(descriptor, "wb") as file:
            file.write(owner)
        return True

    def _file(self, name: str) -> Path:
        # A job's name may hold anything.
        whole = f"{self._mark}/{name}".encode(errors="replace")
        return self._folder / hashlib.sha256(whole).hexdigest()[:32]

    def _tidy(self) -> None:
        oldest_s = time.time() - _KEPT_S
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest_s:
                    path.unlink()


class StoreBoard:
    """The store at MASTER_ADDR:MASTER_PORT.

    Args:
        address: Its host.
        port: Its port.
        hosts: Whether this process holds the store; PyTorch's own use of it shares it then.
        wait_s: How long it may take until it answers.

    Raises:
        ConfigError: nobody answers there within that time.
    """

    def __init__(self, address: str, port: int, *, hosts: bool, wait_s: float) -> None:
        self._where = f"{address}:{port}"
        if not hosts and not _is_open(address, port, wait_s=wait_s):
            raise self._silent(f"nothing listens there after {wait_s:g} s")
        # Where it is not loaded yet, it takes seconds: only who meets others there needs it.
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self._answer_s = min(wait_s, _ANSWER_S)
        answer = datetime.timedelta(seconds=self._answer_s)
        self._store = self._answered(
            lambda: TCPStore(
                address, port, None, hosts, answer, wait_for_workers=False, multi_tenant=True
            )
        )
        if hosts:
            # It is gone with the last that holds it, and others may come later.
            _hosted.append(self._store)

    def _answered(self, ask: Callable[[], Any]) -> Any:
        """What the store answers: to one that says nothing, PyTorch would listen for ever."""
        found: list[Any] = []

        def wait() -> None:
            try:
                found.append(ask())
            except (RuntimeError, ValueError) as error:
                found.append(error)

        thread = threading.Thread(target=wait, name="opusclip-store", daemon=True)
        thread.start()
        thread.join(self._answer_s)
        if not found or isinstance(found[0], Exception):
            why = f"what listens there says nothing for {self._answer_s:g} s"
            raise self._silent(str(found[0]) if found else why)
        return found[0]

    def read(self, name: str) -> bytes | None:
        """What stands under the job's key of this name."""
        store = self._store
        found = self._answered(lambda: store.get(name) if store.check([name]) else None)
        return None if found is None else bytes(found)

    def write(self, name: str, content: bytes) -> None:
        """Put it under the job's key of this name."""
        self._answered(lambda: self._store.set(name, content.decode()))

    def claim(self, name: str) -> bool:
        """Whether no other process stands under the job's key of this name."""
        own = _own_word()
        return bool(self._answered(lambda: self._store.compare_set(name, "", own)) == own.encode())

    def _silent(self, why: str) -> ConfigError:
        said = one_line(why.partition("\n")[0])[:200]
        return ConfigError(
            f"no store answers at {self._where} (MASTER_ADDR:MASTER_PORT), where the ranks of this"
            f" job meet: {said}; see that rank 0 runs and is reached there, or set OPUSCLIP_RANKS"
            " to own for a run of each process"
        )


def board_of(
    place: Place, environment: Mapping[str, str], journal_dir: Path, *, wait_s: float
) -> Board:
    """Where the ranks of a job meet.

    Raises:
        ConfigError: nobody answers there in time, or ranks on many machines have no such place.
    """
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT", "")
    if address and port.isdecimal() and importlib.util.find_spec("torch"):
        is_agents = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        hosts = place.rank == 0 and not is_agents
        return StoreBoard(address, int(port), hosts=hosts, wait_s=wait_s)
    return FileBoard(journal_dir, mark="" if has_name(place) else _parent())


def _own_word() -> str:
    """What tells this process from any other, also from one that had its number before."""
    pid = os.getpid()
    return f"{socket.gethostname()}-{pid}-{process_started_s(pid)}"


def began_ms() -> int:
    """When this process began, by the machine's clock, in Unix milliseconds."""
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - process_started_s(os.getpid())
    return int(1000 * (time.time() - age_s))


def has_name(place: Place) -> bool:
    """Whether the launcher calls this job by a name that no other job has."""
    return place.job not in _UNNAMED


def _parent() -> str:
    """Who started this process, for ranks that have nothing else in common."""
    with contextlib.suppress(ProcessLookupError):
        return f"{os.getppid()}-{process_started_s(os.getppid())}"
    return str(os.getppid())


def said(board: Board, name: str) -> Meeting | None:
    """What was said last under a name; None for nothing, or what is none of ours."""
    content = board.read(name)
    if content is None:
        return None
    try:
        return msgspec.json.decode(content, type=Meeting)
    except (msgspec.DecodeError, UnicodeError):
        return None


def keep_in_mind(folder: RunFolder) -> None:
    """Have the run's id outlast its folder, for ranks that are started anew later."""
    FileBoard(folder.path.parent).write(_run_name(folder), b"")


def note_run(folder: RunFolder) -> None:
    """Note the run's id before its folder goes, where it was to be kept in mind."""
    board, identity = FileBoard(folder.path.parent), folder.identity()
    if identity and identity.run_id and board.read(_run_name(folder)) is not None:
        board.write(_run_name(folder), identity.run_id.encode())


def noted_run(folder: RunFolder) -> str | None:
    """The id of a run whose folder is gone; None where it is not known."""
    found = FileBoard(folder.path.parent).read(_run_name(folder))
    return found.decode() if found else None


def _run_name(folder: RunFolder) -> str:
    return f"run/{folder.path.name}"


def _is_open(address: str, port: int, *, wait_s: float) -> bool:
    """Whether somebody listens at a port, or begins to within that time."""
    deadline, pause_s = time.monotonic() + wait_s, _FIRST_POLL_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=5):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LAST_POLL_S)
