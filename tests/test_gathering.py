"""Of many journals what was logged first is gathered first, and each record once."""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opusclip_mlops import gathering
from opusclip_mlops.folder import CONTROL, Position, RunFolder
from opusclip_mlops.gathering import Amount, Gathered, gather, gather_again
from opusclip_mlops.journal import Journal, framed
from opusclip_mlops.rank_merging import News, RankMerger
from opusclip_mlops.records import Metrics, RankMetrics, Record, Tags, Text
from tests.journeys import append

MUCH = 10**9
JITTER_MS = 300


def made(tmp_path: Path, name: str = "run") -> RunFolder:
    folder = RunFolder(tmp_path / name)
    folder.path.mkdir()
    return folder


def batches(
    folder: RunFolder, records: int, since: Position | None = None, *, by_time_alone: bool = False
) -> Iterator[Gathered]:
    """All batches until nothing is left."""
    position = since or {}
    most = Amount(records, MUCH)
    while True:
        found = gather(folder, position, most, ended=False, by_time_alone=by_time_alone)
        if not found.records:
            return
        position = found.position
        yield found


def point(rank: int, step: int, *, timestamp_ms: int | None = None) -> Metrics:
    at_ms = 1000 * step if timestamp_ms is None else timestamp_ms
    return Metrics(at_ms, step, {f"{rank}": 1.0})


