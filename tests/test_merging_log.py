"""What a merger knows outlives its process: in a file that stays small, and is whole or cut."""

from pathlib import Path

import pytest

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
    log.append(merger, news)
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
    """Of a file that is shorter than it was the whole pieces count; that it was cut is told."""
    place = tmp_path / "merging"
    log = MergingLog(place, Kept())
    merger = log.merger()
    sizes = [log.kept.size_bytes for step in range(4) if tell(log, merger, step) == []]
    log.close()
    path = place.with_name(f"merging-{log.kept.number}")
    path.write_bytes(path.read_bytes()[: sizes[2] + 5])
    log = MergingLog(place, log.kept)
    assert [one.step for one in tell(log, log.merger(), 0, 1, 2, 3, rank=1)] == [0, 1, 2]
    log.close()
    log = MergingLog(place, log.kept)
    merger = log.merger()
    assert [one.step for one in tell(log, merger, 3)] == [3]
    assert merger.gaps.text().startswith("1 times the file of what waited")
    log.close()


@pytest.mark.parametrize("content", [b"\x01\0\0\0\xc0", b"\x02\0\0\0\x91\x01", b"\xff" * 99])
def test_a_file_that_cannot_be_read_holds_up_nothing(tmp_path: Path, content: bytes) -> None:
    """One of another version, or a damaged one: a merger begins anew, and says so."""
    (tmp_path / "merging-3").write_bytes(content)
    log = MergingLog(tmp_path / "merging", Kept(3, len(content)))
    merger = log.merger()
    assert merger.gaps.forgotten == 1
    assert files(tmp_path / "merging") == ["merging-3", "merging-4"]
    tell(log, merger, 1)
    log.close()
    again = MergingLog(tmp_path / "merging", log.kept)
    assert [one.step for one in tell(again, again.merger(), 1, rank=1)] == [1]
    again.close()


def test_what_is_told_at_once_is_kept_at_once(tmp_path: Path) -> None:
    """The file that is still remembered stays, however much is told until the next is."""
    place = tmp_path / "merging"
    log = MergingLog(place, Kept())
    merger = log.merger()
    both = [News([said(0, 1)]), News(left={0: [1]})]
    assert [one.step for news in both for one in merger.advance(news)] == [1]
    log.append(merger, *both)
    assert files(place) == ["merging-0", "merging-1"]
    log.close()
    log = MergingLog(place, log.kept)
    assert [one.step for one in tell(log, log.merger(), 2)] == [2]
    log.close()
