"""Gives a run's journal to one sink: batches, retries, positions; written once, for every sink.

The end of each batch is noted before it is given. After a crash, what was given and not yet safe is
given again in the same batches, so that a sink can find out which of its rows are there already.
"""

import contextlib
import os
import time
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from opusclip_mlops import rewinding
from opusclip_mlops.faults import attempted
from opusclip_mlops.folder import Position, Progress, Rejection, RunFolder
from opusclip_mlops.gathering import Amount, Gathered, gather, gather_again
from opusclip_mlops.records import Batch, RunEnded, last_training_step
from opusclip_mlops.redaction import one_line, redacted
from opusclip_mlops.sessions import RANKS, RELAY, all_ended, final_end
from opusclip_mlops.sinks import (
    NEEDS_NEW_PROCESS,
    Refusal,
    Sink,
    Spoilt,
    Waiting,
    Written,
    open_sink,
)

BATCH_RECORDS = 2000
BATCH_BYTES = 4 * 1024 * 1024
BATCHES_AHEAD = 8
POLL_S = 0.1
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 10.0
HEARS_ALERTS_S = 10.0
_MERGING = frozenset((RANKS, RELAY))
_BY_THE_CLOCK = _MERGING | {"alerts"}
_INTERVAL_S, _MOST_INTERVAL_S = 0.9, 300.0


def send_interval_s(environment: Mapping[str, str]) -> float:
    """How long what is logged waits for more to go with it: OPUSCLIP_SEND_INTERVAL_S, in seconds.

    From 0 to 300, 0.9 where it is not set or no number. Neither a backlog nor the end of a run
    waits.
    """
    try:
        return min(max(0.0, float(environment["OPUSCLIP_SEND_INTERVAL_S"])), _MOST_INTERVAL_S)
    except (KeyError, ValueError):
        return _INTERVAL_S


LINGER_S = send_interval_s(os.environ)


def is_caught_up(folder: RunFolder, progress: Progress) -> bool:
    """Whether a sink has declared the run's end and nothing was logged since."""
    return progress.done and progress.has_all(folder.size_bytes())


def deliver(folder: RunFolder, name: str) -> bool:
    """Give the run to a sink until its end is declared there; True when that is done.

    A sink that fails is opened again, for as long as it takes. False when it broke while it was
    open and only a process of its own escapes what its client library has left behind.
    """
    wait_s = FIRST_RETRY_S
    while not is_caught_up(folder, folder.progress(name)):
        delivery = _Delivery(folder, name)
        fault = attempted(delivery.run)
        if isinstance(fault, Waiting):
            time.sleep(POLL_S)
        elif fault is not None:
            _note_fault(folder, name, fault)
            is_spoilt = delivery.is_open or isinstance(fault, Spoilt)
            if is_spoilt and name in NEEDS_NEW_PROCESS:
                return False
            wait_s = FIRST_RETRY_S if delivery.has_delivered else wait_s
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, LAST_RETRY_S)
    return True


@dataclass(frozen=True)
class _Given:
    """A batch that a sink was given: where it ends, how long it was, what of it was refused."""

    position: Position
    end_row: int
    records: int
    last_step: int
    refused: tuple[Refusal, ...]


