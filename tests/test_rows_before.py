"""Rows of a mirror that keep their names: whether one of them may have another name now."""

from opusclip_mlops.mirror_names import names_of
from opusclip_mlops.records import Metrics
from opusclip_mlops.rewinding import GOES_BACK
from opusclip_mlops.rows_before import Reach
from tests.sinks.sink_contract import T0_MS
from tests.test_mirror_names import begun

FROM_8 = names_of(begun(T0_MS + 1000, 8, T0_MS + 8))


def given_until(step: int) -> Reach:
    reach = Reach({}, last_step=-1)
    reach.note(Metrics(T0_MS, step, {"loss": 1.0}))
    reach.note(Metrics(T0_MS, 10_000, {"system/cpu": 1.0}))
    return reach


def test_rows_up_to_the_checkpoint_keep_their_names() -> None:
    """What is beyond it has another; samples of the machine have steps of their own."""
    at, beyond = given_until(8), given_until(9)
    for reach in (at, beyond):
        reach.learn(FROM_8)
        reach.note(Metrics(T0_MS + 2000, 9, {"loss": 1.0}))
        reach.learn(FROM_8)
    assert not at.state()[GOES_BACK]
    assert beyond.state()[GOES_BACK]


def test_it_is_known_after_a_new_start() -> None:
    """Of what was logged elsewhere, or by a version that did not note it, the worst is taken."""
    again = Reach(given_until(9).state(), last_step=-1)
    joined = Reach({}, last_step=9)
    older = Reach({"base": 0}, last_step=-1)
    for reach in (again, joined, older):
        reach.learn(FROM_8)
        assert reach.state()[GOES_BACK]


def test_a_generation_in_between_gives_others_their_numbers() -> None:
    """What was superseded before has another number then."""
    tags = begun(T0_MS + 1000, 8, T0_MS + 8)
    reach = given_until(8)
    reach.learn(FROM_8)
    reach.learn(names_of(begun(T0_MS + 500, 8, T0_MS + 7) | tags))
    assert reach.state()[GOES_BACK]


def test_a_row_that_was_there_already_may_have_any_name() -> None:
    """Given again after a crash, it is not sent: a run with generations is looked at."""
    first, later = given_until(8), given_until(8)
    first.note_before(names_of({}))
    later.note_before(FROM_8)
    assert (first.state()[GOES_BACK], later.state()[GOES_BACK]) == (False, True)
