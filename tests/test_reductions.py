"""What the values of many ranks come to, against NumPy and by hand."""

import math
import random

import numpy as np
import pytest

from opusclip_mlops.errors import RecordError
from opusclip_mlops.reductions import (
    REDUCTIONS,
    check_reduction,
    key_of_rank,
    reduced,
    turn,
    turn_of,
)

NAN, INF = math.nan, math.inf


def merged(reduce: str, *values: float) -> dict[str, float]:
    return reduced("k", values, reduce, ranks=range(len(values)))


def test_stats_are_those_of_numpy() -> None:
    """Lowest, median, 95th percentile and highest, for any number of ranks."""
    chance = random.Random(3)
    for count in (1, 2, 3, 4, 7, 64):
        values = [chance.gauss(0, 5) for _ in range(count)]
        found = merged("stats", *values)
        expected = [np.min(values), *np.percentile(values, [50, 95]), np.max(values)]
        names = ("k/min", "k/p50", "k/p95", "k/max")
        assert [found[name] for name in names] == pytest.approx(expected)
        assert values[int(found["k/slowest_rank"])] == max(values)
        assert len(found) == 5


def test_the_slowest_rank_of_a_rate_is_that_of_the_lowest() -> None:
    """The longest step is the slowest, and so are the fewest steps a second."""
    for key in ("performance/steps_per_s", "data/clips_per_second", "decode/fps"):
        assert reduced(key, [9.0, 2.0, 5.0], "stats", ranks=[4, 6, 8])[f"{key}/slowest_rank"] == 6
    for key in ("performance/step_ms", "performance/rss_megabytes"):
        assert reduced(key, [9.0, 2.0, 5.0], "stats", ranks=[4, 6, 8])[f"{key}/slowest_rank"] == 4


def test_a_sum_is_the_same_in_any_order() -> None:
    """It is exact until it is rounded once: ranks may come as they like."""
    values = [1e16, 1.0, -1e16, 1e-9, 3.0] * 7
    shuffled = random.Random(1).sample(values, len(values))
    assert merged("sum", *values) == merged("sum", *shuffled) == {"k": 28.000000007}
    assert merged("mean", *values) == merged("mean", *shuffled)


@pytest.mark.parametrize("reduce", ["mean", "min", "max", "sum"])
def test_no_nan_is_hidden(reduce: str) -> None:
    """Wherever one rank has NaN the merged value is NaN."""
    for values in ((NAN, 1.0), (1.0, NAN), (INF, NAN), (NAN, NAN)):
        assert math.isnan(merged(reduce, *values)["k"])


def test_the_rank_with_nan_is_named() -> None:
    """Statistics with a NaN are NaN, and the rank to look at is the first that has one."""
    found = merged("stats", 1.0, 9.0, NAN, NAN)
    assert found["k/slowest_rank"] == 2
    assert all(math.isnan(found[f"k/{name}"]) for name in ("min", "p50", "p95", "max"))


def test_infinities() -> None:
    """They are kept; the sum of both is no number; what only the sum exceeds is no infinity."""
    assert merged("mean", INF, 1.0) == merged("sum", 1.0, INF) == merged("max", INF, 1.0)
    assert merged("min", -INF, 1.0) == {"k": -INF}
    assert math.isnan(merged("sum", INF, -INF)["k"])
    assert math.isnan(merged("mean", INF, -INF)["k"])
    assert merged("sum", 1.7e308, 1.7e308) == {"k": INF}
    assert merged("sum", -1.7e308, -1.7e308) == {"k": -INF}
    assert merged("mean", 1.7e308, 1.7e308) == {"k": 1.7e308}
    assert merged("stats", INF, INF)["k/p95"] == INF
    assert merged("stats", -1.7e308, 1.7e308)["k/p50"] == 0


def test_words_and_keys_are_checked() -> None:
    """An unknown word is named with those that are known, and a key that grows too long."""
    for reduce in REDUCTIONS:
        check_reduction(reduce, ["a" * 200], rank=7)
    with pytest.raises(RecordError, match="one of mean, min, max, sum, stats, each, not 'avg'"):
        check_reduction("avg", ["a"], rank=0)
    check_reduction("stats", ["a" * 237], rank=0)
    with pytest.raises(RecordError, match="at most 237 characters"):
        check_reduction("stats", ["b", "a" * 238], rank=0)
    check_reduction("mean", ["a" * 250], rank=0)
    with pytest.raises(RecordError, match="at most 242 characters"):
        check_reduction("each", ["a" * 243], rank=12)


def test_keys_of_ranks() -> None:
    """A machine's own keys name it already."""
    assert key_of_rank("loss", 3) == "rank-3/loss"
    assert key_of_rank("system/node-1/cpu", 3) == "system/node-1/cpu"


def test_turns() -> None:
    """The number of an interval is in the reduction; what only looks like one is none."""
    assert turn_of(turn(1_790_000)) == 1_790_000
    for text in ("stats", "stats@", "stats@x", "stats@-1", "stats@" + "9" * 40, "mean@1"):
        assert turn_of(text) is None
