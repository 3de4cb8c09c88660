"""Facts about `opusclip_mlops.compare_words`: what is said of a comparison everywhere."""

import pytest

from opusclip_mlops.compare_words import (
    alike_of,
    apart,
    duration_text,
    judged,
    said_of,
    shortened,
    steps_in_common,
)
from opusclip_mlops.contrasts import Facts, contrasts
from opusclip_mlops.curves import difference
from opusclip_mlops.metric_rows import Measured, MetricRow


def measured(label: str, **fields: object) -> Measured:
    plain = {"points": 1, "not_finite": 0, "superseded": 0, "ends_finite": True}
    return Measured(label=label, **{**plain, **fields})  # type: ignore[arg-type]


def test_a_row_says_what_was_left_out_and_what_is_unlike() -> None:
    """A sentence for the row, and one for each run that has something to be known."""
    row = MetricRow(
        key="val/fid",
        better="lower",
        runs=(measured("B", not_finite=2, ends_finite=False), measured("C", superseded=1000)),
        apart=("count: 16 and 32",),
    )
    assert list(said_of(row)) == [
        "val/fid of B, C was measured otherwise: count: 16 and 32",
        "val/fid of B: 2 NaN or infinite left out, the last among them",
        "val/fid of C: 1,000 left out that training went back behind",
    ]


@pytest.mark.parametrize(
    ("absolute", "better", "word"),
    [(-1.0, "lower", "better"), (-1.0, "higher", "worse"), (0.0, "lower", ""), (1.0, "", "")],
)
def test_a_difference_is_better_or_worse_where_that_is_known(
    absolute: float, better: str, word: str
) -> None:
    """No difference is neither."""
    assert judged(absolute, better) == word


def test_a_difference_has_its_sign_and_percent() -> None:
    """Percent where A's value is not 0; nothing where one of both has no value."""
    one = measured("B", differences={"last": difference(3.0, 4.0), "mean": difference(1.0, 0.0)})
    assert apart(one, "last", "lower") == "-1 (-25 %) better"
    assert apart(one, "mean", "") == "+1"
    assert apart(one, "best", "lower") == ""


def test_what_is_alike_is_what_is_known_and_does_not_differ() -> None:
    """What no run has is not alike but unknown."""
    runs = {
        name: Facts(
            run_id=name, run_name="", status="", start_ms=0, params={"lr": name}, code={"c": "1"}
        )
        for name in ("A", "B")
    }
    assert alike_of(runs, contrasts(list(runs.values()))) == ["code"]


def test_words_are_short() -> None:
    """Steps, durations and texts."""
    assert steps_in_common({"A": [1, 2], "B": [2]}, [2]) == "step 2 in common (steps: A 2, B 1)"
    assert steps_in_common({"A": [1], "B": [2]}, []) == "no step in common (A 1, B 1)"
    assert [duration_text(s) for s in (1.25, 120, 7200, 172_800)] == [
        "1.2 s", "2.0 min", "2.0 h", "2.0 d"
    ]  # fmt: skip
    assert shortened("a\n" * 30, 5) == "a a …"
