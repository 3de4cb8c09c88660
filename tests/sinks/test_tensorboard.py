import io
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from PIL import Image as Picture
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams import api_pb2, metadata

from opusclip_mlops import checkpoints, projector
from opusclip_mlops.contents import read_contents
from opusclip_mlops.delivery import deliver
from opusclip_mlops.event_files import NEW, event_files, writer_of
from opusclip_mlops.event_log import EventLog, read_log
from opusclip_mlops.events import rendered_words
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.records import (
    About,
    Batch,
    Checkpoint,
    Files,
    Image,
    Insight,
    Metrics,
    Params,
    Record,
    RunEnded,
    Table,
    Tags,
    Text,
)
from opusclip_mlops.sinks import Sink, SinkState, Waiting, open_sink
from opusclip_mlops.words import NOTE_TAG
from tests import insight_records
from tests.journeys import LOCAL_ID, append, deliver_and_die, end, make_run, store, wait_until
from tests.reading import Point, event_reader, points_of_tensorboard
from tests.sinks.sink_contract import T0_MS, SinkContract, expected, metrics, staged_clip
from tests.tensorboards import TensorBoard, tensorboard

RUN = f"films/{LOCAL_ID}"
END = RunEnded("s1", "FINISHED", 1_700_000_100_000)
AWKWARD: list[Record] = [
    Metrics(T0_MS + at, step, {"a b/c": 0.5 + at, "größe/μ": at / 3, "k" * 250: 9.0 - at})
    for at, step in enumerate([5, 3, 9, 9, -4, 2**40, 5])
]


def events_of(folder: RunFolder) -> Path:
    return folder.path.parent.parent / "runs" / "films" / LOCAL_ID


def opened(tmp_path: Path, state: SinkState | None = None) -> Sink:
    """A sink of a run in this folder, begun or gone on with."""
    sink = open_sink("tensorboard", make_run(tmp_path, ["tensorboard"]))
    sink.open(state or {})
    return sink


def written(
    tmp_path: Path, records: Sequence[Record], *, state: SinkState | None = None, ends: bool = True
) -> Path:
    """Write records in a session of their own; returns the folder of event files."""
    sink = opened(tmp_path, state)
    sink.write(Batch(records=tuple(records)))
    sink.close(END if ends else None)
    return tmp_path / "runs" / "films" / LOCAL_ID


class TestTensorBoard(SinkContract):
    name = "tensorboard"
    narrow = True

    def points(self, folder: RunFolder) -> list[Point]:
        return points_of_tensorboard(events_of(folder))


def test_a_clip_is_a_moving_gif_at_its_step(tmp_path: Path) -> None:
    """The Images tab shows a GIF that moves."""
    folder = make_run(tmp_path, ["tensorboard"])
    append(folder, [staged_clip(folder, step=12)])
    end(folder)
    deliver(folder, "tensorboard")
    [image] = event_reader(events_of(folder)).Images("samples/kite")
    assert image.step == 12
    picture = Picture.open(io.BytesIO(image.encoded_image_string))
    assert (picture.format, getattr(picture, "n_frames", 1)) == ("GIF", 8)
    assert picture.size == (image.width, image.height)


def test_params_fill_the_hparams_tab_and_the_text_tab(tmp_path: Path) -> None:
    """Params logged in parts stand together, with how the run ended."""
    folder = make_run(tmp_path, ["tensorboard"])
    append(folder, [Params({"lr": "0.1"}), Params({"name": "a|b"}), Text(T0_MS, 2, "notes", "hi")])
    end(folder, "FAILED")
    deliver(folder, "tensorboard")
    reader = event_reader(events_of(folder))
    data = reader.summary_metadata
    start = metadata.parse_session_start_info_plugin_data(
        data["_hparams_/session_start_info"].plugin_data.content
    )
    assert {"lr", "name"} == set(start.hparams)
    finish = metadata.parse_session_end_info_plugin_data(
        data["_hparams_/session_end_info"].plugin_data.content
    )
    assert finish.status == api_pb2.STATUS_FAILURE
    [note] = reader.Tensors("notes")
    assert note.step == 2
    assert note.tensor_proto.string_val[0] == b"hi"