def steps_by_rank(records: list[Record]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for one in records:
        if isinstance(one, Metrics):
            found.setdefault(int(next(iter(one.values))), []).append(one.step)
    return found


@pytest.mark.parametrize("by_time_alone", [False, True])
def test_ranks_with_a_backlog_are_read_together(tmp_path: Path, by_time_alone: bool) -> None:
    """Of four journals with the same pace none is ahead by more than its part of two batches."""
    folder = made(tmp_path)
    for rank in range(4):
        append(folder, [point(rank, step) for step in range(200)], journal=f"host-{rank}-1")
    last = dict.fromkeys(range(4), -1)
    for found in batches(folder, 40, by_time_alone=by_time_alone):
        last |= {rank: steps[-1] for rank, steps in steps_by_rank(found.records).items()}
        assert max(last.values()) - min(last.values()) <= 20
    assert set(last.values()) == {199}


def test_under_load_every_journal_is_served(tmp_path: Path) -> None:
    """More is logged than is read, all at one time: each of 64 gets its part all the same."""
    folder, served = made(tmp_path), Counter[int]()
    logs = [Journal(folder.path, f"host-{rank}-1") for rank in range(64)]
    position: Position = {}
    for turn in range(10):
        for rank, log in enumerate(logs):
            for step in range(10 * turn, 10 * turn + 10):
                log.append(point(rank, step, timestamp_ms=5))
        most = Amount(200, MUCH)
        found = gather(folder, position, most, ended=False, by_time_alone=turn % 2 == 1)
        position = found.position
        served.update({rank: len(one) for rank, one in steps_by_rank(found.records).items()})
    for log in logs:
        log.close()
    assert min(served.values()) * 2 >= max(served.values())
    assert len(served) == 64


def test_a_long_backlog_of_one_holds_up_none_of_the_others(tmp_path: Path) -> None:
    """All that 63 others log is in the next batch; the backlog has all that they leave."""
    folder = made(tmp_path)
    logs = [Journal(folder.path, f"host-{rank}-1") for rank in range(64)]
    for rank, log in enumerate(logs):
        log.append(point(rank, 0))
    [begun] = batches(folder, 1000)
    for step in range(3000):
        logs[0].append(point(0, 1 + step, timestamp_ms=1000 + step))
    position, left = begun.position, 3000
    for turn in range(3):
        for rank, log in enumerate(logs[1:], 1):
            for step in (2 * turn, 2 * turn + 1):
                log.append(point(rank, step, timestamp_ms=10**7 + step))
        found = gather(folder, position, Amount(1000, MUCH), ended=False, by_time_alone=False)
        position, steps = found.position, steps_by_rank(found.records)
        left -= len(steps.pop(0))
        assert steps == {rank: [2 * turn, 2 * turn + 1] for rank in range(1, 64)}
    assert left == 3 * 2 * 63
    for log in logs:
        log.close()


@pytest.mark.parametrize("by_time_alone", [False, True])
def test_a_training_that_goes_on_speaks_behind_the_one_before(
    tmp_path: Path, by_time_alone: bool
) -> None:
    """Whatever their names: the tag that was set last holds, though it is a first word."""
    folder = made(tmp_path)
    before: list[Record] = [point(0, step) for step in range(90)]
    append(folder, [*before, Tags({"state": "ended"})], journal="host-999-1")
    new: list[Record] = [Tags({"state": "goes on"}), *(point(1, step) for step in range(90, 99))]
    append(folder, new, journal="host-1000-2")
    gathered = batches(folder, 20, {}, by_time_alone=by_time_alone)
    records = [one for batch in gathered for one in batch.records]
    assert records == [*before, Tags({"state": "ended"}), *new]


def test_who_died_before_its_first_point_spoke_before_who_goes_on(tmp_path: Path) -> None:
    """Tags have no time: those of a process go by its beginning, so that the newer one holds."""
    folder = made(tmp_path)
    append(folder, [old := Tags({"state": "old"})], journal="host-9-2000")
    new = [Tags({"state": "new"}), point(0, 1, timestamp_ms=3001)]
    append(folder, new, journal="host-10-3000")
    (batch,) = batches(folder, 20, by_time_alone=False)
    assert batch.records == [old, *new]


def test_what_has_no_time_is_gathered_with_what_stands_before_it(tmp_path: Path) -> None:
    """A tag keeps its journal's place among the others', and waits for none of them."""
    folder = made(tmp_path)
    tagged: list[Record] = [point(0, 1), *(Tags({"n": str(n)}) for n in range(5)), point(0, 9)]
    append(folder, tagged, journal="host-1-1")
    append(folder, [point(1, step) for step in range(2, 9)], journal="host-2-1")
    [first, *_] = batches(folder, 7, by_time_alone=True)
    assert first.records == [*tagged[:6], point(1, 2)]


def test_a_segment_waits_for_the_one_before(tmp_path: Path) -> None:
    """However small batches are, the records of a journal keep their order over its segments."""
    folder = made(tmp_path)
    for rank in range(3):
        log = Journal(folder.path, f"host-{rank}-1", segment_bytes=500)
        for step in range(100):
            log.append(point(rank, step))
        log.close()
    assert len(folder.segments()) > 20
    found = steps_by_rank([one for batch in batches(folder, 7) for one in batch.records])
    assert found == {rank: list(range(100)) for rank in range(3)}


def test_damage_is_counted_once_where_it_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not when a batch has looked at it and then takes of another journal."""
    folder = made(tmp_path)
    for rank in range(2):
        append(folder, [point(rank, step) for step in range(20)], journal=f"host-{rank}-1")
    [segment, _] = folder.segments()
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    found = list(batches(folder, 3))
    assert sum(len(one.records) for one in found) == 39
    assert sum(one.damaged_bytes for one in found) == len(framed(point(0, 10)))
    assert capsys.readouterr().out.count("damage passed over") == 1


def test_starts_and_ends_come_first(tmp_path: Path) -> None:
    """Whenever they were logged, and however little a batch takes."""
    folder = made(tmp_path)
    append(folder, [point(0, 1)], journal="a-1-1")
    append(folder, [point(7, 9)], journal="z-1-1" + CONTROL)
    assert [one.records for one in batches(folder, 1)] == [[point(7, 9)], [point(0, 1)]]
    [found] = batches(folder, 100)
    assert found.records == [point(7, 9), point(0, 1)]


def test_half_a_record_is_no_damage_while_its_writer_may_be_in_the_midst_of_it(
    tmp_path: Path,
) -> None:
    """A child may write on behind its run's end; what has long been torn stays so."""
    folder = made(tmp_path)
    append(folder, [point(0, 1)], journal="host-1-1")
    [segment] = folder.segments()
    torn = framed(point(0, 2))
    with segment.open("ab") as file:
        file.write(torn[:-1])

    def damaged_bytes() -> int:
        most = Amount(9, MUCH)
        return gather(folder, {}, most, ended=True, by_time_alone=False).damaged_bytes

    later_s = time.time() + 60  # On a slow machine, too, it counts as written just now.
    os.utime(segment, (later_s, later_s))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering.time, "time", lambda: later_s)
        assert damaged_bytes() == 0
    os.utime(segment, (0, 0))
    assert damaged_bytes() == len(torn) - 1


class Ranks:
    """Ranks that log at any pace, in records of any size, to journals of small segments."""

    def __init__(self, folder: RunFolder, seed: int) -> None:
        self.chance = random.Random(seed)
        self.count = self.chance.randint(2, 5)
        # Each has a pace of its own for what it logs beside the steps that all have.
        self._extras = [self.chance.choice((0, 0, 1, 5)) for _ in range(self.count)]
        self._sizes = [self.chance.choice((1, 50, 800)) for _ in range(self.count)]
        self.logs = [
            Journal(
                folder.path, f"host-{self.chance.randint(1, 99999)}-{rank}", segment_bytes=20_000
            )
            for rank in range(self.count)
        ]
        self.written: list[list[Record]] = [[] for _ in range(self.count)]
        self.steps = [0] * self.count

    def log(self, rank: int) -> None:
        """One step of a rank; the ranks are never further apart than the jitter."""
        step = self.steps[rank]
        at_ms = 1000 * step + self.chance.randint(0, JITTER_MS)
        values = {"loss": float(2**rank)}
        said: list[Record] = [RankMetrics(at_ms, step, values, "sum", rank, self.count)]
        words = "x" * self._sizes[rank]
        said += [Text(at_ms, step, f"{rank}", words)] * self._extras[rank]
        if self.chance.random() < 0.1:
            said.append(Tags({f"{rank}": str(step)}))
        for one in said:
            self.logs[rank].append(one)
        self.written[rank] += said
        self.steps[rank] += 1

    def close(self) -> None:
        """Let go of the files."""
        for log in self.logs:
            log.close()


