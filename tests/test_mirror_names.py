"""What points and the rest are called in mirrors: the line as it is now, the rest beside it."""

import dataclasses
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from opusclip_mlops.folder import CONTROL, Identity
from opusclip_mlops.generations import generation_tag
from opusclip_mlops.metadata import CheckpointMetadata
from opusclip_mlops.mirror_names import (
    FIRST_LINE,
    Names,
    names_in,
    names_of,
)
from opusclip_mlops.points import Point, Points
from opusclip_mlops.records import Metrics, RunStarted, Text
from tests.journeys import append, make_run


def begun(start_ms: int, step: int, made_ms: int, *, rank: int | None = None) -> dict[str, str]:
    """The tag of a generation that went on from a checkpoint of this step and time."""
    about = CheckpointMetadata(name=f"c{step}", step=step, epoch=0, created_ms=made_ms)
    return generation_tag(f"{start_ms}{rank}", start_ms=start_ms, begun_from=about, rank=rank)


# From the first line's 5; from the first line's 3; from the first line's 8 again.
ONCE = begun(200, 5, 105)
TWICE = ONCE | begun(300, 3, 103)
RETURNED = ONCE | begun(300, 8, 108)


def named(tags: dict[str, str], step: int, timestamp_ms: int, key: str = "loss") -> str:
    return names_of(tags).of(key, step=step, timestamp_ms=timestamp_ms)


def test_what_training_went_back_behind_stands_beside_the_line() -> None:
    """Under the generation that logged it; what is on the line keeps its key."""
    assert [named(ONCE, step, 100 + step) for step in (5, 6)] == ["loss", "generation-0/loss"]
    assert named(ONCE, 6, 206) == "loss"
    assert [named(TWICE, step, 100 + step) for step in (3, 4)] == ["loss", "generation-0/loss"]
    assert named(TWICE, 6, 206) == "generation-1/loss"
    assert named(TWICE, 4, 304) == "loss"
    assert named({}, 6, 106) == "loss"


def test_what_counts_again_has_its_key_again() -> None:
    """Training went on from the first line's 8: its 6 to 8 are on the line, the second's not."""
    assert [named(RETURNED, step, 100 + step) for step in (7, 9)] == ["loss", "generation-0/loss"]
    assert named(RETURNED, 7, 207) == "generation-1/loss"
    before, now = names_of(ONCE), names_of(RETURNED)
    assert before.of("loss", step=7, timestamp_ms=107) == "generation-0/loss"
    assert now.again("generation-0/loss", step=7, timestamp_ms=107) == "loss"


def test_processes_that_train_together_give_nothing_another_name() -> None:
    """The second rank's start is of the generation that the first one's began."""
    first = begun(200, 5, 105, rank=0)
    assert names_of(first) == names_of(first | begun(201, 5, 105, rank=1))


def test_what_the_machine_uses_keeps_its_key() -> None:
    """Beside values of training in one log call as well."""
    call = Metrics(150, 900, {"system/cpu": 1.0, "loss": 2.0})
    assert names_of(ONCE).record(call).values == {"system/cpu": 1.0, "generation-0/loss": 2.0}
    assert names_of({}).record(call) == call


POINTS = st.lists(
    st.builds(
        Point,
        st.sampled_from(["loss", "system/cpu", "generation-0/loss", "metrics/generation-1/x"]),
        st.integers(0, 12),
        st.integers(90, 320),
        st.just(1.0),
    )
)


@given(points=POINTS, tags=st.sampled_from([{}, ONCE, TWICE, RETURNED]))
def test_points_as_columns_are_named_as_one_by_one(
    points: list[Point], tags: dict[str, str]
) -> None:
    """In the order they stand in; named again as another line they are as if never named before."""
    names = names_of(tags)
    found = names.points(Points.of(points))
    assert listed(found) == [
        dataclasses.replace(p, key=names.of(p.key, step=p.step, timestamp_ms=p.timestamp_ms))
        for p in points
    ]
    assert names.fit(found)
    for other in (FIRST_LINE, names_of(TWICE), names_of(RETURNED)):
        again = other.points_again(found)
        assert listed(again) == listed(other.points(Points.of(points)))
        assert other.fit(found) == (listed(again) == listed(found))


def listed(points: Points) -> list[Point]:
    rows = points.rows.tolist()
    return [Point(points.keys[key], *others) for key, *others in rows]


def test_a_record_is_named_and_else_as_it_was() -> None:
    """A text as well as a log call."""
    text = Text(109, 9, "notes", "what was seen")
    assert names_of(ONCE).record(text) == msgspec.structs.replace(text, key="generation-0/notes")


def test_who_logs_here_is_known_beside_what_mlflow_has_said(tmp_path: Path) -> None:
    """A generation that was begun on this machine, and one that MLflow told of."""
    folder = make_run(tmp_path)
    assert names_in(folder) == FIRST_LINE
    start = RunStarted("s2", "h", 1, 1.0, 300, tags=begun(300, 3, 103) | {"team": "true"})
    append(folder, [start], journal="s2" + CONTROL)
    folder.write_identity(Identity(mirror_id="m", experiment_name="films", generations=ONCE))
    assert names_in(folder) == names_of(TWICE)
    assert isinstance(names_in(folder), Names)
