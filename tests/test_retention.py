"""Which checkpoints are kept: the newest, the best, those at so many steps; what was before."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opusclip_mlops.checkpoints import CheckpointMetadata
from opusclip_mlops.errors import RecordError
from opusclip_mlops.metadata import BestValue
from opusclip_mlops.retention import Earlier, Retention, better_of
from tests.journeys import make_run

NAN, INF = math.nan, math.inf


def named(*steps: int) -> list[tuple[str, int]]:
    """Checkpoints of these steps."""
    return [(f"c{step}", step) for step in steps]


def test_the_newest_the_named_and_each_at_so_many_steps_are_kept() -> None:
    """All else is left out, the oldest first."""
    saved = named(0, 10, 20, 25, 30, 40, 45)
    assert Retention(last=2, every=20).left_out(saved, {"c25"}) == ["c10", "c30"]
    assert Retention(last=1).left_out(saved) == ["c0", "c10", "c20", "c25", "c30", "c40"]
    assert Retention(last=7).left_out(saved) == []
    assert Retention(last=9).left_out([]) == []


@given(
    steps=st.lists(st.integers(0, 100), unique=True),
    last=st.integers(1, 5),
    every=st.none() | st.integers(1, 40),
    kept=st.sets(st.integers(0, 100)),
)
def test_what_is_left_out_is_left_out_once(
    steps: list[int], last: int, every: int | None, kept: set[int]
) -> None:
    """Asked again of what is left, nothing more goes; what a rule names never goes."""
    retention, names = Retention(last=last, every=every), {f"c{step}" for step in kept}
    left_out = retention.left_out(named(*steps), names)
    rest = [one for one in named(*steps) if one[0] not in left_out]
    assert retention.left_out(rest, names) == []
    assert [name for name, _ in rest][-last:] == [f"c{step}" for step in steps[-last:]]
    assert not names & set(left_out)
    assert not [name for name in left_out if every and int(name[1:]) % every == 0]


@pytest.mark.parametrize(
    "given",
    [
        {"last": 0}, {"last": -1}, {"last": True}, {"last": 1.0}, {"last": None}, {"every": 0},
        {"every": "3"}, {"best": ("loss", "low")}, {"best": "loss"}, {"best": ("loss",)},
        {"best": (3, "min")}, {"best": ("loss", None)}, {"best": 3},
    ],
)  # fmt: skip
def test_rules_that_are_none_are_refused(given: dict[str, Any]) -> None:
    """The error names the value in one line."""
    with pytest.raises(RecordError, match=r"whole number|best is a metric|mode must be"):
        Retention(**given)


@pytest.mark.parametrize(
    ("old", "new", "mode", "is_better"),
    [
        (0.5, 0.4, "min", True), (0.5, 0.4, "max", False), (0.5, 0.5, "min", False),
        (NAN, 0.5, "min", True), (0.5, NAN, "min", False), (NAN, NAN, "max", False),
        (INF, 0.5, "min", True), (0.5, INF, "max", True), (0.5, -INF, "max", False),
    ],
)  # fmt: skip
def test_the_better_value_is_the_lower_or_the_higher(
    old: float, new: float, mode: str, is_better: bool
) -> None:
    """NaN is better than nothing, and equal values stay with the first."""
    first, second = BestValue("a", old, mode), BestValue("b", new, mode)
    assert better_of({"x": first}, {"x": second})["x"] is (second if is_better else first)


def test_what_stood_in_mlflow_is_kept_for_the_process_that_trains(tmp_path: Path) -> None:
    """Names and best values come back as they were, infinities too; rubbish is nothing."""
    folder = make_run(tmp_path)
    best = {"psnr": BestValue("b", INF, "max"), "val/loss": BestValue("a", 0.1)}
    earlier = Earlier(names=("a", "b"), marked="b", best=best)
    assert Earlier.read(folder) is None
    earlier.write(folder)
    assert Earlier.read(folder) == earlier
    unknown = Earlier(names=("a",), marked="a", is_known=False)
    unknown.write(folder)
    assert Earlier.read(folder) == unknown
    [path] = (folder.path / "sinks").glob("earlier.json")
    for rubbish in (b"", b"{", b"[]", b"\xff", b'{"names": 3}'):
        path.write_bytes(rubbish)
        assert Earlier.read(folder) is None


def test_the_mark_moves_to_what_is_better_than_all_before() -> None:
    """A checkpoint that calls itself best is so only if nothing earlier is as good."""
    earlier = Earlier(names=("a",), marked="a", best={"loss": BestValue("a", 0.3)})

    def about(name: str, value: float, key: str = "loss") -> CheckpointMetadata:
        return CheckpointMetadata(name=name, step=1, epoch=0, best={key: BestValue(name, value)})

    assert earlier.is_beaten_by(about("b", 0.2))
    assert not earlier.is_beaten_by(about("b", 0.3))
    assert earlier.is_beaten_by(about("a", 0.3))
    assert earlier.is_beaten_by(about("b", 9.0, "other"))
    unknown = Earlier(names=("a",), marked="a", is_known=False)
    assert not unknown.is_beaten_by(about("b", 0.2))
    assert unknown.is_beaten_by(about("a", 0.2))


@pytest.mark.parametrize(
    "best", ['["c1", "0.5", "min"]', '["c1", "0.5", "min", "abc"]', '["c1"]', '["c1", "x", "min"]',
             '["c1", "0.5", "min", "abc", true, "later"]', '[]', '3']
)  # fmt: skip
def test_what_another_release_kept_is_read_as_far_as_it_goes(tmp_path: Path, best: str) -> None:
    """Nothing in it stops who trains; what cannot be read is as if it were not there."""
    folder = make_run(tmp_path)
    path = folder.path / "sinks" / "earlier.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'{{"names": ["c1"], "marked": "c1", "best": {{"x": {best}}}}}')
    found = Earlier.read(folder)
    if "0.5" not in best:
        assert found is None
    else:
        passport = "abc" if "abc" in best else ""
        allows = "true" in best
        assert found is not None
        assert found.best == {"x": BestValue("c1", 0.5, "min", passport, allows_unlike=allows)}


def test_unlike_values_are_ranked_where_the_later_one_allows_it() -> None:
    """Also by what comes after: the sink that marks the best, a part of the run that goes on."""
    held = BestValue("a", 5.0, "min", "one")
    better = BestValue("b", 4.0, "min", "two")
    allowed = BestValue("b", 4.0, "min", "two", allows_unlike=True)
    assert better_of({"x": held}, {"x": better}) == {"x": held}
    assert better_of({"x": held}, {"x": allowed}) == {"x": allowed}
    assert better_of({"x": held}, {"x": BestValue("b", 4.0)}) == {"x": held}
    assert better_of({"x": BestValue("b", 4.0)}, {"x": held}) == {"x": BestValue("b", 4.0)}
    earlier = Earlier(names=("a",), marked="a", best={"x": held})
    for own, is_best in ((better, False), (allowed, True)):
        about = CheckpointMetadata(name="b", step=1, epoch=0, best={"x": own})
        assert earlier.is_beaten_by(about) is is_best
        assert earlier.is_beaten_by(CheckpointMetadata.from_dict(about.to_dict())) is is_best
