"""What came of a sweep, in lines."""

import contextlib
import sys
from pathlib import Path

import pytest

from opusclip_mlops.sweeps import SweepResult
from opusclip_mlops.sweeps.outcome import TrialOutcome
from opusclip_mlops.sweeps.telling import (
    is_well,
    lines,
    reason_of,
    say_begun,
    say_capped,
    say_going_on,
    say_stopping,
    status_of,
)


def outcome(number: int, state: str, reason: str = "") -> TrialOutcome:
    return TrialOutcome(
        number=number, state=state, value=0.5, values={"x": 1}, run_id="r1", seconds=1.0,
        attempts=1, reason=reason,
    )  # fmt: skip


def result(*trials: TrialOutcome, is_over: bool = True) -> SweepResult:
    return SweepResult(
        name="s", run_id="r0", metric="loss", trials=trials, best=trials[0] if trials else None,
        importances={"x": 0.25, "y": 0.75}, is_over=is_over, folder=Path("f"),
    )  # fmt: skip


def test_the_best_is_told_with_what_it_was_given() -> None:
    """And where the rest is to be found."""
    found = result(outcome(0, "complete"), outcome(1, "failed", "exit code 1"))
    assert is_well(found)
    assert lines(found, "models:/m/1") == [
        "sweep s: 1 complete, 1 failed (run r0)",
        "best: loss 0.5 by trial 0 (x 1; run r1)",
        "importance: y 0.75, x 0.25",
        "  trial 1 failed: exit code 1",
        "  what they printed: f/trials",
        "registered: models:/m/1",
    ]


def test_what_is_left_to_do_is_told() -> None:
    """By the command that goes on."""
    found = result(outcome(0, "complete"), outcome(1, "waiting"), is_over=False)
    assert not is_well(found)
    assert lines(found, None)[-1] == "go on: opusclip sweep --resume s"
    assert not is_well(result(outcome(0, "failed")))


def test_a_sweep_of_which_no_trial_ended_well_has_failed() -> None:
    """However few they were; after five it is said that no `--resume` helps."""
    assert status_of(result(outcome(0, "complete"))) == "FINISHED"
    assert status_of(result(outcome(0, "complete"), is_over=False)) == "KILLED"
    few = result(*(outcome(number, "failed") for number in range(3)))
    assert status_of(few) == "FAILED"
    many = result(*(outcome(number, "failed") for number in range(5)))
    said = "the first trials all failed: begin a new sweep"
    assert (said in lines(few, None), said in lines(many, None)) == (False, True)


def test_a_sweep_that_begins_is_named_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr: what is on stdout is for scripts."""
    say_begun("s", "r0")
    assert capsys.readouterr() == ("", "sweep s begins (run r0)\n")
    say_going_on("s", "r0")
    assert capsys.readouterr() == ("", "sweep s goes on (run r0)\n")


def test_a_log_without_room_ends_no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has begun to work at it yet: its run would stay as it is, and nobody would know."""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        say_begun("s", "r0")
        say_going_on("s", "r0")
        say_capped(3, 4)
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_who_stops_a_sweep_on_a_terminal_is_told_what_is_waited_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    """In one line; a pipe gets none."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    say_stopping()
    said = "stopping: trials have 30 s to end; Ctrl-C again, from 2 s on, kills them\n"
    assert capsys.readouterr() == ("", said if is_terminal else "")


def test_the_sweeps_run_says_why_it_did_not_finish() -> None:
    """By the first trial's reason, or by what goes on with it."""
    assert reason_of(result(outcome(0, "complete"))) == ""
    failed = result(outcome(0, "failed", "it logged no loss"), outcome(1, "failed", "exit code 1"))
    assert reason_of(failed) == "no trial ended well: trial 0: it logged no loss"
    stopped = result(outcome(0, "waiting"), is_over=False)
    assert reason_of(stopped) == "stopped before it was over; go on: opusclip sweep --resume s"