CASES = settings(max_examples=15, deadline=None, derandomize=True)


@CASES
@given(seed=st.integers(0, 2**32))
def test_no_point_is_merged_without_a_rank_whose_record_is_on_disk(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Any backlog, any pace, any sizes: what waits for ranks is never more than a batch or two."""
    folder = made(tmp_path_factory.mktemp("ranks"))
    ranks = Ranks(folder, seed)
    for _ in range(100):
        for rank in ranks.chance.sample(range(ranks.count), ranks.count):
            ranks.log(rank)
    ranks.close()
    merger = RankMerger(most_open_bytes=45 * (300 + 8 * ranks.count))
    found = batches(folder, ranks.chance.randint(5, 40), by_time_alone=True)
    points = [one for batch in found for one in merger.advance(News(_ranked(batch)))]
    assert [one.values["loss"] for one in points] == [float(2**ranks.count - 1)] * 100
    assert merger.gaps.text() == ""


@CASES
@given(seed=st.integers(0, 2**32))
def test_a_rank_that_lags_is_waited_for_however_far_behind_the_reading_is(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """All log on, one stops now and then for at most 50 steps: that much is to wait, no more."""
    folder, chance = made(tmp_path_factory.mktemp("ranks")), random.Random(seed)
    logs = [Journal(folder.path, f"host-{chance.randint(1, 999)}-{rank}") for rank in range(3)]
    merger = RankMerger(most_open_bytes=(50 + 30) * 324)
    steps, position, stopped, points = [0] * 3, dict[str, int](), 0, list[Metrics]()
    for now_ms in range(1, 100_000):
        rank = chance.randrange(3)
        if now_ms % 80 == 0:
            stopped = chance.randrange(-1, 3)
        ahead = steps[rank] - min(steps)
        if steps[rank] < 200 and ahead < 50 and (rank != stopped or max(steps) - steps[rank] >= 49):
            said = RankMetrics(now_ms, steps[rank], {"loss": float(2**rank)}, "sum", rank, 3)
            logs[rank].append(said)
            steps[rank] += 1
        if now_ms % 50 == 0:
            most = Amount(chance.randint(1, 30), MUCH)
            found = gather(folder, position, most, ended=False, by_time_alone=True)
            position = found.position
            points += merger.advance(News(_ranked(found)))
            if not found.records and min(steps) == 200:
                break
    assert [one.values["loss"] for one in points] == [7.0] * 200


@CASES
@given(seed=st.integers(0, 2**32), by_time_alone=st.booleans())
def test_each_record_is_gathered_once_and_the_same_batch_again(
    tmp_path_factory: pytest.TempPathFactory, seed: int, by_time_alone: bool
) -> None:
    """While all log on: each journal in its order, and by its positions a batch as it was."""
    folder = made(tmp_path_factory.mktemp("ranks"))
    ranks, position, gathered = Ranks(folder, seed), dict[str, int](), list[Record]()
    chance, given_before = ranks.chance, list[tuple[Position, Gathered]]()
    while True:
        if min(ranks.steps) < 9:
            for _ in range(chance.randint(0, 9)):
                ranks.log(chance.randrange(ranks.count))
        most = Amount(chance.randint(5, 60), chance.choice((1000, 5000, MUCH)))
        found = gather(folder, position, most, ended=False, by_time_alone=by_time_alone)
        if not found.records and min(ranks.steps) >= 9:
            break
        given_before.append((position, found))
        gathered, position = [*gathered, *found.records], found.position
    ranks.close()
    for since, before in given_before:
        again = gather_again(folder, since, before.position, ended=False)
        assert again.records == before.records
        assert before.position.items() <= again.position.items()
    assert position == folder.size_bytes()
    for rank, written in enumerate(ranks.written):
        assert [one for one in gathered if _rank_of(one) == rank] == written


def _ranked(found: Gathered) -> list[RankMetrics]:
    return [one for one in found.records if isinstance(one, RankMetrics)]


def _rank_of(record: Record) -> int:
    match record:
        case RankMetrics():
            return record.rank
        case Text():
            return int(record.key)
        case Tags():
            return int(next(iter(record.values)))
    raise AssertionError(record)
