"""What an operator asks and does: `status` tells how far delivery is, `recover` sees it through.

Both work on the runs that still have a folder on this machine; recovering is harmless at any time,
also several times at once.
"""

import contextlib
import math
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from opusclip_mlops.delivery import is_caught_up
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.folder import Manifest, RunFolder
from opusclip_mlops.launch import start_shipper
from opusclip_mlops.run_status import (
    UNREADABLE,
    RunStatus,
    choices,
    run_folders,
    status_of,
)
from opusclip_mlops.run_status import configured_journal_dir as configured_journal_dir
from opusclip_mlops.run_status import status as status
from opusclip_mlops.sessions import final_end

Outcome = Literal["delivered", "discarded", "refused", "remains", "training", "unreadable"]

AT_ONCE = 4
"""How many runs are delivered side by side: each takes a process for each of its sinks."""

POLL_S = 0.1
_MOST_AT_ONCE = 16  # with those among them that are stuck in a fault
_STUCK_AFTER_S = 15.0
_RESTART_WAIT_S = 1.0
_REMOVAL_WAIT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class SinkRecovery:
    """What one sink got while we waited, what it lacks still, and what it refused for good."""

    sink: str
    delivered_records: int
    refused_records: int
    remaining_records: int
    remaining_is_estimate: bool
    remaining_bytes: int
    last_error: str


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What came of a run that was to be delivered.

    `rejected_file` holds the records that were refused for good, where there are any; `log_file` is
    where the shipper says what went wrong.
    """

    local_id: str
    folder: str
    outcome: Outcome
    problem: str = ""
    run_name: str = ""
    run_id: str = ""
    rejected_file: str = ""
    log_file: str = ""
    sinks: tuple[SinkRecovery, ...] = ()

    @property
    def is_settled(self) -> bool:
        """Whether nothing remains that an operator has to look at."""
        return self.outcome in ("delivered", "discarded", "training")


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """How far a run is while it is waited for."""

    local_id: str
    name: str
    delivered_bytes: int
    total_bytes: int


def recover(
    runs: Sequence[str] = (),
    *,
    every: bool = False,
    journal_dir: str | os.PathLike[str] | None = None,
    timeout_s: float = 600.0,
    discard_refused: bool = False,
    show: Callable[[list[RunProgress]], None] = lambda _: None,
) -> list[Recovery]:
    """Deliver what processes that crashed or were offline left, and clean up behind it.

    A run whose trainer lives is delivered too, but not waited for. What has not arrived at the
    deadline goes on being delivered in the background.

    Args:
        runs: Local ids, MLflow run ids, run names, or unique beginnings of one.
        every: Recover all runs that have a folder here.
        journal_dir: Where the runs' folders lie; as configured otherwise.
        timeout_s: How long to wait for all of them together.
        discard_refused: Remove also what a sink refused for good, once all else has arrived.
        show: Called again and again with how far the runs are.

    Raises:
        OpusclipError: none was named, or no run, or more than one, is called so; or the address of
            its MLflow server holds a password and is not in the environment.
    """
    folders = run_folders(runs, journal_dir=journal_dir)
    if not runs and not every:
        which = f": {choices(folders)}" if folders else ""
        raise OpusclipError(f"name the runs to recover, or all of them with --all{which}")
    works = [_Work(folder) for folder in folders if runs or _holds_anything(folder)]
    try:
        _check_addresses(works)
        _wait(works, time.monotonic() + timeout_s, discard_refused, show)
        return [work.recovery() for work in works]
    finally:
        for work in works:
            work.release()


def see_through(
    run: str, *, journal_dir: str | os.PathLike[str] | None = None, timeout_s: float = 600.0
) -> None:
    """Deliver what a run left on this machine, where it left anything: others wait for it.

    Args:
        run: Its id in MLflow.
        journal_dir: Where the runs' folders lie; as configured otherwise.
        timeout_s: How long to wait; what has not arrived by then goes on being delivered.
    """
    # It was delivered long ago, was on another machine, or waits for an operator.
    with contextlib.suppress(OpusclipError):
        recover([run], journal_dir=journal_dir, timeout_s=timeout_s)


def _holds_anything(folder: RunFolder) -> bool:
    """Whether there is something to deliver; a folder that was never finished has nothing."""
    try:
        return (folder.path / "manifest.json").exists() or bool(folder.segments())
    except PermissionError:
        return True


def _check_addresses(works: Sequence["_Work"]) -> None:
    """Credentials are never written down: without them, MLflow's default would get the run."""
    ids = [one.folder.path.name for one in works if one.is_open and one.lacks_tracking_uri]
    if ids:
        raise OpusclipError(
            f"the MLflow address of {', '.join(ids)} holds a password, which is never written down:"
            " set MLFLOW_TRACKING_URI to it"
        )


