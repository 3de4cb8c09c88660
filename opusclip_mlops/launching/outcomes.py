"""How a launch ended: which rank failed first, or what ended it from outside."""

import signal
from collections.abc import Iterable
from typing import Literal

import msgspec

Status = Literal["FINISHED", "FAILED", "KILLED"]

STOPPED_BY_US = 143
"""The exit code of what a SIGTERM ended: 128 + 15."""


class AgentOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How the ranks of one node ended, as the agent that started them saw it.

    Attributes:
        node: The node's number.
        host: Its name.
        timestamp_ms: When, by that node's clock; of the first failure where one failed.
        rank: The rank that failed first; None where none did.
        exit_code: The rank's own, negative for a signal; the agent's where no rank failed.
        stopped_by: The signal that ended the agent from outside, such as "SIGTERM".
        message: What the rank's error said, where it said anything.
    """

    node: int
    host: str
    timestamp_ms: int
    exit_code: int
    rank: int | None = None
    stopped_by: str = ""
    message: str = ""

    def __str__(self) -> str:
        if self.rank is None:
            return (
                f"{self.host}: {self.stopped_by or self.message or f'exit code {self.exit_code}'}"
            )
        said = f": {self.message}" if self.message else ""
        return f"rank {self.rank} on {self.host}: {exit_words(self.exit_code)}{said}"


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """What the MLflow run is to say of its end.

    Attributes:
        status: MLflow's word for it.
        reason: One line; empty for FINISHED.
        exit_code: Of the rank that failed first, as a shell would say it; 0 for FINISHED.
        is_guess: Whether nobody knows it: then a tracker that said FINISHED knows better.
    """

    status: Status
    reason: str = ""
    exit_code: int = 0
    is_guess: bool = False

    @property
    def is_good(self) -> bool:
        """Whether everything was done."""
        return self.status == "FINISHED"


def exit_words(exit_code: int) -> str:
    """`exit code 3`, or the name of the signal that a negative one stands for."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


def shell_code(exit_code: int) -> int:
    """The exit code as a shell says it: 128 and the signal's number for a negative one."""
    return exit_code if exit_code >= 0 else 128 - exit_code


def first_failure(outcomes: Iterable[AgentOutcome]) -> AgentOutcome | None:
    """The node whose rank failed first; else one whose agent did; None where none failed."""
    failed = [one for one in outcomes if one.exit_code and not one.stopped_by]
    ranks = [one for one in failed if one.rank is not None]
    return min(ranks or failed, key=lambda one: one.timestamp_ms, default=None)


def ending_of(exit_code: int, outcomes: Iterable[AgentOutcome], *, stopped_by: str = "") -> Ending:
    """How a launch ended whose launcher has this exit code.

    Args:
        exit_code: Negative for a signal.
        outcomes: What the agents left behind, as far as they could.
        stopped_by: What ended it from outside, in words; empty where nothing did.
    """
    if exit_code == 0:
        return Ending(status="FINISHED")
    found = list(outcomes)
    if stopped_by:
        return Ending(status="KILLED", reason=stopped_by, exit_code=shell_code(exit_code))
    if first := first_failure(found):
        return Ending(status="FAILED", reason=str(first), exit_code=shell_code(first.exit_code))
    if stopped := [one for one in found if one.stopped_by]:
        reason = f"{stopped[0].stopped_by} ended torchrun on {stopped[0].host}"
        return Ending(status="KILLED", reason=reason, exit_code=shell_code(exit_code))
    reason = f"torchrun: {exit_words(exit_code)}"
    return Ending(status="FAILED", reason=reason, exit_code=shell_code(exit_code))
