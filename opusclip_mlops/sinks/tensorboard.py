"""TensorBoard: one event file a session, in `<tensorboard_dir>/<experiment>/<mirror id>/`.

One event holds all scalars of a log call, under its own step and wall time. Scalars are 32-bit
floats there. After a crash the file is cut back to what was acknowledged, so no point stands twice.
"""

import importlib
import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import google_crc32c

if "boto3" not in sys.modules:
    # TensorBoard's file layer loads it where it is, 18 MB for S3; the files written here are local.
    sys.modules["boto3"] = None  # type: ignore[assignment]
    importlib.import_module("tensorboard.plugins.hparams.metadata")
    del sys.modules["boto3"]

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb

from opusclip_mlops import media, records
from opusclip_mlops.errors import VideoError
from opusclip_mlops.folder import Identity, RunFolder
from opusclip_mlops.records import Batch, Record, RunEnded
from opusclip_mlops.sinks import Refusal, SinkState, Waiting, Written

if TYPE_CHECKING:
    from opusclip_mlops.sinks import Sink

_LENGTH, _CRC = struct.Struct("<Q"), struct.Struct("<I")


def event_folder(tensorboard_dir: Path, identity: Identity) -> Path:
    """Where a run's event files lie, inside `tensorboard_dir` whatever the experiment is called."""
    experiment = quote(identity.experiment_name, safe=" ").replace("..", "%2E%2E")
    return tensorboard_dir / experiment / identity.mirror_id


class TensorBoardSink:
    """Writes event files with TensorBoard's own protocol buffers, without torch."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._manifest = folder.manifest()
        self._params: dict[str, str] = {}
        self._hparams_written = False

    def open(self, state: SinkState) -> SinkState:
        """Cut the event file back to what was acknowledged, or begin a new one."""
        identity = self._folder.identity()
        if identity is None:
            raise Waiting("the run's name is not known yet")
        self._mirror_id = identity.mirror_id
        base = Path(self._manifest.cwd, self._manifest.tensorboard_dir)
        target = event_folder(base, identity)
        target.mkdir(parents=True, exist_ok=True)
        self._params = dict(state.get("params", {}))
        self._hparams_written = bool(state.get("hparams_written"))
        name = state.get("file") or _event_file_name()
        self._path = target / Path(name).name
        self._file = self._path.open("ab")
        self._file.truncate(min(int(state.get("size_bytes", 0)), self._file.tell()))
        self._file.seek(0, os.SEEK_END)
        if self._file.tell() == 0:
            started_s = self._manifest.start_time_ms / 1000
            self._write(Event(wall_time=started_s, file_version="brain.Event:2"))
        return self._state()

    def write(self, batch: Batch) -> Written:
        """Append the batch's events and hand them to the operating system."""
        refused = []
        for record in batch.records:
            if isinstance(record, records.Row):
                self._write_hparams()
            try:
                for event in self._events(record):
                    self._write(event)
            except VideoError as error:
                refused.append(Refusal(record, str(error)))
        return Written(self._state(), tuple(refused))

    def close(self, end: RunEnded) -> None:
        """Write how the run ended, for the HParams tab."""
        self._write_hparams()
        status = api_pb2.STATUS_SUCCESS if end.status == "FINISHED" else api_pb2.STATUS_FAILURE
        data = plugin_data_pb2.HParamsPluginData(
            session_end_info=plugin_data_pb2.SessionEndInfo(
                status=status, end_time_secs=end.end_time_ms / 1000
            )
        )
        summary = Summary(
            value=[
                Summary.Value(
                    tag=metadata.SESSION_END_INFO_TAG,
                    metadata=metadata.create_summary_metadata(data),
                )
            ]
        )
        self._write(Event(wall_time=end.end_time_ms / 1000, summary=summary))
        self._file.close()

    def _write(self, event: Event) -> None:
        content = event.SerializeToString()
        length = _LENGTH.pack(len(content))
        self._file.write(length + _masked_crc(length) + content + _masked_crc(content))

    def _state(self) -> SinkState:
        self._file.flush()
        return {
            "file": self._path.name,
            "size_bytes": self._file.tell(),
            "params": self._params,
            "hparams_written": self._hparams_written,
        }

    def _events(self, record: Record) -> list[Event]:
        now_s = time.time()
        match record:
            case records.Metrics():
                return [_scalars(record)]
            case records.Video():
                return [self._gif(record)]
            case records.Text():
                summary = text_pb(record.key, record.text)
                return [_event(record.timestamp_ms, record.step, summary)]
            case records.Params():
                self._params = {**record.values, **self._params}
                return [Event(wall_time=now_s, summary=_table(records.Params(self._params)))]
            case records.Tags() | records.Dataset():
                return [Event(wall_time=now_s, summary=_table(record))]
            case records.RunStarted() if record.tags:
                return [Event(wall_time=now_s, summary=_table(records.Tags(record.tags)))]
        return []

    def _write_hparams(self) -> None:
        """Write the params known by the first point: TensorBoard reads one such event only."""
        if self._hparams_written or not self._params:
            return
        started_s = self._manifest.start_time_ms / 1000
        params = {key: _number_or_text(value) for key, value in self._params.items()}
        summary = hparams_pb(params, trial_id=self._mirror_id, start_time_secs=started_s)
        self._write(Event(wall_time=started_s, summary=summary))
        self._hparams_written = True

    def _gif(self, record: records.Video) -> Event:
        path = media.rendition(self._folder, record, "gif")
        content = path.read_bytes()
        width, height = (
            int.from_bytes(content[6:8], "little"),
            int.from_bytes(content[8:10], "little"),
        )
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=content
        )
        summary = Summary(value=[Summary.Value(tag=record.key, image=image)])
        return _event(record.timestamp_ms, record.step, summary)


def _masked_crc(content: bytes) -> bytes:
    """The checksum of a TFRecord: CRC-32C, rotated right by 15 bits, plus a constant."""
    crc = google_crc32c.value(content)
    return _CRC.pack(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _event_file_name() -> str:
    host = quote(socket.gethostname(), safe="")
    return f"events.out.tfevents.{int(time.time())}.{host}.{os.getpid()}.{time.monotonic_ns()}"


def _event(timestamp_ms: int, step: int, summary: Summary) -> Event:
    return Event(wall_time=timestamp_ms / 1000, step=step, summary=summary)


def _scalars(record: records.Metrics) -> Event:
    values = [Summary.Value(tag=key, simple_value=value) for key, value in record.values.items()]
    return _event(record.timestamp_ms, record.step, Summary(value=values))


def _table(record: records.Params | records.Tags | records.Dataset) -> Summary:
    """Names and values as a Markdown table in the Text tab."""
    if isinstance(record, records.Dataset):
        name = f"dataset/{record.context}/{record.name}"
        rows = {"digest": record.digest, "source": record.source, "profile": record.profile}
    else:
        name = "params" if isinstance(record, records.Params) else "tags"
        rows = record.values
    lines = [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items()]
    summary: Summary = text_pb(name, "\n".join(["| name | value |", "|---|---|", *lines]))
    return summary


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


if TYPE_CHECKING:

    def _conforms(folder: RunFolder) -> Sink:
        return TensorBoardSink(folder)
