"""Many ranks' values become points, whatever their order, and again after any interruption."""

import math
import random
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from opusclip_mlops.rank_merging import (
    PASSED_AFTER_MS,
    News,
    RankMerger,
    Snapshot,
    fault_of,
)
from opusclip_mlops.records import Metrics, RankMetrics
from opusclip_mlops.reductions import turn


def said(rank: int, step: int, *, of: int = 2, reduce: str = "mean", **fields: Any) -> RankMetrics:
    """One log call of a rank: at time 1000 x step + rank, with the value rank + step."""
    values = fields.pop("values", {"loss": float(rank + step)})
    timestamp_ms = fields.pop("timestamp_ms", 1000 * step + rank)
    return RankMetrics(timestamp_ms, step, values, reduce, rank, of, **fields)


def told(merger: RankMerger, records: Iterable[RankMetrics] = (), **news: Any) -> list[Metrics]:
    return list(merger.advance(News(list(records), **news)))


def test_a_point_is_made_once_all_ranks_are_there() -> None:
    """At the time of the slowest, with the keys of a call in one record."""
    merger = RankMerger()
    values = {"loss": 1.0, "acc": 0.5}
    assert told(merger, [said(0, 7, values=values), said(0, 8, values=values)]) == []
    done = told(merger, [said(1, 7, values={"acc": 1.5, "loss": 3.0})])
    assert done == [Metrics(7001, 7, {"acc": 1.0, "loss": 2.0})]
    assert told(merger, finish=True) == [Metrics(8000, 8, values)]
    assert merger.open_bytes == 0


def test_any_order_of_ranks_gives_the_same_points() -> None:
    """Each rank's own order holds, and nothing else matters."""
    of, steps, chance = 5, 40, random.Random(5)
    lines = [[said(r, s, of=of, reduce="stats") for s in range(steps)] for r in range(of)]
    expected = sorted(told(RankMerger(), [one for line in lines for one in line]), key=str)
    assert len(expected) == steps
    for _ in range(5):
        queues = [list(line) for line in lines]
        mixed = [chance.choice([q for q in queues if q]).pop(0) for _ in range(of * steps)]
        assert sorted(told(RankMerger(), mixed), key=str) == expected


def test_each_waits_for_nobody() -> None:
    """A rank's own values have its number in the key; a machine's are named already."""
    values = {"loss": 1.0, "system/node-1/cpu": 2.0}
    done = told(RankMerger(), [said(1, 3, reduce="each", values=values)])
    assert done == [Metrics(3001, 3, {"rank-1/loss": 1.0, "system/node-1/cpu": 2.0})]


def test_different_keys_are_merged_by_key() -> None:
    """In whichever calls a rank logs them: one call of one, three calls of another."""
    merger = RankMerger()
    told(merger, [said(0, 1, values={"a": 1.0, "b": 2.0, "only-0": 9.0})])
    done = told(merger, [said(1, 1, values={"b": 4.0}), said(1, 1, values={"a": 3.0})])
    assert done == [Metrics(1001, 1, {"b": 3.0}), Metrics(1001, 1, {"a": 2.0})]
    assert told(merger, finish=True) == [Metrics(1000, 1, {"only-0": 9.0})]
    assert "only-0 (mean): 1 points lack rank 1, steps 1 to 1" in merger.gaps.text()


def test_a_step_that_is_logged_twice_is_paired_by_occurrence() -> None:
    """The first of each rank make one point, the second another; nothing is overwritten."""
    merger = RankMerger()
    twice = [said(0, 4, values={"loss": v}, timestamp_ms=int(v)) for v in (1.0, 2.0, 3.0)]
    assert told(merger, twice) == []
    late = [said(1, 4, values={"loss": v}, timestamp_ms=int(v)) for v in (11.0, 12.0)]
    assert told(merger, late) == [Metrics(11, 4, {"loss": 6.0}), Metrics(12, 4, {"loss": 7.0})]
    assert told(merger, finish=True) == [Metrics(3, 4, {"loss": 3.0})]


def test_attempts_are_merged_apart() -> None:
    """What a restart logs again is another point; the earlier attempt's goes out without it."""
    merger = RankMerger()
    told(merger, [said(0, 1), said(1, 1), said(0, 2)])
    assert told(merger, [said(1, 2, attempt=1)]) == []
    assert told(merger, left={0: [0, 1]}) == [Metrics(2000, 2, {"loss": 2.0})]
    assert told(merger, [said(0, 2, attempt=1)]) == [Metrics(2001, 2, {"loss": 2.5})]


