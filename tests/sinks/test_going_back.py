"""TensorBoard while training goes back: the line as it is now, and the rest beside it."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from opusclip_mlops import projector
from opusclip_mlops.delivery import deliver
from opusclip_mlops.event_files import event_files
from opusclip_mlops.event_log import EventLog, read_log
from opusclip_mlops.folder import CONTROL, Identity, RunFolder
from opusclip_mlops.mirror_names import names_of
from opusclip_mlops.records import Batch, Metrics, Record, RunEnded, RunStarted, Text
from opusclip_mlops.sinks import Waiting, open_sink
from opusclip_mlops.sinks import tensorboard as tensorboard_sink
from tests import insight_records
from tests.journeys import LOCAL_ID, append, end, make_run, wait_until
from tests.reading import event_reader, points_of_tensorboard
from tests.sinks.sink_contract import T0_MS
from tests.tensorboards import tensorboard
from tests.test_mirror_names import begun

RUN = f"films/{LOCAL_ID}"
SECOND_MS, THIRD_MS = T0_MS + 1000, T0_MS + 2000
# The checkpoints of the first line were made with its steps.
FROM_5 = begun(SECOND_MS, 5, T0_MS + 5)
FROM_8 = begun(THIRD_MS, 8, T0_MS + 8)


def calls(first: int, last: int, *, from_ms: int = T0_MS) -> list[Record]:
    """A log call a step, at a millisecond each."""
    return [
        Metrics(from_ms + step, step, {"loss": from_ms - T0_MS + step, "system/cpu": 1.0})
        for step in range(first, last + 1)
    ]


def began(folder: RunFolder, tags: dict[str, str], *, session: str = "s2") -> None:
    """A further process goes on with the run."""
    start = RunStarted(session, socket.gethostname(), 1, 1.0, SECOND_MS, tags=tags)
    append(folder, [start], journal=session + CONTROL)


def ended(folder: RunFolder, *, session: str = "s2") -> None:
    """It ends."""
    last = RunEnded(session, "FINISHED", 1_700_000_200_000)
    append(folder, [last], journal=session + CONTROL)


def events_of(folder: RunFolder) -> Path:
    return folder.path.parent.parent / "runs" / "films" / LOCAL_ID


def shown(events: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's own loader shows, without what the machine uses."""
    reader = event_reader(events)
    return {
        key: [(one.step, one.value) for one in reader.Scalars(key)]
        for key in sorted(reader.Tags()["scalars"])
        if not key.startswith("system/")
    }


LINE = [(step, float(step)) for step in range(6)] + [(step, 1000.0 + step) for step in range(6, 9)]
LEFT = [(step, float(step)) for step in range(6, 11)]


def test_a_resumed_run_shows_its_line_from_its_beginning(tmp_path: Path) -> None:
    """Before the first new point; in the end each step of the curve has one value, none is lost."""
    folder = make_run(tmp_path, ["tensorboard"])
    append(folder, calls(0, 10))
    end(folder)
    deliver(folder, "tensorboard")
    began(folder, FROM_5)
    sink = open_sink("tensorboard", folder)
    sink.open(dict(folder.progress("tensorboard").state))
    assert shown(events_of(folder)) == {"loss": LINE[:6], "generation-0/loss": LEFT}
    sink.abandon()  # type: ignore[attr-defined]
    append(folder, calls(6, 8, from_ms=SECOND_MS), journal="s2")
    ended(folder)
    deliver(folder, "tensorboard")
    assert shown(events_of(folder)) == {"loss": LINE, "generation-0/loss": LEFT}
    log = read_log(event_files(events_of(folder)))
    assert log.is_in_order()
    assert log.end == "FINISHED"
    cpu = event_reader(events_of(folder)).Scalars("system/cpu")
    assert len(cpu) == 14


def test_a_run_resumed_elsewhere_is_known_by_what_mlflow_says(tmp_path: Path) -> None:
    """In a new folder on this machine, with the tags that MLflow had when it was opened."""
    first = make_run(tmp_path, ["tensorboard"])
    append(first, calls(0, 10))
    end(first)
    deliver(first, "tensorboard")
    second = make_run(tmp_path, ["tensorboard"], name="f" * 32, run_id="r1")
    known = Identity(mirror_id=LOCAL_ID, experiment_name="films", generations=FROM_5)
    second.write_identity(known)
    append(second, calls(6, 8, from_ms=SECOND_MS))
    end(second)
    deliver(second, "tensorboard")
    assert shown(events_of(first)) == {"loss": LINE, "generation-0/loss": LEFT}


