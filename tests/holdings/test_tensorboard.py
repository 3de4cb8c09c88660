import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from opusclip_mlops.event_files import NEW, event_files, frame
from opusclip_mlops.folder import Identity
from opusclip_mlops.holdings import Held, Medium, medium_of, open_holdings
from opusclip_mlops.holdings.tensorboard import TensorBoardHoldings
from opusclip_mlops.points import Point, Points
from opusclip_mlops.records import (
    About,
    Batch,
    Dataset,
    Files,
    Image,
    Metrics,
    Params,
    Record,
    RunEnded,
    Table,
    Tags,
    Text,
)
from opusclip_mlops.sinks import open_sink
from opusclip_mlops.targets import Target
from opusclip_mlops.words import NOTE_TAG
from tests import insight_records
from tests.journeys import LOCAL_ID, make_run
from tests.sinks.sink_contract import T0_MS, staged_clip

IDENTITY = Identity(mirror_id=LOCAL_ID, experiment_name="films")


def holdings_of(tmp_path: Path) -> TensorBoardHoldings:
    target = Target(kind="tensorboard", folder=str(tmp_path / "runs"))
    found = open_holdings(target, IDENTITY)
    assert isinstance(found, TensorBoardHoldings)
    return found


def write(tmp_path: Path, records: Sequence[Record], *, ends: str = "") -> Held:
    """Write records in a session of their own, and read everything back."""
    sink = open_sink("tensorboard", make_run(tmp_path, ["tensorboard"]))
    sink.open({})
    sink.write(Batch(records=tuple(records)))
    sink.close(RunEnded("s1", ends, T0_MS) if ends else None)
    return holdings_of(tmp_path).read()


def points_in(held: Held) -> list[Point]:
    return sorted(
        held.points.some(len(held.points)), key=lambda p: (p.key, p.step, p.timestamp_ms, p.value)
    )


def test_a_mirror_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    """Reading it makes no folder."""
    held = holdings_of(tmp_path).read()
    assert (len(held.points), held.media, held.words, held.end) == (0, {}, {}, "")
    assert holdings_of(tmp_path).fingerprint() == ""
    assert not (tmp_path / "runs").exists()


def test_points_come_back_as_32_bit_values(tmp_path: Path) -> None:
    """With their steps and milliseconds, awkward ones too, over several files."""
    first: list[Record] = [
        Metrics(T0_MS, -4, {"a b/c": 0.1, "größe": 16_777_217.0}),
        Metrics(T0_MS + 1, 2**40, {"a b/c": 1e300, "k" * 250: -1e300}),
        Metrics(T0_MS + 2, 9, {"zero": -0.0}),
    ]
    write(tmp_path, first)
    held = write(tmp_path, [Metrics(T0_MS + 3, 9, {"zero": 3.0})])
    assert len(event_files(tmp_path / "runs/films" / LOCAL_ID)) == 2
    assert held.row_count == 4
    assert points_in(held) == sorted(
        [
            Point("a b/c", -4, T0_MS, float(np.float32(0.1))),
            Point("größe", -4, T0_MS, 16_777_216.0),
            Point("a b/c", 2**40, T0_MS + 1, math.inf),
            Point("k" * 250, 2**40, T0_MS + 1, -math.inf),
            Point("zero", 9, T0_MS + 2, 0.0),
            Point("zero", 9, T0_MS + 3, 3.0),
        ],
        key=lambda p: (p.key, p.step, p.timestamp_ms),
    )


def test_what_mlflow_holds_and_what_is_read_back_are_equal(tmp_path: Path) -> None:
    """NaN and the largest floats, too: nothing is lacking, nothing too much."""
    rows = [
        Point("loss", i, T0_MS + i, value)
        for i, value in enumerate([math.nan, math.inf, -math.inf, 1.797e308, 0.1, 1 / 3, -0.0])
    ]
    mlflow = Points.of(rows)
    held = write(tmp_path, list(mlflow.in_steps().calls()))
    assert len(mlflow.narrow().minus(held.points)) == 0
    assert len(held.points.minus(mlflow.narrow())) == 0


