"""Which attempt of which trial counts."""

from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from opusclip_mlops.sweeps.board import Board, attempt_of, retry_attrs


def trial(number: int, state: TrialState = TrialState.RUNNING, **attrs: Any) -> FrozenTrial:
    value = 1.0 if state == TrialState.COMPLETE else None
    made = create_trial(state=state, value=value, user_attrs=attrs)
    made.number = number
    return made


def test_trials_are_numbered_as_they_were_begun() -> None:
    """Further attempts keep the number of the first."""
    failed = trial(0, TrialState.FAIL)
    found = Board.of([failed, trial(1), trial(2, **retry_attrs(failed)), trial(3)])
    assert [[one.number for one in slot.attempts] for slot in found.slots] == [[0, 2], [1], [3]]
    assert [slot.state for slot in found.slots] == ["running"] * 3
    assert attempt_of(found.slots[0].last) == 2


def test_of_two_that_try_again_the_first_counts() -> None:
    """And what follows the other is a double too."""
    failed = trial(0, TrialState.FAIL)
    second = trial(2, TrialState.WAITING, retry_of=0)
    found = Board.of([failed, trial(1, retry_of=0), second, trial(3, retry_of=2)])
    assert [one.number for one in found.slots[0].attempts] == [0, 1]
    assert [one.number for one in found.doubles] == [2, 3]


def test_what_ended_well_needs_no_other_attempt() -> None:
    """A worker was given up that was only slow."""
    found = Board.of([trial(0, TrialState.COMPLETE), trial(1, TrialState.WAITING, retry_of=0)])
    assert found.slots[0].state == "complete"
    assert len(found.doubles) == 1
    assert found.is_over(1)


def test_all_trials_asked_for_must_have_ended() -> None:
    """One that was begun by mistake has not."""
    ended, surplus = trial(0, TrialState.PRUNED), trial(1, TrialState.FAIL, surplus=True)
    found = Board.of([ended, surplus])
    assert found.is_over(1)
    assert not found.is_over(2)
    assert not found.is_over(3)
    assert [slot.is_over for slot in found.slots] == [True, False]
    assert list(found.running(2)) == []