def test_a_torn_event_is_cut_off_before_going_on(tmp_path: Path) -> None:
    """What a crash left behind the acknowledged length is removed, not read as an event."""
    folder = make_run(tmp_path, ["tensorboard"])
    append(folder, metrics(5))
    end(folder)
    deliver(folder, "tensorboard")
    [file] = event_files(events_of(folder))
    with file.open("ab") as torn:
        torn.write(b"\x20\x00\x00\x00torn")
    append(folder, metrics(5, first=5))
    deliver(folder, "tensorboard")
    assert len(points_of_tensorboard(events_of(folder))) == 20


def texts(folder: Path, tag: str) -> list[str]:
    """All texts under a tag, in the order they stand in."""
    reader = event_reader(folder)
    return [one.tensor_proto.string_val[0].decode() for one in reader.Tensors(tag)]


# What each record becomes


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_a_picture_is_a_png_at_its_step(tmp_path: Path, suffix: str) -> None:
    """TensorBoard shows no WebP."""
    folder = make_run(tmp_path, ["tensorboard"])
    Picture.new("RGB", (30, 20), (250, 9, 9)).save(folder.media / f"a.{suffix}", lossless=True)
    events = written(tmp_path, [Image(T0_MS, 7, "samples/a", f"a.{suffix}")])
    [image] = event_reader(events).Images("samples/a")
    picture = Picture.open(io.BytesIO(image.encoded_image_string))
    assert (image.step, image.width, image.height) == (7, 30, 20)
    assert (picture.format, picture.size) == ("PNG", (30, 20))
    assert picture.convert("RGB").getpixel((5, 5)) == (250, 9, 9)


def test_a_table_is_markdown_at_its_step(tmp_path: Path) -> None:
    """Cells that are no text are JSON; rows beyond a thousand are counted."""
    rows = [[1, "x|y"], [None, {"k": [2]}], *([i, "z"] for i in range(2000))]
    events = written(tmp_path, [Table(T0_MS, 4, "errors", ["a", "b"], rows)])
    [text] = texts(events, "errors")
    lines = text.splitlines()
    assert lines[:4] == ["| a | b |", "|---|---|", "| 1 | x\\|y |", '| null | {"k":[2]} |']
    assert lines[-1] == "… and 1,002 more rows in MLflow"
    assert event_reader(events).Tensors("errors")[0].step == 4


def test_words_stand_under_names_of_their_own(tmp_path: Path) -> None:
    """Files, what MLflow knows of the run, and notes are each a text; tags are sorted."""
    events = written(tmp_path, [
        Files("checkpoint-x", "model", {"w": "s3://b/w"}, {"w": 3}, {"name": "e1"}, ["best"]),
        About("mlflow", {"user": "ann"}), Tags({"z": "1", "a": "2"}), Tags({"m": "3", "z": "4"}),
        Tags({NOTE_TAG: "# A *run*\n\nof mine"}),
    ])  # fmt: skip
    assert "| w | s3://b/w (3 bytes) |" in texts(events, "files/checkpoint-x/e1")[-1]
    assert "| user | ann |" in texts(events, "mlflow")[-1]
    assert texts(events, "tags")[-1].splitlines()[2:] == ["| a | 2 |", "| m | 3 |", "| z | 4 |"]
    assert texts(events, "notes") == ["# A *run*\n\nof mine"]


def test_words_that_stand_there_are_not_said_again(tmp_path: Path) -> None:
    """Neither in one session nor in the next one."""
    words: list[Record] = [Params({"lr": "1"}), Tags({"a": "b"}), About("mlflow", {"user": "ann"})]
    written(tmp_path, [*words, *words], ends=False)
    events = written(tmp_path, [*words, Tags({"a": "c"})], ends=False)
    assert [len(texts(events, tag)) for tag in ("params", "mlflow", "tags")] == [1, 1, 2]


def test_notes_of_the_tracker_are_a_text(tmp_path: Path) -> None:
    """They stand where notes that were set in MLflow would."""
    folder = make_run(tmp_path, ["tensorboard"], notes="what for")
    end(folder)
    deliver(folder, "tensorboard")
    assert texts(events_of(folder), "notes") == ["what for"]


