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

from opusclip_mlops.errors import ConfigError
from opusclip_mlops.flight import boot_id
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
_KEPT_S, _TIDY_EVERY_S = 30 * 24 * 3600.0, 3600.0
_UNNAMED = ("", "none")
_ELASTIC = "TORCHELASTIC_RUN_ID"
_hosted: list[Any] = []


class Board(Protocol):
    """A place where one process writes what others read."""

    def read(self, name: str) -> bytes | None:
        """What was written last by this name; None for nothing."""

    def write(self, name: str, content: bytes | None) -> None:
        """Write it for all to see; None removes what is there."""

    def append(self, name: str, content: bytes) -> None:
        """Write it behind what others have written there, at once."""


class FileBoard:
    """Files in the journal's folder, private to the user; `mark` is a part of their names."""

    def __init__(self, journal_dir: Path, *, mark: str = "") -> None:
        self._folder, self._mark = journal_dir / FOLDER, mark
        self._tidy_s = 0.0

    def read(self, name: str) -> bytes | None:
        """What the file of this name holds."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return self._file(name).read_bytes()
        return None

    def write(self, name: str, content: bytes | None) -> None:
        """Write the file whole, and once an hour remove what is a month old."""
        if content is None:
            self._file(name).unlink(missing_ok=True)
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self._file(name), content)
        self._tidy()

    def append(self, name: str, content: bytes) -> None:
        """Write it behind what the file holds."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        how = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with open(os.open(self._file(name), how, 0o600), "wb", buffering=0) as file:
            file.write(content)

    def touch(self, name: str) -> None:
        """Keep what is there for another month."""
        with contextlib.suppress(OSError):
            os.utime(self._file(name))

    def _file(self, name: str) -> Path:
        # A job's name may hold anything.
        whole = f"{self._mark}/{name}".encode(errors="replace")
        return self._folder / hashlib.sha256(whole).hexdigest()[:32]

    def _tidy(self) -> None:
        # Of thousands of files it takes longer than what is written.
        if time.monotonic() < self._tidy_s:
            return
        self._tidy_s = time.monotonic() + _TIDY_EVERY_S
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

    def write(self, name: str, content: bytes | None) -> None:
        """Put it under the job's key of this name."""
        store = self._store
        if content is None:
            self._answered(lambda: store.delete_key(name))
        else:
            self._answered(lambda: store.set(name, content.decode()))

    def append(self, name: str, content: bytes) -> None:
        """Put it behind what stands under the job's key of this name."""
        self._answered(lambda: self._store.append(name, content.decode()))

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
        hosts = place.rank == 0 and not _is_agents(environment)
        return StoreBoard(address, int(port), hosts=hosts, wait_s=wait_s)
    return FileBoard(journal_dir, mark="" if has_name(place) else _parent())


def memory_of(
    place: Place, environment: Mapping[str, str], journal_dir: Path, board: Board
) -> FileBoard | None:
    """What outlasts a store that goes with its processes; None for a board that does so itself.

    An agent of torchrun outlives the ranks that it starts anew, and its job's name may be that of
    any other job. One of Slurm, which has no such agent, has its number alone.
    """
    if isinstance(board, FileBoard) or _is_agents(environment):
        return None
    if name := environment.get(_ELASTIC):
        return FileBoard(journal_dir, mark=_agent(name))
    return FileBoard(journal_dir) if has_name(place) else None


def _is_agents(environment: Mapping[str, str]) -> bool:
    """Whether the store is that of torchrun's agents, which is the job's and outlasts its ranks."""
    return environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def is_elastic(environment: Mapping[str, str]) -> bool:
    """Whether an agent of torchrun has started this process."""
    return _ELASTIC in environment


def _agent(name: str) -> str:
    """The agent of torchrun that started this process, maybe by way of a script."""
    pid, told = os.getppid(), f"{_ELASTIC}={name}".encode(errors="surrogateescape")
    with contextlib.suppress(OSError):
        while told in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return f"{boot_id()}-{_process(pid)}"


def has_name(place: Place) -> bool:
    """Whether the launcher calls this job by a name that no other job has."""
    return place.job not in _UNNAMED


def _parent() -> str:
    """Who started this process, for ranks that have nothing else in common."""
    return _process(os.getppid())


def _process(pid: int) -> str:
    """What tells a process from another that has its number later."""
    with contextlib.suppress(ProcessLookupError):
        return f"{pid}-{process_started_s(pid)}"
    return str(pid)


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


def is_in_mind(folder: RunFolder) -> bool:
    """Whether the run was begun in this journal."""
    return FileBoard(folder.path.parent).read(_run_name(folder)) is not None


def keep_for_longer(folder: RunFolder) -> None:
    """Have what is kept in mind of a run outlast another month."""
    FileBoard(folder.path.parent).touch(_run_name(folder))


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
