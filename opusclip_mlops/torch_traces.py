"""torch.profiler over some steps of a loop: a trace to look at, and the slowest operators."""

import atexit
import gc
import gzip
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.faults import attempted
from opusclip_mlops.trace_events import STEP, decoded, memory_counters, top_operators

if TYPE_CHECKING:
    from torch.profiler import record_function

TRACE_KEY, OPERATORS_KEY = "profiling/trace", "profiling/top_operators"
TRACE_FILE = "trace.json.gz"

_MOST_PARSED_BYTES = 512 * 2**20
_FASTEST = 1  # of gzip's levels: the training thread waits


@dataclass(frozen=True, eq=False)
class Trace:
    """What torch.profiler found over some steps.

    Attributes:
        steps: The first and the last step that are in it.
        document: The Chrome trace, gzip JSON; Perfetto opens it.
        operators: Rows in the order of `trace_events.COLUMNS`, the slowest first.
        total_us: The time of all operators, and between them, by "cpu" and "gpu".
        made_by: The profiler and its version.
    """

    steps: tuple[int, int]
    document: bytes
    operators: list[list[Any]]
    total_us: dict[str, float]
    made_by: str

    def content(self) -> dict[str, Any]:
        """What stands in the record of the trace, in JSON values."""
        return {
            "steps": list(self.steps),
            "top_operators_key": OPERATORS_KEY,
            "total_us": self.total_us,
            "made_by": self.made_by,
        }


class Recording:
    """torch.profiler at work in this thread, from now until `end`.

    Args:
        step: The step that begins now.

    Attributes:
        last_step: The last step that has begun.

    Raises:
        OpusclipError: another profiler is at work in this thread.
    """

    def __init__(self, step: int) -> None:
        from torch.profiler import profile

        if _is_profiled():
            raise OpusclipError("another profiler is at work: nothing is profiled here")
        self._first = self.last_step = step
        self._place = (os.getpid(), threading.get_ident())
        self._profile = profile(profile_memory=True)
        self._mark: record_function | None = None
        self._profile.start()
        self._begin(step)

    def is_here(self) -> bool:
        """Whether this is the thread, and the process, that is profiled."""
        return self._place == (os.getpid(), threading.get_ident())

    def go_on(self, step: int) -> None:
        """End a step and begin another."""
        self._leave()
        self._begin(step)

    def end(self, folder: Path) -> Trace:
        """Stop the profiler and read what it found; `folder` is for what is written on the way.

        Raises:
            OpusclipError: another profiler took its place, this is another thread, or the trace
                can't be read.
            OSError: the disk could not take it.
        """
        self._stop()
        try:
            return self._read(decoded(self._exported(folder)))
        except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError) as error:
            raise OpusclipError(f"the trace is not whole: {_line(error)}") from None

    def _read(self, trace: dict[str, Any]) -> Trace:
        """What a trace says, and the trace with the memory as a line, without a path of ours."""
        events = trace["traceEvents"]
        operators, total_us = top_operators(events)
        trace.update(traceName=TRACE_FILE, traceEvents=[*events, *memory_counters(events)])
        document = gzip.compress(msgspec.json.encode(trace), compresslevel=_FASTEST, mtime=0)
        return Trace((self._first, self.last_step), document, operators, total_us, _made_by())

    def _begin(self, step: int) -> None:
        from torch.profiler import record_function

        self.last_step = step
        self._mark = record_function(f"{STEP}{step}")
        self._mark.__enter__()  # type: ignore[no-untyped-call]

    def _leave(self) -> None:
        mark, self._mark = self._mark, None
        if mark is not None:
            mark.__exit__(None, None, None)

    def _stop(self) -> None:
        if not self.is_here():
            # Where it runs on when Python ends, Python crashes: its own thread may end it then.
            atexit.register(self._abandon)
            raise OpusclipError("the profiled steps are ended by another thread: no trace is kept")
        self._leave()
        if self._is_displaced() or not _is_profiled():
            raise OpusclipError(
                "another profiler was begun in the profiled steps: no trace is kept"
            )
        self._profile.stop()

    def _abandon(self) -> None:
        if self.is_here() and _is_profiled() and not self._is_displaced():
            self._leave()
            self._profile.stop()

    def _is_displaced(self) -> bool:
        """Whether another profiler, begun later, is at work: to stop ours would stop that one."""
        from torch.autograd.profiler import profile

        ours = self._profile.profiler
        assert ours is not None  # since it was started
        others = (one for one in gc.get_objects() if type(one) is profile and one is not ours)
        at_work = (one for one in others if one.kineto_results is None)
        return any(one.profiling_start_time_ns > ours.profiling_start_time_ns for one in at_work)

    def _exported(self, folder: Path) -> bytes:
        """The trace as JSON."""
        with tempfile.TemporaryDirectory(dir=folder) as own:
            path = Path(own, "trace.json")
            try:
                self._profile.export_chrome_trace(str(path))
            except RuntimeError as error:
                raise OpusclipError(f"the trace cannot be written: {_line(error)}") from None
            document = path.read_bytes()
        if len(document) > _MOST_PARSED_BYTES:
            raise OpusclipError(
                f"the trace has {len(document):,} bytes: at most {_MOST_PARSED_BYTES:,} are kept,"
                " so profile fewer steps"
            )
        return document


