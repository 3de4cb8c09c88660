"""Copies what a bucket holds into a folder, and back, on any S3 API.

objects.py copy FOLDER       into FOLDER/objects; what is there already is not copied again
objects.py restore FOLDER    back into the bucket, each object with its hash compared first
objects.py compare FOLDER    exit code 1 unless the bucket holds just the same

Settings: OPUSCLIP_BUCKET, MLFLOW_S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (each
of the last two also as NAME_FILE). FOLDER/objects.jsonl names each object, its size and SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An object as it was copied: `etag` is the store's own mark of this content."""

    key: str
    size_bytes: int
    etag: str
    sha256: str


def main(argv: list[str]) -> None:
    """Do what the command says."""
    verbs = {"copy": copy, "restore": restore, "compare": compare}
    if len(argv) != 2 or argv[0] not in verbs:
        sys.exit(__doc__)
    os.umask(0o077)
    verbs[argv[0]](_client(), os.environ["OPUSCLIP_BUCKET"], Path(argv[1]))


def copy(client: Any, bucket: str, folder: Path) -> None:
    """Bring a folder up to date with a bucket.

    An object that was removed in the bucket leaves the list; its file stays.
    """
    had = {one.key: one for one in _listed(folder)}
    kept, copied = [], 0
    for key, _, etag in _objects(client, bucket):
        one = had.get(key)
        if not one or one.etag != etag or not _file(folder, one.sha256).exists():
            one = _copied(client, bucket, key, etag, folder)
            copied += one is not None
        if one:
            kept.append(one)
    _write_list(folder, kept)
    size_bytes = sum(one.size_bytes for one in kept)
    print(f"{len(kept):,} objects, {size_bytes:,} bytes; {copied:,} copied now")


def restore(client: Any, bucket: str, folder: Path) -> None:
    """Put every object of a list back; one with the same content already is left alone.

    Raises:
        SystemExit: A file of the folder is damaged or missing; nothing was sent then.
    """
    listed = _listed(folder)
    _check(folder, listed)
    there = {key: size_bytes for key, size_bytes, _ in _objects(client, bucket)}
    sent = 0
    for one in listed:
        if there.get(one.key) != one.size_bytes or _sha256_there(client, bucket, one) != one.sha256:
            client.upload_file(str(_file(folder, one.sha256)), bucket, one.key)
            sent += 1
    print(f"{len(listed):,} objects; {sent:,} sent now")


def compare(client: Any, bucket: str, folder: Path) -> None:
    """Compare each object with the list, by its whole content.

    Raises:
        SystemExit: They are not the same; says which.
    """
    listed = {one.key: one for one in _listed(folder)}
    there = {key for key, _, _ in _objects(client, bucket)}
    wrong = sorted(there ^ listed.keys())
    for key in sorted(there & listed.keys()):
        if _sha256_there(client, bucket, listed[key]) != listed[key].sha256:
            wrong.append(key)
    if wrong:
        sys.exit(f"error: {len(wrong):,} objects differ, such as {wrong[0]}")
    print(f"{len(listed):,} objects, all the same")


def _client() -> Any:
    from prepare import storage_client

    return storage_client()


def _objects(client: Any, bucket: str) -> Iterator[tuple[str, int, str]]:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for one in page.get("Contents", []):
            yield one["Key"], one["Size"], one["ETag"]


def _copied(client: Any, bucket: str, key: str, etag: str, folder: Path) -> Stored | None:
    """Copy an object under the name of its hash; None when it was removed meanwhile."""
    from botocore.exceptions import ClientError

    target = folder / "objects" / f".copying-{os.getpid()}"
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        body = client.get_object(Bucket=bucket, Key=key)["Body"]
    except ClientError as error:
        if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
            return None
        raise
    with target.open("wb") as file:
        digest, size_bytes = _poured(body, file)
        os.fsync(file.fileno())
    final = _file(folder, digest)
    final.parent.mkdir(exist_ok=True)
    target.replace(final)
    return Stored(key=key, size_bytes=size_bytes, etag=etag, sha256=digest)


def _poured(source: IO[bytes], target: IO[bytes] | None) -> tuple[str, int]:
    digest, size_bytes = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        size_bytes += len(chunk)
        if target:
            target.write(chunk)
    return digest.hexdigest(), size_bytes


def _sha256_there(client: Any, bucket: str, one: Stored) -> str:
    return _poured(client.get_object(Bucket=bucket, Key=one.key)["Body"], None)[0]


def _check(folder: Path, listed: list[Stored]) -> None:
    for one in listed:
        file = _file(folder, one.sha256)
        if not file.exists():
            sys.exit(f"error: {file} of {one.key} is missing: nothing was restored")
        with file.open("rb") as opened:
            if _poured(opened, None)[0] != one.sha256:
                sys.exit(f"error: {file} of {one.key} is damaged: nothing was restored")


def _file(folder: Path, sha256: str) -> Path:
    # Named by content: no key, whatever it says, leads out of the folder.
    return folder / "objects" / sha256[:2] / sha256


def _listed(folder: Path) -> list[Stored]:
    file = folder / "objects.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [Stored(**json.loads(line)) for line in lines]


def _write_list(folder: Path, kept: list[Stored]) -> None:
    new = folder / ".objects.jsonl.new"
    new.write_text("".join(json.dumps(asdict(one)) + "\n" for one in kept))
    new.replace(folder / "objects.jsonl")


if __name__ == "__main__":
    main(sys.argv[1:])
