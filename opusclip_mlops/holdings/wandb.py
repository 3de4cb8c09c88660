"""What W&B holds of a run: read from its logs on this machine, or asked of its server.

Offline a log is all there is of a run: what a sync will send. Online the server has the say, and
what a client has still on its way does not count. A clip, picture, text or table is held where its
file is there in full: a row alone only refers to it.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import wandb
from wandb.apis.public.runs import Run, RunNotFoundError
from wandb.proto.wandb_internal_pb2 import HistoryRecord

from opusclip_mlops import wandb_client, wandb_layout, wandb_log
from opusclip_mlops.errors import DeliveryError
from opusclip_mlops.folder import Identity
from opusclip_mlops.holdings import Held, Medium
from opusclip_mlops.points import Points
from opusclip_mlops.records import Record
from opusclip_mlops.redaction import one_line
from opusclip_mlops.targets import Target
from opusclip_mlops.wandb_artifacts import Artifacts
from opusclip_mlops.wandb_layout import INSIGHT_KEY, STEP_KEY
from opusclip_mlops.words import words_of

if TYPE_CHECKING:
    from opusclip_mlops.holdings import Holdings

_API_TIMEOUT_S = 30
_CHUNK_POINTS = 200_000
_NO_KEY = -1
_KINDS: Mapping[str, Literal["video", "image", "text", "table"]] = {
    "video-file": "video",
    "image-file": "image",
    "html-file": "text",
    "table-file": "table",
}
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")
_ENDS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


class WandbHoldings:
    """Reads a run back from W&B, online where a key is configured and the target lets it."""

    def __init__(self, target: Target, identity: Identity) -> None:
        is_online = wandb_layout.wandb_mode(target.mode) == "online"
        self._place = (
            _OnServer(target, identity.mirror_id)
            if is_online
            else _InLogs(Path(target.folder), identity.mirror_id, target.project)
        )

    def read(self) -> Held:
        """All that W&B holds; a run that isn't there holds nothing.

        Raises:
            DeliveryError: the server does not answer.
        """
        return self._place.read()

    def fingerprint(self) -> str:
        """Changes when rows, config or state do; one question to the server.

        Raises:
            DeliveryError: the server does not answer.
        """
        return self._place.fingerprint()

    def rendered(self, record: Record) -> dict[str, str]:
        """The words that W&B is to hold for a record without a step, by their names."""
        return _texts(words_of(record))


class _InLogs:
    """A run in the logs of a W&B folder: whole records only, of all its parts."""

    def __init__(self, folder: Path, run_id: str, project: str) -> None:
        self._folder = folder
        self._run_id = run_id
        self._project = project

    def read(self) -> Held:
        rows = _Rows()
        config: dict[str, Any] = {}
        artifacts = Artifacts()
        notes = ""
        for log in wandb_log.logs_of(self._folder, self._run_id, project=self._project):
            for record in wandb_log.LogReader(log).new_records():
                match record.WhichOneof("record_type"):
                    case "history":
                        rows.add_record(record.history)
                    case "run":
                        wandb_log.changed_config(record, config)
                        notes = record.run.notes
                    case "config":
                        wandb_log.changed_config(record, config)
                    case "artifact":
                        artifacts.add_record(record.artifact)
                    case "alert" | "link_artifact" | "use_artifact" | "tbrecord":
                        rows.others += 1
            if rows.show_media:
                rows.count_media(wandb_client.media_on_disk(log.parent / "files"))
        words = _words(config, notes) | _texts(artifacts.words())
        # The client ends its log also where the run goes on.
        return rows.held(words, _end_said(words))

    def fingerprint(self) -> str:
        logs = wandb_log.logs_of(self._folder, self._run_id, project=self._project)
        return " ".join(f"{log.parent.name}:{log.stat().st_size}" for log in logs)


class _OnServer:
    """A run on W&B's server."""

    def __init__(self, target: Target, run_id: str) -> None:
        self._path = "/".join(filter(None, (target.entity, target.project, run_id)))

    def read(self) -> Held:
        with _said_plainly():
            run = self._run()
            if run is None:
                return _Rows().held({}, "")
            rows, first = _Rows(), _Rows()
            # What the client keeps of a run's rows on disk may be older than the run.
            # A scan that is asked for its iterator begins anew.
            found = (row for row in run.scan_history(use_cache=False))
            while part := wandb_client.next_page(found):
                if rows.is_empty:
                    first.add(part[0])
                for row in part:
                    rows.add(row)
            if rows.show_media:
                files = wandb_client.media_on_server(run)
                rows.count_media(files)
                first.count_media(files)
            artifacts = Artifacts()
            with wandb_client.ended_if_hanging():
                for artifact in run.logged_artifacts():
                    artifacts.add_logged(artifact)
            words = _words(run.config, run.notes or "") | _texts(artifacts.words())
            end = _ENDS.get(run.state, "")
            held = rows.held(words, end and (_end_said(words) or end))
            return dataclasses.replace(held, lasting=first.held({}, ""))

    def fingerprint(self) -> str:
        with _said_plainly():
            run = self._run()
            if run is None:
                return ""
            told = [run.config, run.notes, run.summaryMetrics]
            text = json.dumps(told, sort_keys=True, default=str)
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            return f"{run.historyLineCount} {run.state} {digest}"

    def _run(self) -> Run | None:
        """The run as it is now, None where there is none."""
        api = _api(os.environ.get("WANDB_BASE_URL"), os.environ.get("WANDB_API_KEY"))
        api.flush()
        try:
            return api.run(self._path)
        except wandb.errors.CommError as error:
            if isinstance(error.exc, RunNotFoundError):
                return None
            raise


