"""The generations of a run: which points were given up when training went back to a checkpoint."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusclip_mlops.errors import RecordError
from opusclip_mlops.generations import (
    GENERATION_TAG,
    Generation,
    generation_of,
    generation_tag,
    generations_of,
    is_superseded,
    line_of,
    start_after,
)
from opusclip_mlops.metadata import CheckpointMetadata

DAY_MS = 24 * 3600 * 1000


def begun(start_ms: int, step: int, made_ms: int, session: str = "s") -> dict[str, str]:
    """The tag of a generation that went on from a checkpoint of this step and time."""
    about = CheckpointMetadata(name=f"c{step}", step=step, epoch=0, created_ms=made_ms)
    return generation_tag(session, start_ms=start_ms, begun_from=about)


def steps_now(tags: dict[str, str], points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The points, step and time, that were not superseded."""
    known = generations_of(tags)
    return [
        (step, at)
        for step, at in points
        if not is_superseded(known, key="a", step=step, timestamp_ms=at)
    ]


def test_what_was_logged_behind_the_checkpoint_is_superseded() -> None:
    """Logged to step 10 with a checkpoint at 5, and from there again: the first 6 to 10 are."""
    tags = begun(200, 5, 105)
    assert generations_of(tags) == (
        Generation(number=1, start_ms=200, after_step=5, checkpoint="c5", parent=0),
    )
    first = [(step, 100 + step) for step in range(1, 11)]
    second = [(step, 200 + step) for step in range(6, 11)]
    assert steps_now(tags, first + second) == first[:5] + second
    assert [generation_of(generations_of(tags), at) for at in (199, 200, 10**18)] == [0, 1, 1]


def test_a_run_that_never_went_back_has_nothing_superseded() -> None:
    """Whatever its steps and times."""
    assert generations_of({"opusclip.host": "h"}) == ()
    assert not is_superseded((), key="a", step=2**63 - 1, timestamp_ms=0)
    assert not is_superseded((), key="a", step=-(2**63), timestamp_ms=2**60)


def test_going_back_further_takes_more_with_it() -> None:
    """From 5, and then from 3: steps up to 3 are the first part's, all others the third's."""
    tags = begun(200, 5, 105) | begun(300, 3, 103)
    first = [(step, 100 + step) for step in range(1, 9)]
    second = [(step, 200 + step) for step in range(6, 9)]
    third = [(step, 300 + step) for step in range(4, 9)]
    assert steps_now(tags, first + second + third) == first[:3] + third
    assert [one.parent for one in generations_of(tags)] == [0, 0]


def test_what_was_given_up_counts_again_when_training_returns_to_it() -> None:
    """From 5, then from the first part's 8, which was its best: its 6 to 8 led to what is now."""
    tags = begun(200, 5, 105) | begun(300, 8, 108)
    first = [(step, 100 + step) for step in range(1, 10)]
    second = [(step, 200 + step) for step in range(6, 20)]
    third = [(step, 300 + step) for step in range(9, 12)]
    assert steps_now(tags, first + second + third) == first[:8] + third
    known = generations_of(tags)
    assert line_of(known, 1).holds(key="a", step=12, timestamp_ms=212)
    assert not line_of(known, 1).holds(key="a", step=7, timestamp_ms=107)
    assert line_of(known, 0).holds(key="a", step=9, timestamp_ms=109)
    assert not line_of(known, 0).holds(key="a", step=9, timestamp_ms=309)


def test_what_the_machine_uses_is_never_superseded() -> None:
    """The steps of its metrics count samples."""
    known = generations_of(begun(200, 5, 105))
    assert not is_superseded(known, key="system/cpu", step=900, timestamp_ms=150)
    assert is_superseded(known, key="systematic", step=900, timestamp_ms=150)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", "null", "\0", "\ud800", "[" * 100_000, '{"start_ms": 1}',
        '{"start_ms":1.5,"after_step":5,"checkpoint":"c","checkpoint_ms":1}',
        '{"start_ms":true,"after_step":5,"checkpoint":"c","checkpoint_ms":1}',
        '{"start_ms":1,"after_step":5,"checkpoint":null,"checkpoint_ms":1}',
        '{"start_ms":1,"after_step":9223372036854775808,"checkpoint":"c","checkpoint_ms":1}',
        '{"x":' + "[" * 100_000,
    ],
)  # fmt: skip
def test_a_tag_that_is_rubbish_is_no_generation(text: str) -> None:
    """It is passed over, and the others count as if it were not there."""
    good = begun(200, 5, 105)
    tags = {**good, GENERATION_TAG + "x": text, GENERATION_TAG: text, "opusclip.generation": text}
    assert generations_of(tags) == generations_of(good)


