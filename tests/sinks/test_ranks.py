"""The sink of many ranks: what it merges is said once, whatever kills it and whoever lags."""

import math
import os
import socket
import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient

from opusclip_mlops import delivery, journal
from opusclip_mlops.accounting import RANK, Account
from opusclip_mlops.deaths import TRACEBACK_TAG
from opusclip_mlops.delivery import deliver
from opusclip_mlops.folder import CONTROL, RunFolder
from opusclip_mlops.journal import Journal
from opusclip_mlops.merging_gaps import KEY, UNHEARD_TAG
from opusclip_mlops.rank_merging import RankMerger
from opusclip_mlops.records import (
    Batch,
    Metrics,
    RankMetrics,
    Record,
    RunEnded,
    RunStarted,
    Tags,
    Text,
)
from opusclip_mlops.reductions import turn
from opusclip_mlops.sessions import final_end, note_all_nodes, process_started_s, sessions
from opusclip_mlops.sinks import SinkState
from opusclip_mlops.sinks.ranks import NAME, NEVER_BEGAN, RanksSink
from tests.journeys import append, end, make_run, store, wait_until
from tests.reading import Point, points_of_mlflow, points_of_tensorboard
from tests.sinks.sink_contract import T0_MS, SinkContract, metrics, staged_clip
from tests.test_rank_merging import said


def merged(folder: RunFolder) -> list[Record]:
    """What stands in the journals of the sink, in its order."""
    paths = sorted(folder.path.glob(f"{NAME}-*"))
    items = [item for path in paths for item in journal.read(path)]
    return [one.record for one in items if isinstance(one, journal.Entry)]


def merged_points(folder: RunFolder) -> list[Point]:
    """The merged points, sorted."""
    return sorted(
        Point(key, one.step, one.timestamp_ms, repr(value))
        for one in merged(folder)
        if isinstance(one, Metrics)
        for key, value in one.values.items()
    )


def begin(folder: RunFolder, rank: int, *, of: int = 2, attempt: int = 0) -> str:
    """Begin the session of a rank, with this process's pid; what it is called."""
    name = f"rank-{rank}-{attempt}"
    start = RunStarted(
        session=name,
        host=socket.gethostname(),
        pid=os.getpid(),
        process_started_s=process_started_s(os.getpid()),
        start_time_ms=1_700_000_000_000,
        rank=rank,
        attempt=attempt,
        world_size=of,
    )
    append(folder, [start], journal=name + CONTROL)
    return name


def leave(folder: RunFolder, name: str, status: str = "FINISHED") -> None:
    """End the session of a rank."""
    append(folder, [RunEnded(name, status, 1_700_000_100_000)], journal=name + CONTROL)


class TestRanks(SinkContract):
    """The contract, of two ranks that log the same."""

    name = "ranks"

    def points(self, folder: RunFolder) -> list[Point]:
        """What was merged."""
        return merged_points(folder)

    def as_logged(self, records: list[Record]) -> list[Record]:
        """Each log call by two ranks."""
        return [
            one
            for record in records
            for one in (_by_two(record) if isinstance(record, Metrics) else [record])
        ]

    def test_a_broken_clip_refuses_only_itself(self, folder: RunFolder) -> None:
        """A clip is none of its business, broken or not."""
        clip = staged_clip(folder)
        (folder.media / clip.file).write_bytes(b"no frames here")
        append(folder, self.as_logged([*metrics(3), clip]))
        end(folder)
        deliver(folder, self.name)
        assert folder.progress(self.name).rejected == 0
        assert len(self.points(folder)) == 6


def _by_two(call: Metrics) -> list[Record]:
    at = (call.timestamp_ms, call.step, call.values, "mean")
    return [RankMetrics(*at, rank, 2) for rank in (0, 1)]


def test_merged_points_are_the_same_everywhere(tmp_path: Path) -> None:
    """In MLflow and TensorBoard, each once; the run ends once all is merged, and not before."""
    folder = make_run(tmp_path, ["mlflow", "tensorboard", "ranks"])
    append(folder, [said(r, s, timestamp_ms=T0_MS + s) for r in (0, 1) for s in range(50)])
    end(folder)
    assert final_end(folder) is None
    others = [threading.Thread(target=deliver, args=(folder, n)) for n in ("mlflow", "tensorboard")]
    for thread in others:
        thread.start()
    assert deliver(folder, "ranks")
    for thread in others:
        thread.join(240)
    assert final_end(folder) is not None
    client = MlflowClient(store(tmp_path))
    (run,) = client.search_runs(["1"])
    expected = [Point("loss", s, T0_MS + s, repr(s + 0.5)) for s in range(50)]
    assert points_of_mlflow(client, run.info.run_id) == expected
    assert points_of_tensorboard(tmp_path / "runs" / "films" / folder.path.name) == expected
    assert run.info.status == "FINISHED"
    assert KEY not in str(run.data.tags)


