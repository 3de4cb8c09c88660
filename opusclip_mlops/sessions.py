"""The processes that log to a run: who they are, whether they live, and how the run ended.

A process holds a lock on its own file `<session>.alive` from its first record on, and the kernel
lets go of it when the process is gone. So neither a reused pid, nor a clock that steps, nor another
host name, nor another pid namespace is mistaken for anything.
"""

import errno
import fcntl
import functools
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from opusclip_mlops import journal
from opusclip_mlops.folder import CONTROL, RunFolder, write_whole
from opusclip_mlops.records import Crash, RunEnded, RunStarted

RELAY = "relay"
"""The sink that carries records from one machine to another."""
ELSEWHERE = "+node-"
"""Begins the names of journals that came from other machines; no host name has a `+`."""

RANKS = "ranks"
"""The sink that merges what many ranks log together."""

_ALL_NODES = "sinks/all_nodes.json"
_FLOCK = struct.Struct("@hhqqi4x")
_DEAD_STATES = ("Z", "X", "x")


@dataclass(frozen=True)
class Session:
    """A process that logs to a run, from its start to its end (None while it goes on).

    `is_corrected` says that the end is the supervisor's word, not the process's own; `has_report`
    that it is reported how it died; `is_elsewhere` that it runs on another machine, whose own
    supervisor watches over it.
    """

    start: RunStarted
    end: RunEnded | None
    is_corrected: bool = False
    has_report: bool = False
    is_elsewhere: bool = False


def sessions(folder: RunFolder) -> list[Session]:
    """All processes that logged to this run."""
    return list(_sessions(folder.path, _control_key(folder)))


_ControlKey = tuple[tuple[str, int, int, int], ...]


def _control_key(folder: RunFolder) -> _ControlKey:
    """What any start or end changes.

    It is asked for before they are read: what is read then is at least as new as it says.
    """
    found = ((one.name, one.stat()) for one in folder.entries() if CONTROL in one.name)
    return tuple((name, is_.st_ino, is_.st_size, is_.st_mtime_ns) for name, is_ in found)


@functools.lru_cache(maxsize=8)
def _sessions(path: Path, key: _ControlKey) -> tuple[Session, ...]:
    """All processes, by their starts and ends; read once, since sinks ask ten times a second."""
    names = [name for name, *_ in key]
    starts: dict[str, RunStarted] = {}
    own: dict[str, RunEnded] = {}
    told: dict[str, RunEnded] = {}
    reported: set[str] = set()
    elsewhere: set[str] = set()
    heard: set[str] = set()
    for name, record in _control_records(path, names):
        if isinstance(record, RunStarted):
            starts[record.session] = record
            if name.startswith(ELSEWHERE):
                elsewhere.add(record.session)
        elif isinstance(record, Crash):
            reported.add(record.session)
        elif record.session in heard and not name.startswith(ELSEWHERE):
            # Its own machine's word goes before what was said of its silence.
            continue
        else:
            by = own if name.startswith(record.session) else told
            by[record.session] = record
            if name.startswith(ELSEWHERE):
                heard.add(record.session)
    return tuple(
        replace(
            _session(start, own.get(name), told.get(name), has_report=name in reported),
            is_elsewhere=name in elsewhere,
        )
        for name, start in starts.items()
    )


def _session(
    start: RunStarted, own: RunEnded | None, told: RunEnded | None, *, has_report: bool
) -> Session:
    """A process's own word goes before the supervisor's, but for what the exit code belies."""
    corrected = told is not None and (own is None or own.at_exit)
    return Session(start, told if corrected else own, corrected, has_report)


def ended_here(folder: RunFolder) -> bool:
    """Whether every process on this machine that logged to the run has ended."""
    return all(one.end for one in sessions(folder) if not one.is_elsewhere)


def all_ended(folder: RunFolder) -> bool:
    """Whether every process that logged to the run has ended, on other machines too.

    Those are known once the records of their machines are here, or are waited for no longer.
    """
    every = sessions(folder)
    return bool(every) and all(one.end for one in every) and _has_all_nodes(folder, every)


def note_all_nodes(folder: RunFolder, every: list[Session]) -> None:
    """Remember that no machine but those of these sessions is waited for."""
    names = sorted(one.start.session for one in every)
    write_whole(folder.path / _ALL_NODES, msgspec.json.encode(names))


def _has_all_nodes(folder: RunFolder, every: list[Session]) -> bool:
    manifest = folder.manifest()
    if RELAY not in manifest.sinks or not manifest.owns_run:
        return True
    try:
        known = msgspec.json.decode((folder.path / _ALL_NODES).read_bytes(), type=list[str])
    except (OSError, msgspec.DecodeError):
        return False
    return {one.start.session for one in every} == set(known)


def _is_merged(folder: RunFolder, every: list[Session]) -> bool:
    """Whether what these logged together is points of the run by now, where ranks train."""
    if RANKS not in folder.manifest().sinks:
        return True
    return bool(folder.progress(RANKS).state.get("merged") == len(every))


def _control_records(
    path: Path, names: list[str]
) -> Iterator[tuple[str, RunStarted | RunEnded | Crash]]:
    for name in names:
        for item in journal.read(path / name):
            record = item.record if isinstance(item, journal.Entry) else None
            if isinstance(record, RunStarted | RunEnded | Crash):
                yield name, record


