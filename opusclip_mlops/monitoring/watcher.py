"""Watches one process that serves: what requests hand over is worked on in a thread of its own."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.drift import Columns
from opusclip_mlops.faults import attempted
from opusclip_mlops.monitoring.clips import Found, first_clip, frame_count, look_at, row_count
from opusclip_mlops.monitoring.counts import Asked, Counts
from opusclip_mlops.monitoring.inputs import InputWatch, snapshot
from opusclip_mlops.monitoring.monitoring_run import MonitoringRun, places_of
from opusclip_mlops.monitoring.report import Reporter, Seen
from opusclip_mlops.monitoring.served import ServedVersion
from opusclip_mlops.monitoring.settings import MonitorSettings
from opusclip_mlops.redaction import one_line

_ROUND_S = 0.5
_JOIN_S = 10.0
_WAITING_REQUESTS = 256
_REQUEST_SHARE = 0.0025
_FREE_S = 0.25  # what is spent on inputs before the share counts
_NICE = 10


class Watcher:
    """Counts requests and looks at some of their inputs and answers.

    Looking at inputs takes at most 0.25 % of the time that the model takes, looking at clips at
    most `checks_share` of the time that passes; what is not looked at is counted.

    Args:
        folder: The model's folder.
        settings: How it is watched.
    """

    def __init__(self, folder: Path, settings: MonitorSettings) -> None:
        self.counts = Counts()
        self.served = ServedVersion.in_folder(folder)
        self.seen = Seen({}, {})
        self._folder, self._settings = folder, settings
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._columns: deque[Columns] = deque(maxlen=_WAITING_REQUESTS)
        self._clip: Found | None = None
        self._wants_clip = True
        self._next_look_s = 0.0
        self._looks: list[Mapping[str, float]] = []
        self._inputs: InputWatch | None = None
        self._reporting = threading.Lock()
        self._reporter = Reporter(self.counts, time.monotonic())
        self._run: MonitoringRun | None = None
        self._places: dict[str, str] = {}

    def start(self) -> None:
        """Open the run and the endpoint, and begin to work; a second call does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._go_on, name="opusclip", daemon=True)
            for what, begin in self._parts().items():
                if fault := attempted(begin):
                    self._tell(what, fault)
            self._thread.start()

    def close(self) -> None:
        """Tell the last interval and end the run."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
            # Not in the thread, which a busy machine may hardly let run.
            self._do("run", self._report)
        if self._run is not None and (fault := attempted(self._run.close)):
            self._tell("monitoring run", fault)

    def asked(self, asked: Asked | None, content: Any, params: Mapping[str, Any] | None) -> None:
        """The model is asked; some of what it is asked is kept."""
        if asked is not None:
            self.counts.begun(asked)
        began_s = time.thread_time()
        if not self.counts.may_read_inputs(_REQUEST_SHARE, free_s=_FREE_S):
            self.counts.skipped("rows", row_count(content))
            return
        if len(self._columns) == self._columns.maxlen:
            self.counts.skipped("rows", len(next(iter(self._columns[0].values()), ())))
        self._columns.append(snapshot(content, params))
        self.counts.read_inputs(time.thread_time() - began_s)

    def gave(self, asked: Asked | None, content: Any, answer: Any, seconds: float) -> None:
        """The model has answered; its first clip is kept where one is wanted."""
        if asked is not None:
            asked.is_done = True
        self.counts.predicted(seconds, rows=row_count(content), frames=frame_count(answer))
        if self._wants_clip:
            self._clip = first_clip(answer)
            self._wants_clip = self._clip is None
        else:
            self.counts.skipped("answers")

    # In the thread

    def _parts(self) -> dict[str, Callable[[], None]]:
        return {
            "inputs": self._begin_inputs,
            "monitoring run": self._begin_run,
            "endpoint": self._begin_endpoint,
        }

    def _begin_inputs(self) -> None:
        kept = Path(TrackingConfig().journal_dir).absolute().parent / "monitoring"
        self._inputs = InputWatch(self._folder, kept / self.served.file_name())

    def _begin_run(self) -> None:
        self._run = MonitoringRun(self.served, self._settings)
        threading.Thread(target=attempted, args=(self._ask_places,), daemon=True).start()

    def _ask_places(self) -> None:
        self._places = places_of(self.served)

    def _begin_endpoint(self) -> None:
        if self._settings.port:
            from opusclip_mlops.monitoring.endpoint import serve

            url = serve(self, host=self._settings.host, first_port=self._settings.port)
            print(f"opusclip: {self.served.title} is watched: {url}", file=sys.stderr, flush=True)

    def _go_on(self) -> None:
        with suppress(OSError):
            # To Linux a thread is a process: this one goes behind those that answer.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        next_s = time.monotonic() + self._settings.interval_s
        while not self._stop.wait(min(_ROUND_S, self._settings.interval_s)):
            self._do("inputs", self._take_inputs)
            self._do("clips", self._look)
            if time.monotonic() >= next_s:
                self._do("run", self._report)
                next_s = max(next_s, time.monotonic() - self._settings.interval_s)
                next_s += self._settings.interval_s
        self._do("inputs", self._take_inputs)

    def _do(self, part: str, work: Callable[[], None]) -> None:
        began_s = time.thread_time()
        if attempted(work):
            self.counts.fault(part)
        self.counts.spent("background", time.thread_time() - began_s)

    def _take_inputs(self) -> None:
        while self._columns and self._inputs is not None:
            self._inputs.add(self._columns.popleft())

    def _look(self) -> None:
        clip, self._clip = self._clip, None
        if clip is not None:
            began_s = time.monotonic()
            try:
                looks = look_at(clip)
                self.counts.checked(looks.flags)
                self._looks.append(looks.values)
            finally:
                spent_s = time.monotonic() - began_s
                self._next_look_s = began_s + spent_s / self._settings.checks_share
        if not self._wants_clip and time.monotonic() >= self._next_look_s:
            self._wants_clip = True

    def _report(self) -> None:
        with self._reporting:
            self.seen = self._see()
            self._looks = []
            self._log(self._reporter.report(self.seen, time.monotonic()))

    def _log(self, values: Mapping[str, float]) -> None:
        if self._run is not None:
            if places := self._places:
                self._places = {}
                self._run.tag(**places)
            self._run.log(values)

    def _see(self) -> Seen:
        looks = _means(self._looks) if self._looks else self.seen.looks
        inputs = self._inputs
        if inputs is None:
            return Seen({}, looks)
        rows = inputs.reference.rows if inputs.reference else 0
        return Seen(inputs.drift(), looks, rows, inputs.rows, inputs.origin)

    def _tell(self, what: str, fault: Exception) -> None:
        self.counts.fault(what)
        line = one_line(f"{type(fault).__name__}: {fault}")
        print(f"opusclip: served without {what}: {line}", file=sys.stderr, flush=True)


def _means(looks: list[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in looks for name in one)
    held = {name: [one[name] for one in looks if name in one] for name in names}
    return {name: sum(values) / len(values) for name, values in held.items()}