def test_a_checkpoint_is_told_once_it_stands_in_mlflow(tmp_path: Path) -> None:
    """Rows go on meanwhile; what is said then is what is said when it is read from MLflow."""
    folder = make_run(tmp_path, ["mlflow", "tensorboard"])
    name = "epoch_0001-step_000002"
    about = checkpoints.CheckpointMetadata(name=name, epoch=1, step=2)
    checkpoints.write_checkpoint(folder.checkpoints / name, torch.nn.Linear(2, 1), metadata=about)
    append(folder, [*metrics(2), Checkpoint(T0_MS, 2, 1, name, {"val_loss": 0.5}, True)])
    end(folder)
    mirror = threading.Thread(target=deliver, args=(folder, "tensorboard"))
    mirror.start()
    wait_until(lambda: folder.progress("tensorboard").records >= 4)
    deliver(folder, "mlflow")
    mirror.join()
    client, identity = MlflowClient(store(tmp_path)), folder.identity()
    assert identity is not None
    contents = read_contents(client, client.get_run(identity.run_id))
    [files] = [one.record for one in contents.parts if isinstance(one.record, Files)]
    log = read_log(event_files(tmp_path / "runs/films" / identity.mirror_id))
    assert name in str(files)
    assert log.words | rendered_words(files) == log.words
    assert log.end == "FINISHED"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_end_is_said_once(tmp_path: Path, status: str) -> None:
    """Also of a run that was gone on with after its end."""
    written(tmp_path, metrics(3))
    sink = opened(tmp_path)
    sink.write(Batch(records=tuple(metrics(3, first=3))))
    sink.close(RunEnded("s2", status, 1_700_000_200_000))
    log = read_log(event_files(tmp_path / "runs" / RUN))
    assert [one.kind for one in log.kept] == ["end"]
    assert log.end == status


def test_params_that_come_late_are_in_the_hparams_tab_in_the_end(tmp_path: Path) -> None:
    """TensorBoard reads the first such event only: it is replaced by one with all params."""
    early, late = Params({"lr": "0.1"}), Params({"depth": "4"})
    events = written(tmp_path, [early, *metrics(2), late, *metrics(2, first=2)])
    data = event_reader(events).summary_metadata["_hparams_/session_start_info"]
    start = metadata.parse_session_start_info_plugin_data(data.plugin_data.content)
    assert set(start.hparams) == {"lr", "depth"}
    assert points_of_tensorboard(events) == expected(metrics(4), narrow=True)


def test_a_run_that_goes_on_has_no_end(tmp_path: Path) -> None:
    """A session that ends without one leaves nothing but what it was given; none, no file."""
    events = written(tmp_path, metrics(3), ends=False)
    written(tmp_path, [], ends=False)
    assert read_log(event_files(events)).end == ""
    assert len(event_files(events)) == 1
    written(tmp_path, metrics(3, first=3), ends=False)
    assert points_of_tensorboard(events) == expected(metrics(6), narrow=True)


def test_a_point_given_twice_is_written_once(tmp_path: Path) -> None:
    """MLflow holds it once; another value, time or step makes another point."""
    nan = float("nan")
    calls: list[Record] = [
        Metrics(T0_MS, 1, {"a": 1.0, "b": nan}), Metrics(T0_MS, 1, {"a": 1.0, "b": nan, "c": 2.0}),
        Metrics(T0_MS, 1, {"a": 2.0}), Metrics(T0_MS, 1, {"a": 1.0}),
        Metrics(T0_MS + 1, 1, {"a": 1.0}), Metrics(T0_MS, 2, {"a": 1.0}),
    ]  # fmt: skip
    found = points_of_tensorboard(written(tmp_path, calls))
    assert len(found) == len(set(found)) == 6


def test_a_zero_has_no_sign(tmp_path: Path) -> None:
    """Live and sorted it is the same, as in everything it is compared with."""
    events = written(tmp_path, [Metrics(T0_MS, 1, {"a": -0.0})])
    assert [point.value for point in points_of_tensorboard(events)] == ["0.0"]