def test_a_tag_of_another_is_no_generation() -> None:
    """Only the name says whose it is."""
    [said] = begun(200, 5, 105).values()
    assert generations_of({"generation.1": said, "opusclip.generations": said}) == ()


def test_a_later_release_may_say_more() -> None:
    """What is not known is passed over."""
    [(name, said)] = begun(200, 5, 105).items()
    assert len(generations_of({name: said[:-1] + ',"more":[{}]}'})) == 1


def test_the_same_beginning_leaves_the_same_tag() -> None:
    """Sent twice it is one generation; two processes that begin at one time are two."""
    assert begun(200, 5, 105) == begun(200, 5, 105)
    tags = begun(200, 5, 105) | begun(200, 5, 105, session="t")
    assert [one.number for one in generations_of(tags)] == [1, 2]


def together(*starts: tuple[int, int | None], step: int = 5) -> list[int]:
    """When the generations began that processes of these times and ranks have gone on in."""
    tags: dict[str, str] = {}
    about = CheckpointMetadata(name=f"c{step}", step=step, epoch=0, created_ms=50)
    for start_ms, rank in starts:
        session = f"{start_ms} {rank}"
        tags |= generation_tag(session, start_ms=start_ms, begun_from=about, rank=rank)
    return [one.start_ms for one in generations_of(tags)]


def test_processes_that_train_together_begin_one_generation() -> None:
    """From its first process on; once one of its ranks is there again, it is the next."""
    assert together((100, 1), (101, 0), (109, 3)) == [100]
    assert together((100, 1), (101, 0), (200, 0), (201, 1)) == [100, 200]
    assert together((100, 7), (200, 7), (300, 7)) == [100, 200, 300]
    assert together((100, None), (101, None), (102, 0), (103, None)) == [100, 101, 102, 103]


def test_who_goes_on_from_another_checkpoint_trains_by_itself() -> None:
    """Whatever its rank."""
    about = CheckpointMetadata(name="c3", step=3, epoch=0, created_ms=50)
    tags = generation_tag("a", start_ms=100, begun_from=about, rank=0)
    other = CheckpointMetadata(name="c5", step=5, epoch=0, created_ms=50)
    tags |= generation_tag("b", start_ms=101, begun_from=other, rank=1)
    assert [one.after_step for one in generations_of(tags)] == [3, 5]


def test_a_checkpoint_with_an_odd_name_or_time_leaves_a_legal_tag() -> None:
    """However long, or of whatever time; a step beyond 64 bits is refused."""
    for name, made_ms in (("x" * 9000, -1), ("\ud800 \0", 2**80), ("", 0)):
        about = CheckpointMetadata(name=name, step=5, epoch=0, created_ms=made_ms)
        tag = generation_tag("s", start_ms=200, begun_from=about)
        [said] = tag.values()
        assert len(said.encode()) < 5000
        assert [one.after_step for one in generations_of(tag)] == [5]
    with pytest.raises(RecordError, match="64 bits"):
        begun(200, 2**63, 105)


@given(
    parts=st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 20), st.integers(0, 50)), max_size=6
    ),
    point=st.tuples(st.integers(-5, 25), st.integers(0, 60)),
    seed=st.randoms(),
)
def test_every_point_has_one_answer(
    parts: list[tuple[int, int, int]], point: tuple[int, int], seed: Any
) -> None:
    """Whatever the tags say and in whatever order, the newest part's own points count."""
    tags: dict[str, str] = {}
    for number, (start_ms, step, made_ms) in enumerate(parts):
        tags |= begun(start_ms, step, made_ms, session=str(number))
    known = generations_of(tags)
    shuffled = list(tags.items())
    seed.shuffle(shuffled)
    assert generations_of(dict(shuffled)) == known
    assert [one.number for one in known] == list(range(1, len(parts) + 1))
    assert all(one.parent < one.number for one in known)
    step, at = point
    superseded = is_superseded(known, key="a", step=step, timestamp_ms=at)
    if generation_of(known, at) == len(known):
        assert not superseded
    lines = [
        line_of(known, number).holds(key="a", step=step, timestamp_ms=at)
        for number in range(len(known) + 1)
    ]
    assert lines[generation_of(known, at)]
    assert superseded is not lines[-1]


def test_a_generation_does_not_begin_before_its_checkpoint() -> None:
    """A clock that was set back counts on from there; one that is a day ahead is not believed."""
    assert start_after(100, now_ms=200) == 200
    assert start_after(200, now_ms=200) == 201
    assert start_after(200 + DAY_MS, now_ms=200) == 201 + DAY_MS
    assert start_after(201 + DAY_MS, now_ms=200) == 200
