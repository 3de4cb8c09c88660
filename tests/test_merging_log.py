"""What a merger knows outlives its process: in a file that stays small, and is whole or cut."""

from pathlib import Path

from opusclip_mlops.merging_log import Kept, MergingLog
from opusclip_mlops.rank_merging import News, RankMerger
from opusclip_mlops.records import Metrics
from tests.test_rank_merging import said


def files(place: Path) -> list[str]:
    return sorted(path.name for path in place.parent.glob(f"{place.name}-*"))


def tell(log: MergingLog, merger: RankMerger, *steps: int, rank: int = 0) -> list[Metrics]:
    """Tell a merger what a rank logged, and keep it."""
    news = News([said(rank, step) for step in steps])
    done = list(merger.advance(news))
    log.append(news, merger)
    return done


def test_a_merger_goes_on_from_what_was_kept(tmp_path: Path) -> None:
    """What was told behind that is forgotten: it will be told again."""
    log = MergingLog(tmp_path / "merging", Kept())
    merger = log.merger()
    for step in range(5):
        tell(log, merger, step)
    kept = log.kept
    tell(log, merger, 9)
    log.close()
    log = MergingLog(tmp_path / "merging", kept)
    again = log.merger()
    assert log.kept == kept
    assert tell(log, again, 9, rank=1) == []
    assert [one.step for one in tell(log, again, *range(5), rank=1)] == list(range(5))
    log.close()


def test_the_file_is_begun_anew_when_it_has_grown(tmp_path: Path) -> None:
    """It holds what waits, not all that ever came; the old one stays until the new one counts."""
    place = tmp_path / "merging"
    log = MergingLog(place, Kept())
    merger = log.merger()
    for first in range(0, 40_000, 500):
        steps = range(first, first + 500)
        before = log.kept
        tell(log, merger, *steps)
        if log.kept.number != before.number:
            assert f"merging-{before.number}" in files(place)
        tell(log, merger, *steps, rank=1)
    assert log.kept.number > 1
    assert log.kept.size_bytes < 2_000_000
    assert len(files(place)) <= 2
    log.close()
    log = MergingLog(place, log.kept)
    assert files(place) == [f"merging-{log.kept.number}"]
    assert (place.parent / files(place)[0]).stat().st_mode & 0o777 == 0o600
    assert tell(log, log.merger(), 50_000, rank=1) == []
    log.close()


def test_a_power_cut_takes_no_more_than_the_end(tmp_path: Path) -> None:
    """Of a file that is shorter than it was, the whole pieces count, and it goes on behind them."""
    place = tmp_path / "merging"
    log = MergingLog(place, Kept())
    merger = log.merger()
    sizes = [log.kept.size_bytes for step in range(4) if tell(log, merger, step) == []]
    log.close()
    path = place.with_name(f"merging-{log.kept.number}")
    path.write_bytes(path.read_bytes()[: sizes[2] + 5])
    log = MergingLog(place, log.kept)
    merger = log.merger()
    assert log.kept.size_bytes == sizes[2]
    assert [one.step for one in tell(log, merger, 0, 1, 2, 3, rank=1)] == [0, 1, 2]
    assert [one.step for one in tell(log, merger, 3)] == [3]
    log.close()