def _wait(
    works: Sequence["_Work"],
    deadline_s: float,
    discard_refused: bool,
    show: Callable[[list[RunProgress]], None],
) -> None:
    """Until every run is over, or time is."""
    while True:
        for work in works:
            if not work.is_over and (work.is_begun or _has_room(works)):
                work.go_on(discard_refused=discard_refused)
        show([work.progress() for work in works if work.is_open])
        if all(work.is_over for work in works) or time.monotonic() >= deadline_s:
            return
        time.sleep(POLL_S)


def _has_room(works: Sequence["_Work"]) -> bool:
    """Whether one more run may begin: those that are stuck keep no other waiting for long."""
    busy = [work for work in works if work.is_begun and not work.is_over]
    return len(busy) < _MOST_AT_ONCE and sum(not w.is_stuck() for w in busy) < AT_ONCE


@dataclass
class _Work:
    """A run that is being delivered; its folder is held, so that what came of it can be read."""

    folder: RunFolder
    before: RunStatus = field(init=False)
    is_begun: bool = False
    is_over: bool = False
    _manifest: Manifest | None = None
    _hold: int = -1
    _after: RunStatus | None = None
    _outcome: Outcome = "remains"
    _problem: str = ""
    _began_s: float = 0.0
    _arrived_s: float = 0.0
    _shipper: subprocess.Popen[bytes] | None = None
    _started_s: float = -math.inf

    def __post_init__(self) -> None:
        with contextlib.suppress(*UNREADABLE):
            self._manifest = self.folder.manifest()
            self._hold = self.folder.hold()
        self.before = status_of(self.folder)
        if self.before.state == "unreadable":
            is_gone = not self.folder.path.exists()
            self._end("delivered" if is_gone else "unreadable", self.before.problem)

    @property
    def is_open(self) -> bool:
        """Whether it could be read and is not yet known to be gone."""
        return self.before.state != "unreadable"

    @property
    def lacks_tracking_uri(self) -> bool:
        """Whether MLflow's address should be in the environment, and is not."""
        if self._manifest is None or not self._manifest.tracking_uri_is_secret:
            return False
        return not os.environ.get("MLFLOW_TRACKING_URI") and not self.folder.is_shipped()

    def is_stuck(self) -> bool:
        """Whether a sink has been failing for a while: others needn't wait for it."""
        has_fault = any(self.folder.progress(one.sink).error for one in self.before.sinks)
        is_late = time.monotonic() - self._began_s > _STUCK_AFTER_S
        return is_late and (has_fault or bool(self._problem))

    def go_on(self, *, discard_refused: bool) -> None:
        """See to it that a shipper is at work, and find out whether it is through."""
        if not self.is_begun:
            self.is_begun, self._began_s = True, time.monotonic()
        try:
            if not self.folder.path.exists():
                self._end("delivered")
                return
            if self.before.state == "training":
                self._join_training()
                return
            if self._has_arrived():
                self._clean_up(discard_refused=discard_refused)
            if not self.is_over:
                self._keep_shipper()
        except PermissionError as error:
            self._end("remains", f"{error.filename}: {error.strerror}")
        except (OSError, OpusclipError) as error:
            # It may pass; or the shipper has just removed the folder.
            self._problem = f"{getattr(error, 'strerror', '') or error}"

    def release(self) -> None:
        """Let go of the folder; where it is gone, of its lock too."""
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1
            if not self.folder.path.exists():
                self.folder.remove_unless_held()

    def progress(self) -> RunProgress:
        """How far it is, over all sinks."""
        done, total = 0, 1
        with contextlib.suppress(OSError):
            done, total = self._delivered_bytes() if self._after is None else (1, 1)
        return RunProgress(
            local_id=self.before.local_id,
            name=self.before.run_name,
            delivered_bytes=min(done, total),
            total_bytes=max(1, total),
        )

    def _delivered_bytes(self) -> tuple[int, int]:
        every = [self.folder.progress(one.sink).position for one in self.before.sinks]
        total = sum(self.folder.size_bytes().values()) * len(every)
        return sum(sum(position.values()) for position in every), total

    def recovery(self) -> Recovery:
        """What came of it."""
        before, after = self.before, self._after or status_of(self.folder)
        refused = sum(one.refused_records for one in after.sinks)
        is_there = self.folder.path.exists()
        if not (self.is_begun or self.is_over):
            self._problem = "not begun, because others come first: try again"
        log = self.folder.path / "shipper.log"
        return Recovery(
            local_id=before.local_id,
            folder=before.folder,
            outcome=self._outcome,
            problem=self._problem,
            run_name=after.run_name or before.run_name,
            run_id=after.run_id or before.run_id,
            rejected_file=str(self.folder.rejected) if refused and is_there else "",
            log_file=str(log) if is_there and self.is_open else "",
            sinks=_compared(before, after),
        )

    def _end(self, outcome: Outcome, problem: str = "") -> None:
        self._outcome, self._problem, self.is_over = outcome, problem, True
        self.release()

    def _join_training(self) -> None:
        """Start a shipper unless the training process alone knows where to deliver to."""
        if not self.lacks_tracking_uri:
            self._keep_shipper()
        if not self.is_over:
            self._end("training")

    def _keep_shipper(self) -> None:
        """Start a shipper where none is at work; a second one would only wait for the first."""
        code = self._shipper.poll() if self._shipper else 0
        waited_s = time.monotonic() - self._started_s
        if code is None or waited_s < _RESTART_WAIT_S or self.folder.is_shipped():
            return
        if code:
            self._problem = f"its shipper ended with exit code {code}"
        cwd = Path(self.folder.manifest().cwd)
        if not cwd.is_dir():
            self._end("remains", f"its working folder {cwd} is gone: make it again")
            return
        self._started_s = time.monotonic()
        self._shipper = start_shipper(self.folder)

    def _has_arrived(self) -> bool:
        every = [self.folder.progress(one.sink) for one in self.before.sinks]
        is_done = all(is_caught_up(self.folder, one) for one in every)
        return is_done and final_end(self.folder) is not None

    def _clean_up(self, *, discard_refused: bool) -> None:
        """All has arrived: let the shipper remove the folder, unless records were refused."""
        if self._after is None:
            self._after, self._arrived_s = status_of(self.folder), time.monotonic()
            self.release()
        refused = any(one.refused_records for one in self._after.sinks)
        is_late = time.monotonic() - self._arrived_s > _REMOVAL_WAIT_S
        self._outcome, self._problem = "refused" if refused else "delivered", ""
        if refused and discard_refused and (is_late or not self.folder.is_shipped()):
            is_gone = _discard(self.folder, [one.sink for one in self._after.sinks])
            problem = "" if is_gone else "a process still uses its folder: nothing was discarded"
            self._end("discarded" if is_gone else "refused", problem)
        elif is_late or (refused and not discard_refused):
            self._end(self._outcome)


