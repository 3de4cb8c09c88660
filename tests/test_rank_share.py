"""What a rank logs: to be merged, or left to the owner of the run and counted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opusclip_mlops.accounting import totals
from opusclip_mlops.config import TrackingConfig
from opusclip_mlops.errors import RecordError
from opusclip_mlops.folder import Manifest, RunFolder
from opusclip_mlops.ranks import Place
from opusclip_mlops.records import Metrics, RankMetrics, Record
from opusclip_mlops.tracker import ExperimentTracker, _here, _joined
from tests.joined_tracker import logged, media


def tracker_of(tmp_path: Path, rank: int, *, of: int = 2, **settings: Any) -> ExperimentTracker:
    """A tracker as a process of this rank has one; no shipper is started for it."""
    folder = RunFolder(tmp_path / "journal" / f"run-of-{rank}")
    manifest = Manifest(local_id="a-run", cwd=str(tmp_path), sinks=["mlflow"], start_time_ms=1)
    folder.create(manifest)
    place = Place(rank=rank, local_rank=rank, world_size=of, attempt=3)
    return _joined(TrackingConfig(**settings), folder.path, place=place)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    _here.clear()


def left_out(tracker: ExperimentTracker) -> dict[str, int]:
    """Points that are left to the owner, by key."""
    return totals(tracker._session.folder.path).rank


def values_of(tracker: ExperimentTracker) -> list[dict[str, float]]:
    return [one.values for one in logged(tracker) if isinstance(one, Metrics)]


def test_without_a_reduction_the_owner_alone_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What others log is left out, counted by key, and told once with what to pass."""
    owner, other = tracker_of(tmp_path, 0), tracker_of(tmp_path, 1)
    for tracker in (owner, other):
        for step in range(3):
            tracker.log_metrics({"loss": 1.0, "acc": 2.0}, step)
        tracker.log_params({"depth": 4})
        tracker.set_tags({"team": "films"})
        tracker.log_text("hello", "notes")
        tracker.log_table([{"a": 1}], "rows")
    assert len(values_of(owner)) == 3
    assert logged(other) == []
    assert left_out(owner) == {}
    assert left_out(other) == {"loss": 3, "acc": 3, "notes": 1, "rows": 1}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("opusclip: rank 1 logs 'loss', but another rank's points make the run:")
    assert line.endswith("pass log_metrics a reduce: mean, min, max, sum, stats, each")


def test_nothing_is_staged_for_what_is_left_out(tmp_path: Path) -> None:
    """Clips, pictures and the files of insights are gone with their records."""
    other = tracker_of(tmp_path, 1)
    other.log_video(np.zeros((2, 8, 8, 3), np.uint8), "samples/kite")
    other.log_figure(np.zeros((8, 8, 3), np.uint8), "figures/kite")
    other.log_embedding(np.zeros((3, 2)), "words")
    assert logged(other) == []
    assert list(media(other).iterdir()) == []
    assert left_out(other) == {"samples/kite": 1, "figures/kite": 1, "words": 1}


def test_with_a_reduction_every_rank_logs(tmp_path: Path) -> None:
    """Each says which of how many it is; the steps go on as ever, passports are left."""
    for rank in (0, 1):
        tracker = tracker_of(tmp_path, rank)
        tracker.log_metrics({"loss": 1.5}, reduce="mean")
        tracker.log_training_metrics(2, 7, {"x": 1.0}, reduce="sum")
        first, *rest = logged(tracker)
        assert isinstance(first, RankMetrics)
        assert first.step == 0
        assert [one[2:] for one in map(_fields, [first, *rest])] == [
            ({"loss": 1.5}, "mean", rank, 2, 3),
            ({"training/x": 1.0}, "sum", rank, 2, 3),
            ({"training/epoch": 2.0}, "max", rank, 2, 3),
        ]
        assert tracker.step == 7
        assert left_out(tracker) == {}


def _fields(record: Record) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in record.__struct_fields__)


def test_alone_a_reduction_makes_no_difference_but_for_stats(tmp_path: Path) -> None:
    """Its keys are those that many ranks would write; the word is checked all the same."""
    tracker = tracker_of(tmp_path, 0, of=1)
    for reduce in ("mean", "min", "max", "sum", "each"):
        tracker.log_metrics({"loss": 1.5}, reduce=reduce)
    tracker.log_metrics({"loss": 1.5}, reduce="stats")
    *plain, stats = values_of(tracker)
    assert plain == [{"loss": 1.5}] * 5
    names = ("min", "p50", "p95", "max")
    assert stats == {f"loss/{name}": 1.5 for name in names} | {"loss/slowest_rank": 0.0}
    with pytest.raises(RecordError, match="reduce must be one of mean"):
        tracker.log_metrics({"loss": 1.5}, reduce="avg")
    assert tracker.step == 5