def test_what_lacks_a_rank_is_merged_at_the_end_and_told(tmp_path: Path) -> None:
    """The points are made of those that are there; a text says which ranks they lack."""
    folder = make_run(tmp_path, ["ranks"])
    values = {"loss": 1.0, "lonely": math.nan}
    append(folder, [said(0, 3, values=values), said(0, 4), said(1, 3)])
    append(folder, [said(5, 3), said(0, 3, reduce="guess")])
    end(folder)
    deliver(folder, "ranks")
    assert [(p.key, p.step, p.value) for p in merged_points(folder)] == [
        ("lonely", 3, "nan"),
        ("loss", 3, "2.5"),
        ("loss", 4, "4.0"),
    ]
    (text,) = [one for one in merged(folder) if isinstance(one, Text) and one.key == KEY]
    assert text.text.startswith(
        "lonely (mean): 1 points lack rank 1, steps 3 to 3\n"
        "loss (mean): 1 points lack rank 1, steps 4 to 4\n\n{"
    )
    tags = [one.values for one in merged(folder) if isinstance(one, Tags)]
    assert tags[0] == {"opusclip.ranks.lacking": "2"}
    assert folder.progress("ranks").rejected == 2
    assert "rank 5 of 2 ranks is none" in folder.rejected.read_text()


def test_what_ranks_left_out_is_said_as_the_last_word(tmp_path: Path) -> None:
    """The sum over all of them, by key: a rank that ended earlier knew of less."""
    folder = make_run(tmp_path, ["ranks"])
    account = Account(folder.path, "s1")
    account.count(RANK, ["loss"])
    account.count(RANK, ["loss", "acc"])
    account.close()
    end(folder)
    deliver(folder, "ranks")
    tags, text = merged(folder)
    assert isinstance(tags, Tags)
    assert tags.values["opusclip.other_ranks"] == "3"
    assert isinstance(text, Text)
    assert '"rank": {\n    "loss": 2,\n    "acc": 1\n  }' in text.text


@pytest.mark.parametrize(("lines", "told"), [("at line 7", "at line 7"), ("", None)])
def test_the_traceback_is_that_of_the_first_failure(
    tmp_path: Path, lines: str, told: str | None
) -> None:
    """Not that of the last to be heard of; where the first left none there is none."""
    folder = make_run(tmp_path, ["ranks"])
    end(folder)
    first, other = begin(folder, 1), begin(folder, 0)
    failed = RunEnded(first, "FAILED", 1_700_000_100_000, "ValueError", traceback=lines)
    followed = RunEnded(other, "FAILED", 1_700_000_200_000, "peer is gone", traceback="line 9")
    for one in (failed, followed):
        append(folder, [one], journal=one.session + CONTROL)
    deliver(folder, "ranks")
    tags = {key: value for one in merged(folder) if isinstance(one, Tags)
            for key, value in one.values.items()}  # fmt: skip
    assert tags.get(TRACEBACK_TAG) == told
    found = final_end(folder)
    assert found is not None
    assert found.reason.endswith(": ValueError")


def test_a_rank_that_ended_is_not_waited_for(tmp_path: Path) -> None:
    """While the others go on their points are made without it, once all of its own is read."""
    folder = make_run(tmp_path, ["ranks"])
    end(folder)
    names = [begin(folder, rank, of=3) for rank in range(3)]
    append(folder, [said(2, s, of=3) for s in range(3)], journal=names[2])
    leave(folder, names[2], "KILLED")
    delivering = threading.Thread(target=deliver, args=(folder, "ranks"))
    delivering.start()
    for rank in (0, 1):
        append(folder, [said(rank, s, of=3) for s in range(5)], journal=names[rank])
    wait_until(lambda: len(merged_points(folder)) == 5)
    assert [point.value for point in merged_points(folder)] == ["1.0", "2.0", "3.0", "3.5", "4.5"]
    assert final_end(folder) is None
    leave(folder, names[0])
    leave(folder, names[1])
    delivering.join(120)
    assert final_end(folder) is not None
    assert len(merged_points(folder)) == 5


def test_a_restart_is_merged_apart(tmp_path: Path) -> None:
    """The steps that it logs again are points of their own; the run waits for them anew."""
    folder = make_run(tmp_path, ["ranks"])
    end(folder)
    first = [begin(folder, rank) for rank in (0, 1)]
    append(folder, [said(0, 1), said(1, 1), said(0, 2)])
    for name in first:
        leave(folder, name, "KILLED")
    deliver(folder, "ranks")
    assert [point.value for point in merged_points(folder)] == ["1.5", "2.0"]
    again = [begin(folder, rank, attempt=1) for rank in (0, 1)]
    append(folder, [said(rank, 2, attempt=1, timestamp_ms=9999) for rank in (0, 1)])
    assert final_end(folder) is None
    for name in again:
        leave(folder, name)
    assert final_end(folder) is None
    deliver(folder, "ranks")
    assert [(p.step, p.value) for p in merged_points(folder)] == [
        (1, "1.5"),
        (2, "2.0"),
        (2, "2.5"),
    ]
    assert final_end(folder) is not None