def _discard(folder: RunFolder, sinks: Sequence[str]) -> bool:
    """Remove a folder in which only refused records are left, unless a process uses it."""
    with folder.shipping() as is_ours:
        if not is_ours:
            return False
        counts = {name: folder.progress(name).rejected for name in sinks}
        for name in sinks:
            _count_rejected(folder, name, 0)
        if folder.remove_unless_held():
            return True
        for name, rejected in counts.items():
            _count_rejected(folder, name, rejected)
        return False


def _count_rejected(folder: RunFolder, sink: str, rejected: int) -> None:
    progress = folder.progress(sink)
    changed = msgspec.structs.replace(progress, rejected=rejected, number=progress.number + 1)
    folder.write_progress(sink, changed)


def _compared(before: RunStatus, after: RunStatus) -> tuple[SinkRecovery, ...]:
    had = {one.sink: one.delivered_records for one in before.sinks}
    return tuple(
        SinkRecovery(
            sink=one.sink,
            delivered_records=one.delivered_records - had.get(one.sink, 0),
            refused_records=one.refused_records,
            remaining_records=one.lag_records,
            remaining_is_estimate=one.lag_is_estimate,
            remaining_bytes=one.backlog_bytes,
            last_error=one.last_error,
        )
        for one in after.sinks
    )
