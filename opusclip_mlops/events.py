"""TensorBoard's events: how each record of a run is said in one, and what a run's events say.

Params, tags and other words stand once a run under a text tag of their own, of which the last
holds. A mark in a text's description tells words and tables from texts that were logged; a value
of its own, of a plugin without a dashboard, says which insight an event is.
"""

import importlib
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

if "boto3" not in sys.modules:
    # TensorBoard's file layer loads it where it is, 18 MB for S3; the files read here are local.
    sys.modules["boto3"] = None  # type: ignore[assignment]
    importlib.import_module("tensorboard.plugins.hparams.metadata")
    del sys.modules["boto3"]

from tensorboard.compat.proto.event_pb2 import Event as Event
from tensorboard.compat.proto.summary_pb2 import Summary as Summary
from tensorboard.compat.proto.summary_pb2 import SummaryMetadata
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb as text_pb

from opusclip_mlops import records
from opusclip_mlops.event_files import frames
from opusclip_mlops.words import words_of

MOST_TABLE_ROWS = 1000
"""How many rows of a table the Text tab is given."""

WORDS, TABLE = "about the run", "table"
"""The descriptions of texts that were not logged as such."""

Kind = Literal["video", "image", "text", "table", "insight", "words", "hparams", "end", "other"]
"""What an event without points was written for."""

_INSIGHT_PLUGIN, _INSIGHT_TAG = "opusclip_insights", "opusclip/insight"
_GIF_SIZE, _PNG_SIZE = struct.Struct("<HH"), struct.Struct(">II")
_TEXT_KINDS: dict[str, Kind] = {WORDS: "words", TABLE: "table"}
_HPARAMS_KINDS: dict[str, Kind] = {
    metadata.SESSION_START_INFO_TAG: "hparams",
    metadata.SESSION_END_INFO_TAG: "end",
}
_STATUS = {"FINISHED": api_pb2.STATUS_SUCCESS}
_ENDS = {api_pb2.STATUS_SUCCESS: "FINISHED", api_pb2.STATUS_FAILURE: "FAILED"}


def read_events(path: Path, *, from_bytes: int = 0) -> Iterator[tuple[Event, int]]:
    """The whole events of a file, each with the offset behind it; damaged ones are passed over."""
    for content, end in frames(path, from_bytes=from_bytes):
        if content is not None:
            yield Event.FromString(content), end


def first_event(start_time_ms: int) -> Event:
    """What an event file begins with."""
    return Event(wall_time=start_time_ms / 1000, file_version="brain.Event:2")


def scalars(record: records.Metrics) -> Event:
    """A log call: all its values in one event, as 32-bit floats; a zero has no sign."""
    values = [
        Summary.Value(tag=key, simple_value=value + 0.0) for key, value in record.values.items()
    ]
    return at_step(record, Summary(value=values))


def text(record: records.Text) -> Event:
    """A text at its step."""
    return at_step(record, text_pb(record.key, record.text))


def table(record: records.Table) -> Event:
    """A table at its step, as Markdown."""
    shown = [[_shown(value) for value in row] for row in record.rows[:MOST_TABLE_ROWS]]
    lines = markdown([record.columns, *shown])
    left = len(record.rows) - len(shown)
    if left:
        lines += ["", f"… and {left:,} more rows in MLflow"]
    return at_step(record, text_pb(record.key, "\n".join(lines), TABLE))


def picture(record: records.Image | records.Video, content: bytes) -> Event:
    """A PNG, or a moving GIF, at its step."""
    width, height = _size(content)
    image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=content)
    return at_step(record, Summary(value=[Summary.Value(tag=record.key, image=image)]))


def _size(content: bytes) -> tuple[int, int]:
    """Width and height of a GIF or PNG, in pixels."""
    width, height = (
        _GIF_SIZE.unpack_from(content, 6)
        if content.startswith(b"GIF8")
        else _PNG_SIZE.unpack_from(content, 16)
    )
    return int(width), int(height)


def at_step(record: records.Row, summary: Summary) -> Event:
    """A summary at a record's step and time."""
    return Event(wall_time=record.timestamp_ms / 1000, step=record.step, summary=summary)


