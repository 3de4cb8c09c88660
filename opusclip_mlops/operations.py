"""Where a program's time goes: uses of named operations, added up in the process.

A use leaves its times in a queue of its operation. Whoever ends one when the interval is over adds
all of them up: a million uses are a few points. No use waits for a lock, and there is no thread.
"""

import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, MutableSequence
from contextvars import ContextVar
from dataclasses import dataclass
from threading import get_ident
from time import perf_counter_ns, time_ns
from typing import Any, Protocol, TypeVar

import msgspec

from opusclip_mlops.loop_parts import WORKERS
from opusclip_mlops.operation_sums import Sums, Taken, memory_bytes
from opusclip_mlops.timing import timed
from opusclip_mlops.values import check_key

F = TypeVar("F", bound=Callable[..., Any])

MOST_OPERATIONS = 1000
OTHERS = ("operation", "others")
"""Category and name under which all uses are counted that come after so many different ones."""

_ADD_UP_AT = 512
_NEVER_NS = sys.maxsize
_LOCK_WAIT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """What was timed between two moments, so many seconds apart."""

    seconds: float
    taken: tuple[Taken, ...]


class Operation:
    """Times a block, or each call of the function it decorates; this one does not even that."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, function: F) -> F:
        """The function itself."""
        return function


class Notes(Protocol):
    """Where it is noted what is under way, for the case that the process dies.

    `cells[cell(name)]` is set to the time by `perf_counter_ns` at which the operation of this name
    began, and to 0 when it ends.
    """

    @property
    def cells(self) -> MutableSequence[int] | memoryview:
        """A number for each operation."""

    def cell(self, name: str) -> int:
        """Which number is that of an operation."""


class _NoNotes:
    """Notes that nobody reads."""

    def __init__(self) -> None:
        self.cells = [0]

    def cell(self, _: str) -> int:
        return 0


class Use(msgspec.Struct, gc=False, eq=False):
    """One use that is under way; `mark_ns` is from where its time is not yet counted."""

    operation: "Measured"
    outer: "Use | None"
    started_ns: int
    mark_ns: int
    inner_ns: int = 0
    memory: tuple[int, int | None] | None = None
    thread: int = 0
    is_over: bool = False


class Measured(Operation):
    """An operation that is timed: in threads, tasks, nested and recursively, by one object."""

    __slots__ = (
        "_cell", "_current", "_ended", "_notes", "_open", "_owner", "_sums", "_wants_memory",
        "category", "name",
    )  # fmt: skip

    def __init__(self, category: str, name: str, owner: "Operations") -> None:
        self.category, self.name = category, name
        # The others by themselves: they are reached for in each use.
        self._owner, self._open, self._notes = owner, owner.open, owner.notes
        self._current = owner.current
        self._cell = owner.notes.cell(f"{category}/{name}")
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget all uses."""
        self._ended: deque[tuple[int, int, int]] = deque()
        self._sums = Sums()
        self._wants_memory = True

    def __enter__(self) -> None:
        memory = None
        if self._wants_memory:
            self._wants_memory = False
            memory = memory_bytes()
        outer = self._current.get()
        if outer is not None and outer.is_over:
            # It ended elsewhere, such as in the task that began this one.
            outer = None
        now_ns = perf_counter_ns()
        use = Use(self, outer, now_ns, now_ns, 0, memory, get_ident())
        self._open[use] = None
        self._notes.cells[self._cell] = now_ns
        self._current.set(use)

    def __exit__(self, *_: object) -> None:
        now_ns = perf_counter_ns()
        use = self._current.get()
        if use is None or use.operation is not self or use.is_over:
            use = self._owner.find_open(self)
            if use is None:
                return
        else:
            self._current.set(use.outer)
        use.is_over = True
        self._open.pop(use, None)
        self._notes.cells[self._cell] = 0
        part_ns = now_ns - use.mark_ns
        if use.outer is not None:
            use.outer.inner_ns += part_ns
            use.outer = None
        self._ended.append((now_ns - use.started_ns, part_ns, use.inner_ns))
        if use.memory is not None:
            self._sums.note_memory(use.memory, memory_bytes())
        if now_ns >= self._owner.due_ns or len(self._ended) >= _ADD_UP_AT:
            self._owner.look(now_ns, self)

    def __call__(self, function: F) -> F:
        """The function with each of its calls timed; of a generator, each step to the next item."""
        return timed(function, self)

    def add(self, elapsed_ns: int, within: Use | None = None) -> None:
        """Count a use that was timed by others, as a part of one that is under way."""
        self._ended.append((elapsed_ns, elapsed_ns, 0))
        if within is not None:
            within.inner_ns += elapsed_ns
        now_ns = perf_counter_ns()
        if now_ns >= self._owner.due_ns or len(self._ended) >= _ADD_UP_AT:
            self._owner.look(now_ns, self)

    def depth(self) -> int:
        """How many uses are under way in this task or thread, one inside of the other."""
        use, count = self._current.get(), 0
        while use is not None:
            count += use.operation is self and not use.is_over
            use = use.outer
        return count

    def end_here(self) -> None:
        """End the innermost use of this task or thread, if there is one."""
        if self._owner.within_reach(self) is not None:
            self.__exit__()

    def forget_open(self, count: int = 1) -> None:
        """Drop the innermost uses here that were begun and, by an exception, never ended."""
        for _ in range(count):
            if (use := self._owner.within_reach(self)) is not None:
                self._owner.unlink(use)
                use.is_over = True
                self._open.pop(use, None)

    def add_up(self) -> None:
        """Take the queue's times into the sums; for one thread at a time."""
        ended = self._ended
        self._sums.add([ended.popleft() for _ in range(len(ended))])

    def credit(self, part_ns: int, inner_ns: int) -> None:
        """Count the time so far of a use that goes on."""
        self._sums.credit(part_ns, inner_ns)

    def taken(self, seconds: float, prefix: str) -> Taken | None:
        """What was counted since the last call, None where nothing was."""
        self.add_up()
        sums, self._sums = self._sums, Sums()
        self._wants_memory = True
        return sums.taken(prefix + self.category, self.name, seconds) if sums.busy_ns else None