# Order


def test_what_stands_in_order_is_not_rewritten(tmp_path: Path) -> None:
    """The usual run keeps its file, with steps that rise differently for each key."""
    sink = opened(tmp_path)
    calls = [Metrics(T0_MS + i, i, {"loss": 1.0}) for i in range(9)]
    calls += [Metrics(T0_MS + 9, 2, {"system/cpu": 1.0}), Metrics(T0_MS + 10, 3, {"val": 1.0})]
    sink.write(Batch(records=(Params({"lr": "1"}), *calls)))
    [before] = event_files(tmp_path / "runs" / RUN)
    inode = before.stat().st_ino
    sink.close(END)
    [after] = event_files(tmp_path / "runs" / RUN)
    assert (after.name, after.stat().st_ino) == (before.name, inode)


def shown(board: TensorBoard) -> dict[str, object]:
    """All that TensorBoard's pages are told of the run."""
    return {
        **board.all_scalars(RUN),
        "texts": {tag: board.texts(RUN, tag) for tag in sorted(board.tags("text", RUN))},
        "pictures": {tag: board.picture_steps(RUN, tag) for tag in board.tags("images", RUN)},
    }


def settled(folder: Path, *, fast: bool) -> dict[str, object]:
    """What a TensorBoard shows that was started now, once it has read everything."""
    with tensorboard(folder, fast=fast) as board:
        return when_settled(board)


def when_settled(board: TensorBoard) -> dict[str, object]:
    """What it shows once that changes no more."""
    seen: list[dict[str, object]] = [{}]

    def is_still() -> bool:
        seen.append(shown(board))
        return len(seen) > 60 and seen[-1] == seen[-50]

    wait_until(is_still)
    return seen[-1]


def rows_for(folder: RunFolder) -> list[Record]:
    return [
        *AWKWARD,
        Text(T0_MS + 60, 8, "captions", "eight"),
        Text(T0_MS + 61, 2, "captions", "two"),
        staged_clip(folder, step=6),
        Metrics(T0_MS + 70, 10, {"bad": float("nan")}),
        Metrics(T0_MS + 71, 4, {"bad": float("inf")}),
    ]


@pytest.mark.parametrize("fast", [True, False])
def test_a_run_out_of_order_shows_what_a_sorted_one_shows(tmp_path: Path, fast: bool) -> None:
    """Delivered live, with late, repeated and negative steps, in both of TensorBoard's loaders."""
    live = make_run(tmp_path / "live", ["tensorboard"])
    sorted_run = make_run(tmp_path / "sorted", ["tensorboard"])
    append(live, [Params({"lr": "1"}), *rows_for(live)])
    rows = sorted(rows_for(sorted_run), key=lambda row: (row.step, row.timestamp_ms))
    append(sorted_run, [Params({"lr": "1"}), *rows])
    for folder in (live, sorted_run):
        end(folder)
        deliver(folder, "tensorboard")
    found = settled(tmp_path / "live" / "runs", fast=fast)
    assert found == settled(tmp_path / "sorted" / "runs", fast=fast)
    steps = [step for step, _, _ in found["a b/c"]]
    assert steps == ([-4, 3, 5, 9, 2**40] if fast else [-4, 3, 5, 5, 9, 9, 2**40])
    assert [step for step, _ in found["texts"]["captions"]] == [2, 8]
    assert found["pictures"] == {"samples/kite": [6]}


def test_a_tensorboard_that_is_open_shows_the_new_order(tmp_path: Path) -> None:
    """It has read the file of before; what it shows is what one started now shows."""
    sink = opened(tmp_path)
    with tensorboard(tmp_path / "runs", fast=True) as board:
        sink.write(Batch(records=(Text(T0_MS, 1, "words", "one"), *AWKWARD)))
        wait_until(lambda: len(board.tags("scalars", RUN)) == 3)
        when_settled(board)
        sink.close(END)
        wait_until(lambda: board.scalars(RUN, "a b/c")[0][0] == -4)
        found = when_settled(board)
    assert found == settled(tmp_path / "runs", fast=True)


