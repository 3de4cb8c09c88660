"""What a supervisor looks at each second: the disk, the backlog, the machine, and who has died.

What it has to say is appended to journals of its own in the run's folder: one road, for that too.
"""

import contextlib
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

from opusclip_mlops import accounting, backlog
from opusclip_mlops.crash_report import TAIL_BYTES, Case, report
from opusclip_mlops.deaths import (
    TRACEBACK_TAG,
    Death,
    death_of,
    exit_code,
    takes_exit_code,
    wait_status,
)
from opusclip_mlops.faults import attempted
from opusclip_mlops.flight import oom_kills
from opusclip_mlops.folder import CONTROL, RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.records import Metrics, Record, RunEnded, RunStarted, Tags, Text, now_ms
from opusclip_mlops.redaction import one_line
from opusclip_mlops.sessions import (
    RANKS,
    Session,
    exit_code_decides,
    is_alive,
    is_visible,
    sessions,
    with_traceback,
)
from opusclip_mlops.stopping import reason_to_stop
from opusclip_mlops.system_metrics import SystemMeter
from opusclip_mlops.unrecorded import unrecorded

_OWN_NAME = "supervisor"
_BURIAL_LOOKS = 3


class Watch:
    """Looks after one run; `look` is to be called each second."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._manifest = folder.manifest()
        self._level = backlog.read_level(folder)
        self._control: Journal | None = None
        self._told_of: set[str] = set()
        self._seen_alive_ms: dict[str, int] = {}
        self._seen_oom_kills: dict[str, int | None] = {}
        self._pidfds: dict[str, int] = {}
        self._looks_since_death: dict[str, int] = {}
        self._machine = _Machine(folder) if self._manifest.system_metrics else None

    def look(self) -> None:
        """Put the journal on the disk, close what died, give space back, measure the machine."""
        fault: OSError | None = None
        for part in (
            self._put_on_disk,
            self._end_the_dead,
            lambda: backlog.release(self._folder, kept_bytes=TAIL_BYTES),
            self._set_level,
            self._measure,
        ):
            try:
                part()
            except OSError as error:
                # One of them at fault stands in no other's way.
                fault = error
        if fault:
            raise fault

    def _end_the_dead(self) -> None:
        for session in sessions(self._folder):
            if session.is_elsewhere:
                continue
            if is_alive(self._folder, session.start):
                self._seen_alive_ms[session.start.session] = now_ms()
                self._seen_oom_kills[session.start.session] = oom_kills()
                self._hold_pidfd(session.start)
            else:
                # Read again: it may have declared its end before it died.
                self._end_dead(next(s for s in sessions(self._folder) if s.start == session.start))

    def _measure(self) -> None:
        if self._machine:
            self._machine.look(self._living(sessions(self._folder)))

    def may_end(self) -> bool:
        """Whether no process can still give the run another end than the one it has."""
        waiting = [one for one in sessions(self._folder) if _awaits_exit_code(one)]
        if any(is_alive(self._folder, one.start) for one in waiting):
            return False
        return all(self._correct(session) for session in waiting)

    def _put_on_disk(self) -> None:
        accounts = self._folder.path.glob(f"*{accounting.SUFFIX}")
        for path in (*self._folder.segments(), *accounts):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)

    def _living(self, every: list[Session]) -> list[RunStarted]:
        here = (one for one in every if not one.end and not one.is_elsewhere)
        starts = [one.start for one in here if is_visible(one.start)]
        return [start for start in starts if is_alive(self._folder, start)]

    def _set_level(self) -> None:
        waiting_bytes = backlog.backlog_bytes(self._folder)
        level = backlog.shed_level(waiting_bytes, self._manifest.backlog_quota_bytes, self._level)
        if level != self._level:
            backlog.write_level(self._folder, level)
            self._level = level

    def _end_dead(self, session: Session) -> None:
        """Declare the end of a process that is gone without doing so, or that ended otherwise."""
        start = session.start
        if session.end is None:
            status = self._wait_status(start.session)
            if status is not None or self._is_buried(start.session):
                self._declare(start, death_of(self._folder.path, start, wait_status=status))
        elif _awaits_exit_code(session):
            self._correct(session)

    def _correct(self, session: Session) -> bool:
        """Let the exit code have the last word about a run that nobody closed.

        Returns whether it agrees with what was said; False also while it can't be known yet.
        """
        start, notes = session.start, self._folder.path
        said_well = session.end is not None and session.end.status == "FINISHED"
        code = exit_code(notes, start.session)
        if code is None and takes_exit_code(notes, start.session):
            status = self._wait_status(start.session)
            if status is not None or self._is_buried(start.session):
                self._declare(start, death_of(notes, start, wait_status=status))
            return False
        if code is None or said_well == (code == 0):
            return said_well or not self._report_exit(session, code)
        left = f"process {start.pid} left with code {code}"
        failed = Death("FAILED", left, exit_code=code, told_by="its exit code")
        self._declare(start, failed if code else Death("FINISHED", ""))
        return False

    def _report_exit(self, session: Session, code: int | None) -> bool:
        """Report a `sys.exit` that was true; whether anything was said that had not been."""
        assert session.end is not None
        end, told_by = session.end, "the process" if code is None else "its exit code"
        death = Death(end.status, end.reason, exit_code=code, told_by=told_by)
        return self._report(session.start, death, end.end_time_ms)

    def _report(self, start: RunStarted, death: Death, end_time_ms: int) -> bool:
        """Say how a process died, once; what can't be written is left out, and said in the log."""
        every = sessions(self._folder)
        if any(one.has_report for one in every if one.start.session == start.session):
            return False
        case = Case(
            folder=self._folder,
            start=start,
            death=death,
            end_time_ms=end_time_ms,
            seen_oom_kills=self._seen_oom_kills.get(start.session),
        )
        found: list[Record] = []
        if fault := attempted(lambda: found.extend(report(case))):
            print(f"no report of {start.session}: {one_line(repr(fault))}", flush=True)
        return self._say(*found) and bool(found)

    def _hold_pidfd(self, start: RunStarted) -> None:
        """Keep hold of the process, so that the kernel can tell how it ended."""
        if start.session not in self._pidfds:
            # Elsewhere, or in another pid namespace, the number may be a stranger's.
            self._pidfds[start.session] = -1
            with contextlib.suppress(OSError):
                if is_visible(start):
                    self._pidfds[start.session] = os.pidfd_open(start.pid)

    def _wait_status(self, session: str) -> int | None:
        pidfd = self._pidfds.get(session, -1)
        return wait_status(pidfd) if pidfd >= 0 else None

    def _is_buried(self, session: str) -> bool:
        """Whether its parent has had time to take note of its end: before, the kernel says none."""
        self._looks_since_death[session] = self._looks_since_death.get(session, 0) + 1
        known = self._pidfds.get(session, -1) >= 0
        return not known or self._looks_since_death[session] >= _BURIAL_LOOKS

    def _declare(self, start: RunStarted, death: Death) -> None:
        seen_ms = self._seen_alive_ms.get(start.session, 0)
        end_time_ms = max(seen_ms, _last_sign_of_life_ms(self._folder, start))
        why = reason_to_stop(self._folder, since_ms=start.start_time_ms)
        if why and death.status == "KILLED":
            death = replace(death, reason=f"{why} ({death.reason})")
        end = RunEnded(start.session, death.status, end_time_ms, death.reason, start.owned)
        end = with_traceback(start, end, death.traceback)
        if start.session not in self._told_of:
            self._told_of.add(start.session)
            if RANKS not in self._manifest.sinks:  # which says it of all ranks at once
                self._say(*_left_out(self._folder, end_time_ms))
            if death.traceback and not end.traceback:
                self._say(Tags({TRACEBACK_TAG: death.traceback}))
            if death.status != "FINISHED":
                self._report(start, death, end_time_ms)
        whole = list(unrecorded(self._folder))
        if not self._say(*(record for record, _ in whole), end):
            raise OSError(f"the end of {start.session} cannot be written down")
        for _, mark in whole:
            with contextlib.suppress(OSError):
                mark.rmdir()

    def _say(self, *said: Record) -> bool:
        """Append to the supervisor's own journal, one for its whole life; False if that is full."""
        if self._control is None:
            self._control = Journal(self._folder.path, _OWN_NAME + CONTROL)
        lost = self._control.lost
        for record in said:
            self._control.append(record)
        return self._control.lost == lost