def test_a_point_that_stands_twice_is_read_twice(tmp_path: Path) -> None:
    """Two sessions may have written it; the comparison must see that."""
    call = Metrics(T0_MS, 1, {"loss": 0.5})
    write(tmp_path, [call])
    assert len(write(tmp_path, [call]).points) == 2


def test_media_are_told_from_each_other(tmp_path: Path) -> None:
    """Clips, pictures, texts and tables, each by key, step and time, and how often."""
    folder = make_run(tmp_path, ["tensorboard"])
    Picture.new("RGB", (8, 8)).save(folder.media / "a.png")
    records: list[Record] = [
        staged_clip(folder, step=5),
        Image(T0_MS + 1, 6, "samples/a", "a.png"),
        Text(T0_MS + 2, 7, "notes", "a | b"),
        Table(T0_MS + 3, 8, "errors", ["a"], [[1]]),
    ]
    held = write(tmp_path, [*records, Tags({NOTE_TAG: "a note"}), records[2]])
    assert held.media == {
        Medium("video", "samples/kite", 5, T0_MS): 1,
        Medium("image", "samples/a", 6, T0_MS + 1): 1,
        Medium("text", "notes", 7, T0_MS + 2): 2,
        Medium("table", "errors", 8, T0_MS + 3): 1,
    }
    assert set(held.media) == {medium_of(record) for record in records}
    assert held.words == {"notes": "a note"}


def test_words_come_back_as_they_are_rendered(tmp_path: Path) -> None:
    """In live parts or whole, in any order: the last text of each name is the same."""
    whole: list[Record] = [
        Params({"lr": "1e-3", "a|b": "c\nd"}),
        Tags({"b": "2", "a": "1", NOTE_TAG: "# why\n\nfor that"}),
        Dataset("clips", "d1", "local", '{"uri": "x"}', "training", '{"frames": 9}'),
        Files("checkpoint-x", "model", {"w": "s3://b/w"}, {"w": 3}, {"name": "e1"}, ["best"]),
        About("registry/kite/3", {"stage": "Production"}),
    ]
    parts: list[Record] = [
        Params({"a|b": "c\nd"}), Tags({"a": "0"}), Params({"lr": "1e-3"}), Tags({"b": "2"}),
        Tags({"a": "1"}), Tags({NOTE_TAG: "# why\n\nfor that"}), *whole[2:],
    ]  # fmt: skip
    rendered = {
        name: text
        for record in whole
        for name, text in holdings_of(tmp_path).rendered(record).items()
    }
    assert set(rendered) == {
        "params", "tags", "notes", "dataset/training/clips", "files/checkpoint-x/e1",
        "registry/kite/3",
    }  # fmt: skip
    assert write(tmp_path / "parts", parts).words == rendered
    assert write(tmp_path / "whole", whole).words == rendered


def test_words_that_say_nothing_are_not_expected(tmp_path: Path) -> None:
    """A run without params has no text that says so."""
    assert holdings_of(tmp_path).rendered(Params({})) == {}
    assert holdings_of(tmp_path).rendered(Metrics(T0_MS, 1, {"a": 1.0})) == {}


def test_the_end_is_read_back(tmp_path: Path) -> None:
    """A killed run is told from a failed one; without an end it goes on."""
    assert write(tmp_path, [Metrics(T0_MS, 1, {"a": 1.0})]).end == ""
    for status in ("FAILED", "KILLED", "FINISHED"):
        assert write(tmp_path, [], ends=status).end == status


def test_the_fingerprint_changes_with_what_is_held(tmp_path: Path) -> None:
    """It is the same as long as nothing was written."""
    seen = set()
    for step in range(3):
        write(tmp_path, [Metrics(T0_MS, step, {"a": 1.0})])
        seen.add(holdings_of(tmp_path).fingerprint())
        seen.add(holdings_of(tmp_path).fingerprint())
    assert len(seen) == 3