def test_a_rank_that_begins_late_is_waited_for(tmp_path: Path) -> None:
    """Where the others have ended well before it began; it is known how many there are."""
    folder = make_run(tmp_path, ["ranks"])
    end(folder)
    first = begin(folder, 0)
    append(folder, [said(0, 1)], journal=first)
    leave(folder, first)
    delivering = threading.Thread(target=deliver, args=(folder, "ranks"))
    delivering.start()
    wait_until(lambda: folder.progress("ranks").has_all(folder.size_bytes()))
    assert final_end(folder) is None
    late = begin(folder, 1)
    append(folder, [said(1, 1)], journal=late)
    leave(folder, late)
    delivering.join(120)
    assert [point.value for point in merged_points(folder)] == ["1.5"]


def test_a_rank_that_never_begins_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at all where another has failed; else for a bounded time."""
    failed = make_run(tmp_path / "failed", ["ranks"])
    end(failed)
    leave(failed, begin(failed, 0), "FAILED")
    assert deliver(failed, "ranks")
    monkeypatch.setattr("opusclip_mlops.sinks.ranks.BEGIN_WAIT_S", 0.3)
    folder = make_run(tmp_path / "well", ["ranks"])
    end(folder)
    name = begin(folder, 0)
    append(folder, [said(0, 1)], journal=name)
    leave(folder, name)
    assert deliver(folder, "ranks")
    assert [point.value for point in merged_points(folder)] == ["1.0"]


@pytest.mark.parametrize(("relays", "named"), [(False, ["1, 2"]), (True, [])])
def test_ranks_that_never_began_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relays: bool, named: list[str]
) -> None:
    """Though nothing was merged; where ranks may be elsewhere, who listens for them says it."""
    monkeypatch.setattr("opusclip_mlops.sinks.ranks.BEGIN_WAIT_S", 0)
    folder = make_run(tmp_path, ["ranks", *(["relay"] if relays else [])])
    end(folder)
    leave(folder, begin(folder, 0, of=3))
    if relays:
        note_all_nodes(folder, sessions(folder))
    assert deliver(folder, "ranks")
    assert _tags(folder, UNHEARD_TAG) == named
    texts = [one.text for one in merged(folder) if isinstance(one, Text) and one.key == KEY]
    assert texts == [f"{NEVER_BEGAN}: {one}" for one in named]


def test_a_rank_that_begins_after_the_end_is_named_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on with it, and its next end says so."""
    monkeypatch.setattr("opusclip_mlops.sinks.ranks.BEGIN_WAIT_S", 0)
    folder = make_run(tmp_path, ["ranks"])
    end(folder)
    leave(folder, begin(folder, 0))
    assert deliver(folder, "ranks")
    leave(folder, begin(folder, 1))
    assert deliver(folder, "ranks")
    assert _tags(folder, UNHEARD_TAG) == ["1", "none: all have begun since"]


def test_a_rank_that_begins_while_the_end_is_told_is_named_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is remembered of who was lacking is what was told."""
    monkeypatch.setattr("opusclip_mlops.sinks.ranks.BEGIN_WAIT_S", 0)
    folder = make_run(tmp_path, ["ranks"])
    end(folder)
    leave(folder, begin(folder, 0))
    unheard = RanksSink._unheard

    def then_it_begins(sink: RanksSink) -> str:
        found = unheard(sink)
        if found:
            leave(folder, begin(folder, 1))
        return found

    monkeypatch.setattr(RanksSink, "_unheard", then_it_begins)
    assert deliver(folder, "ranks")
    assert _tags(folder, UNHEARD_TAG) == ["1", "none: all have begun since"]


def test_what_was_said_before_a_kill_is_taken_back_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind the tag that names a rank, and before that is kept: then the rank begins."""
    monkeypatch.setattr("opusclip_mlops.sinks.ranks.BEGIN_WAIT_S", 0)
    folder = make_run(tmp_path, ["ranks"])
    end(folder)
    leave(folder, begin(folder, 0))
    kept = RanksSink._kept

    def dies(sink: RanksSink) -> SinkState:
        if _tags(folder, UNHEARD_TAG):
            raise _Killed
        return kept(sink)

    monkeypatch.setattr(RanksSink, "_kept", dies)
    with pytest.raises(_Killed):
        deliver(folder, "ranks")
    monkeypatch.setattr(RanksSink, "_kept", kept)
    assert _tags(folder, UNHEARD_TAG) == ["1"]
    leave(folder, begin(folder, 1))
    assert deliver(folder, "ranks")
    assert _tags(folder, UNHEARD_TAG) == ["1", "none: all have begun since"]


