import threading
from pathlib import Path

import pytest

from opusclip_mlops import delivery
from opusclip_mlops.delivery import deliver, is_caught_up
from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.folder import CONTROL, Progress, RunFolder
from opusclip_mlops.records import Batch, Metrics, RunEnded, RunStarted, Text
from opusclip_mlops.sessions import final_end, sessions
from opusclip_mlops.sinks import SinkState, Waiting, Written, open_sink
from tests.journeys import append, end, make_run, wait_until
from tests.sinks.sink_contract import metrics


class Memory:
    """A sink that keeps batches, and fails when told to."""

    def __init__(self, *, open_faults: int = 0, write_faults: int = 0) -> None:
        self.batches: list[Batch] = []
        self.states: list[SinkState] = []
        self.ended: RunEnded | None = None
        self.open_faults, self.write_faults = open_faults, write_faults

    def open(self, state: SinkState) -> SinkState:
        """Fail as often as told."""
        self.states.append(state)
        if self.open_faults:
            self.open_faults -= 1
            raise ConnectionError("no route to https://user:hunter22@host/")
        return {"opened": len(self.states)}

    def write(self, batch: Batch) -> Written:
        """Keep the batch, then fail as often as told."""
        self.batches.append(batch)
        if self.write_faults:
            self.write_faults -= 1
            raise OSError("disk on fire")
        return Written({"batches": len(self.batches)})

    def close(self, end: RunEnded) -> None:
        """Keep the end."""
        self.ended = end


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    sink = Memory()
    monkeypatch.setattr(delivery, "open_sink", lambda *_: sink)
    monkeypatch.setattr(delivery, "FIRST_RETRY_S", 0.01)
    return sink


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path, ["memory"])


def test_batches_hold_a_bounded_number_of_records(folder: RunFolder, memory: Memory) -> None:
    """However long the backlog, a batch holds at most its number, in order, rows counted on."""
    append(folder, metrics(2 * delivery.BATCH_RECORDS + 10))
    end(folder)
    deliver(folder, "memory")
    rows = [[r for r in b.records if isinstance(r, Metrics)] for b in memory.batches]
    assert [r.step for batch in rows for r in batch] == list(range(2 * delivery.BATCH_RECORDS + 10))
    assert max(len(batch) for batch in rows) <= delivery.BATCH_RECORDS
    firsts = [batch.first_row for batch in memory.batches]
    assert firsts == [sum(map(len, rows[:i])) for i in range(len(rows))]


def test_a_sink_that_cannot_be_opened_is_tried_again(folder: RunFolder, memory: Memory) -> None:
    """Faults are counted, told without credentials, and forgotten once it works."""
    memory.open_faults = 3
    append(folder, metrics(2))
    end(folder)
    assert deliver(folder, "memory")
    progress = folder.progress("memory")
    assert (progress.faults, progress.error, progress.done) == (3, "", True)