def test_what_is_late_is_put_beside_the_line(tmp_path: Path) -> None:
    """A sink that is open when the run goes back begins anew, once; late points find their place.

    A rank that joins the generation changes nothing.
    """
    folder = make_run(tmp_path, ["tensorboard"])
    sink = open_sink("tensorboard", folder)
    sink.open({})
    state = sink.write(Batch(records=tuple(calls(0, 7)))).state
    began(folder, begun(SECOND_MS, 5, T0_MS + 5, rank=0))
    start = RunStarted("s2", "h", 1, 1.0, SECOND_MS)
    late = Batch(records=(start, *calls(8, 10), *calls(6, 8, from_ms=SECOND_MS)))
    with pytest.raises(Waiting, match="went back"):
        sink.write(late)
    sink = open_sink("tensorboard", folder)
    sink.open(state)
    sink.write(late)
    began(folder, begun(SECOND_MS + 1, 5, T0_MS + 5, rank=1), session="s3")
    sink.write(Batch(records=(start,)))
    sink.close(RunEnded("s2", "FINISHED", 1_700_000_200_000))
    assert shown(events_of(folder)) == {"loss": LINE, "generation-0/loss": LEFT}


def test_a_generation_that_is_known_late_is_put_beside_before_the_end(tmp_path: Path) -> None:
    """MLflow may tell of it when all points were written: closing waits for a new start."""
    folder = make_run(tmp_path, ["tensorboard"])
    sink = open_sink("tensorboard", folder)
    sink.open({})
    state = sink.write(Batch(records=tuple(calls(0, 10)))).state
    state = sink.write(Batch(records=tuple(calls(6, 8, from_ms=SECOND_MS)))).state
    identity = folder.identity()
    assert identity is not None
    folder.write_identity(msgspec.structs.replace(identity, generations=FROM_5))
    last = RunEnded("s1", "FINISHED", 1_700_000_200_000)
    with pytest.raises(Waiting, match="went back"):
        sink.close(last)
    sink = open_sink("tensorboard", folder)
    sink.open(state)
    sink.close(last)
    assert shown(events_of(folder)) == {"loss": LINE, "generation-0/loss": LEFT}


def test_events_that_have_their_names_are_not_read_for_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened once more in the same generation, only words are looked for."""
    folder = make_run(tmp_path, ["tensorboard"])
    began(folder, FROM_5)
    sink = open_sink("tensorboard", folder)
    state = sink.open({})
    sink.abandon()  # type: ignore[attr-defined]
    whole: list[bool] = []

    def read(paths: Iterable[Path], *, with_points: bool = True) -> EventLog:
        whole.append(with_points)
        return read_log(paths, with_points=with_points)

    monkeypatch.setattr(tensorboard_sink, "read_log", read)
    sink = open_sink("tensorboard", folder)
    sink.open(state)
    sink.abandon()  # type: ignore[attr-defined]
    assert whole == [False]


def test_training_that_returns_to_what_it_left_shows_it_again(tmp_path: Path) -> None:
    """From 5, and then from the first line's 8: of the second line everything is beside now."""
    folder = make_run(tmp_path, ["tensorboard"])
    append(folder, calls(0, 10))
    end(folder)
    deliver(folder, "tensorboard")
    further = (("s2", FROM_5, 6, SECOND_MS), ("s3", FROM_8, 9, THIRD_MS))
    for session, tags, first, from_ms in further:
        began(folder, tags, session=session)
        append(folder, calls(first, 10, from_ms=from_ms), journal=session)
        ended(folder, session=session)
        deliver(folder, "tensorboard")
    line = [(step, float(step)) for step in range(9)] + [(9, 2009.0), (10, 2010.0)]
    assert shown(events_of(folder)) == {
        "loss": line,
        "generation-0/loss": [(9, 9.0), (10, 10.0)],
        "generation-1/loss": [(step, 1000.0 + step) for step in range(6, 11)],
    }


def test_insights_and_texts_are_put_beside_the_line_too(tmp_path: Path) -> None:
    """Of the graph and the layout, which TensorBoard shows once, the last is one of the line."""
    folder = make_run(tmp_path, ["tensorboard"])
    of_text = Text(T0_MS + 9, 9, "notes", "nine")
    append(folder, [
        insight_records.graph(2), insight_records.layout(2), insight_records.embedding(folder, 2),
        *insight_records.every_kind(folder), insight_records.graph(9), insight_records.layout(9),
        of_text, *calls(0, 10),
    ])  # fmt: skip
    end(folder)
    deliver(folder, "tensorboard")
    began(folder, begun(SECOND_MS, 2, T0_MS + 2))
    ended(folder)
    deliver(folder, "tensorboard")
    events = events_of(folder)
    log = read_log(event_files(events))
    names = names_of(begun(SECOND_MS, 2, T0_MS + 2))
    assert log.fits(names)
    assert log.is_in_order(names)
    tags = {one.tag.removeprefix("opusclip/insight/") for one in log.kept}
    assert {"generation-0/notes", "histograms/generation-0/weights", "graph/model"} <= tags
    assert [one.step for one in log.kept if not one.tag] == [9, 0, 2]
    assert set(projector.embeddings_in(events)) == {
        ("clips", 2, T0_MS + 2), ("generation-0/clips", 3, T0_MS + 3),
    }  # fmt: skip
    assert "generation-0/clips step 3" in (events / projector.CONFIG).read_text()