def test_a_rank_that_left_is_waited_for_no_longer() -> None:
    """What waits for it alone is made at once, and all that comes later is made without it."""
    merger = RankMerger()
    told(merger, [said(r, 1, of=3) for r in (0, 1)] + [said(0, 2, of=3)])
    assert told(merger, left={0: [2]}) == [Metrics(1001, 1, {"loss": 1.5})]
    assert told(merger, [said(1, 2, of=3)]) == [Metrics(2001, 2, {"loss": 2.5})]
    assert "loss (mean): 2 points lack rank 2, steps 1 to 2" in merger.gaps.text()


def test_a_rank_that_comes_back_counts_again() -> None:
    """From its next value on; what was made without it is not made once more, but counted."""
    merger = RankMerger()
    told(merger, [said(0, 1), said(0, 2)], left={})
    assert len(told(merger, left={0: [1]})) == 2
    assert told(merger, [said(1, 1), said(1, 3)]) == []
    assert told(merger, [said(0, 3)]) == [Metrics(3001, 3, {"loss": 3.5})]
    assert "loss: 1 values came after their points were merged" in merger.gaps.text()


def test_a_rank_that_lags_far_behind_is_waited_for() -> None:
    """Ten thousand steps of eight keys wait in little memory, and lack nothing in the end."""
    merger, keys = RankMerger(), [f"k{number}" for number in range(8)]
    ahead = [
        said(r, s, of=4, values=dict.fromkeys(keys, 1.0)) for s in range(10_000) for r in (0, 1, 2)
    ]
    assert told(merger, ahead) == []
    assert merger.open_bytes < 40e6
    late = [said(3, s, of=4, values=dict.fromkeys(keys, 5.0)) for s in range(10_000)]
    done = told(merger, late)
    assert done == [Metrics(1000 * s + 3, s, dict.fromkeys(keys, 2.0)) for s in range(10_000)]
    assert merger.gaps.text() == ""


def test_memory_is_bounded() -> None:
    """Past the bound the oldest goes out without the rank that lags, and its value is late."""
    merger = RankMerger(most_open_bytes=50 * 316)
    done = told(merger, [said(0, s) for s in range(60)])
    assert [one.step for one in done] == list(range(10))
    assert merger.open_bytes == 50 * 316
    assert told(merger, [said(1, s) for s in range(9, 12)]) == [
        Metrics(1000 * s + 1, s, {"loss": s + 0.5}) for s in (10, 11)
    ]
    assert "loss: 1 values came after" in merger.gaps.text()
    assert "loss (mean): 10 points lack rank 1, steps 0 to 9" in merger.gaps.text()


def test_a_key_that_a_rank_never_logs_is_given_up_in_time() -> None:
    """Once the rank is at a later step, long after; not while it may only be slow."""
    merger = RankMerger()
    told(merger, [said(0, 5, values={"acc": 1.0}, timestamp_ms=0)])
    slow = [said(1, 4, timestamp_ms=PASSED_AFTER_MS + 1)]
    assert told(merger, slow) == []
    assert told(merger, [said(1, 6, timestamp_ms=PASSED_AFTER_MS)]) == []
    after = told(merger, [said(1, 7, timestamp_ms=PASSED_AFTER_MS + 1)])
    assert after == [Metrics(0, 5, {"acc": 1.0})]


def test_what_a_restart_leaves_behind_does_not_add_up() -> None:
    """Of attempts whose ranks have all left nothing is kept, however many there are."""
    merger = RankMerger()
    values = {f"k{number}": 1.0 for number in range(50)}
    for attempt in range(30):
        for rank in (0, 1, 2):
            told(merger, [said(rank, 1, of=4, values=values, attempt=attempt)])
        assert len(told(merger, left={attempt: [0, 1, 2, 3]})) == 1
    state = merger.snapshot().state
    assert (len(state.given_up), len(state.reached)) == (50, 3)


def test_attempts_may_differ_in_their_ranks() -> None:
    """Each point is made of the ranks that its attempt has."""
    merger = RankMerger()
    told(merger, [said(r, 1, of=3, reduce="sum") for r in (0, 1)])
    assert told(merger, [said(0, 1, reduce="sum", attempt=1)]) == []
    (smaller,) = told(merger, [said(1, 1, reduce="sum", attempt=1)])
    (larger,) = told(merger, [said(2, 1, of=3, reduce="sum")])
    assert (smaller.values, larger.values) == ({"loss": 3.0}, {"loss": 6.0})


