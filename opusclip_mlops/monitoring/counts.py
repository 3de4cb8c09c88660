"""What a process that serves has counted since it began; safe to call from any thread."""

from __future__ import annotations

import bisect
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""The upper ends of the histograms' buckets, in seconds; one more holds the rest."""

MOST_KINDS = 32
"""So many kinds of errors have a name; the others are "other"."""

_MOST_KEPT = 4096
_LONGEST_KIND = 64


class Reservoir:
    """As many of the values added as there is room for, each with the same chance.

    Args:
        room: How many are kept, 1 or more.
        seed: The same seed and values keep the same ones.
    """

    def __init__(self, room: int, *, seed: int = 0) -> None:
        self._room = room
        self._draw = random.Random(seed)
        self._seen = 0
        self.values: list[float] = []

    def add(self, value: float) -> None:
        """Keep a value, or not."""
        self._seen += 1
        if len(self.values) < self._room:
            self.values.append(value)
        elif (place := self._draw.randrange(self._seen)) < self._room:
            self.values[place] = value

    def taken(self) -> list[float]:
        """What is kept, in order of size; the next values begin anew."""
        values, self.values, self._seen = sorted(self.values), [], 0
        return values


@dataclass(slots=True)
class Times:
    """How long something took: how often it fell into each bucket, and the sum in seconds."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total_s: float = 0.0
    recent: Reservoir = field(default_factory=lambda: Reservoir(_MOST_KEPT))

    def add(self, seconds: float) -> None:
        """Count one."""
        self.buckets[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        self.total_s += seconds
        self.recent.add(seconds)


@dataclass(slots=True, eq=False)
class Asked:
    """A request while it is answered.

    Attributes:
        is_waiting: The model has not been asked yet.
        is_done: The model has answered.
        kind: Why the model could not answer, "" so far.
    """

    is_waiting: bool = True
    is_done: bool = False
    kind: str = ""

    def error(self, status: int) -> str:
        """The kind of error that it ended with, "" for an answer."""
        if 0 < status < 400:
            return ""
        if status in (0, 504):
            return "timeout" if status else "disconnected"
        if self.kind:
            return self.kind
        if self.is_done:
            return "unsendable_answer"
        return "server_error" if status >= 500 else "refused_by_mlflow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The numbers at one moment; counts since the process began, times in seconds."""

    requests: Mapping[str, int]
    errors: Mapping[str, int]
    skipped: Mapping[str, int]
    flagged: Mapping[str, int]
    faults: Mapping[str, int]
    spent_s: Mapping[str, float]
    request_buckets: tuple[int, ...]
    request_total_s: float
    predict_buckets: tuple[int, ...]
    predict_total_s: float
    in_flight: int
    waiting: int
    rows: int
    frames: int
    clips_checked: int


class Counts:
    """Counts requests, what they were answered with, and what watching them cost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._flagged: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._spent_s: defaultdict[str, float] = defaultdict(float)
        self._request, self._predict = Times(), Times()
        self._in_flight = self._waiting = self._rows = self._frames = self._checked = 0
        self._peak_in_flight = self._peak_waiting = 0
        self._inputs_s: float = 0.0

    def arrived(self) -> None:
        """A request came."""
        with self._lock:
            self._in_flight += 1
            self._waiting += 1
            self._peak_in_flight = max(self._peak_in_flight, self._in_flight)
            self._peak_waiting = max(self._peak_waiting, self._waiting)

    def begun(self, asked: Asked) -> None:
        """The model is asked."""
        with self._lock:
            self._end_wait(asked)

    def predicted(self, seconds: float, *, rows: int, frames: int) -> None:
        """The model answered so many rows, with so many frames where that is known."""
        with self._lock:
            self._predict.add(seconds)
            self._rows += rows
            self._frames += frames

    def answered(self, asked: Asked, *, status: int, seconds: float) -> None:
        """A request was answered with an HTTP status, 0 when nobody waits for the answer."""
        kind = asked.error(status)
        with self._lock:
            self._end_wait(asked)
            self._in_flight -= 1
            self._requests[str(status)] += 1
            self._request.add(seconds)
            if kind:
                self._errors[self._known(kind)] += 1

    def checked(self, flags: Mapping[str, bool]) -> None:
        """A clip was looked at, and this is what it was flagged as or not."""
        with self._lock:
            self._checked += 1
            self._flagged.update({name: int(is_so) for name, is_so in flags.items()})

    def skipped(self, what: str, count: int = 1) -> None:
        """So many rows or clips were not looked at, for want of time."""
        with self._lock:
            self._skipped[what] += count

    def fault(self, part: str) -> None:
        """A part of the watching failed."""
        with self._lock:
            self._faults[part] += 1

    def spent(self, part: str, seconds: float) -> None:
        """A part of the watching took so long."""
        with self._lock:
            self._spent_s[part] += seconds

    def may_read_inputs(self, share: float, *, free_s: float) -> bool:
        """Whether reading inputs took at most what is free and a share of what the model took."""
        with self._lock:
            return self._inputs_s <= free_s + share * self._predict.total_s

    def read_inputs(self, seconds: float) -> None:
        """Reading inputs took so long; the time is part of a request's."""
        with self._lock:
            self._inputs_s += seconds

    def tally(self) -> Tally:
        """The numbers now."""
        with self._lock:
            return Tally(
                requests=dict(self._requests),
                errors=dict(self._errors),
                skipped=dict(self._skipped),
                flagged=dict(self._flagged),
                faults=dict(self._faults),
                spent_s=dict(self._spent_s),
                request_buckets=tuple(self._request.buckets),
                request_total_s=self._request.total_s,
                predict_buckets=tuple(self._predict.buckets),
                predict_total_s=self._predict.total_s,
                in_flight=self._in_flight,
                waiting=self._waiting,
                rows=self._rows,
                frames=self._frames,
                clips_checked=self._checked,
            )

    def recent(self) -> tuple[list[float], list[float], int, int]:
        """Since the last call: times of requests and of the model, most in flight and waiting."""
        with self._lock:
            peaks = self._peak_in_flight, self._peak_waiting
            self._peak_in_flight, self._peak_waiting = self._in_flight, self._waiting
            return self._request.recent.taken(), self._predict.recent.taken(), *peaks

    def _end_wait(self, asked: Asked) -> None:
        self._waiting -= asked.is_waiting
        asked.is_waiting = False

    def _known(self, kind: str) -> str:
        kind = kind[:_LONGEST_KIND]
        has_room = len(self._errors) < MOST_KINDS
        return kind if has_room or kind in self._errors else "other"