@pytest.mark.parametrize("fast", [True, False])
def test_many_keys_are_all_shown(tmp_path: Path, fast: bool) -> None:
    """3,000 keys, logged backwards."""
    calls = [Metrics(T0_MS + 5 - s, s, {f"k/{i}": i + s for i in range(3000)}) for s in (2, 1, 0)]
    written(tmp_path, calls)
    with tensorboard(tmp_path / "runs", fast=fast) as board:
        wait_until(lambda: len(board.tags("scalars", RUN)) == 3000)
        for key in (0, 1234, 2999):
            expected = [(s, T0_MS + 5 - s, f"{key + s:.1f}") for s in (0, 1, 2)]
            wait_until(lambda key=key, all=expected: board.scalars(RUN, f"k/{key}") == all)


def test_many_points_are_sorted_in_little_memory(tmp_path: Path) -> None:
    """A million points, of which the last is late, take less than 400 bytes each."""
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from opusclip_mlops.sinks import open_sink\n"
        "from opusclip_mlops.folder import RunFolder\n"
        "from opusclip_mlops.records import Batch, Metrics, RunEnded\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "sink = open_sink('tensorboard', RunFolder(Path(sys.argv[1]))); sink.open({})\n"
        "keys = [f'k/{i}' for i in range(100)]\n"
        "for step in range(10_000):\n"
        "    call = Metrics(1_700_000_000_000 + step, step, dict.fromkeys(keys, step / 2))\n"
        "    sink.write(Batch(records=(call,)))\n"
        "sink.write(Batch(records=(Metrics(1, 5, {'k/0': 1.0}),)))\n"
        "before = peak()\n"
        "sink.close(RunEnded('s', 'FINISHED', 1))\n"
        "print(peak() - before)\n"
    )
    folder = make_run(tmp_path, ["tensorboard"])
    argv = [sys.executable, "-c", code, str(folder.path)]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < 400 * 1_000_001
    log = read_log(event_files(events_of(folder)))
    assert len(log.points) == 1_000_001
    assert log.is_in_order()


# Crashes

KILL_IN_CLOSE = """
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
def close(sink, end, of=tensorboard.TensorBoardSink.close):
    os.fsync = killed_in_time(os.fsync)
    tensorboard.event_files.frame = killed_in_time(tensorboard.event_files.frame)
    for name in ("replace", "unlink", "open"):
        setattr(Path, name, killed_in_time(getattr(Path, name)))
    of(sink, end)
tensorboard.TensorBoardSink.close = close
delivery.deliver(folder.RunFolder(Path(sys.argv[1])), "tensorboard")
"""


def test_killed_at_any_moment_of_the_rewriting_nothing_is_lost_or_twice(tmp_path: Path) -> None:
    """Delivered again, all points stand there once, in order, with one end."""
    was_killed, after_calls = True, 0
    while was_killed:
        folder = make_run(tmp_path / str(after_calls), ["tensorboard"])
        append(folder, [Params({"lr": "1"}), *AWKWARD, staged_clip(folder)])
        end(folder)
        argv = [sys.executable, "-c", KILL_IN_CLOSE, str(folder.path), str(after_calls)]
        done = subprocess.run(argv, check=False, timeout=90)
        was_killed = done.returncode == -signal.SIGKILL
        assert was_killed or done.returncode == 0
        assert set(points_of_tensorboard(events_of(folder))) == set(expected(AWKWARD, narrow=True))
        deliver(folder, "tensorboard")
        assert points_of_tensorboard(events_of(folder)) == expected(AWKWARD, narrow=True)
        log = read_log(event_files(events_of(folder)))
        assert log.is_in_order()
        assert (log.end, len([one for one in log.kept if one.kind == "video"])) == ("FINISHED", 1)
        left = {path.name for path in events_of(folder).iterdir() if "tfevents" not in path.name}
        assert left == {".opusclip.lock"}
        after_calls += 1
    assert after_calls > 10


