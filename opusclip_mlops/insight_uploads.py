"""Insights, pictures and tables on their way into MLflow, under the same names each time."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from mlflow import MlflowClient

from opusclip_mlops import layout, media, pictures
from opusclip_mlops.errors import RecordError
from opusclip_mlops.folder import RunFolder, write_whole
from opusclip_mlops.insight_documents import check_files, insight_document, table_document
from opusclip_mlops.records import Image, Insight, Record, Table
from opusclip_mlops.refusals import is_for_good
from opusclip_mlops.tables import TABLES_TAG

SET_ASIDE_BYTES = 16 * 1024
"""How large an insight or table is that is put into a file of its own when it has to wait."""

MOST_NOTE_CHARACTERS = 5000
"""How long MLflow's note of a run's tables may become: older servers cut a longer tag."""

_ASIDE = "opusclip.aside"

S = TypeVar("S", Insight, Table)
Upload = Callable[[Path, str, str], None]
"""Sends a file of this machine to a folder of the run's artifacts, under a name."""


class InsightUploads:
    """Sends the insights, pictures and tables of one run.

    Args:
        client: Who is told.
        run_id: The run.
        folder: Where the files lie that records refer to.
        upload: How a file is sent.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, folder: RunFolder, *, upload: Upload
    ) -> None:
        self._client, self._run_id = client, run_id
        self._folder = folder
        self._upload = upload
        self._noted: set[str] = set()
        self._is_tagged = False

    def send_insight(self, record: Insight) -> None:
        """Send an insight: its files first, so that one that is named is whole.

        Raises:
            RecordError: a file of it is gone, or its content is nothing that JSON can hold.
            MlflowException, OSError, or another artifact store's own: it does not answer now.
        """
        record = _whole(self._folder, record)
        check_files(record.files)
        staged = {name: self._staged(file) for name, file in record.files.items()}
        hashes = {name: _sha256_of(path) for name, path in staged.items()}
        text, digest = insight_document(record, hashes)
        path = layout.insight_path(
            record.kind, record.key, record.step, record.timestamp_ms, digest
        )
        for name, file in staged.items():
            self._upload(file, path.removesuffix(".json"), name)
        self._client.log_text(self._run_id, text, path)

    def send_picture(self, record: Image) -> None:
        """Send a picture to where MLflow's image grid finds it, whole and small.

        A key that the grid can't hold is kept by a second copy under media/image/.

        Raises:
            VideoError: the picture is gone, or can't be read.
            MlflowException, OSError, or another artifact store's own: it does not answer now.
        """
        whole = media.picture(self._folder, record)
        mark = hashlib.sha256(f"{record.key}\0{record.file}".encode()).hexdigest()[:12]
        where = record.key, record.step, record.timestamp_ms, mark
        exact = layout.picture_path(*where)
        if exact:
            self._upload(whole, *_split(exact))
        stem = layout.image_stem(*where)
        small = pictures.small_webp(whole)
        self._upload(small, layout.IMAGES, f"{stem}+compressed.webp")
        self._upload(whole, layout.IMAGES, f"{stem}.png")
        if not self._is_tagged:
            self._client.set_tag(self._run_id, layout.LOGGED_IMAGES_TAG, "True")
            self._is_tagged = True

    def send_table(self, record: Table) -> None:
        """Send a table so that `mlflow.load_table` reads it, by the name it has there.

        Raises:
            RecordError: a cell is nothing that JSON can hold.
            MlflowException, OSError, or another artifact store's own: it does not answer now.
        """
        text, digest = table_document(_whole(self._folder, record))
        path = layout.table_path(record.key, record.step, record.timestamp_ms, digest)
        self._client.log_text(self._run_id, text, path)
        self._note_table(path)

    def _note_table(self, path: str) -> None:
        """Add a table to MLflow's note of them, which its own client adds to as well."""
        if path in self._noted:
            return
        said = self._client.get_run(self._run_id).data.tags.get(TABLES_TAG, "[]")
        changed = with_table(said, path)
        if changed is not None:
            self._client.set_tag(self._run_id, TABLES_TAG, changed)
        self._noted.add(path)

    def _staged(self, file: str) -> Path:
        return self._folder.media / Path(file).name


def set_aside(folder: RunFolder, record: Record) -> Record:
    """A record that is small enough to be noted again and again: a large one goes into a file.

    On a full disk it stays as it is.
    """
    if not isinstance(record, Insight | Table) or _file_of(record):
        return record
    encoded = msgspec.msgpack.encode(record)
    if len(encoded) < SET_ASIDE_BYTES:
        return record
    name = f"{hashlib.sha256(encoded).hexdigest()[:24]}.record"
    try:
        write_whole(folder.media / name, encoded)
    except OSError:
        return record
    if isinstance(record, Insight):
        return msgspec.structs.replace(record, content={_ASIDE: name}, files={})
    return msgspec.structs.replace(record, columns=[_ASIDE], rows=[[name]])


def _whole(folder: RunFolder, record: S) -> S:
    """A record as it was before it may have been set aside.

    Raises:
        RecordError: its file is gone.
    """
    name = _file_of(record)
    if not name:
        return record
    try:
        return msgspec.msgpack.decode((folder.media / name).read_bytes(), type=type(record))
    except (FileNotFoundError, msgspec.DecodeError):
        raise RecordError(f"its content, file {name}, is gone or broken") from None


def _file_of(record: Insight | Table) -> str:
    if isinstance(record, Insight):
        name = record.content.get(_ASIDE, "")
    else:
        name = record.rows[0][0] if record.columns == [_ASIDE] and record.rows else ""
    return Path(str(name)).name


def with_table(note: str, path: str) -> str | None:
    """MLflow's note of a run's tables with one more, None where it can stay as it is.

    What others have noted stays, in its order; the oldest tables of ours give way, for MLflow cuts
    a note that is too long, and a note that is none of MLflow's is nobody's to change.
    """
    entry = {"path": path, "type": "table"}
    try:
        noted: Any = json.loads(note)
    except ValueError:
        return None
    if not isinstance(noted, list) or entry in noted:
        return None
    noted.append(entry)
    while len(said := json.dumps(noted, ensure_ascii=False)) > MOST_NOTE_CHARACTERS:
        oldest = next((one for one in noted if _is_ours(one)), entry)
        if oldest == entry:
            return None
        noted.remove(oldest)
    return said


def _is_ours(entry: Any) -> bool:
    is_named = isinstance(entry, dict) and isinstance(entry.get("path"), str)
    return is_named and layout.table_of(entry["path"]) is not None


def _sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if not is_for_good(error):
            raise
        raise RecordError(f"its file {path.name} can't be read: {error.strerror}") from None


def _split(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name