class _Machine:
    """Measures the machine in the interval the run asks for."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        manifest = folder.manifest()
        self._interval_s = manifest.system_metrics_interval_s
        node = socket.gethostname() if manifest.nodes > 1 else ""
        self._meter = SystemMeter(disk=Path(manifest.cwd), node=node)
        self._journal: Journal | None = None
        self._next_s = 0.0
        self._last_step = -1

    def look(self, living: list[RunStarted]) -> None:
        """Measure if it is time to, and anything trains here."""
        start_ms = self._start_time_ms()
        if not living or start_ms is None or time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + self._interval_s
        values = self._meter.sample([start.pid for start in living])
        measured_ms = now_ms()
        # Steps are seconds of the run: they go on rising over restarts of the supervisor.
        self._last_step = max(self._last_step + 1, (measured_ms - start_ms) // 1000)
        if values:
            self._own_journal().append(Metrics(measured_ms, self._last_step, values))

    def _start_time_ms(self) -> int | None:
        """When the run began; None while that is not known of one that is gone on with."""
        identity, manifest = self._folder.identity(), self._folder.manifest()
        if identity and identity.start_time_ms:
            return identity.start_time_ms
        return None if manifest.run_id else manifest.start_time_ms

    def _own_journal(self) -> Journal:
        if self._journal is None:
            account = accounting.Account(self._folder.path, f"{_OWN_NAME}-{os.getpid()}")
            self._journal = Journal(self._folder.path, _OWN_NAME, on_loss=account.count_lost)
        return self._journal


def _awaits_exit_code(session: Session) -> bool:
    end = session.end
    return end is not None and not session.is_corrected and exit_code_decides(end)


def _left_out(folder: RunFolder, timestamp_ms: int) -> list[Tags | Text]:
    try:
        return accounting.totals(folder.path).records(timestamp_ms=timestamp_ms)
    except OSError:
        # An account that can't be read: then nothing is claimed.
        return []


def _last_sign_of_life_ms(folder: RunFolder, start: RunStarted) -> int:
    own = [p for p in folder.segments() if p.name.startswith(start.session)]
    written_ms = [int(path.stat().st_mtime * 1000) for path in own]
    return max([start.start_time_ms, *written_ms])