def words(name: str, content: str, *, timestamp_ms: int) -> Event:
    """Words as `rendered` makes them, under their name."""
    return Event(wall_time=timestamp_ms / 1000, summary=text_pb(name, content, WORDS))


def rendered(name: str, values: Mapping[str, str]) -> str:
    """Words as Markdown: notes as they are, everything else as a table of names and values."""
    if name == "notes":
        return values["text"]
    return "\n".join(markdown([["name", "value"], *map(list, sorted(values.items()))]))


def rendered_words(record: records.Record) -> dict[str, str]:
    """The words of a record as they stand in the Text tab, by their names."""
    return {name: rendered(name, values) for name, values in words_of(record).items() if values}


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose first row is its heading."""
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _cell(content: str) -> str:
    return " ".join(content.replace("|", "\\|").split())


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def hparams(params: Mapping[str, str], mirror_id: str, start_time_ms: int) -> Event:
    """The params for the HParams tab; TensorBoard reads one such event only."""
    started_s = start_time_ms / 1000
    values = {key: _typed(value) for key, value in params.items()}
    summary = hparams_pb(values, trial_id=mirror_id, start_time_secs=started_s)
    return Event(wall_time=started_s, summary=summary)


def _typed(value: str) -> bool | float | str:
    """A param as the HParams tab sorts and filters it: MLflow itself keeps texts."""
    if value in ("True", "False"):
        return value == "True"
    try:
        return float(value)
    except ValueError:
        return value


def hparams_of(value: Summary.Value) -> frozenset[str]:
    """The names of the params that `hparams` has written."""
    content = value.metadata.plugin_data.content
    return frozenset(metadata.parse_session_start_info_plugin_data(content).hparams)


def end_event(end: records.RunEnded) -> Event:
    """How the run ended, for the HParams tab."""
    ended_s = end.end_time_ms / 1000
    status = _STATUS.get(end.status, api_pb2.STATUS_FAILURE)
    data = plugin_data_pb2.HParamsPluginData(
        session_end_info=plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=ended_s)
    )
    # TensorBoard knows no KILLED: the description tells it from FAILED.
    about = metadata.create_summary_metadata(data)
    about.summary_description = end.status
    value = Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG, metadata=about, tensor=metadata.NULL_TENSOR
    )
    return Event(wall_time=ended_s, summary=Summary(value=[value]))


def status_of(value: Summary.Value) -> str:
    """How a run ended, out of what `end_event` has written."""
    described = str(value.metadata.summary_description)
    if described:
        return described
    content = value.metadata.plugin_data.content
    info = metadata.parse_session_end_info_plugin_data(content)
    return _ENDS.get(info.status, "")


def kind_of(value: Summary.Value) -> Kind:
    """What a value that is no point was written for."""
    if value.HasField("image"):
        is_gif = value.image.encoded_image_string.startswith(b"GIF8")
        return "video" if is_gif else "image"
    plugin = value.metadata.plugin_data.plugin_name
    if plugin == _INSIGHT_PLUGIN:
        return "insight"
    if plugin == "text":
        return _TEXT_KINDS.get(value.metadata.summary_description, "text")
    if plugin == metadata.PLUGIN_NAME:
        return _HPARAMS_KINDS.get(value.tag, "other")
    return "other"


def mark(record: records.Insight) -> Summary.Value:
    """Says which insight an event is; TensorBoard shows it nowhere."""
    plugin = SummaryMetadata.PluginData(plugin_name=_INSIGHT_PLUGIN)
    tag = f"{_INSIGHT_TAG}/{record.kind}/{record.key}"
    return Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))


def insight_of(tag: str) -> tuple[str, str]:
    """The kind and key of the insight that a mark of this tag says an event is."""
    kind, _, key = tag.removeprefix(f"{_INSIGHT_TAG}/").partition("/")
    return kind, key


def text_of(value: Summary.Value) -> str:
    """The text that stands in a text's value."""
    return b"".join(value.tensor.string_val).decode(errors="replace")