def test_credentials_in_a_fault_are_not_kept(
    folder: RunFolder, memory: Memory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the progress file nor the log names a password."""
    delivery._note_fault(folder, "memory", ConnectionError("https://user:hunter22@host/"))
    assert "user:***@host" in folder.progress("memory").error
    assert "hunter22" not in capsys.readouterr().out
    assert memory.batches == []


def test_the_same_batch_is_given_again_after_a_fault(
    folder: RunFolder, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was being written when a sink broke is given again exactly, though more was logged."""
    monkeypatch.setattr(delivery, "NEEDS_NEW_PROCESS", {"memory"})
    memory.write_faults = 1
    append(folder, metrics(5))
    assert not deliver(folder, "memory")
    append(folder, metrics(5, first=5))
    end(folder)
    assert deliver(folder, "memory")
    first, again, rest = memory.batches
    assert first == again
    assert [r.step for r in rest.records if isinstance(r, Metrics)] == list(range(5, 10))
    assert rest.first_row == 5


def test_a_sink_that_breaks_is_opened_again_in_its_process(
    folder: RunFolder, memory: Memory
) -> None:
    """Where the client library allows it, a fault costs no new process."""
    memory.write_faults = 3
    append(folder, metrics(5))
    end(folder)
    assert deliver(folder, "memory")
    assert [len(batch.records) for batch in memory.batches] == [7] * 4
    assert len(memory.states) == 4
    assert (folder.progress("memory").faults, folder.progress("memory").error) == (3, "")


class Lagging(Memory):
    """A sink whose rows are safe once it is asked; it breaks at the first question."""

    def write(self, batch: Batch) -> Written:
        """Take a batch; an empty one asks."""
        if not batch.records and len(self.states) == 1:
            raise OSError("gone before it was safe")
        super().write(batch)
        is_question = not batch.records
        return Written(safe_rows=batch.first_row if is_question else 0, unfinished=not is_question)


def test_what_is_not_safe_is_given_again_in_the_same_batches(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The position moves behind safe rows only; the others come again, cut as they were."""
    sink = Lagging()
    monkeypatch.setattr(delivery, "open_sink", lambda *_: sink)
    monkeypatch.setattr(delivery, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(delivery, "BATCH_RECORDS", 4)
    append(folder, metrics(8))
    end(folder)
    assert deliver(folder, "memory")
    given = [batch for batch in sink.batches if batch.records]
    half = len(given) // 2
    assert given[:half] == given[half:]
    assert half >= 3
    assert (folder.progress("memory").row, folder.progress("memory").given) == (8, [])
    assert folder.progress("memory").records == 10


def test_rows_beyond_the_limit_wait_until_some_are_safe(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far a sink lags behind, only so many batches are under way."""
    sink = Lagging()
    sink.states.append({})
    monkeypatch.setattr(delivery, "open_sink", lambda *_: sink)
    monkeypatch.setattr(delivery, "BATCH_RECORDS", 1)
    append(folder, metrics(3 * delivery.BATCHES_AHEAD))
    end(folder)
    assert deliver(folder, "memory")
    runs = [0]
    for batch in sink.batches:
        runs = [*runs[:-1], runs[-1] + batch.row_count] if batch.records else [*runs, 0]
    assert max(runs) == delivery.BATCHES_AHEAD


def test_a_batch_holds_a_bounded_number_of_bytes(
    folder: RunFolder, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long texts make short batches: memory does not grow with what is logged."""
    monkeypatch.setattr(delivery, "BATCH_BYTES", 10_000)
    append(folder, [Text(1, i, "notes", "x" * 1000) for i in range(50)])
    end(folder)
    deliver(folder, "memory")
    texts = [sum(isinstance(r, Text) for r in batch.records) for batch in memory.batches]
    assert sum(texts) == 50
    assert max(texts) <= 10


def test_a_waiting_sink_is_no_fault(
    folder: RunFolder, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink that waits for another's answer is asked again and nothing is counted."""
    asked = []

    def ask(*_: object) -> Memory:
        asked.append(1)
        if len(asked) < 3:
            raise Waiting("not yet")
        return memory

    monkeypatch.setattr(delivery, "open_sink", ask)
    end(folder)
    deliver(folder, "memory")
    assert (len(asked), folder.progress("memory").faults) == (3, 0)


def test_the_end_is_declared_after_everything_else(folder: RunFolder, memory: Memory) -> None:
    """The sink hears of the end with its reason, once all records were given."""
    append(folder, metrics(3))
    end(folder, "FAILED", "why")
    deliver(folder, "memory")
    assert memory.ended is not None
    assert (memory.ended.status, memory.ended.reason) == ("FAILED", "why")
    assert is_caught_up(folder, folder.progress("memory"))
    append(folder, metrics(1, first=3))
    assert not is_caught_up(folder, folder.progress("memory"))


@pytest.mark.parametrize(
    ("said", "wait_s"),
    [("12.5", 12.5), ("0", 0), ("-1", 0), ("nan", 0), ("1e9", 300), ("soon", 0.9), ("", 0.9)],
)
def test_how_long_records_wait_for_others_can_be_said(said: str, wait_s: float) -> None:
    """Seconds within bounds; what is no number changes nothing, for no shipper may fail of it."""
    assert delivery.send_interval_s({"OPUSCLIP_SEND_INTERVAL_S": said}) == wait_s
    assert delivery.send_interval_s({}) == 0.9


def test_the_end_waits_for_no_interval(
    folder: RunFolder, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes between two sendings goes together, and a run that has ended goes at once."""
    monkeypatch.setattr(delivery, "LINGER_S", 1e6)
    append(folder, metrics(1))
    thread = threading.Thread(target=deliver, args=(folder, "memory"), daemon=True)
    thread.start()
    wait_until(lambda: len(memory.batches) == 1)
    append(folder, metrics(1, first=1))
    append(folder, metrics(1, first=2))
    end(folder)
    thread.join(60)
    assert not thread.is_alive()
    steps = [[r.step for r in b.records if isinstance(r, Metrics)] for b in memory.batches]
    assert steps == [[0], [1, 2]]


def test_what_shows_life_waits_for_no_interval(
    folder: RunFolder, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long interval would have a machine taken for silent, and alerts come late."""
    monkeypatch.setattr(delivery, "LINGER_S", 1e6)
    append(folder, metrics(1))
    threading.Thread(target=deliver, args=(folder, "relay"), daemon=True).start()
    wait_until(lambda: len(memory.batches) == 1)
    append(folder, metrics(1, first=1))
    wait_until(lambda: len(memory.batches) == 2)
    end(folder)


def watched(tmp_path: Path) -> RunFolder:
    """A run that has ended, and whose alerts have judged nothing of it yet."""
    folder = make_run(tmp_path, ["memory", "alerts"])
    append(folder, metrics(3))
    end(folder)
    return folder


def test_the_end_is_declared_behind_what_alerts_say_of_the_last_points(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a sink is not opened once more for it, and what close() waits for is all there is."""
    monkeypatch.setattr(delivery, "HEARS_ALERTS_S", 1000.0)
    folder = watched(tmp_path)
    thread = threading.Thread(target=deliver, args=(folder, "memory"), daemon=True)
    thread.start()
    wait_until(lambda: folder.progress("memory").has_all(folder.size_bytes()))
    append(folder, [Text(1, 1, "opusclip/alerts", "loss is nan")], journal="+alerts")
    wait_until(lambda: folder.progress("memory").has_all(folder.size_bytes()))
    folder.write_progress("alerts", Progress(number=2, position=folder.size_bytes()))
    thread.join(120)
    assert is_caught_up(folder, folder.progress("memory"))
    assert memory.ended is not None
    assert len(memory.states) == 1


def test_alerts_that_judge_nothing_hold_up_no_end_for_long(
    tmp_path: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their process may be broken: the run ends all the same."""
    monkeypatch.setattr(delivery, "HEARS_ALERTS_S", 0.01)
    folder = watched(tmp_path)
    assert deliver(folder, "memory")
    assert memory.ended is not None


def test_a_run_ends_when_every_process_that_logs_to_it_has(folder: RunFolder) -> None:
    """One session's end is not the run's while another goes on; the owner's end counts."""
    other = RunStarted("s2", "elsewhere", 1, 0.0, 5, owned=False)
    append(folder, [other], journal="s2" + CONTROL)
    end(folder, "FAILED", "why")
    assert final_end(folder) is None
    append(folder, [RunEnded("s2", "FINISHED", 2**41, owned=False)], journal="s2" + CONTROL)
    final = final_end(folder)
    assert final is not None
    assert final.status == "FAILED"
    assert {one.start.session for one in sessions(folder)} == {"s1", "s2"}


def test_a_failure_is_not_covered_by_another_processes_good_end(folder: RunFolder) -> None:
    """One rank failed, another finished later: the run failed; gone on with since, it did not."""
    other = RunStarted("s2", "elsewhere", 1, 0.0, 1_700_000_000_001)
    append(folder, [other, RunEnded("s2", "FINISHED", 2**41)], journal="s2" + CONTROL)
    end(folder, "FAILED", "why")
    final = final_end(folder)
    assert final is not None
    assert (final.status, final.reason) == ("FAILED", "why")
    later = RunStarted("s3", "elsewhere", 1, 0.0, 2**41)
    append(folder, [later, RunEnded("s3", "FINISHED", 2**41 + 5)], journal="s3" + CONTROL)
    final = final_end(folder)
    assert final is not None
    assert final.status == "FINISHED"


def test_records_keep_their_order_over_segments(folder: RunFolder, memory: Memory) -> None:
    """A later segment waits until the one before it was read to its end."""
    count = 2 * delivery.BATCH_RECORDS
    append(folder, metrics(count), journal="s1-a")
    append(folder, metrics(20, first=count), journal="s1-b")
    end(folder)
    deliver(folder, "memory")
    steps = [r.step for b in memory.batches for r in b.records if isinstance(r, Metrics)]
    assert steps == list(range(count + 20))


@pytest.mark.parametrize(
    ("sink", "is_held_up"), [("memory", False), ("ranks", True), ("relay", True)]
)
def test_what_is_not_merged_waits_for_no_backlog(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, sink: str, is_held_up: bool
) -> None:
    """A rank's does, for the points it is needed for: none is to be made without the others."""
    monkeypatch.setattr(delivery, "BATCH_RECORDS", 100)
    for name in ("s1-a", "s1-b"):
        append(folder, metrics(1), journal=name)
    folder.write_progress(sink, Progress(number=1, position=folder.size_bytes()))
    append(folder, metrics(500, first=1), journal="s1-a")
    append(folder, metrics(3, first=9000), journal="s1-b")
    found = delivery._Delivery(folder, sink)._gathered(None, ended=False).records
    steps = [one.step for one in found if isinstance(one, Metrics)]
    live = [] if is_held_up else [9000, 9001, 9002]
    assert steps == [*range(1, 101 - len(live)), *live]


def test_a_process_own_word_goes_before_the_guess(folder: RunFolder) -> None:
    """A supervisor that took a process for dead is overruled by the process itself."""
    append(folder, [RunEnded("s1", "FAILED", 5, "vanished")], journal="a-supervisor" + CONTROL)
    end(folder, "FINISHED")
    append(folder, [RunEnded("s1", "FAILED", 6, "vanished")], journal="z-supervisor" + CONTROL)
    final = final_end(folder)
    assert final is not None
    assert final.status == "FINISHED"


def test_damage_in_the_journal_costs_what_it_hit_only(folder: RunFolder, memory: Memory) -> None:
    """Records around damaged bytes are delivered."""
    append(folder, metrics(50))
    [segment] = [path for path in folder.segments() if CONTROL not in path.name]
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    end(folder)
    deliver(folder, "memory")
    steps = [r.step for b in memory.batches for r in b.records if isinstance(r, Metrics)]
    assert len(steps) == 49
    assert folder.progress("memory").done


def test_an_unknown_sink_is_named(folder: RunFolder) -> None:
    """The error lists the sinks there are."""
    with pytest.raises(OpusclipError, match="mlflow, tensorboard, wandb"):
        open_sink("mlflwo", folder)