def exit_code_decides(end: RunEnded) -> bool:
    """Whether only the exit code of its process can tell if an end was the true one.

    A `sys.exit` that somebody caught ends no process; other exceptions are certain.
    """
    return end.at_exit and (end.status == "FINISHED" or "SystemExit" in end.reason)


def final_end(folder: RunFolder) -> RunEnded | None:
    """How the run ended, once every process that logged to it has ended; None before."""
    every = sessions(folder)
    has_ended = all(one.end for one in every) and _has_all_nodes(folder, every)
    return end_of(every) if has_ended and _is_merged(folder, every) else None


def end_of(every: list[Session]) -> RunEnded | None:
    """How a run ended whose processes these are, as far as they have; None where none has."""
    lasting = _lasting(every)
    ends = [one.end for one in lasting if one.end]
    if not ends:
        return None
    failed = _failed(lasting)
    if not any(one.start.world_size > 1 for one, _ in failed):
        return max([end for _, end in failed] or ends, key=lambda end: (end.owned, end.end_time_ms))
    first, end = min(failed, key=_when_it_failed)
    return msgspec.structs.replace(
        end,
        reason=f"{rank_name(first.start)}: {end.reason}" if rank_name(first.start) else end.reason,
        end_time_ms=max(one.end_time_ms for one in ends),
        owned=any(one.owned for one in ends),
    )


def rank_name(start: RunStarted) -> str:
    """What one of many ranks is called, `rank 3 on gpu-07`; empty for a process that is alone."""
    return f"rank {start.rank} on {start.host}" if start.world_size > 1 else ""


def with_traceback(start: RunStarted, end: RunEnded, lines: str) -> RunEnded:
    """The end of one of many ranks with the lines at which it failed; another's as it is.

    Only those of the first failure are the run's, and that is known when all have ended.
    """
    name = rank_name(start)
    return msgspec.structs.replace(end, traceback=f"{name}:\n{lines}") if lines and name else end


def _lasting(every: list[Session]) -> list[Session]:
    """All but the ranks that were started anew since: by their count, each machine has a clock."""
    ranked = [one.start.attempt for one in every if one.start.rank is not None]
    last = max(ranked, default=0)
    return [one for one in every if one.start.rank is None or one.start.attempt == last]


def _failed(lasting: list[Session]) -> list[tuple[Session, RunEnded]]:
    """Who failed: whoever ends after it, unless the run was gone on with since."""
    last_start_ms = max(one.start.start_time_ms for one in lasting)
    together = _last_together(lasting)
    return [
        (one, one.end)
        for one in lasting
        if one.end and one.end.status != "FINISHED"
        # One of many may have failed before the last of them began.
        if one.end.end_time_ms >= last_start_ms or one in together
    ]


def _when_it_failed(failed: tuple[Session, RunEnded]) -> tuple[bool, int]:
    """What orders failures of many: who was told to end comes last, it is because another failed.

    A process that was killed counts from when it was last seen alive, which is before any other
    could miss it.
    """
    _, end = failed
    return end.status == "KILLED", end.end_time_ms


def _last_together(every: list[Session]) -> list[Session]:
    """The ranks that train together since they were last started, all of them anew."""
    together: list[Session] = []
    ranks = (one for one in every if one.start.rank is not None)
    for one in sorted(ranks, key=lambda one: one.start.start_time_ms):
        if any(_is_before(other, one) for other in together):
            together = []
        together.append(one)
    return together


def _is_before(one: Session, other: Session) -> bool:
    """Whether ranks were started anew between the starts of these two."""
    is_over = one.end is not None and one.end.end_time_ms <= other.start.start_time_ms
    return is_over and one.start.rank == other.start.rank


def hold_alive(folder: RunFolder, session: str) -> int:
    """Show that this process lives, for as long as the returned descriptor is open.

    The lock is this process's alone: a forked child neither has it nor can lose it.
    """
    descriptor = os.open(_alive(folder, session), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # A file system without locks: then the process is known by its pid and start time.
        _alive(folder, session).unlink(missing_ok=True)
    return descriptor


def is_alive(folder: RunFolder, start: RunStarted) -> bool:
    """Whether the process that began this session still runs."""
    if (start.pid, start.host) == (os.getpid(), socket.gethostname()):
        # A process does not see its own lock.
        return is_visible(start)
    held = _is_held(_alive(folder, start.session))
    if held is not None:
        return held
    # Without locks: another host's processes can't be seen from here.
    return start.host != socket.gethostname() or is_visible(start)


def process_started_s(pid: int) -> float:
    """When a process began, in seconds since the machine did; no clock's step changes it.

    Raises:
        ProcessLookupError: it is gone, or dead and not yet buried.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(errno.ESRCH, f"no process {pid}") from None
    # The name before it, in parentheses, may hold anything.
    state, *numbers = stat.rpartition(")")[2].split()
    if state in _DEAD_STATES:
        raise ProcessLookupError(errno.ESRCH, f"process {pid} is dead")
    return int(numbers[18]) / os.sysconf("SC_CLK_TCK")


def is_visible(start: RunStarted) -> bool:
    """Whether the pid of a session stands for its process here, and that runs."""
    try:
        return process_started_s(start.pid) == start.process_started_s
    except ProcessLookupError:
        return False


def _alive(folder: RunFolder, session: str) -> Path:
    return folder.path / f"{session}.alive"


def _is_held(path: Path) -> bool | None:
    """Whether a process holds the lock of this file; None where that can't be known."""
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        descriptor = os.open(path, os.O_RDWR)
        try:
            answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, question)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
