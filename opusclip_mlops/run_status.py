"""How far delivery is: every run that still has a folder on this machine, read without touching it.

A run that was delivered whole has no folder any more.
"""

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opusclip_mlops import journal
from opusclip_mlops.backlog import backlog_bytes
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.delivery import is_caught_up
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.folder import Manifest, Position, Progress, RunFolder
from opusclip_mlops.layout import crash_folder
from opusclip_mlops.records import Record
from opusclip_mlops.sessions import Session, final_end, is_alive, sessions

State = Literal["training", "ended", "crashed", "unreadable"]

EXACT_BYTES = 4 * 1024 * 1024
"""A backlog up to this size is counted record by record; a larger one is estimated."""

_SAMPLE_BYTES = 64 * 1024
_SHOWN_CHOICES = 10
UNREADABLE = (OpusclipError, OSError, UnicodeDecodeError)


@dataclass(frozen=True, kw_only=True)
class SessionStatus:
    """A process that logs or logged to a run, and whether it still runs.

    `report` is where in MLflow's artifacts it says how it died, "" where it does not; `rank` is its
    number among many that train together.
    """

    session: str
    host: str
    pid: int
    is_alive: bool
    start_time_ms: int
    end_time_ms: int | None
    end_status: str
    report: str = ""
    rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class SinkStatus:
    """How far one sink is; `lag_s` is the age of the oldest record it has not acknowledged."""

    sink: str
    position_bytes: int
    backlog_bytes: int
    lag_records: int
    lag_is_estimate: bool
    lag_s: float
    delivered_records: int
    refused_records: int
    faults: int
    last_error: str
    is_done: bool


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run that has a folder here; `problem` says why one that is `unreadable` is.

    `backlog_bytes` is what the slowest sink lacks of the journal.
    """

    local_id: str
    folder: str
    state: State
    problem: str = ""
    run_name: str = ""
    experiment_name: str = ""
    run_id: str = ""
    start_time_ms: int | None = None
    end_status: str = ""
    end_time_ms: int | None = None
    end_reason: str = ""
    is_shipped: bool = False
    backlog_bytes: int = 0
    sessions: tuple[SessionStatus, ...] = ()
    sinks: tuple[SinkStatus, ...] = ()


def status(
    runs: Sequence[str] = (), *, journal_dir: str | os.PathLike[str] | None = None
) -> list[RunStatus]:
    """Tell how far delivery is: every run that has a folder here, or those named.

    Args:
        runs: Local ids, MLflow run ids, run names, or unique beginnings of one.
        journal_dir: Where the runs' folders lie; as configured otherwise.

    Raises:
        OpusclipError: no run, or more than one, is called so.
    """
    every = [status_of(folder) for folder in run_folders(runs, journal_dir=journal_dir)]
    return sorted(every, key=lambda one: (one.start_time_ms or 0, one.local_id))


# Which runs are meant


def run_folders(
    runs: Sequence[str] = (), *, journal_dir: str | os.PathLike[str] | None = None
) -> list[RunFolder]:
    """The folders of the runs that are named, each once; all of them where none is named.

    Raises:
        OpusclipError: no run, or more than one, is called so.
    """
    folders = _folders(configured_journal_dir(journal_dir))
    if not runs:
        return folders
    names = {folder: _names(folder) for folder in folders}
    return list(dict.fromkeys(_called(one, names) for one in runs))


def configured_journal_dir(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the runs' folders: what is given, else what the configuration says."""
    return Path(TrackingConfig().journal_dir if given is None else given).absolute()


def _folders(directory: Path) -> list[RunFolder]:
    """Every folder that may be a run's; what begins with a dot is a lock or on its way out."""
    try:
        paths = sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OpusclipError(f"{directory} cannot be read: {error.strerror}") from None
    return [RunFolder(path) for path in paths if not path.name.startswith(".") and path.is_dir()]


def _names(folder: RunFolder) -> list[str]:
    """What a run may be called: local id, MLflow run id, run name."""
    with contextlib.suppress(*UNREADABLE):
        manifest, identity = folder.manifest(), folder.identity()
        run_id = identity.run_id if identity else manifest.run_id
        given = (identity.run_name if identity else "", manifest.run_name)
        return [name for name in (folder.path.name, run_id, *given) if name]
    return [folder.path.name]


def _called(wanted: str, names: Mapping[RunFolder, list[str]]) -> RunFolder:
    whole = [folder for folder, own in names.items() if wanted in own]
    begun = [f for f, own in names.items() if wanted and any(n.startswith(wanted) for n in own)]
    found = whole or begun
    if len(found) == 1:
        return found[0]
    if found:
        raise OpusclipError(f"{len(found)} runs are called {wanted!r}: {choices(found)}")
    what = f"no run here is called {wanted!r}: it may have been delivered already"
    raise OpusclipError(f"{what}; {choices(list(names))}" if names else what)


def choices(folders: Sequence[RunFolder]) -> str:
    """What runs there are to choose from, in one line."""
    shown = [_choice(*_names(one)) for one in folders[:_SHOWN_CHOICES]]
    more = len(folders) - len(shown)
    return f"choose from {', '.join(shown)}" + (f" and {more} more" if more > 0 else "")


def _choice(local_id: str, *others: str) -> str:
    return f"{local_id} ({others[-1]})" if others else local_id


# How far they are


def status_of(folder: RunFolder) -> RunStatus:
    """Tell how far one run is; one that can't be read says why."""
    try:
        return _read_status(folder)
    except UNREADABLE as error:
        return RunStatus(
            local_id=folder.path.name,
            folder=str(folder.path),
            state="unreadable",
            problem=_problem(folder, error),
        )


