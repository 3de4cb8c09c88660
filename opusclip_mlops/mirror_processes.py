"""Starts a process for each place that runs are mirrored to, and listens to what they tell."""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import IO, cast

import msgspec

from opusclip_mlops.errors import DeliveryError
from opusclip_mlops.mirror_work import BROKEN_CLIENT, RunReport, Work, decoded
from opusclip_mlops.redaction import one_line

Show = Callable[[RunReport], None]
"""Is called with each report as it comes, from any thread."""

_DEATHS = 3
_FIRST_PAUSE_S, _LAST_PAUSE_S = 1.0, 60.0
_TAIL_BYTES = 4096
_MOST_LOG_BYTES = 1024 * 1024


def do(works: Sequence[Work], show: Show) -> list[RunReport]:
    """Do all works at once, each in a process of its own; returns what came of each run.

    A process that dies is started again, and left out of it is the run it has died at three times.

    Raises:
        DeliveryError: a process could not do anything at all; the message is its own.
    """
    attendants = [_Attendant(work, show) for work in works]
    threads = [threading.Thread(target=one.attend, daemon=True) for one in attendants]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
    finally:
        for one in attendants:
            one.stop()
        for thread in threads:
            thread.join()
    if problem := next((one.problem for one in attendants if one.problem), ""):
        raise DeliveryError(problem)
    return [report for one in attendants for report in one.reports.values()]


class _Attendant:
    """Keeps one work's process going until it is done."""

    def __init__(self, work: Work, show: Show) -> None:
        self._work, self._show = work, show
        self.reports: dict[str, RunReport] = {}
        self.problem = ""
        self._deaths: Counter[str] = Counter()
        self._under_way = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()

    def attend(self) -> None:
        """Start the process, as often as it takes."""
        pause_s = _FIRST_PAUSE_S
        while not self._stopped.is_set():
            reports_before = len(self.reports)
            with tempfile.TemporaryFile("a+b") as log:
                try:
                    code = self._run(log)
                except OSError as error:
                    code = -1
                    log.write(str(error).encode())
                if code == 0 or self._stopped.is_set():
                    return
                self._note_death(code, _last_line(log))
            if self.problem:
                return
            grew = len(self.reports) > reports_before
            pause_s = _FIRST_PAUSE_S if grew else min(2 * pause_s, _LAST_PAUSE_S)
            self._stopped.wait(pause_s)

    def stop(self) -> None:
        """Let the process finish the run under way; it ends when its stdin is closed."""
        self._stopped.set()
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()

    def _run(self, log: IO[bytes]) -> int:
        self._under_way = ""
        argv = [sys.executable, "-P", "-m", "opusclip_mlops.mirror_worker"]
        with subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            # What a process that died at once has not read is not to be flushed later.
            bufsize=0,
            # Ctrl-C is this process's to hear.
            start_new_session=True,
        ) as process:
            self._process = process
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(msgspec.json.encode(self._left()) + b"\n")
            if self._stopped.is_set():
                self.stop()
            self._listen(io.BufferedReader(cast(io.RawIOBase, process.stdout)), log)
            process.wait()
        return process.returncode

    def _listen(self, lines: Iterable[bytes], log: IO[bytes]) -> None:
        for line in lines:
            report = decoded(line)
            if report is None:
                continue
            if report.outcome == "begun":
                self._under_way = report.run_id
            elif report.run_id:
                self._under_way = ""
                self.reports[report.run_id] = report
                self._deaths.pop(report.run_id, None)
            elif report.outcome == "failed" and self._work.does != "follow":
                self.problem = report.error
            self._show(report)
            if os.fstat(log.fileno()).st_size > _MOST_LOG_BYTES:
                os.ftruncate(log.fileno(), 0)

    def _left(self) -> Work:
        """The work without what was done, and without what the process dies at."""
        dead = [run_id for run_id, times in self._deaths.items() if times >= _DEATHS]
        if self._work.does == "follow":
            return msgspec.structs.replace(self._work, skip=dead)
        done = [id_ for id_, one in self.reports.items() if one.outcome != "failed" or id_ in dead]
        return msgspec.structs.replace(self._work, skip=[*dead, *done])

    def _note_death(self, code: int, last_line: str) -> None:
        why = f"its process ended with code {code}: {last_line}"
        if code == BROKEN_CLIENT and self._work.does == "follow":
            # An outage is waited out, however often it comes.
            return
        if not self._under_way:
            self._deaths[""] += 1
            if self._work.does != "follow" and self._deaths[""] >= _DEATHS:
                self.problem = one_line(f"{self._work.target}: {why}")
            return
        self._deaths[self._under_way] += 1
        report = RunReport(
            target=str(self._work.target),
            run_id=self._under_way,
            outcome="failed",
            error=one_line(why),
        )
        self.reports[self._under_way] = report
        self._show(report)


def _last_line(log: IO[bytes]) -> str:
    size_bytes = log.seek(0, 2)
    log.seek(max(0, size_bytes - _TAIL_BYTES))
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no word"