def test_a_key_that_looks_superseded_is_told_from_what_is(tmp_path: Path) -> None:
    """Before the run goes back and afterwards."""
    folder = make_run(tmp_path, ["tensorboard"])
    append(folder, [Metrics(T0_MS + s, s, {"generation-0/loss": 7.0, "loss": 1.0}) for s in (4, 6)])
    end(folder)
    deliver(folder, "tensorboard")
    own = "metrics/generation-0/loss"
    assert shown(events_of(folder)) == {"loss": [(4, 1.0), (6, 1.0)], own: [(4, 7.0), (6, 7.0)]}
    began(folder, FROM_5)
    ended(folder)
    deliver(folder, "tensorboard")
    assert shown(events_of(folder)) == {
        "loss": [(4, 1.0)], own: [(4, 7.0)],
        "generation-0/loss": [(6, 1.0)], "generation-0/generation-0/loss": [(6, 7.0)],
    }  # fmt: skip


def test_a_tensorboard_that_is_open_shows_the_line(tmp_path: Path) -> None:
    """Its default loader has read what is superseded since; each step has one value."""
    folder = make_run(tmp_path, ["tensorboard"])
    append(folder, calls(0, 10))
    end(folder)
    deliver(folder, "tensorboard")
    with tensorboard(tmp_path / "runs", fast=True) as board:
        wait_until(lambda: "loss" in board.tags("scalars", RUN))
        wait_until(lambda: len(board.scalars(RUN, "loss")) == 11)
        began(folder, FROM_5)
        append(folder, calls(6, 8, from_ms=SECOND_MS), journal="s2")
        ended(folder)
        deliver(folder, "tensorboard")
        wait_until(lambda: "generation-0/loss" in board.tags("scalars", RUN))
        wanted = [(step, f"{value}") for step, value in LINE]
        wait_until(lambda: [(s, v) for s, _, v in board.scalars(RUN, "loss")] == wanted)
        left = [(s, float(v)) for s, _, v in board.scalars(RUN, "generation-0/loss")]
    assert left == LEFT


KILL_IN_RENAMING = """
import os, signal, sys
from pathlib import Path
from opusclip_mlops import delivery, folder
from opusclip_mlops.sinks import tensorboard
left = int(sys.argv[2])
def killed_in_time(what):
    def call(*words, **named):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return what(*words, **named)
    return call
os.fsync = killed_in_time(os.fsync)
os.replace = killed_in_time(os.replace)
for name in ("replace", "unlink"):
    setattr(Path, name, killed_in_time(getattr(Path, name)))
RunFolder = folder.RunFolder
RunFolder.write_progress = killed_in_time(RunFolder.write_progress)
tensorboard.TensorBoardSink._take = killed_in_time(tensorboard.TensorBoardSink._take)
delivery.deliver(RunFolder(Path(sys.argv[1])), "tensorboard")
"""


def test_killed_at_any_moment_of_the_renaming_nothing_is_lost_or_twice(tmp_path: Path) -> None:
    """Delivered again, the line and what is beside it stand there once."""
    was_killed, after_calls = True, 0
    while was_killed:
        folder = make_run(tmp_path / str(after_calls), ["tensorboard"])
        append(folder, [*calls(0, 10), insight_records.embedding(folder, 7)])
        end(folder)
        deliver(folder, "tensorboard")
        began(folder, FROM_5)
        append(folder, calls(6, 8, from_ms=SECOND_MS), journal="s2")
        ended(folder)
        argv = [sys.executable, "-c", KILL_IN_RENAMING, str(folder.path), str(after_calls)]
        done = subprocess.run(argv, check=False, timeout=120)
        was_killed = done.returncode == -signal.SIGKILL
        assert was_killed or done.returncode == 0
        deliver(folder, "tensorboard")
        assert shown(events_of(folder)) == {"loss": LINE, "generation-0/loss": LEFT}
        assert len(points_of_tensorboard(events_of(folder))) == 28
        found = projector.embeddings_in(events_of(folder))
        assert found == {("generation-0/clips", 7, T0_MS + 7): 1}
        after_calls += 4
    assert after_calls > 10
