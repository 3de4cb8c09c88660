"""Which rank failed first, and what the run's end says of it."""

import pytest

from opusclip_mlops.launching.outcomes import AgentOutcome, Ending, ending_of, exit_words


def outcome(node: int, exit_code: int, **fields: object) -> AgentOutcome:
    """What the agent of a node left."""
    return AgentOutcome(
        node=node, host=f"host{node}", timestamp_ms=1000 + node, exit_code=exit_code, **fields
    )  # type: ignore[arg-type]


def test_the_rank_that_failed_first_is_named() -> None:
    """Not the agents that were ended because of it, nor a rank that failed later."""
    found = [
        outcome(0, -15, stopped_by="SIGTERM"),
        outcome(2, 1, rank=5),
        outcome(1, -9, rank=3, message="boom"),
    ]
    ending = ending_of(1, found)
    assert ending == Ending(status="FAILED", reason="rank 3 on host1: SIGKILL: boom", exit_code=137)


@pytest.mark.parametrize(
    ("exit_code", "found", "stopped_by", "expected"),
    [
        (0, [outcome(0, 0)], "time", ("FINISHED", "", 0)),
        (143, [outcome(0, 1, rank=0)], "the time was over", ("KILLED", "the time was over", 143)),
        (-15, [outcome(0, -15, stopped_by="SIGTERM")], "", ("KILLED", "SIGTERM ended", 143)),
        (1, [outcome(0, 1, message="no store")], "", ("FAILED", "host0: no store", 1)),
        (-9, [], "", ("FAILED", "torchrun: SIGKILL", 137)),
    ],
)
def test_an_end_says_what_ended_it(
    exit_code: int, found: list[AgentOutcome], stopped_by: str, expected: tuple[str, str, int]
) -> None:
    """Work that was done is done, whatever came at the same time."""
    ending = ending_of(exit_code, found, stopped_by=stopped_by)
    status, reason, code = expected
    assert (ending.status, ending.exit_code) == (status, code)
    assert reason in ending.reason


def test_a_signal_without_a_name_has_its_number() -> None:
    """Real-time signals have none in Python."""
    assert [exit_words(-9), exit_words(-50), exit_words(3)] == [
        "SIGKILL",
        "signal 50",
        "exit code 3",
    ]