def _problem(folder: RunFolder, error: Exception) -> str:
    if not folder.path.exists():
        return "vanished while it was read: delivered whole, or removed"
    if not os.access(folder.path, os.R_OK | os.X_OK, effective_ids=True):
        return "may not be read: it belongs to another user"
    manifest = folder.path / "manifest.json"
    if not manifest.exists():
        return "is not a run's folder, or was never finished: it has no manifest.json"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    return f"cannot be delivered: {manifest} is damaged; restore it or move the folder away"


def _read_status(folder: RunFolder) -> RunStatus:
    manifest, identity = folder.manifest(), folder.identity()
    known, end, every = identity or manifest, final_end(folder), sessions(folder)
    sinks = _sinks(folder, manifest)
    return RunStatus(
        local_id=manifest.local_id,
        folder=str(folder.path),
        state=_state(folder, every),
        run_name=known.run_name or manifest.run_name or "",
        experiment_name=known.experiment_name or manifest.experiment_name or "",
        run_id=known.run_id or "",
        start_time_ms=manifest.start_time_ms,
        end_status=end.status if end else "",
        end_time_ms=end.end_time_ms if end else None,
        end_reason=end.reason if end else "",
        is_shipped=folder.is_shipped(),
        backlog_bytes=backlog_bytes(folder),
        sessions=tuple(_session(folder, one) for one in every),
        sinks=sinks,
    )


def _state(folder: RunFolder, every: list[Session]) -> State:
    going_on = [is_alive(folder, one.start) for one in every if one.end is None]
    if any(going_on):
        return "training"
    return "ended" if every and not going_on else "crashed"


def _session(folder: RunFolder, session: Session) -> SessionStatus:
    start, end = session.start, session.end
    return SessionStatus(
        session=start.session,
        host=start.host,
        pid=start.pid,
        is_alive=is_alive(folder, start),
        start_time_ms=start.start_time_ms,
        end_time_ms=end.end_time_ms if end else None,
        end_status=end.status if end else "",
        report=f"{crash_folder(start.session)}/report.txt" if session.has_report else "",
        rank=start.rank if start.world_size > 1 else None,
    )


@dataclass(frozen=True)
class _Gap:
    """What a sink has not acknowledged: how many records, and when the oldest was logged."""

    records: int
    is_estimate: bool
    oldest_ms: int


def _sinks(folder: RunFolder, manifest: Manifest) -> tuple[SinkStatus, ...]:
    # The positions before the sizes: what is acknowledged in between counts as a lag, not as none.
    every = {name: folder.progress(name) for name in manifest.sinks}
    sizes = folder.size_bytes()
    seen: dict[tuple[str, int, int], _Gap] = {}
    return tuple(_sink(folder, name, one, sizes, seen) for name, one in every.items())


def _sink(
    folder: RunFolder,
    name: str,
    progress: Progress,
    sizes: Position,
    seen: dict[tuple[str, int, int], _Gap],
) -> SinkStatus:
    behind = _behind(progress, sizes)
    backlog_bytes = sum(sizes[one] - start for one, start in behind.items())
    limit_bytes = EXACT_BYTES if backlog_bytes <= EXACT_BYTES else _SAMPLE_BYTES
    for one, start in behind.items():
        if (one, start, limit_bytes) not in seen:
            gap = _gap(folder.path / one, start, sizes[one], limit_bytes)
            seen[one, start, limit_bytes] = gap
    gaps = [seen[one, start, limit_bytes] for one, start in behind.items()]
    oldest_ms = min((gap.oldest_ms for gap in gaps if gap.records), default=None)
    return SinkStatus(
        sink=name,
        position_bytes=sum(progress.position.values()),
        backlog_bytes=backlog_bytes,
        lag_records=sum(gap.records for gap in gaps),
        lag_is_estimate=any(gap.is_estimate for gap in gaps),
        lag_s=0.0 if oldest_ms is None else max(0.0, time.time() - oldest_ms / 1000),
        delivered_records=progress.records - progress.rejected,
        refused_records=progress.rejected,
        faults=progress.faults,
        last_error=progress.error,
        is_done=is_caught_up(folder, progress),
    )


def _behind(progress: Progress, sizes: Position) -> Position:
    """Where a sink stands in each segment that it has not got whole."""
    at = {name: progress.position.get(name, 0) for name in sizes}
    return {name: start for name, start in at.items() if start < sizes[name]}


def _gap(path: Path, start: int, stop: int, limit_bytes: int) -> _Gap:
    """Count the records of a stretch, or of its beginning and conclude from that."""
    count, oldest_ms = 0, int(path.stat().st_mtime * 1000)
    for item in journal.read(path, start):
        if item.end_bytes > stop:
            break
        if isinstance(item, journal.Entry):
            count += 1
            oldest_ms = min(oldest_ms, _logged_ms(item.record) or oldest_ms)
        read_bytes = item.end_bytes - start
        if read_bytes >= limit_bytes and item.end_bytes < stop:
            return _Gap(round(count * (stop - start) / read_bytes), True, oldest_ms)
    return _Gap(count, False, oldest_ms)


def _logged_ms(record: Record) -> int:
    """When a record was logged; 0 for a kind that has no time."""
    names = ("timestamp_ms", "start_time_ms", "end_time_ms")
    return next((getattr(record, name) for name in names if hasattr(record, name)), 0)