class _Killed(BaseException):
    """What no process sees of its own SIGKILL."""


def _tags(folder: RunFolder, name: str) -> list[str]:
    """What the sink has said under a tag."""
    said_so = [one.values for one in merged(folder) if isinstance(one, Tags)]
    return [one[name] for one in said_so if name in one]


def test_what_was_decided_before_a_kill_is_done_once(tmp_path: Path) -> None:
    """That a rank has left, which is known again; and before what is logged since."""
    folder = make_run(tmp_path, ["ranks"])
    state = RanksSink(folder).open({})
    turns = [said(0, 5, of=3, reduce=turn(5)), said(1, 6, of=3, reduce=turn(6))]
    sink = RanksSink(folder)
    sink.open(state)
    kept = sink.write(Batch(records=tuple(turns))).state
    kept = dict(kept) | {"decided": [[], {"0": [2]}, False]}
    for records in ((), (said(0, 6, of=3, reduce=turn(6)),)):
        sink = RanksSink(folder)
        sink.open(kept)
        sink.write(Batch(records=records))
    assert [one.step for one in merged(folder) if isinstance(one, Metrics)] == [5, 6]


def test_a_backlog_is_merged_whole_whatever_kills_the_sink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 logs ten times as much, and batches are cut otherwise after each kill."""
    folder = make_run(tmp_path, ["ranks"])
    end(folder)
    for rank in range(3):
        name = begin(folder, rank, of=3)
        words = [Text(1, 1, "words", "x" * 200)] * 10 if rank == 0 else []
        calls = [[*words, said(rank, step, of=3)] for step in range(1, 121)]
        append(folder, [one for call in calls for one in call], journal=name)
        leave(folder, name)
    kept, calls_made = delivery._Delivery._acknowledge, [0]

    def dies_at_times(self: delivery._Delivery, *args: object) -> None:
        calls_made[0] += 1
        monkeypatch.setattr(delivery, "BATCH_RECORDS", 40 + calls_made[0] % 5)
        if calls_made[0] % 7 == 2:
            raise OSError("killed behind the merging, before that is kept")
        kept(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(delivery._Delivery, "_acknowledge", dies_at_times)
    monkeypatch.setattr(delivery, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(delivery, "BATCH_RECORDS", 40)
    monkeypatch.setitem(RankMerger.__init__.__kwdefaults__, "most_open_bytes", 45 * 324)
    assert deliver(folder, "ranks")
    assert folder.progress("ranks").faults >= 4
    points = [(one.step, one.values) for one in merged(folder) if isinstance(one, Metrics)]
    assert points == [(step, {"loss": step + 1.0}) for step in range(1, 121)]


def test_a_rank_that_died_in_the_midst_of_a_write_ends_the_run(tmp_path: Path) -> None:
    """What it could not write whole is waited for by nobody, during the run or at its end."""
    folder = make_run(tmp_path, ["ranks"])
    end(folder)
    names = [begin(folder, rank) for rank in (0, 1)]
    append(folder, [said(1, 1)], journal=names[1])
    torn = folder.path / f"{names[1]}-000000.journal"
    torn.write_bytes(torn.read_bytes() + journal.framed(said(1, 2))[:-1])
    os.utime(torn, (0, 0))
    leave(folder, names[1], "KILLED")
    delivering = threading.Thread(target=deliver, args=(folder, "ranks"))
    delivering.start()
    append(folder, [said(0, 1), said(0, 2)], journal=names[0])
    wait_until(lambda: len(merged_points(folder)) == 2)
    leave(folder, names[0])
    delivering.join(120)
    assert [point.value for point in merged_points(folder)] == ["1.5", "2.0"]
    assert folder.progress("ranks").damaged_bytes > 0


def test_a_full_disk_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written down is said again later, and what was is not."""
    folder = make_run(tmp_path, ["ranks"])
    append(folder, [said(r, s) for s in range(30) for r in (0, 1)])
    end(folder)
    written = Journal.append
    calls = [0]

    def full(self: Journal, record: Record) -> None:
        calls[0] += 1
        if 10 <= calls[0] < 14:
            self.count_lost(OSError(28, "No space left on device"))
        else:
            written(self, record)

    monkeypatch.setattr(Journal, "append", full)
    files = len(os.listdir("/proc/self/fd"))
    deliver(folder, "ranks")
    assert [point.step for point in merged_points(folder)] == list(range(30))
    assert folder.progress("ranks").faults == 4
    assert len(list(folder.path.glob(f"{NAME}-*"))) == 2
    assert len(os.listdir("/proc/self/fd")) == files