FULL = """
import resource, signal, sys
from pathlib import Path
from opusclip_mlops.folder import RunFolder
from opusclip_mlops.records import Batch, Metrics, RunEnded
from opusclip_mlops.sinks import open_sink
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, state, sent = RunFolder(Path(sys.argv[1])), {}, 0
for limit_bytes in [8_000] * 20 + [10_000] * 20 + [-1]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, -1))
    try:
        sink = open_sink("tensorboard", folder)
        state = sink.open(state)
        while sent < 300:
            calls = [Metrics(1_700_000_000_000 + i, i, {"a": i}) for i in range(sent, sent + 10)]
            state = sink.write(Batch(records=tuple(calls))).state
            sent += 10
    except OSError:
        continue
sink.close(RunEnded("s", "FINISHED", 1))
"""


def test_where_there_is_no_room_for_a_while_nothing_is_lost_or_twice(tmp_path: Path) -> None:
    """Opened and refused forty times, there are few files, and all points once."""
    folder = make_run(tmp_path, ["tensorboard"])
    argv = [sys.executable, "-c", FULL, str(folder.path)]
    subprocess.run(argv, check=True, timeout=60)
    found = points_of_tensorboard(events_of(folder))
    assert [point.step for point in found] == list(range(300))
    assert len(event_files(events_of(folder))) < 5


def test_after_a_crash_another_file_is_gone_on_with(tmp_path: Path) -> None:
    """A TensorBoard that is open may have read what is cut off, and would read on in its midst."""
    folder = make_run(tmp_path, ["tensorboard"])
    append(folder, [*metrics(5)])
    deliver_and_die(folder, "tensorboard")
    [before] = event_files(events_of(folder))
    append(folder, metrics(5, first=5))
    end(folder)
    deliver(folder, "tensorboard")
    assert before not in event_files(events_of(folder))
    assert points_of_tensorboard(events_of(folder)) == expected(metrics(10), narrow=True)


def test_a_damaged_file_is_written_anew_at_the_end(tmp_path: Path) -> None:
    """TensorBoard's Python loader shows nothing behind a damage, and says so nowhere."""
    events = written(tmp_path, metrics(9), ends=False)
    [file] = event_files(events)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert len(points_of_tensorboard(events)) < 16
    written(tmp_path, [])
    assert len(points_of_tensorboard(events)) == 16


# Two writers, and writing everything anew


def test_a_second_writer_waits_and_is_told_for_whom(tmp_path: Path) -> None:
    """Once the first has closed, or has failed, the second may begin."""
    folder = make_run(tmp_path, ["tensorboard"])
    (events := events_of(folder)).mkdir(parents=True)
    code = (
        "import sys; from pathlib import Path; from opusclip_mlops.event_files import *\n"
        "held = begin_writing(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", code, str(events)]
    other = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(Waiting, match=f"is being written by process {other.pid}"):
        open_sink("tensorboard", folder).open({})
    other.communicate()
    sink = opened(tmp_path)
    assert writer_of(events) is not None
    sink.close(None)
    assert writer_of(events) is None


def test_a_sink_that_failed_lets_another_begin(tmp_path: Path) -> None:
    """In the same process, while the old one is still there; nothing comes from that any more."""
    sink = opened(tmp_path)
    broken = Metrics(T0_MS, 1, {"loss": "no number"})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        sink.write(Batch(records=(*metrics(5), broken)))
    events = tmp_path / "runs" / RUN
    assert writer_of(events) is None
    [file] = event_files(events)
    written(tmp_path, metrics(5), state={"file": file.name, "size_bytes": 40})
    del sink
    assert points_of_tensorboard(events) == expected(metrics(5), narrow=True)


def test_what_is_abandoned_may_be_gone_on_with(tmp_path: Path) -> None:
    """No end is declared, nothing is replaced, and nobody has to wait."""
    written(tmp_path, metrics(2), ends=False)
    sink = opened(tmp_path, {"rebuild": True})
    sink.write(Batch(records=tuple(metrics(9))))
    sink.abandon()  # type: ignore[attr-defined]
    events = written(tmp_path, metrics(2, first=2))
    assert points_of_tensorboard(events) == expected(metrics(4), narrow=True)