def test_unlike_reductions_of_a_key_are_told() -> None:
    """Each is merged of those that meant it so, and the run says which key it was."""
    merger = RankMerger()
    told(merger, [said(0, 1, reduce="mean"), said(1, 1, reduce="max")])
    done = told(merger, finish=True)
    assert [one.values for one in done] == [{"loss": 1.0}, {"loss": 2.0}]
    assert "loss is merged by max and by mean: give it one" in merger.gaps.text()
    fine = RankMerger()
    told(fine, [said(r, 1, reduce=how) for r in (0, 1) for how in ("mean", "stats", "each")])
    assert fine.gaps.text() == ""


def test_turns_are_paired_by_their_number() -> None:
    """Ranks that measure at other steps meet in the interval; one that missed it has passed it."""
    merger = RankMerger()
    told(merger, [said(0, 10, reduce=turn(1)), said(0, 20, reduce=turn(2))])
    (done,) = told(merger, [said(1, 12, reduce=turn(1))])
    assert (done.step, done.timestamp_ms) == (12, 12_001)
    assert set(done.values) == {f"loss/{n}" for n in ("min", "p50", "p95", "max", "slowest_rank")}
    (alone,) = told(merger, [said(1, 33, reduce=turn(3))])
    assert (alone.step, alone.values["loss/max"]) == (20, 20.0)
    assert merger.gaps.text() == ""


def test_nan_is_kept() -> None:
    """The rank that has it spoils the point, and only that."""
    merger = RankMerger()
    told(merger, [said(0, 1), said(0, 2)])
    bad, good = told(merger, [said(1, 1, values={"loss": math.nan}), said(1, 2)])
    assert math.isnan(bad.values["loss"])
    assert good.values == {"loss": 2.5}


def test_what_is_no_rank_is_refused() -> None:
    """A number beyond the world, a world without ranks or without end, an unknown word."""
    assert fault_of(said(1, 1)) == ""
    assert fault_of(said(0, 1, reduce=turn(3))) == ""
    assert fault_of(said(2, 1)) == "rank 2 of 2 ranks is none"
    assert fault_of(said(-1, 1)) == "rank -1 of 2 ranks is none"
    assert fault_of(said(0, 1, of=10**9)) == "rank 0 of 1000000000 ranks is none"
    assert fault_of(said(0, 1, reduce="median")) == "no reduction is called 'median'"


def test_many_values_are_parted() -> None:
    """MLflow takes a thousand in a request: the five of each key are spread over records."""
    merger = RankMerger()
    values = {f"k{number}": 1.0 for number in range(300)}
    told(merger, [said(0, 1, values=values, reduce="stats")])
    done = told(merger, [said(1, 1, values=values, reduce="stats")])
    assert [len(one.values) for one in done] == [500, 500, 500]


@pytest.mark.parametrize("seed", range(4))
def test_one_that_goes_on_from_a_snapshot_makes_the_same(seed: int) -> None:
    """At any moment, through bytes: with lag, leavers, doubled steps and a tight memory."""
    chance, of = random.Random(seed), 3
    news = []
    for number in range(120):
        rank, step = chance.randrange(of), chance.randrange(30)
        how = chance.choice(["mean", "stats", "each", turn(number // 9)])
        keys = chance.sample(["a", "b", "c"], 2)
        values = {key: chance.random() for key in keys}
        left = {0: [chance.randrange(of)]} if chance.random() < 0.05 else {}
        record = said(rank, step, of=of, reduce=how, values=values, attempt=chance.randrange(2))
        news.append(News([record], left, finish=chance.random() < 0.02))
    whole = RankMerger(most_open_bytes=9000)
    expected = [list(whole.advance(one)) for one in news]
    for at in chance.sample(range(120), 12):
        first = RankMerger(most_open_bytes=9000)
        for one in news[:at]:
            list(first.advance(one))
        kept = msgspec.msgpack.decode(msgspec.msgpack.encode(first.snapshot()), type=Snapshot)
        second = RankMerger(kept, most_open_bytes=9000)
        assert [list(second.advance(one)) for one in news[at:]] == expected[at:]
        assert second.gaps.text() == whole.gaps.text()
