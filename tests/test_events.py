import re
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from opusclip_mlops import events
from opusclip_mlops.event_files import frame
from opusclip_mlops.events import Event
from opusclip_mlops.records import Image, Insight, Metrics, Params, RunEnded, Table, Tags, Text
from opusclip_mlops.words import NOTE_TAG
from tests.sinks.sink_contract import T0_MS

GIF = b"GIF89a" + (30).to_bytes(2, "little") + (20).to_bytes(2, "little") + b"..."
PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (30).to_bytes(4, "big") + (20).to_bytes(4, "big")


def kind(event: Event) -> str:
    """What the only value of an event, as it is read back, was written for."""
    [value] = Event.FromString(event.SerializeToString()).summary.value
    return events.kind_of(value)


def said(event: Event) -> str:
    """The text of an event, as it is read back."""
    [value] = Event.FromString(event.SerializeToString()).summary.value
    return events.text_of(value)


def test_a_call_is_one_event_that_tensorboard_reads(tmp_path: Path) -> None:
    """All values of a call under its step and its milliseconds."""
    call = Metrics(T0_MS, 2**40, {"a": 0.5, "größe": -1.0})
    path = tmp_path / "events.out.tfevents.1"
    parts = [events.first_event(T0_MS), events.scalars(call)]
    path.write_bytes(b"".join(frame(part.SerializeToString()) for part in parts))
    assert [event for event, _ in events.read_events(path)] == parts
    [first, *others] = EventFileLoader(str(path)).Load()
    assert first.file_version == "brain.Event:2"
    assert {round(one.wall_time * 1000) for one in others} == {T0_MS}
    assert {one.step for one in others} == {2**40}
    assert [value.tag for one in others for value in one.summary.value] == ["a", "größe"]


def test_reading_passes_over_what_is_damaged(tmp_path: Path) -> None:
    """The events around it are read, each with the offset behind it."""
    call = frame(events.scalars(Metrics(T0_MS, 1, {"a": 0.5})).SerializeToString())
    damaged = call[:-6] + bytes([call[-6] ^ 1]) + call[-5:]
    path = tmp_path / "f"
    path.write_bytes(call + damaged + call + call[:-1])
    assert [end for _, end in events.read_events(path)] == [len(call), 3 * len(call)]
    assert [end for _, end in events.read_events(path, from_bytes=len(call))] == [3 * len(call)]


def test_each_kind_is_known_again() -> None:
    """A text that was logged is told from a table and from words, also under the same tag."""
    assert kind(events.text(Text(T0_MS, 1, "params", "| a |"))) == "text"
    assert kind(events.table(Table(T0_MS, 1, "params", ["a"], []))) == "table"
    assert kind(events.words("params", "| a |", timestamp_ms=T0_MS)) == "words"
    assert kind(events.picture(Image(T0_MS, 1, "a", "a.gif"), GIF)) == "video"
    assert kind(events.picture(Image(T0_MS, 1, "a", "a.png"), PNG)) == "image"
    insight = Insight(T0_MS, 1, "a", "layout", {})
    assert events.kind_of(events.mark(insight)) == "insight"
    assert kind(events.hparams({"lr": "1"}, "run", T0_MS)) == "hparams"
    assert kind(events.end_event(RunEnded("s", "KILLED", T0_MS))) == "end"


@pytest.mark.parametrize("content", [GIF, PNG])
def test_the_size_of_a_picture_is_its_own(content: bytes) -> None:
    """It stands in the file's head: no library is needed for it."""
    [value] = events.picture(Image(T0_MS, 1, "a", "a"), content).summary.value
    assert (value.image.width, value.image.height) == (30, 20)


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_how_a_run_ended_is_read_back(status: str) -> None:
    """TensorBoard itself knows two ways only."""
    [value] = events.end_event(RunEnded("s", status, T0_MS)).summary.value
    assert events.status_of(value) == status
    value.metadata.summary_description = ""
    assert events.status_of(value) == ("FINISHED" if status == "FINISHED" else "FAILED")


def test_the_params_of_the_hparams_tab_are_known_again() -> None:
    """By name; a number is a number there."""
    [value] = events.hparams({"lr": "1e-3", "name": "x"}, "run", T0_MS).summary.value
    assert events.hparams_of(value) == {"lr", "name"}


def test_words_are_tables_sorted_by_name() -> None:
    """The order they were logged in makes no difference; cells stay in their row."""
    found = events.rendered_words(Params({"b": "1|2", "a": "x\ny"}))
    assert found == {"params": "| name | value |\n|---|---|\n| a | x y |\n| b | 1\\|2 |"}
    assert events.rendered_words(Tags({NOTE_TAG: "# as | it\nis"})) == {"notes": "# as | it\nis"}


def test_a_table_of_any_values_is_markdown() -> None:
    """Texts stay as they are, all else is JSON; each row has a line."""
    table = Table(T0_MS, 1, "t", ["a", "b"], [["x\ny", 1.5], [True, [1, None]]])
    assert said(events.table(table)).splitlines() == [
        "| a | b |", "|---|---|", "| x y | 1.5 |", "| true | [1,null] |",
    ]  # fmt: skip
    assert not re.search("more rows", said(events.table(table)))


def test_importing_it_leaves_s3_alone() -> None:
    """TensorBoard would load boto3 for files that are not here."""
    code = "import sys, opusclip_mlops.events; print({'boto3', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