def test_rebuilt_a_run_holds_what_was_given_and_nothing_else(tmp_path: Path) -> None:
    """Points, words and the end of before are gone, at once when it is closed."""
    written(tmp_path, [Params({"lr": "1"}), *metrics(9)])
    events = tmp_path / "runs" / RUN
    sink = opened(tmp_path, {"rebuild": True})
    sink.write(Batch(records=(Params({"lr": "2"}), *metrics(3, first=20))))
    assert points_of_tensorboard(events) == expected(metrics(9), narrow=True)
    sink.close(None)
    assert points_of_tensorboard(events) == expected(metrics(3, first=20), narrow=True)
    log = read_log(event_files(events))
    assert "| lr | 2 |" in log.words["params"]
    assert log.end == ""


def test_rebuilt_out_of_order_it_is_sorted_too(tmp_path: Path) -> None:
    """With an end it stands as any run that has ended."""
    written(tmp_path, metrics(9))
    events = written(tmp_path, AWKWARD, state={"rebuild": True})
    assert points_of_tensorboard(events) == expected(AWKWARD, narrow=True)
    log = read_log(event_files(events))
    assert log.is_in_order()
    assert log.end == "FINISHED"


def test_a_rebuilding_that_was_killed_has_changed_nothing(tmp_path: Path) -> None:
    """What it had written is removed by the next one that writes."""
    events = written(tmp_path, metrics(9))
    code = (
        "import os, sys; from pathlib import Path\n"
        "from opusclip_mlops.folder import RunFolder; from opusclip_mlops.sinks import open_sink\n"
        "sink = open_sink('tensorboard', RunFolder(Path(sys.argv[1])))\n"
        "sink.open({'rebuild': True}); os._exit(9)\n"
    )
    folder = make_run(tmp_path, ["tensorboard"])
    subprocess.run([sys.executable, "-c", code, str(folder.path)], check=False, timeout=60)
    assert (events / NEW).exists()
    assert points_of_tensorboard(events) == expected(metrics(9), narrow=True)
    opened(tmp_path).close(None)
    assert not (events / NEW).exists()
    assert points_of_tensorboard(events) == expected(metrics(9), narrow=True)


# Insights


def insights_in(events: Path) -> list[tuple[str, int]]:
    """The marks of the insights that stand in event files, with their steps."""
    kept = read_log(event_files(events)).kept
    return sorted((one.tag, one.step) for one in kept if one.kind == "insight")


def python_loader(events: Path) -> MultiplexerDataProvider:
    """What TensorBoard's dashboards ask when it does not load fast."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(events)).Reload()
    return MultiplexerDataProvider(multiplexer, str(events))


def tensors_in(events: Path, plugin: str) -> dict[str, list[int]]:
    """What a plugin is given by TensorBoard's Python loader: the steps by tags."""
    found = python_loader(events).read_tensors(
        RequestContext(), experiment_id="", plugin_name=plugin, downsample=100
    )
    [by_tag] = found.values()
    return {tag: [datum.step for datum in data] for tag, data in by_tag.items()}


def test_each_insight_stands_in_the_plugin_that_shows_it(tmp_path: Path) -> None:
    """As the plugin itself is given it, and nothing is refused."""
    folder = make_run(tmp_path, ["tensorboard"])
    append(folder, insight_records.every_kind(folder))
    end(folder)
    deliver(folder, "tensorboard")
    assert folder.progress("tensorboard").rejected == 0
    events = events_of(folder)
    both = {"weights/encoder.conv": [5], "weights/dead": [5]}
    assert tensors_in(events, "histograms") == both
    assert tensors_in(events, "pr_curves") == {"val/cat/pr_curves": [4]}
    assert tensors_in(events, "custom_scalars") == {"custom_scalars__config__": [0]}
    assert tensors_in(events, "text").items() >= {"hparams": [9], "profiling/trace": [12]}.items()
    for plugin, tag in (("graphs", "__run_graph__"), ("graph_run_metadata_graph", "model")):
        [graphs] = (
            python_loader(events)
            .list_blob_sequences(RequestContext(), experiment_id="", plugin_name=plugin)
            .values()
        )
        assert [*graphs] == [tag]
    assert (events / projector.CONFIG).exists()