def test_what_is_damaged_or_torn_is_not_held(tmp_path: Path) -> None:
    """Only whole events count; those around them do."""
    write(tmp_path, [Metrics(T0_MS + i, i, {"a": float(i)}) for i in range(5)])
    [file] = event_files(tmp_path / "runs/films" / LOCAL_ID)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content + frame(b"unfinished")[:-2])
    assert [point.step for point in points_in(holdings_of(tmp_path).read())] == [0, 1, 2, 3]


REPLACE_AND_DIE = """
import os, sys; from pathlib import Path; from opusclip_mlops import event_files
Path.unlink = lambda *words, **named: os._exit(9)
event_files.replace_all(Path(sys.argv[1]))
"""


def test_a_replacement_that_was_killed_is_completed_by_reading(tmp_path: Path) -> None:
    """New and old files stand beside each other: only the new ones are held."""
    write(tmp_path, [Metrics(T0_MS, 1, {"old": 1.0})])
    folder = tmp_path / "runs/films" / LOCAL_ID
    write(tmp_path / "other", [Metrics(T0_MS, 1, {"new": 1.0})])
    [other] = event_files(tmp_path / "other/runs/films" / LOCAL_ID)
    (folder / NEW).write_bytes(other.read_bytes())
    argv = [sys.executable, "-c", REPLACE_AND_DIE, str(folder)]
    assert subprocess.run(argv, check=False, timeout=60).returncode == 9
    assert len(event_files(folder)) == 2
    assert [point.key for point in points_in(holdings_of(tmp_path).read())] == ["new"]
    assert len(event_files(folder)) == 1


def test_files_replaced_while_they_are_read_are_read_again(tmp_path: Path) -> None:
    """Whatever moment they are replaced in, each point is read once."""
    folder = tmp_path / "runs/films" / LOCAL_ID
    write(tmp_path, [Metrics(T0_MS + i, i, {"a": 1.0}) for i in range(2000)])
    code = (
        "import shutil, sys; from pathlib import Path; from opusclip_mlops.event_files import *\n"
        "folder = Path(sys.argv[1]); held = begin_writing(folder)\n"
        "for _ in range(300):\n"
        "    shutil.copyfile(event_files(folder)[0], folder / NEW); replace_all(folder)\n"
    )
    replacing = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    reads = 0
    while replacing.poll() is None:
        assert len(holdings_of(tmp_path).read().points) == 2000
        reads += 1
    assert replacing.returncode == 0
    assert reads > 3


def test_insights_are_held_by_kind_and_key(tmp_path: Path) -> None:
    """Each once, whatever of it TensorBoard shows where; what it is made of is no text or table."""
    folder = make_run(tmp_path, ["tensorboard"])
    records = [*insight_records.every_kind(folder), insight_records.graph(key="a/b:c")]
    held = write(tmp_path, [*records, Metrics(T0_MS, 1, {"loss": 0.5})], ends="FINISHED")
    assert held.media == {medium_of(record): 1 for record in records}
    assert Medium("insight/graph", "a/b:c", 0, T0_MS) in held.media
    assert held.words == {}
    assert held.row_count == 1


def test_an_embedding_is_held_where_its_files_are(tmp_path: Path) -> None:
    """Without them TensorBoard shows nothing of it; given again, it is there once."""
    folder = make_run(tmp_path, ["tensorboard"])
    record = insight_records.embedding(folder)
    write(tmp_path, [record])
    events = tmp_path / "runs/films" / LOCAL_ID
    [place] = (events / "projector").iterdir()
    shutil.rmtree(place)
    assert holdings_of(tmp_path).read().media == {}
    assert write(tmp_path, [record]).media == {medium_of(record): 1}
