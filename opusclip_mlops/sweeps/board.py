"""Which trials of a sweep there are, which attempt of each counts, and what is left to do.

A trial has a number from 0 on, given in the order in which trials were begun. Where its worker was
lost it is tried again, under the same number and with the same values; of attempts that two workers
asked for at once the first one counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

RETRY_OF, ATTEMPT, LOSSES, WORKER, BEAT, SURPLUS, REASON, RUN_ID, GROUP = (
    "retry_of", "attempt", "losses", "worker", "beat", "surplus", "reason", "run_id", "group",
)  # fmt: skip
"""Optuna's user attributes of an attempt."""

MOST_LOSSES = 4
"""A trial whose workers are lost again and again is given up after so many."""

STOPPED = "its worker was stopped"
"""The reason of an attempt that was ended with the sweep's command, and not by what struck it."""


@dataclass(frozen=True)
class Slot:
    """One trial of a sweep, with its attempts from the first to the last."""

    number: int
    attempts: tuple[FrozenTrial, ...]

    @property
    def last(self) -> FrozenTrial:
        """The attempt that counts."""
        return self.attempts[-1]

    @property
    def is_surplus(self) -> bool:
        """Whether it was begun by mistake: another worker had begun the last one asked for."""
        return self.last.state == TrialState.FAIL and bool(self.last.user_attrs.get(SURPLUS))

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or badly."""
        return self.last.state.is_finished() and not self.is_surplus

    @property
    def state(self) -> str:
        """complete, pruned, failed, running or waiting."""
        names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
        names |= {TrialState.RUNNING: "running", TrialState.WAITING: "waiting"}
        return names.get(self.last.state, "failed")


@dataclass(frozen=True)
class Board:
    """All trials of a sweep.

    Attributes:
        slots: By number; those begun beyond the count that was asked for too.
        doubles: Attempts that do not count, for another worker asked for the same before.
    """

    slots: tuple[Slot, ...]
    doubles: tuple[FrozenTrial, ...]

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial]) -> "Board":
        """Sort what a study holds."""
        lines: list[list[FrozenTrial]] = []
        lines_of: dict[int, list[FrozenTrial]] = {}
        doubles = []
        for trial in trials:
            before = trial.user_attrs.get(RETRY_OF)
            line = [] if before is None else lines_of.get(before)
            # What was tried again already, or has ended well after all, needs no other attempt.
            if line is None or (line and (line[-1].number != before or _is_well(line[-1]))):
                doubles.append(trial)
                continue
            if not line:
                lines.append(line)
            line.append(trial)
            lines_of[trial.number] = line
        slots = (Slot(number, tuple(line)) for number, line in enumerate(lines))
        return cls(tuple(slots), tuple(doubles))

    def asked_for(self, count: int) -> tuple[Slot, ...]:
        """The trials among the first `count`."""
        return self.slots[:count]

    def superseded(self) -> Iterator[FrozenTrial]:
        """Attempts that are not over although another one counts by now."""
        earlier = (one for slot in self.slots for one in slot.attempts[:-1])
        return (one for one in (*self.doubles, *earlier) if not one.state.is_finished())

    def ended(self) -> dict[tuple[int, int], tuple[str, str]]:
        """State and reason of each attempt that is over, by its trial's number and its own."""
        return {
            (slot.number, attempt_of(one)): (
                slot.state if one is slot.last else _earlier_state(one),
                one.user_attrs.get(REASON, ""),
            )
            for slot in self.slots
            for one in slot.attempts
            if one.state.is_finished()
        }

    def is_over(self, count: int) -> bool:
        """Whether that many trials have ended."""
        first = self.asked_for(count)
        return len(first) == count and all(one.is_over for one in first)

    def running(self, count: int) -> Iterator[Slot]:
        """The trials that somebody is said to work at."""
        return (one for one in self.slots[:count] if one.last.state == TrialState.RUNNING)


def _earlier_state(trial: FrozenTrial) -> str:
    return "stopped" if trial.user_attrs.get(REASON) == STOPPED else "lost"


def _is_well(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def attempt_of(trial: FrozenTrial) -> int:
    """How often its trial was tried by then, this time included."""
    return int(trial.user_attrs.get(ATTEMPT, 1))


def losses_of(trial: FrozenTrial) -> int:
    """How many of its trial's workers were lost before; those that were stopped do not count."""
    return int(trial.user_attrs.get(LOSSES, 0))


def retry_attrs(trial: FrozenTrial, *, losses: int = 0) -> dict[str, Any]:
    """What tells the next attempt from all others; `losses` adds to those before."""
    counts = {ATTEMPT: attempt_of(trial) + 1, LOSSES: losses_of(trial) + losses}
    return {RETRY_OF: trial.number, **counts}