def test_a_param_that_is_a_switch_is_one_in_the_hparams_tab(tmp_path: Path) -> None:
    """And a number is a number there: MLflow keeps texts."""
    params = {"lr": "0.1", "use_ema": "True", "flip": "False", "mode": "true", "name": "x"}
    events = written(tmp_path, [Params(params), *metrics(1)])
    data = event_reader(events).summary_metadata["_hparams_/session_start_info"]
    found = metadata.parse_session_start_info_plugin_data(data.plugin_data.content).hparams
    kinds = {name: value.WhichOneof("kind") for name, value in found.items()}
    texts_of = {"mode": "string_value", "name": "string_value"}
    assert kinds == texts_of | {
        "lr": "number_value", "use_ema": "bool_value", "flip": "bool_value",
    }  # fmt: skip


def out_of_order(folder: RunFolder) -> list[Record]:
    """Two of each kind, the later one first."""
    return [
        *(insight_records.histograms(step) for step in (9, 5)),
        *(insight_records.graph(step) for step in (9, 5)),
        *(insight_records.embedding(folder, step) for step in (9, 5)),
        *(insight_records.pr_curve(step) for step in (9, 5)),
        insight_records.trace(folder),
    ]


def test_sorted_files_keep_every_insight_once(tmp_path: Path) -> None:
    """With the points, in the order of their steps; the newest graph comes last."""
    folder = make_run(tmp_path, ["tensorboard"])
    records = out_of_order(folder)
    written(tmp_path, [*AWKWARD, *records], ends=False)
    events = events_of(folder)
    before = insights_in(events)
    written(tmp_path, metrics(2))
    log = read_log(event_files(events))
    assert log.is_in_order()
    assert insights_in(events) == before
    assert len(before) == len(records)
    assert points_of_tensorboard(events) == expected([*AWKWARD, *metrics(2)], narrow=True)
    assert tensors_in(events, "histograms")["weights/encoder.conv"] == [5, 9]
    assert graph_steps(log) == [5, 9]
    assert len(projector.embeddings_in(events)) == 2


def graph_steps(log: EventLog) -> list[int]:
    return [one.step for one in log.kept if one.kind == "other"]


def test_a_crash_doubles_no_insight(tmp_path: Path) -> None:
    """Neither in the event files nor among the projector's."""
    folder = make_run(tmp_path, ["tensorboard"])
    records = insight_records.every_kind(folder)
    append(folder, records)
    deliver_and_die(folder, "tensorboard")
    end(folder)
    deliver(folder, "tensorboard")
    assert len(insights_in(events_of(folder))) == len(records)
    assert [*projector.embeddings_in(events_of(folder)).values()] == [1]


def test_rebuilt_a_run_has_the_embeddings_that_were_given_only(tmp_path: Path) -> None:
    """Those of before stay until it is closed."""
    folder = make_run(tmp_path, ["tensorboard"])
    old, new = (insight_records.embedding(folder, step) for step in (3, 4))
    events = written(tmp_path, [old])
    sink = opened(tmp_path, {"rebuild": True})
    sink.write(Batch(records=(new,)))
    assert {step for _, step, _ in projector.embeddings_in(events)} == {3, 4}
    sink.close(END)
    assert {step for _, step, _ in projector.embeddings_in(events)} == {4}
    assert [step for _, step in insights_in(events)] == [4]


def test_an_insight_that_is_something_else_refuses_only_itself(tmp_path: Path) -> None:
    """Those around it are written, and no file of it is left."""
    folder = make_run(tmp_path, ["tensorboard"])
    good = insight_records.every_kind(folder)
    broken = [Insight(T0_MS, 1, one.key, one.kind, {}, one.files) for one in good]
    sink = opened(tmp_path)
    done = sink.write(Batch(records=(*broken, *good)))
    sink.close(END)
    assert [refusal.record for refusal in done.refused] == broken
    assert all("can't be shown" in refusal.reason for refusal in done.refused)
    assert len(insights_in(events_of(folder))) == len(good)
    assert len(projector.embeddings_in(events_of(folder))) == 1