def _end_said(words: Mapping[str, str]) -> str:
    """How the run ended, as its mirror says it beside the exit code: W&B knows no KILLED."""
    return str(json.loads(words.get("end", "{}")).get("status", ""))


@functools.cache
def _api(_base_url: str | None, _key: str | None) -> wandb.Api:
    """The client of the server that the environment names: to begin one costs a question."""
    return wandb.Api(timeout=_API_TIMEOUT_S)


@contextmanager
def _said_plainly() -> Iterator[None]:
    try:
        yield
    except wandb_client.UNANSWERED as error:
        raise DeliveryError(f"W&B cannot be read: {one_line(str(error))}") from error


class _Rows:
    """Rows turned into points as they are read: never a million objects at once."""

    def __init__(self) -> None:
        self._number_of: dict[str, int] = {}
        self._keys: list[str] = []
        self._parts: list[Points] = []
        self._shown: list[tuple[Medium, dict[str, int]]] = []
        self._media: Counter[Medium] = Counter()
        self._count = 0
        self.others = 0
        self._begin_part()

    def _begin_part(self) -> None:
        self._number: list[int] = []
        self._step: list[int] = []
        self._timestamp_ms: list[int] = []
        self._value: list[float] = []

    def add_record(self, record: HistoryRecord) -> None:
        """Take in a row as a log has it, without reading numbers as JSON: most of the work."""
        texts: dict[str, str] = {}
        for item in record.item:
            path = item.nested_key or (item.key,)
            if len(path) > 1:
                self.add(wandb_log.row_of(record))
                return
            texts[path[0]] = item.value_json
        if INSIGHT_KEY in texts:
            self.add(wandb_log.row_of(record))
            return
        self._place(texts.get(STEP_KEY), texts.get("_step"), texts.get("_timestamp"))
        number_of, numbers, values = self._number_of, self._number, self._value
        for column, text in texts.items():
            number = number_of.get(column)
            if number is None:
                number = self._numbered(column)
            if number >= 0:
                try:
                    values.append(float(text))
                except ValueError:
                    self.others += 1
                    continue
                numbers.append(number)
        self._end_row()

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in a row as the server tells it."""
        self._place(row.get(STEP_KEY), row.get("_step"), row.get("_timestamp"))
        if insight := wandb_layout.insight_of_mark(row.get(INSIGHT_KEY)):
            self._add_insight(insight, row)
            return
        for column, value in _flat(row):
            number = self._number_of.get(column)
            if number is None:
                number = self._numbered(column)
            if number == _NO_KEY:
                continue
            if isinstance(value, Mapping):
                self._add_medium(column, value)
            elif value in _NOT_FINITE or (
                isinstance(value, int | float) and not isinstance(value, bool)
            ):
                self._number.append(number)
                self._value.append(float(value))
            else:
                self.others += 1
        self._end_row()

    @property
    def is_empty(self) -> bool:
        """Whether no row was taken in yet."""
        return not self._count

    @property
    def show_media(self) -> bool:
        """Whether rows refer to files that were not counted yet."""
        return bool(self._shown)

    def count_media(self, sizes_bytes: Mapping[str, int]) -> None:
        """Count each row's medium whose file is among these in full, by its name."""
        self._media.update(
            medium
            for medium, wanted in self._shown
            if all(sizes_bytes.get(path) == size for path, size in wanted.items())
        )
        self._shown.clear()

    def held(self, words: Mapping[str, str], end: str) -> Held:
        """What the rows held, with what else there is."""
        self._end_part()
        points, media = Points.joined(self._parts), dict(self._media)
        return Held(points, media, words, self._count, end, self.others)

    def _place(self, step: Any, row: Any, timestamp_s: Any) -> None:
        """Where the next points stand; a row of another's has W&B's own step only."""
        self._at_step = _whole(step, _whole(row, 0))
        self._at_ms = round(float(timestamp_s or 0) * 1000)

    def _end_row(self) -> None:
        added = len(self._value) - len(self._step)
        self._step += [self._at_step] * added
        self._timestamp_ms += [self._at_ms] * added
        self._count += 1
        if len(self._value) >= _CHUNK_POINTS:
            self._end_part()

    def _end_part(self) -> None:
        columns = (self._number, self._step, self._timestamp_ms, self._value)
        self._parts.append(Points.of_columns(self._keys, *columns))
        self._begin_part()

    def _numbered(self, column: str) -> int:
        key = wandb_layout.key_of(column)
        self._number_of[column] = _NO_KEY if key is None else len(self._keys)
        if key is not None:
            self._keys.append(key)
        return self._number_of[column]

    def _add_medium(self, column: str, value: Mapping[str, Any]) -> None:
        key = self._keys[self._number_of[column]]
        if kind := _KINDS.get(str(value["_type"])):
            medium = Medium(kind, key, self._at_step, self._at_ms)
            self._shown.append((medium, _file_of(value)))
        else:
            self.others += 1

    def _add_insight(self, insight: tuple[str, str], row: Mapping[str, Any]) -> None:
        """A row that is an insight: held where all files are there that it refers to."""
        kind, key = insight
        wanted: dict[str, int] = {}
        for _, value in _flat(row):
            if isinstance(value, Mapping) and "path" in value:
                wanted |= _file_of(value)
        self._shown.append((Medium(f"insight/{kind}", key, self._at_step, self._at_ms), wanted))
        self._end_row()


def _file_of(value: Mapping[str, Any]) -> dict[str, int]:
    """The file that a medium refers to, with its size in bytes."""
    return {str(value.get("path")): _whole(value.get("size"), -1)}


def _flat(row: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Columns and values of a row; a mapping that is no medium is columns with a dotted name."""
    for name, value in row.items():
        if isinstance(value, Mapping) and "_type" not in value:
            if wandb_layout.key_of(name) is not None:
                yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _whole(value: Any, otherwise: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return otherwise


def _words(config: Mapping[str, Any], notes: str) -> dict[str, str]:
    """The words of a config; the notes of a run whose config has none."""
    said = wandb_layout.words_of_config(config)
    return _texts(({"notes": {"text": notes}} if notes else {}) | said)


def _texts(words: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Each as one text, the same for the same content."""
    return {
        name: json.dumps(values, sort_keys=True, ensure_ascii=False)
        for name, values in words.items()
    }


if TYPE_CHECKING:

    def _conforms(target: Target, identity: Identity) -> Holdings:
        return WandbHoldings(target, identity)
