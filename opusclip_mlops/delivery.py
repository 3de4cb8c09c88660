"""Gives a run's journal to one sink: batches, retries, positions; written once, for every sink.

Before a batch is given its end is noted, after it was taken its end is acknowledged. After a crash
the same batch is given again, so that a sink can find out which of its rows are there already.
"""

import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from opusclip_mlops import journal
from opusclip_mlops.folder import CONTROL, Position, Progress, Rejection, RunFolder
from opusclip_mlops.records import Batch, Record, RunEnded, RunStarted
from opusclip_mlops.redaction import one_line, redacted
from opusclip_mlops.sinks import Sink, SinkState, Waiting, Written, open_sink

BATCH_RECORDS = 2000
IDLE_WAIT_S = 0.1
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 30.0


@dataclass(frozen=True)
class Session:
    """A process that logs to a run, from its start to its end (None while it goes on)."""

    start: RunStarted
    end: RunEnded | None


def sessions(folder: RunFolder) -> list[Session]:
    """All processes that logged to this run."""
    starts: dict[str, RunStarted] = {}
    ends: dict[str, RunEnded] = {}
    for path in folder.segments():
        if CONTROL not in path.name:
            continue
        for item in journal.read(path):
            record = item.record if isinstance(item, journal.Entry) else None
            if isinstance(record, RunStarted):
                starts[record.session] = record
            # A process's own word goes before the supervisor's guess.
            elif isinstance(record, RunEnded) and (
                record.session not in ends or path.name.startswith(record.session)
            ):
                ends[record.session] = record
    return [Session(start, ends.get(name)) for name, start in starts.items()]


def final_end(folder: RunFolder) -> RunEnded | None:
    """How the run ended, once every process that logged to it has ended; None before."""
    every = sessions(folder)
    ends = [one.end for one in every if one.end]
    if not ends or len(ends) < len(every):
        return None
    last_start_ms = max(one.start.start_time_ms for one in every)
    # A failure counts, whoever ends after it, unless the run was gone on with since.
    failures = [e for e in ends if e.status != "FINISHED" and e.end_time_ms >= last_start_ms]
    return max(failures or ends, key=lambda end: (end.owned, end.end_time_ms))


def is_caught_up(folder: RunFolder, progress: Progress) -> bool:
    """Whether a sink has declared the run's end and nothing was logged since."""
    return progress.done and progress.position == folder.size_bytes()


def deliver(folder: RunFolder, name: str) -> bool:
    """Give the run to a sink until its end is declared there; True when that is done.

    A sink that can't be opened is tried again for ever. False when it broke while it was open: what
    its client library has left behind is best escaped by a process of its own.
    """
    wait_s = FIRST_RETRY_S
    while not is_caught_up(folder, folder.progress(name)):
        sink = None
        try:
            opening = open_sink(name, folder)
            state = opening.open(dict(folder.progress(name).state))
            sink = opening
            _deliver_all(folder, name, sink, state)
        except Waiting:
            time.sleep(IDLE_WAIT_S)
        except Exception as error:  # noqa: BLE001 - the one place where a backend may fail in any way
            _note_fault(folder, name, error)
            if sink is not None:
                return False
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LAST_RETRY_S)
    return True


def _deliver_all(folder: RunFolder, name: str, sink: Sink, state: SinkState) -> None:
    progress = _kept(folder, name, folder.progress(name), state=state, done=False, error="")
    while True:
        # Read before the records: what was logged before this end is then in the sizes below.
        end = final_end(folder)
        batch, position = _next_batch(folder, progress, ended=end is not None)
        if position != progress.position:
            progress = _kept(folder, name, progress, pending=position)
            progress = _acknowledged(folder, name, progress, batch, sink.write(batch))
        elif end is not None:
            sink.close(end)
            _kept(folder, name, progress, done=True)
            return
        else:
            time.sleep(IDLE_WAIT_S)


def _next_batch(folder: RunFolder, progress: Progress, *, ended: bool) -> tuple[Batch, Position]:
    """The batch that was being given when the sink stopped, else what was logged since."""
    records: list[Record] = []
    position = dict(progress.position)
    for path in folder.segments():
        if progress.pending is None and len(records) >= BATCH_RECORDS:
            # Later segments wait, so that records keep their order.
            break
        stop = (progress.pending or {}).get(path.name, 0) if progress.pending else None
        for item in _unread(path, position.get(path.name, 0), stop, ended=ended):
            if isinstance(item, journal.Entry):
                records.append(item.record)
            position[path.name] = item.end_bytes
            if stop is None and len(records) >= BATCH_RECORDS:
                break
        position.setdefault(path.name, 0)
    return Batch(records=tuple(records), first_row=progress.row), position


def _unread(
    path: Path, start: int, stop: int | None, *, ended: bool
) -> Iterator[journal.Entry | journal.Damage]:
    if start >= (path.stat().st_size if stop is None else stop):
        return
    for item in journal.read(path, start, ended=ended):
        if stop is not None and item.end_bytes > stop:
            return
        yield item


def _acknowledged(
    folder: RunFolder, name: str, progress: Progress, batch: Batch, written: Written
) -> Progress:
    for refusal in written.refused:
        record = {"kind": type(refusal.record).__name__, **msgspec.structs.asdict(refusal.record)}
        folder.reject(Rejection(name, refusal.reason, record))
    return _kept(
        folder,
        name,
        progress,
        position=progress.pending or {},
        pending=None,
        row=progress.row + batch.row_count,
        state=written.state,
        records=progress.records + len(batch.records),
        rejected=progress.rejected + len(written.refused),
        error="",
    )


def _note_fault(folder: RunFolder, name: str, error: Exception) -> None:
    progress = folder.progress(name)
    text = one_line(f"{type(error).__name__}: {error}")
    if text != progress.error:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{now} {name}: {redacted(traceback.format_exc())}", flush=True)
    _kept(folder, name, progress, faults=progress.faults + 1, error=text)


def _kept(folder: RunFolder, name: str, progress: Progress, **changes: object) -> Progress:
    changed = msgspec.structs.replace(progress, **changes)
    folder.write_progress(name, changed)
    return changed