class Operations:
    """The operations of one run in this process.

    Args:
        log: Takes each interval when it is over; never called by two threads at once.
        interval_s: How long an interval is, in seconds, where something ends or is logged in time.
        prefix: Begins every category.
        by_the_clock: Whether intervals end when those of other processes do, at multiples of it.
        is_on: Whether anything is timed at all.
        notes: Where it is noted what is under way.
    """

    def __init__(
        self,
        log: Callable[[Interval], object],
        *,
        interval_s: float,
        prefix: str = "",
        is_on: bool = True,
        by_the_clock: bool = False,
        notes: Notes | None = None,
    ) -> None:
        self.known: dict[tuple[str, str], Operation] = {}
        self.open: dict[Use, None] = {}
        # The run's own: what another run times inside of an operation is no part of it.
        self.current: ContextVar[Use | None] = ContextVar("opusclip_use", default=None)
        self.prefix = prefix
        self.notes: Notes = notes or _NoNotes()
        self._log: Callable[[Interval], object] | None = log
        self._interval_ns = round(interval_s * 1e9)
        self.is_on = is_on
        self._by_the_clock = by_the_clock
        self._begin(perf_counter_ns())
        if is_on:
            _living.add(self)
            _finish_with(self)

    def _begin(self, now_ns: int) -> None:
        self._lock = threading.Lock()
        self._began_ns = now_ns
        self.due_ns = self._end_ns(now_ns) if self.is_on and self._log else _NEVER_NS

    def _end_ns(self, now_ns: int) -> int:
        """When an interval that begins now is over."""
        past_ns = time_ns() % self._interval_ns if self._by_the_clock else 0
        return now_ns + self._interval_ns - past_ns

    def named(self, category: str, name: str) -> Operation:
        """The operation of this name, always the same object.

        Raises:
            RecordTypeError: a name that is no text.
            RecordError: a name that is no legal key.
        """
        known = self.known.get((category, name))
        if known is not None:
            return known
        for text in (category, name):
            check_key(text)
        check_key(f"profiling/{WORKERS}{category}/{name}/rss_change_megabytes")
        if len(self.known) >= MOST_OPERATIONS:
            category, name = OTHERS
        made = Measured(category, name, self) if self.is_on else Operation()
        return self.known.setdefault((category, name), made)

    def open_uses(self) -> list[tuple[str, float]]:
        """What is under way, the first begun first: category and name, and for how many seconds."""
        now_ns, uses = perf_counter_ns(), list(self.open)
        return [
            (f"{use.operation.category}/{use.operation.name}", (now_ns - use.started_ns) / 1e9)
            for use in uses
        ]

    def find_open(self, operation: Measured) -> Use | None:
        """The use that ends now, where it is not the last that was begun here."""
        use = self.within_reach(operation)
        if use is not None:
            self.unlink(use)
            return use
        # Begun in another task, or in another thread.
        found = [one for one in list(self.open) if one.operation is operation]
        thread = get_ident()
        return next((one for one in found if one.thread == thread), found[0] if found else None)

    def within_reach(self, operation: Measured) -> Use | None:
        """The innermost use of an operation that is under way in this task or thread."""
        use = self.current.get()
        while use is not None and (use.operation is not operation or use.is_over):
            use = use.outer
        return use

    def unlink(self, use: Use) -> None:
        """Take a use out of those that this task or thread is in."""
        inner = self.current.get()
        if inner is use:
            self.current.set(use.outer)
            return
        while inner is not None and inner.outer is not use:
            inner = inner.outer
        if inner is not None:
            inner.outer = use.outer

    def look(self, now_ns: int, operation: Measured | None = None) -> None:
        """End the interval if it is over, else take in what waits of one operation."""
        if self._lock.acquire(blocking=False):
            try:
                if now_ns >= self.due_ns:
                    self._end_interval(now_ns)
                elif operation is not None:
                    operation.add_up()
            finally:
                self._lock.release()

    def flush(self) -> None:
        """End the interval now."""
        if self._log is not None and self._lock.acquire(timeout=_LOCK_WAIT_S):
            try:
                self._end_interval(perf_counter_ns())
            finally:
                self._lock.release()

    def stop(self) -> None:
        """Log nothing more; what is timed from now on is forgotten."""
        self._log, self.due_ns = None, _NEVER_NS
        self.open.clear()

    def _end_interval(self, now_ns: int) -> None:
        seconds = max(now_ns - self._began_ns, 1) / 1e9
        self._began_ns, self.due_ns = now_ns, self._end_ns(now_ns)
        self._credit_open(now_ns)
        measured = [one for one in list(self.known.values()) if isinstance(one, Measured)]
        taken = (one.taken(seconds, self.prefix) for one in measured)
        interval = Interval(seconds=seconds, taken=tuple(one for one in taken if one is not None))
        if self._log is not None:
            self._log(interval)

    def _credit_open(self, now_ns: int) -> None:
        """Count the time so far of what is under way: of what is inside before what it is in."""
        parts = [(use, now_ns - use.mark_ns) for use in list(self.open)]
        for use, part_ns in parts:
            use.mark_ns = now_ns
            if use.outer is not None:
                use.outer.inner_ns += part_ns
        for use, part_ns in parts:
            inner_ns, use.inner_ns = use.inner_ns, 0
            use.operation.credit(part_ns, inner_ns)

    def begin_in_child(self) -> None:
        """Begin anew in a forked child: what the parent timed is the parent's."""
        self.open.clear()
        self.current.set(None)
        self.prefix = WORKERS
        for one in list(self.known.values()):
            if isinstance(one, Measured):
                one.begin_anew()
        self._begin(perf_counter_ns())
        _finish_with(self)


_living: "weakref.WeakSet[Operations]" = weakref.WeakSet()


def _begin_in_child() -> None:
    for one in list(_living):
        one.begin_in_child()


os.register_at_fork(after_in_child=_begin_in_child)


def _finish_with(operations: Operations) -> None:
    """Have a child that multiprocessing ends, without the interpreter's own end, flush before."""
    library: Any = sys.modules.get("multiprocessing.util")
    if library is not None:
        # A spawned child comes here as it begins, a forked one before it forgets what it was to do.
        _finish_at_end(operations)
        library.register_after_fork(operations, _finish_at_end)


def _finish_at_end(operations: Operations) -> None:
    library: Any = sys.modules["multiprocessing.util"]
    library.Finalize(None, _flush, args=(weakref.ref(operations),), exitpriority=0)


def _flush(known: "weakref.ref[Operations]") -> None:
    if (operations := known()) is not None:
        operations.flush()