def test_what_a_rank_cannot_log_is_refused_before_it_is(tmp_path: Path) -> None:
    """An unknown word, or a key that is too long with what merging adds."""
    tracker = tracker_of(tmp_path, 1)
    with pytest.raises(RecordError, match="reduce must be one of mean"):
        tracker.log_training_metrics(1, 1, {"loss": 1.0}, reduce="")
    with pytest.raises(RecordError, match="is too long for reduce='stats'"):
        tracker.log_metrics({"k" * 240: 1.0}, reduce="stats")
    assert logged(tracker) == []
    assert tracker.step == -1


def test_what_a_process_uses_becomes_statistics(tmp_path: Path) -> None:
    """Of many ranks; one that is alone logs it as ever."""
    tracker_of(tmp_path, 0, of=1).log_performance_metrics({"cpu": 5.0})
    alone, other = tracker_of(tmp_path, 0, of=1), tracker_of(tmp_path, 1)
    assert values_of(alone) == [{"performance/cpu": 5.0}]
    other.log_performance_metrics({"cpu": 5.0})
    (record,) = logged(other)
    assert isinstance(record, RankMetrics)
    assert (record.values, record.reduce) == ({"performance/cpu": 5.0}, "stats")


def test_an_interval_is_paired_by_the_clock(tmp_path: Path) -> None:
    """Its number follows from the time alone, whatever step a rank has reached by then."""
    records = [
        record
        for rank, timestamp_ms, step in ((0, 1_700_000_009_999, 5), (1, 1_700_000_000_001, 9))
        for record in tracker_of(tmp_path, rank, profile_interval_s=10.0)._share.of_interval(
            {"performance/x": 1.0}, timestamp_ms, step
        )
    ]
    assert [one.reduce for one in records if isinstance(one, RankMetrics)] == [
        "stats@170000000",
        "stats@170000000",
    ]
    alone = tracker_of(tmp_path / "alone", 0, of=1)._share.of_interval({"x": 1.0}, 17, 5)
    assert alone == [Metrics(17, 5, {"x": 1.0})]


def test_of_an_interval_only_what_tells_ranks_apart_is_merged(tmp_path: Path) -> None:
    """The rest is the owner's under its own keys, and of the others neither logged nor counted."""
    measured = {
        "performance/step_ms": 8.0, "performance/data_share": 0.5,
        "performance/evaluation_share": 0.1, "performance/tracker_share": 0.01,
        "profiling/loop/forward/total_ms": 7.0, "profiling/interval/seconds": 10.0,
    }  # fmt: skip
    told = {"performance/step_ms", "performance/data_share"}
    own = {key: value for key, value in measured.items() if key not in told}
    for rank in (0, 1):
        tracker = tracker_of(tmp_path, rank)
        *plain, merged = tracker._share.of_interval(measured, 17_000, 5)
        assert isinstance(merged, RankMetrics)
        assert merged.values == {key: measured[key] for key in told}
        assert plain == ([] if rank else [Metrics(17_000, 5, own)])
        assert left_out(tracker) == {}


def test_the_memory_of_each_of_many_ranks_is_measured(tmp_path: Path) -> None:
    """With the intervals; not where the machine is not, nor of a process that is alone."""
    rank = tracker_of(tmp_path, 1)
    assert rank._memory_of_rank()["performance/rss_megabytes"] > 1
    assert tracker_of(tmp_path / "off", 1, system_metrics=False)._memory_of_rank() == {}
    assert tracker_of(tmp_path / "alone", 0, of=1)._memory_of_rank() == {}


def test_a_workers_intervals_are_the_owners(tmp_path: Path) -> None:
    """Those of the owner's data loaders are logged as ever, the others' nowhere, and not told."""
    for rank, count in ((0, 1), (1, 0)):
        tracker = tracker_of(tmp_path, rank)
        tracker._log_interval({"profiling/workers/data/share": 0.5})
        assert len(logged(tracker)) == count
        assert left_out(tracker) == {}
