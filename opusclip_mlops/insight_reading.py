"""Insights, tables and pictures of ours, found among a run's files and read back as records."""

import hashlib
from collections import defaultdict
from pathlib import Path

import msgspec
from mlflow.store.artifact.artifact_repo import ArtifactRepository

from opusclip_mlops import layout
from opusclip_mlops.errors import RecordError
from opusclip_mlops.insight_documents import KINDS, digest_of_table, read_insight
from opusclip_mlops.layout import Named
from opusclip_mlops.listing import Found, Part, Sizes, content, download, is_listed
from opusclip_mlops.records import Image, Insight, Table
from opusclip_mlops.refusals import asking_faults, is_for_good, reason_of
from opusclip_mlops.tables import MOST_BYTES, read_table

MOST_DOCUMENT_BYTES, MOST_FILES_BYTES = 64 * 2**20, 2**30
"""The largest insight a mirror is given, and the most its files may have together."""


def insights_among(sizes: Sizes) -> Found:
    """The insights of a run; what is in them is read later, by `fetch_insight`."""
    beside: defaultdict[str, list[str]] = defaultdict(list)
    for path in sizes:
        beside[path.rpartition("/")[0]].append(path)
    found = Found()
    for path in sizes:
        named = layout.insight_of(path)
        if named is None:
            continue
        files = beside[path.removesuffix(".json")]
        problem = _problem_with(named, sizes[path], sum(sizes[file] for file in files))
        if problem:
            found.leave(path, problem)
            continue
        record = Insight(named.timestamp_ms, named.step, named.key, named.kind, {})
        found.parts.append(Part(record, path))
        found.used.update({path, *files})
    return found


def _problem_with(named: Named, size_bytes: int, files_bytes: int) -> str:
    if named.kind not in KINDS:
        return f"no mirror shows insights of kind {named.kind!r}"
    if size_bytes > MOST_DOCUMENT_BYTES:
        return f"it has {size_bytes} bytes: a mirror takes {MOST_DOCUMENT_BYTES}"
    if files_bytes > MOST_FILES_BYTES:
        return f"its files have {files_bytes} bytes: a mirror takes {MOST_FILES_BYTES}"
    return ""


def tables_among(sizes: Sizes) -> Found:
    """The tables of ours; their rows are read later, by `fetch_table`."""
    found = Found()
    for path, size_bytes in sizes.items():
        named = layout.table_of(path)
        if named is None:
            continue
        if size_bytes > MOST_BYTES:
            found.leave(path, f"it has {size_bytes} bytes: a mirror takes {MOST_BYTES}")
            continue
        record = Table(named.timestamp_ms, named.step, named.key, [], [])
        found.parts.append(Part(record, path))
        found.used.add(path)
    return found


def pictures_among(sizes: Sizes) -> Found:
    """Pictures whose key MLflow's image grid can't hold; what shows them there is used too."""
    found = Found()
    exact: set[tuple[int, int, str]] = set()
    for path in sizes:
        named = layout.picture_of(path)
        if named is not None:
            found.parts.append(Part(Image(named.timestamp_ms, named.step, named.key, ""), path))
            found.used.add(path)
            exact.add((named.step, named.timestamp_ms, named.mark))
    for path in sizes if exact else ():
        shown = layout.image_of(path)
        if shown is not None and (shown.step, shown.timestamp_ms, shown.mark) in exact:
            found.used.add(path)
    return found


def fetch_insight(repository: ArtifactRepository, path: str, folder: Path, run_id: str) -> Insight:
    """Read an insight, its files put into `folder` and named in it.

    Raises:
        RecordError: it is broken, none of ours, or a file of it is gone for good.
        MlflowException, OSError, or the error of another artifact store: it does not answer now.
    """
    record, hashes = _document(repository, path)
    files: dict[str, str] = {}
    for name, sha256 in hashes.items():
        source = f"{path.removesuffix('.json')}/{name}"
        mark = hashlib.sha256(f"{run_id}\0{source}".encode()).hexdigest()[:24]
        files[name] = f"{mark}-{name}"
        _fetch_file(repository, source, folder / files[name], sha256)
    return msgspec.structs.replace(record, files=files)


def check_insight(repository: ArtifactRepository, path: str) -> None:
    """See that an insight can be read, and that its files are there; they are not downloaded.

    Raises:
        As `fetch_insight`.
    """
    for name in _document(repository, path)[1]:
        source = f"{path.removesuffix('.json')}/{name}"
        if not is_listed(repository, source):
            raise RecordError(f"its file {name} is not there")


def fetch_table(repository: ArtifactRepository, path: str) -> Table:
    """Read a table of ours.

    Raises:
        RecordError: it is broken, or too large for a mirror.
        MlflowException, OSError, or the error of another artifact store: it does not answer now.
    """
    named = layout.table_of(path)
    assert named is not None
    text = content(repository, path)
    if digest_of_table(named.key, text) != named.mark:
        raise RecordError("its digest is not that of its content")
    read = read_table(path, len(text), lambda: text)
    if read.columns is None or read.rows is None:
        raise RecordError("; ".join(read.left_out))
    return Table(named.timestamp_ms, named.step, named.key, read.columns, read.rows)


def _document(repository: ArtifactRepository, path: str) -> tuple[Insight, dict[str, str]]:
    named = layout.insight_of(path)
    assert named is not None
    return read_insight(content(repository, path), named)


def _fetch_file(
    repository: ArtifactRepository, source: str, destination: Path, sha256: str
) -> None:
    name = source.rpartition("/")[2]
    try:
        if not destination.exists():
            download(repository, source, destination)
    except asking_faults() as error:
        if not is_for_good(error) and is_listed(repository, source):
            raise
        raise RecordError(f"its file {name} is not there: {reason_of(error)}") from None
    with destination.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        destination.unlink()
        raise RecordError(f"its file {name} is not the one that was logged")
