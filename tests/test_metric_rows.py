"""Facts about `opusclip_mlops.metric_rows`: a metric of several runs, those that measured alike."""

from collections.abc import Mapping
from typing import cast

import pytest

from opusclip_mlops.curves import Curve, curves_of
from opusclip_mlops.errors import PassportError
from opusclip_mlops.metric_rows import MetricRow, rows_of
from opusclip_mlops.passport_files import PassportFiles
from opusclip_mlops.passports import Passport
from opusclip_mlops.points import Point, Points

Said = Mapping[int, int | str]
"""How many frames each step was measured over; a text for a passport that cannot be read."""


class Kept:
    """Passports as a run keeps them, by step."""

    def __init__(self, said: Said) -> None:
        self._said = said

    def of(self, key: str, *, step: int, timestamp_ms: int) -> Passport | None:
        found = self._said.get(step)
        if isinstance(found, str):
            raise PassportError(f"{key} at {timestamp_ms}: {found}")
        return found and Passport(metric="fid", version="1", count=found, unit="frames")


def curve(*values: float, begin: int = 0) -> Curve:
    points = [Point("m", begin + at, 1000 * at, value) for at, value in enumerate(values)]
    return curves_of(Points.of(points), wanted=lambda _: True)["m"]


def rows(key: str, curves: Mapping[str, Curve], said: Mapping[str, Said]) -> list[MetricRow]:
    files = cast("dict[str, PassportFiles]", {label: Kept(one) for label, one in said.items()})
    starts = dict.fromkeys(curves, 0)
    return list(rows_of(key, curves, files, by="step", starts=starts))


def test_runs_stand_beside_the_first_one() -> None:
    """With differences of last, best and mean, the mean over the steps that all have."""
    [row] = rows("val/loss", {"A": curve(4, 2, 3), "B": curve(1, 1, 1, 1, begin=1)}, {})
    first, second = row.runs
    assert (row.better, row.span, row.apart) == ("lower", (1.0, 2.0), ())
    assert first.best == first.lowest
    assert (first.differences, first.mean, second.mean) == (None, 2.5, 1.0)
    assert second.differences is not None
    assert {name: one.absolute for name, one in second.differences.items()} == {
        "first": -3.0, "last": -2.0, "lowest": -1.0, "highest": -3.0, "best": -1.0, "mean": -1.5
    }  # fmt: skip


def test_a_name_that_says_no_direction_has_no_best() -> None:
    """Lowest and highest are there all the same."""
    [row] = rows("grad/norm", {"A": curve(1, 2), "B": curve(2, 4)}, {})
    assert (row.better, row.runs[1].best) == ("", None)
    assert sorted(row.runs[1].differences or {}) == ["first", "highest", "last", "lowest", "mean"]


def test_values_that_were_measured_unlike_are_in_rows_of_their_own() -> None:
    """It is said how they differ from the first; those that are alike are together again."""
    said = {"A": {0: 16, 1: 16}, "B": {0: 32, 1: 32}, "C": {0: 16, 1: 16}, "D": {}}
    found = rows("fid", {label: curve(2, 1) for label in said}, said)
    assert [[one.label for one in row.runs] for row in found] == [["A", "C"], ["B"], ["D"]]
    assert [row.apart for row in found] == [
        (), ("count: 16 and 32",), ("passport: one has none",)
    ]  # fmt: skip
    assert found[1].runs[0].differences is None


def test_passports_that_are_not_looked_at_keep_nothing_apart() -> None:
    """As where unlike values are allowed."""
    [row] = rows("fid", {"A": curve(2, 1), "B": curve(2, 1)}, {})
    assert [one.label for one in row.runs] == ["A", "B"]


def test_a_run_that_measured_its_own_values_unlike_has_no_best() -> None:
    """Its last value counts, by its own passport; the span of the others' means is theirs."""
    said = {"A": {0: 8}, "B": {0: 16}, "C": {0: 16}}
    curves = {"A": curve(1, 2, 3), "B": curve(1, 1, 1, 1), "C": curve(2, 2, 2, 2)}
    [row] = rows("fid", curves, {k: {**v, 1: 16, 2: 16, 3: 16} for k, v in said.items()})
    first, second, _ = row.runs
    assert first.note == "its own values are unlike: count: 16 and 8"
    assert (first.best, first.lowest, first.mean) == (None, None, None)
    assert row.span == (0.0, 3.0)
    assert (second.mean, list(second.differences or {})) == (1.0, ["last"])


@pytest.mark.parametrize("broken", ["A", "B"])
def test_what_was_measured_nobody_knows_how_is_like_nothing(broken: str) -> None:
    """The reason is told."""
    said: dict[str, Said] = {label: {0: 16, 1: 16} for label in ("A", "B")}
    said[broken] = {1: "rubbish"}
    found = rows("fid", {"A": curve(2, 1), "B": curve(2, 1)}, said)
    assert [[one.label for one in row.runs] for row in found] == [["A"], ["B"]]
    assert found[1].apart == ("passport: it cannot be read: fid at 1000: rubbish",)


def test_a_metric_that_is_never_a_number_has_a_row() -> None:
    """Nothing is compared with it, and it is in the way of no other's mean."""
    nan = float("nan")
    curves = {"A": curve(nan, nan), "B": curve(1, 1), "C": curve(2, 2)}
    [row] = rows("loss", curves, {})
    assert (row.runs[0].points, row.runs[0].not_finite, row.runs[0].last) == (0, 2, None)
    assert (row.runs[1].mean, row.runs[1].differences) == (1.0, {})
