"""The arithmetic behind the benchmarks' table: what counts as kept, ratios, percentiles, rates."""

import io
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from benchmarks.backlog import new_store
from benchmarks.delivery import Sample, rate
from benchmarks.figures import (
    Figure,
    interval_of,
    number,
    paired_ratios,
    percentile,
    quarters,
    show,
)
from benchmarks.histories import make_run, names
from benchmarks.watching_models import figures_of


def figure(**fields: object) -> Figure:
    """A figure of which a test names only what it is about."""
    return Figure(**{"part": "cost", "what": "a call", "ours": 4.0, "unit": "µs", **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({}, ""),
        ({"at_most": 4.0}, "kept"),
        ({"at_most": 3.9}, "MISSED"),
        ({"at_least": 4.0}, "kept"),
        ({"at_least": 4.1}, "MISSED"),
        ({"theirs": 16.0}, ""),
        ({"theirs": 16.0, "at_most": 0.25}, "kept"),
        ({"theirs": 15.0, "at_most": 0.25}, "MISSED"),
        ({"theirs": 5.0, "at_least": 0.8}, "kept"),
        ({"theirs": 5.1, "at_least": 0.8}, "MISSED"),
        ({"ours": float("nan"), "at_most": 4.0}, "MISSED"),
        ({"ours": 0.0, "theirs": 8.0, "at_least": 0.4}, "MISSED"),
        ({"interval": (3.0, 4.5), "at_most": 4.5}, "kept"),
        ({"interval": (4.6, 9.0), "at_most": 4.5}, "MISSED"),
        ({"interval": (3.0, 9.0), "at_most": 4.5}, "open"),
    ],
)
def test_a_promise_is_kept_up_to_its_bound(fields: dict[str, object], verdict: str) -> None:
    """A bound is one of the ratio where there is a peer, and of the whole interval where one is."""
    assert figure(**fields).verdict == verdict


def test_the_table_names_what_was_missed() -> None:
    """A promise that is not kept is told by name, with its ratio and its bound."""
    output = io.StringIO()
    one = figure(peer="trackio", theirs=8.0, at_most=0.25, note="ten floats")
    show([one], Console(file=output, width=150))
    for told in ("a call (ten floats)", "trackio", "0.5", "<= 0.25", "MISSED"):
        assert told in output.getvalue()


def test_results_hold_the_ratio_and_the_verdict() -> None:
    """Whoever reads results.json need not compute them again."""
    content = figure(peer="floor", theirs=2.0, at_most=3.0).as_json()
    assert (content["ours"], content["ratio"], content["verdict"]) == (4.0, 2.0, "kept")


def test_a_percentile_is_a_value_that_was_measured() -> None:
    """It is the smallest one that so many percent do not exceed, in any order given."""
    values = [*range(100, 0, -1)]
    assert [percentile(values, one) for one in (0, 1, 50, 99, 100)] == [1, 1, 50, 99, 100]
    assert percentile([7.0], 99) == 7.0


def test_ratios_are_of_pairs() -> None:
    """The first by the first, and so on; a missing partner is an error."""
    assert paired_ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="shorter"):
        paired_ratios([1.0, 2.0], [1.0])


def test_an_interval_holds_the_median_and_narrows_with_more_values() -> None:
    """It is the same for the same values, and no wider than they are."""
    few, many = [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0] * 40
    low, high = interval_of(few)
    assert 1.0 <= low < 3.0 < high <= 5.0
    assert interval_of(few) == (low, high)
    narrow_low, narrow_high = interval_of(many)
    assert narrow_high - narrow_low < high - low
    assert interval_of([2.0]) == (2.0, 2.0)


def test_quarters_are_the_ends_of_the_time() -> None:
    """The medians of the first and the last quarter; what lies between does not count."""
    assert quarters([1.0, 3.0, 90.0, 90.0, 90.0, 90.0, 5.0, 7.0]) == (2.0, 6.0)
    assert quarters([4.0]) == (4.0, 4.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.06666, "0.0667"), (4.0, "4"), (998.7, "999"), (1234.6, "1,235")],
)
def test_numbers_show_three_digits(value: float | None, text: str) -> None:
    """Large ones are whole, with thousands set apart."""
    assert number(value) == text


def test_a_rate_counts_from_the_first_sample_to_the_asked_time() -> None:
    """Records are spread evenly between two acknowledgements; ten scalars are in each."""
    samples = [Sample(1.0, 0), Sample(2.0, 0), Sample(3.0, 400), Sample(4.0, 400), Sample(5.0, 600)]
    assert rate(samples, until_s=5.0) == 10 * 600 / 4
    assert rate(samples, until_s=99.0) == 10 * 600 / 4
    assert rate(samples, until_s=3.0) == 10 * 400 / 2
    assert rate(samples, until_s=4.0) == 10 * 500 / 3
    assert rate(samples, until_s=2.0) == 10 * 200 / 1


def test_a_sink_that_began_after_the_others_had_ended_is_rated_over_its_own_time() -> None:
    """There is no time in which another one was at work too."""
    samples = [Sample(5.0, 0), Sample(6.0, 80), Sample(7.0, 100)]
    assert rate(samples, until_s=4.0) == 10 * 100 / 2


def test_a_look_is_what_a_watched_turn_takes_more() -> None:
    """It is told as a part of all steps between two looks, and the control beside it."""
    plain = {"taken_ns": [10] * 4, "cpu_ns": [10] * 4, "faults": [1] * 4, "own_ns": []}
    later = {**plain, "taken_ns": [10, 10, 10, 30]}
    watched = {**plain, "taken_ns": [10, 10, 10, 120], "faults": [1, 1, 1, 8], "own_ns": [0, 0, 0]}
    one = {"watched": watched, "unwatched": plain, "control": plain}
    figures = figures_of([one] * 3, {"peer": [later]}, 1.0)
    found = {one.what.partition(": ")[2] or one.what: one for one in figures}
    assert found["slow-down by the clock"].ours == pytest.approx(100 * 110 / (500 * 10))
    assert found["slow-down by the clock"].verdict == "MISSED"
    assert found["slow-down in processor time"].ours == found["control by the clock"].ours == 0
    assert found["page faults of a look"].ours == 7
    assert found["a look"].ratio == pytest.approx(110 / 20)
    noisy = figures_of([{**one, "control": later}], {}, 1.0)
    assert noisy[1].ours == pytest.approx(100 * 20 / (500 * 12.5))
    slow_hook = {**one, "watched": {**watched, "own_ns": [0, 5, 5, 110]}}
    between = figures_of([slow_hook], {}, 1.0)[0].ours - found["slow-down by the clock"].ours
    assert between == pytest.approx(100 * 5 * 496 / (500 * 10))


def test_a_run_written_past_mlflow_is_read_by_its_client(tmp_path: Path) -> None:
    """Every point is there, the last one of each key is the latest, and the run is over."""
    (tmp_path / "store").mkdir()
    client = MlflowClient(new_store(tmp_path / "store"))
    run = client.get_run(make_run(tmp_path / "store" / "mlflow.db", "0", keys=3, points=12))
    histories = {key: client.get_metric_history(run.info.run_id, key) for key in names(3)}
    assert [[one.step for one in points] for points in histories.values()] == [[0, 1, 2, 3]] * 3
    assert run.data.metrics == {key: points[-1].value for key, points in histories.items()}
    assert run.info.status == "FINISHED"
