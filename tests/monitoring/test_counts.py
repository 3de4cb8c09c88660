"""Counting: nothing is lost or counted twice, from any thread, in any order."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from opusclip_mlops.monitoring.counts import BUCKETS_S, MOST_KINDS, Asked, Counts, Reservoir


def asked(**fields: object) -> Asked:
    """A request of which a test names only what it is about."""
    return Asked(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "status", "kind"),
    [
        (asked(), 200, ""),
        (asked(), 400, "refused_by_mlflow"),
        (asked(), 500, "server_error"),
        (asked(), 0, "disconnected"),
        (asked(kind="KeyError"), 504, "timeout"),
        (asked(kind="KeyError"), 400, "KeyError"),
        (asked(is_done=True), 500, "unsendable_answer"),
    ],
)
def test_an_error_has_one_kind(request_: Asked, status: int, kind: str) -> None:
    """Time goes before what the model raised; an answer that was made and not sent is another."""
    assert request_.error(status) == kind


def test_a_request_waits_until_the_model_begins() -> None:
    """One that is over before that waits no longer either, and what begins late changes nothing."""
    counts, first, second = Counts(), Asked(), Asked()
    counts.arrived()
    counts.arrived()
    counts.begun(first)
    assert (counts.tally().in_flight, counts.tally().waiting) == (2, 1)
    counts.answered(second, status=504, seconds=1.0)
    counts.begun(second)
    counts.answered(first, status=200, seconds=0.5)
    assert (counts.tally().in_flight, counts.tally().waiting) == (0, 0)
    assert counts.tally().errors == {"timeout": 1}
    assert counts.recent()[2:] == (2, 2)
    assert counts.recent() == ([], [], 0, 0)


def test_threads_count_together() -> None:
    """Eight of them at once, each a thousand requests."""
    counts = Counts()

    def work(_: int) -> None:
        for _ in range(1000):
            one = Asked()
            counts.arrived()
            counts.begun(one)
            counts.predicted(0.02, rows=2, frames=3)
            counts.answered(one, status=200, seconds=0.04)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    tally = counts.tally()
    assert tally.requests == {"200": 8000}
    assert (tally.rows, tally.frames, tally.in_flight, tally.waiting) == (16000, 24000, 0, 0)
    assert sum(tally.request_buckets) == sum(tally.predict_buckets) == 8000
    assert tally.request_buckets[BUCKETS_S.index(0.05)] == 8000
    assert tally.predict_total_s == pytest.approx(160)


def test_a_time_on_a_border_is_in_the_bucket_it_ends() -> None:
    """Prometheus's buckets hold what is less or equal; beyond the last there is one more."""
    counts = Counts()
    for seconds in (0.005, 0.0051, 301.0):
        counts.predicted(seconds, rows=1, frames=0)
    buckets = counts.tally().predict_buckets
    assert (buckets[0], buckets[1], buckets[-1]) == (1, 1, 1)


def test_kinds_of_errors_are_bounded() -> None:
    """A model that raises a new class each time makes no more than so many series."""
    counts = Counts()
    for number in range(100):
        counts.arrived()
        counts.answered(Asked(kind=f"Error{number}" + "x" * 100), status=400, seconds=0.1)
    errors = counts.tally().errors
    assert len(errors) == MOST_KINDS + 1
    assert errors["other"] == 100 - MOST_KINDS
    assert max(map(len, errors)) == 64


def test_reading_inputs_stays_within_its_share() -> None:
    """What is free, and then a share of what the model took."""
    counts = Counts()
    counts.read_inputs(0.2)
    assert not counts.may_read_inputs(0.5, free_s=0.1)
    counts.predicted(0.2, rows=1, frames=0)
    assert counts.may_read_inputs(0.5, free_s=0.1)


def test_a_reservoir_keeps_each_value_with_the_same_chance() -> None:
    """A tenth of a thousand, from all parts of them, and the same with the same seed."""
    kept = []
    for _ in range(2):
        reservoir = Reservoir(100)
        for value in range(1000):
            reservoir.add(float(value))
        kept.append(reservoir.taken())
    assert kept[0] == kept[1] == sorted(set(kept[0]))
    assert len(kept[0]) == 100
    assert 35 <= sum(value >= 500 for value in kept[0]) <= 65
    assert reservoir.taken() == []