class StepProfiler:
    """Profiles the steps from `first` up to `end`, which is not among them, once.

    A context manager too: then steps are counted from 0, and `step()` ends each of them. Steps that
    another thread says while one is at it are not counted.

    Args:
        first: The first step to profile.
        end: The step after the last, at most 100 later.
        folder: Where is written what is in the way; private to the user.
        keep: Takes the trace.
        tell: Takes what stood in the way, whatever it is; training goes on.
    """

    def __init__(
        self,
        first: int,
        end: int,
        *,
        folder: Path,
        keep: Callable[[Trace], None],
        tell: Callable[[Exception], None],
    ) -> None:
        self._first, self._end = first, end
        self._folder, self._keep, self._tell = folder, keep, tell
        self._pid = os.getpid()
        self._recording: Recording | None = None
        self._next = 0
        self._latest: int | None = None
        # By a signal's handler the same thread may come once more.
        self._turn = threading.RLock()
        self.is_done = False

    def __enter__(self) -> Self:
        self.begin(0)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def step(self) -> None:
        """Say that a step of the block has ended."""
        self._next += 1
        self.begin(self._next)

    def begin(self, step: int) -> None:
        """Say that a step begins, and that all before it have ended."""
        if self.is_done or os.getpid() != self._pid or not self._turn.acquire(blocking=False):
            return
        try:
            self._come_to(step)
        finally:
            self._turn.release()

    def _come_to(self, step: int) -> None:
        if self.is_done:
            return
        if self._recording is None:
            self._start(step)
        elif self._recording.is_here():
            self._go_on(self._recording, step)
        self._latest = step

    def stop(self) -> None:
        """End what is profiled, and keep what there is; nothing is profiled afterwards."""
        if os.getpid() == self._pid:
            with self._turn:
                self._finish()

    def _finish(self) -> None:
        recording, self._recording = self._recording, None
        self.is_done = True
        if recording is not None:
            self._try(lambda: self._keep(recording.end(self._folder)))

    def _start(self, step: int) -> None:
        apart = 1 if self._latest is None else step - self._latest
        # Where logs lie so far apart, far more steps than were asked for would pass until the end.
        if step >= self._end or (step >= self._first and apart > self._end - self._first):
            self.is_done = True
            steps = f"steps {self._first} to {self._end - 1}"
            why = f"{steps} passed without a log of each: profile them with tracker.profiled"
            self._tell(OpusclipError(why))
        elif step >= self._first:
            self._try(lambda: self._record(step))

    def _record(self, step: int) -> None:
        self._recording = Recording(step)

    def _go_on(self, recording: Recording, step: int) -> None:
        if step >= self._end:
            self._finish()
        elif step > recording.last_step:
            self._try(lambda: recording.go_on(step))

    def _try(self, action: Callable[[], None]) -> None:
        """Do it; a fault of the profiler, whatever it is, is told and ends it."""
        if fault := attempted(action):
            self.is_done = True
            self._tell(fault)


def _is_profiled() -> bool:
    """Whether a profiler, anybody's, is at work in this thread."""
    import torch

    return bool(torch.autograd._profiler_enabled())  # type: ignore[attr-defined]


def _made_by() -> str:
    import torch

    return f"torch.profiler {torch.__version__}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
