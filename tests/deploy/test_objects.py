"""The copy of the object store: whole, without doing work twice, and never a damaged one back."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.programs import DEPLOY
from tests.object_store import ObjectStore, object_store

ODD = ("plain.txt", "a/b/c.bin", "..out.txt", "with space/ü+%2e.txt", "empty")


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as found:
        yield found


@pytest.fixture
def bucket(store: ObjectStore, request: pytest.FixtureRequest) -> str:
    """A bucket of its own for each test, with a few objects."""
    name = f"b{abs(hash(request.node.name))}"
    store.client.create_bucket(Bucket=name)
    for number, key in enumerate(ODD):
        store.client.put_object(Bucket=name, Key=key, Body=bytes([number]) * number * 1000)
    return name


def run(store: ObjectStore, bucket: str, verb: str, folder: Path) -> tuple[int, str]:
    """The program's exit code and what it said."""
    done = subprocess.run(
        [sys.executable, DEPLOY / "objects.py", verb, folder],
        env={**os.environ, **store.environment(), "OPUSCLIP_BUCKET": bucket},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_copy_goes_into_an_empty_bucket_and_is_equal(
    store: ObjectStore, bucket: str, tmp_path: Path
) -> None:
    """Each key, however odd, with its content; no key leads out of the folder; private files."""
    folder = tmp_path / "kept"
    assert run(store, bucket, "copy", folder) == (0, "5 objects, 10,000 bytes; 5 copied now\n")
    assert {one.name for one in tmp_path.iterdir()} == {"kept", "home"}
    assert not [one for one in folder.rglob("*") if one.is_file() and one.stat().st_mode & 0o077]
    other = f"{bucket}x"
    store.client.create_bucket(Bucket=other)
    assert run(store, other, "restore", folder) == (0, "5 objects; 5 sent now\n")
    assert run(store, other, "compare", folder) == (0, "5 objects, all the same\n")
    assert sorted(store.keys(bucket=other)) == sorted(store.keys(bucket=bucket))
    assert run(store, other, "restore", folder) == (0, "5 objects; 0 sent now\n")


def test_only_what_is_new_is_copied_again(store: ObjectStore, bucket: str, tmp_path: Path) -> None:
    """A changed object is, one that was removed leaves the list."""
    run(store, bucket, "copy", tmp_path)
    assert run(store, bucket, "copy", tmp_path)[1] == "5 objects, 10,000 bytes; 0 copied now\n"
    store.client.put_object(Bucket=bucket, Key="empty", Body=b"now something")
    store.client.delete_object(Bucket=bucket, Key="plain.txt")
    assert run(store, bucket, "copy", tmp_path)[1] == "4 objects, 6,013 bytes; 1 copied now\n"
    assert run(store, bucket, "compare", tmp_path)[0] == 0


def test_a_difference_is_found(store: ObjectStore, bucket: str, tmp_path: Path) -> None:
    """Another content of the same size, and an object too many."""
    run(store, bucket, "copy", tmp_path)
    store.client.put_object(Bucket=bucket, Key="a/b/c.bin", Body=b"x" * 1000)
    store.client.put_object(Bucket=bucket, Key="more", Body=b"")
    code, said = run(store, bucket, "compare", tmp_path)
    assert (code, said) == (1, "error: 2 objects differ, such as more\n")


def test_a_damaged_copy_is_not_restored(store: ObjectStore, bucket: str, tmp_path: Path) -> None:
    """One bad byte, or a file that is missing: nothing at all is sent."""
    run(store, bucket, "copy", tmp_path)
    files = sorted(one for one in (tmp_path / "objects").rglob("*") if one.is_file())
    largest = max(files, key=lambda one: one.stat().st_size)
    content = largest.read_bytes()
    largest.write_bytes(b"!" + content[1:])
    other = f"{bucket}y"
    store.client.create_bucket(Bucket=other)
    code, said = run(store, other, "restore", tmp_path)
    assert (code, "is damaged: nothing was restored" in said) == (1, True)
    largest.unlink()
    code, said = run(store, other, "restore", tmp_path)
    assert (code, "is missing: nothing was restored" in said) == (1, True)
    assert store.keys(bucket=other) == []
