"""Makes all checks at once, each in a thread of its own that nobody waits for longer than it may.

A thread that hangs is left behind: it ends with the process.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from opusclip_mlops.doctor.findings import Check, Finding, Subject, Told, failed, skipped
from opusclip_mlops.faults import attempted
from opusclip_mlops.redaction import one_line

LONGEST_S = 28.0
"""How long all checks together may take."""

Show = Callable[[str, int, int], None]
"""Called with the check that has ended, how many have, and how many there are."""


def examine(checks: Sequence[Check], subject: Subject, *, show: Show) -> list[Finding]:
    """Make the checks; findings in the order of the checks, without credentials."""
    round_ = _Round(subject, {one.name: one for one in checks})
    for number, finding in enumerate(round_.findings(), 1):
        show(finding.check, number, len(checks))
    return [round_.done[one.name] for one in checks]


@dataclass
class _Round:
    """Checks that wait, run and have ended."""

    subject: Subject
    waiting: dict[str, Check]
    running: dict[str, float] = field(default_factory=dict)
    done: dict[str, Finding] = field(default_factory=dict)
    _ended: queue.SimpleQueue[Finding] = field(default_factory=queue.SimpleQueue)
    _end_s: float = field(default_factory=lambda: time.monotonic() + LONGEST_S)

    def findings(self) -> Iterator[Finding]:
        """What was found, as it is found."""
        while self.waiting or self.running:
            yield from self._begin()
            if self.running:
                yield from self._next()

    def _begin(self) -> Iterator[Finding]:
        """Begin what waits for nothing any more, or skip it."""
        for check in sorted(self.waiting.values(), key=lambda one: one.alone):
            before = self.done.get(check.after) if check.after else None
            if check.after and before is None:
                continue
            if before is not None and before.state in ("failed", "skipped"):
                del self.waiting[check.name]
                yield self._close(check.name, skipped(_because(before)))
            elif not (check.alone and self.running):
                del self.waiting[check.name]
                self._start(check)

    def _start(self, check: Check) -> None:
        self.running[check.name] = min(time.monotonic() + check.deadline_s, self._end_s)
        threading.Thread(
            target=_look, args=(check, self.subject, self._ended), name=check.name, daemon=True
        ).start()

    def _next(self) -> Iterator[Finding]:
        """Wait for one that ends, or whose time is up."""
        name, until_s = min(self.running.items(), key=lambda item: item[1])
        try:
            found = self._ended.get(timeout=max(0.0, until_s - time.monotonic()))
        except queue.Empty:
            late = failed("no answer in time", "try again; where it stays so, the other side hangs")
            found = dataclasses.replace(late, check=name)
        if found.check in self.running:
            yield self._close(found.check, found)

    def _close(self, name: str, found: Finding) -> Finding:
        self.running.pop(name, None)
        self.done[name] = dataclasses.replace(
            found, check=name, seen=one_line(found.seen), todo=one_line(found.todo)
        )
        return self.done[name]


def _because(before: Finding) -> str:
    return before.seen if before.state == "skipped" else f"{before.check} failed"


def _look(check: Check, subject: Subject, ended: queue.SimpleQueue[Finding]) -> None:
    """Make a check; one that breaks says how."""
    found: list[Finding] = []
    fault = attempted(lambda: found.append(check.look(subject)))
    if isinstance(fault, Told):
        found = [fault.finding]
    elif fault is not None:
        told = f"the check itself broke: {type(fault).__name__}: {fault}"
        found = [failed(told, "please report this line")]
    ended.put(dataclasses.replace(found[0], check=check.name))
