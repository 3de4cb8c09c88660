"""Insights and tables as the JSON files that stand in MLflow, there and back.

An insight is `{"format": 1, "kind", "key", "step", "timestamp_ms", "content", "files"}`, its files
named with their SHA-256; a table is pandas' "split" orientation, `{"columns", "data"}`. Each has a
digest in its name, of what it says: so a file is the same each time it is sent, and is known to be
whole when it is read.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from opusclip_mlops.errors import RecordError
from opusclip_mlops.layout import Named
from opusclip_mlops.records import Insight, Table

FORMAT = 1
DIGEST_DIGITS = 12

_FILE_NAME = re.compile(r"(?!step_)[A-Za-z0-9_\-][A-Za-z0-9_.\-]{0,99}")
_KIND = re.compile(r"[a-z][a-z0-9_]{0,49}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_FILES = 16

KINDS = frozenset({"histograms", "graph", "embedding", "pr_curve", "layout", "hparams", "trace"})
"""The kinds of insights that mirrors show."""


def canonical(value: Any) -> str:
    """JSON that is the same for equal values, whatever wrote them; floats by their shortest form.

    NaN and infinities, which JSON lacks, are the words "nan", "inf" and "-inf".

    Raises:
        RecordError: it holds what JSON has no form for.
    """
    try:
        text = json.dumps(
            _plain(value),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )
        text.encode()
        return text
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(f"it can't be kept as JSON: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def check_files(names: Mapping[str, str]) -> None:
    """Raises:
    RecordError: a file has a name that could lead elsewhere, or there are too many.
    """
    if len(names) > _MOST_FILES:
        raise RecordError(f"it has {len(names)} files: at most {_MOST_FILES} are kept")
    for name in names:
        if not _FILE_NAME.fullmatch(name):
            raise RecordError(f"file {name[:100]!r} has no plain name: use letters, digits and _.-")


def insight_document(record: Insight, hashes: Mapping[str, str]) -> tuple[str, str]:
    """An insight as the text of its file, and the digest in the file's name.

    Args:
        record: the insight.
        hashes: SHA-256 of each of its files, in hex, by their names beside it.

    Raises:
        RecordError: its content is nothing that JSON can hold, or its kind no plain word.
    """
    check_files(hashes)
    if not _KIND.fullmatch(record.kind):
        raise RecordError(f"kind {record.kind[:100]!r} is no plain word: use letters, digits and _")
    about = {
        "format": FORMAT,
        "kind": record.kind,
        "key": record.key,
        "step": record.step,
        "timestamp_ms": record.timestamp_ms,
        "files": dict(hashes),
    }
    content = canonical(record.content)
    # Spelled out once: of a large model it has megabytes.
    text = f'{canonical(about)[:-1]},"content":{content}}}'
    return text, _digest_of_insight(record, content, hashes)


def read_insight(text: bytes, named: Named) -> tuple[Insight, dict[str, str]]:
    """An insight out of its file, without its files; and the SHA-256 of those by their names.

    Raises:
        RecordError: it is cut, of another format, or not what its name says.
    """
    about = _decoded(text)
    hashes = about.get("files")
    if about.get("format") != FORMAT:
        raise RecordError(f"it has format {str(about.get('format'))[:20]}: {FORMAT} is read")
    if not isinstance(hashes, dict) or not all(map(_is_sha256, hashes.values())):
        raise RecordError("it does not say what its files are")
    check_files(hashes)
    said = [about.get(name) for name in ("kind", "key", "step", "timestamp_ms")]
    if said != [named.kind, named.key, named.step, named.timestamp_ms]:
        raise RecordError("it says another kind, key, step or time than its name")
    record = Insight(named.timestamp_ms, named.step, named.key, named.kind, about["content"])
    if _digest_of_insight(record, canonical(record.content), hashes) != named.mark:
        raise RecordError("its digest is not that of its content")
    return record, hashes


def table_document(record: Table) -> tuple[str, str]:
    """A table as the text of its file, and the digest in the file's name.

    Raises:
        RecordError: a cell is nothing that JSON can hold.
    """
    text = canonical({"columns": record.columns, "data": record.rows})
    return text, digest_of_table(record.key, text.encode())


def digest_of_table(key: str, text: bytes) -> str:
    """The digest in the name of a table's file."""
    return hashlib.sha256(key.encode() + b"\0" + text).hexdigest()[:DIGEST_DIGITS]


def _digest_of_insight(record: Insight, content: str, hashes: Mapping[str, str]) -> str:
    of = "\0".join((record.key, record.kind, content, canonical(dict(hashes))))
    return hashlib.sha256(of.encode()).hexdigest()[:DIGEST_DIGITS]


def _decoded(text: bytes) -> dict[str, Any]:
    try:
        about = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"it can't be read as JSON: {error}") from None
    if not isinstance(about, dict) or not isinstance(about.get("content"), dict):
        raise RecordError("it is no insight: it has no content")
    return about


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and bool(_SHA256.fullmatch(value))