class _Delivery:
    """A sink from its opening to the run's end, or to its first fault."""

    def __init__(self, folder: RunFolder, name: str) -> None:
        self.is_open = False
        self.has_delivered = False
        self._folder, self._name = folder, name
        self._progress = folder.progress(name)
        self._ahead: deque[_Given] = deque()
        # Ends of batches that were given before, and are given again just so.
        self._repeats = deque(self._progress.given)
        # What a sink put off before it was opened again is asked about, whatever else there is.
        self._unfinished = True
        self._hears_until_s = float("inf")

    def run(self) -> None:
        """Open the sink, give it everything, declare the end; then look at it once more.

        A sink that was closed and has all is not opened again for that look.
        """
        end = final_end(self._folder)
        if end and rewinding.CLOSED_AT in self._progress.state and self._has_all():
            self._look_last(end)
            return
        self._sink: Sink = open_sink(self._name, self._folder)
        state = self._sink.open(dict(self._progress.state))
        self.is_open = True
        self._keep(state=state, done=False, error="")
        while not self._has_ended():
            pass

    def _has_ended(self) -> bool:
        """Give one batch, or wait for one; True once the end is declared."""
        # Read before the records: what was logged before this end is then in the sizes below.
        end = final_end(self._folder)
        batch, position = self._next_batch(ended=end is not None)
        if position != self._given_until:
            self._give(batch, position)
            self._linger(batch, ended=end is not None)
        elif self._unfinished:
            time.sleep(POLL_S)
            self._ask()
        elif end is not None and self._has_heard_alerts() and self._has_all():
            self._sink.close(end)
            self.is_open = False
            row, state = self._progress.row, self._progress.state
            self._keep(state=rewinding.closed(self._name, state, row=row))
            self._look_last(end)
            return True
        else:
            time.sleep(POLL_S)
        if end is None:
            self._hears_until_s = float("inf")
        return False

    def _look_last(self, end: RunEnded) -> None:
        """Have a mirror show the line as it now is, where it can; then its delivery is done."""
        left = ""
        if rewinding.is_due(self._folder, self._name, end):
            looked = rewinding.looked(self._progress.state)
            if looked is None:
                why = self._progress.error or "it was tried in vain"
                left = rewinding.left_as_it_is(self._folder, self._name, why)
            else:
                self._keep(state=looked)
                left = rewinding.bring_to_line(self._folder, self._name)
        if left:
            print(left, flush=True)
        self._keep(done=True, error=left)

    def _has_heard_alerts(self) -> bool:
        """Whether the alerts have judged all that was logged, or are not waited for any longer.

        What they say behind a sink's end would have that sink opened once more.
        """
        alerts = self._folder.progress("alerts")
        if self._name == "alerts" or "alerts" not in self._folder.manifest().sinks:
            return True
        self._hears_until_s = min(self._hears_until_s, time.monotonic() + HEARS_ALERTS_S)
        return alerts.has_all(self._folder.size_bytes()) or time.monotonic() > self._hears_until_s

    def _has_all(self) -> bool:
        """Whether nothing is left that may still become a whole frame."""
        return self._progress.has_all(self._folder.size_bytes())

    @property
    def _given_until(self) -> Position:
        return self._ahead[-1].position if self._ahead else self._progress.position

    @property
    def _next_row(self) -> int:
        return self._ahead[-1].end_row if self._ahead else self._progress.row

    def _next_batch(self, *, ended: bool) -> tuple[Batch, Position]:
        """The next of the batches that were given before, else what was logged since."""
        stop = self._repeats.popleft() if self._repeats else None
        if stop is None and len(self._ahead) >= BATCHES_AHEAD:
            return Batch(records=()), self._given_until
        found = self._gathered(stop, ended=ended)
        if found.damaged_bytes:
            self._keep(damaged_bytes=self._progress.damaged_bytes + found.damaged_bytes)
        return Batch(records=tuple(found.records), first_row=self._next_row), found.position

    def _gathered(self, stop: Position | None, *, ended: bool) -> Gathered:
        """What was logged behind all that was given: up to `stop`, or as much as makes a batch."""
        since = self._given_until
        if stop is not None:
            return gather_again(self._folder, since, stop, ended=ended)
        most = Amount(BATCH_RECORDS, BATCH_BYTES)
        # What is to be merged goes together: no rank is to be far ahead of another.
        together = self._name in _MERGING
        return gather(self._folder, since, most, ended=ended, by_time_alone=together)

    def _give(self, batch: Batch, position: Position) -> None:
        end_row = batch.first_row + batch.row_count
        given = [*(one.position for one in self._ahead), position, *self._repeats]
        if given != self._progress.given:
            self._keep(given=given)
        written = self._sink.write(batch)
        last_step = last_training_step(batch.records)
        given_now = _Given(position, end_row, len(batch.records), last_step, written.refused)
        self._ahead.append(given_now)
        self._acknowledge(written, ())

    def _ask(self) -> None:
        written = self._sink.write(Batch(records=(), first_row=self._next_row))
        self._acknowledge(written, written.refused)

    def _linger(self, batch: Batch, *, ended: bool) -> None:
        """A short wait lets a batch grow: fewer, larger ones cost the machine far less."""
        # What shows life, or looks at the time, does so as often as ever.
        is_timely = self._name in _BY_THE_CLOCK
        deadline = time.monotonic() + (min(LINGER_S, _INTERVAL_S) if is_timely else LINGER_S)
        few = len(batch.records) < BATCH_RECORDS // 4
        while few and not (ended or self._repeats) and time.monotonic() < deadline:
            time.sleep(POLL_S)
            ended = all_ended(self._folder)

    def _acknowledge(self, written: Written, refused: tuple[Refusal, ...]) -> None:
        """Move the position behind every batch whose rows are all safe."""
        progress = self._progress
        position, row, records = progress.position, progress.row, progress.records
        last_step = progress.last_step
        while self._ahead and _is_safe(self._ahead[0], written):
            safe = self._ahead.popleft()
            position, row, records = safe.position, safe.end_row, records + safe.records
            refused += safe.refused
            last_step = max(last_step, safe.last_step)
            self.has_delivered = True
        if refused:
            self._folder.reject(*(_rejection(self._name, one) for one in refused))
        given = [*(one.position for one in self._ahead), *self._repeats]
        self._unfinished = written.unfinished or bool(self._ahead)
        self._keep(
            position=position,
            given=given,
            row=row,
            state=written.state,
            records=records,
            last_step=last_step,
            rejected=progress.rejected + len(refused),
            faults=progress.faults + written.faults,
            error=written.fault,
        )

    def _keep(self, **changes: object) -> None:
        changed = msgspec.structs.replace(self._progress, **changes)
        if changed != self._progress:
            changed = msgspec.structs.replace(changed, number=changed.number + 1)
            self._folder.write_progress(self._name, changed)
            self._progress = changed


def _is_safe(given: _Given, written: Written) -> bool:
    return written.safe_rows is None or given.end_row <= written.safe_rows


def _rejection(sink: str, refusal: Refusal) -> Rejection:
    kind = type(refusal.record).__name__
    fields = msgspec.structs.asdict(refusal.record)
    return Rejection(sink, refusal.reason, {"kind": kind, **fields})


def _note_fault(folder: RunFolder, name: str, error: Exception) -> None:
    progress = folder.progress(name)
    text = one_line(f"{type(error).__name__}: {error}")
    if text != progress.error:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = "".join(traceback.format_exception(error))
        print(f"{now} {name}: {redacted(lines)}", flush=True)
    number, faults = progress.number + 1, progress.faults + 1
    changed = msgspec.structs.replace(progress, number=number, faults=faults, error=text)
    # On a full disk the fault stays untold; the delivery goes on.
    with contextlib.suppress(OSError):
        folder.write_progress(name, changed)
