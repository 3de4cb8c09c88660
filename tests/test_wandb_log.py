"""The log of the real client is read as far as it is whole, also while it grows."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from opusclip_mlops import wandb_log
from opusclip_mlops.delivery import deliver
from tests.journeys import LOCAL_ID, append, end, make_run
from tests.sinks.sink_contract import metrics

BLOCK_BYTES = 32 * 1024


def written(payloads: Sequence[bytes]) -> bytes:
    """A log of these records, cut into chunks as the format wants it."""
    content = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
    for payload in payloads:
        is_first = True
        while is_first or payload:
            left = BLOCK_BYTES - len(content) % BLOCK_BYTES
            if left < 7:
                content += bytes(left)
                continue
            part, payload = payload[: left - 7], payload[left - 7 :]
            kind = (1 if is_first else 4) if not payload else (2 if is_first else 3)
            is_first = False
            checksum = zlib.crc32(part, zlib.crc32(bytes([kind])))
            content += struct.pack("<IHB", checksum, len(part), kind) + part
    return content


def numbered(number: int, size_bytes: int) -> bytes:
    """A record that tells its number and has about this size."""
    record = Record(num=number)
    record.output.line = "x" * size_bytes
    return record.SerializeToString()


def numbers(reader: wandb_log.LogReader) -> list[int]:
    return [record.num for record in reader.new_records()]


@pytest.mark.parametrize("size_bytes", [0, 1, 40, 5_000, BLOCK_BYTES - 40, BLOCK_BYTES, 200_000])
def test_records_of_any_size_are_read(tmp_path: Path, size_bytes: int) -> None:
    """Across blocks, across what is read at once, and where a block's end holds no header."""
    log = tmp_path / "run-r.wandb"
    sizes = [size_bytes + step for step in range(60)]
    log.write_bytes(written([numbered(at + 1, size) for at, size in enumerate(sizes)]))
    assert numbers(wandb_log.LogReader(log)) == list(range(1, 61))


@pytest.mark.parametrize("left", range(9))
def test_a_block_that_ends_just_behind_a_record(tmp_path: Path, left: int) -> None:
    """What is left of a block and too short for a header is passed over."""
    log = tmp_path / "run-r.wandb"
    overhead = len(written([numbered(1, 20_000)])) - 20_000
    content = written([numbered(1, BLOCK_BYTES - overhead - left), numbered(2, 10)])
    log.write_bytes(content)
    assert len(written([numbered(1, BLOCK_BYTES - overhead - left)])) == BLOCK_BYTES - left
    assert numbers(wandb_log.LogReader(log)) == [1, 2]


def test_the_beginning_of_a_record_that_never_ended_is_dropped(tmp_path: Path) -> None:
    """A whole record behind half a one is read as what it is."""
    log = tmp_path / "run-r.wandb"
    half = written([numbered(1, BLOCK_BYTES)])[:BLOCK_BYTES]
    second = numbered(2, 10)
    chunk = struct.pack("<IHB", zlib.crc32(second, zlib.crc32(b"\x01")), len(second), 1) + second
    log.write_bytes(half + chunk)
    assert numbers(wandb_log.LogReader(log)) == [2]


def test_a_log_that_grows_is_read_on(tmp_path: Path) -> None:
    """Each record is given once, when its last byte is there."""
    log = tmp_path / "run-r.wandb"
    content = written([numbered(at + 1, 9_000) for at in range(20)])
    reader = wandb_log.LogReader(log)
    assert numbers(reader) == []
    found: list[int] = []
    for size_bytes in [*range(0, len(content), 1_777), len(content)]:
        log.write_bytes(content[:size_bytes])
        found += numbers(reader)
        assert found == numbers(wandb_log.LogReader(log))
    assert found == list(range(1, 21))


@pytest.mark.parametrize("tail", [b"\0" * 100, b"\0" * 70_000, b"noise" * 9_000])
def test_what_is_no_record_ends_a_log(tmp_path: Path, tail: bytes) -> None:
    """Zeros and noise behind the last record are not read as one."""
    log = tmp_path / "run-r.wandb"
    log.write_bytes(written([numbered(1, 50), numbered(2, 50)]) + tail)
    assert numbers(wandb_log.LogReader(log)) == [1, 2]


def test_a_damaged_record_is_not_read(tmp_path: Path) -> None:
    """A flipped bit ends what is believed of a log."""
    log = tmp_path / "run-r.wandb"
    content = bytearray(written([numbered(at + 1, 500) for at in range(5)]))
    content[len(content) // 2] ^= 1
    log.write_bytes(content)
    assert numbers(wandb_log.LogReader(log)) == [1, 2]


def test_the_logs_of_a_run_are_those_of_its_project(tmp_path: Path) -> None:
    """Two runs of one name in one folder are told apart by their projects; parts are in order."""
    for number, project in enumerate(["a", "b", "a"]):
        folder = make_run(
            tmp_path / str(number), ["wandb"], wandb_dir=str(tmp_path), project_name=project
        )
        append(folder, metrics(3, first=3 * number))
        end(folder)
        deliver(folder, "wandb")
    logs = wandb_log.logs_of(tmp_path, LOCAL_ID, project="a")
    assert [row["global_step"] for log in logs for row in wandb_log.rows(log)] == [0, 1, 2, 6, 7, 8]
    assert len(wandb_log.logs_of(tmp_path, LOCAL_ID)) == 3
    assert wandb_log.logs_of(tmp_path, "another") == []


def test_parts_of_one_second_stand_in_their_order(tmp_path: Path) -> None:
    """A part that was begun later is later, however long the names are."""
    names = [
        "20260101_000001-r1",
        "20260101_000001-r1-1",
        "20260101_000001-r1-10",
        "20260101_000002-r1",
    ]
    names.insert(2, "20260101_000001-r1-2")
    for name in reversed(names):
        (tmp_path / "wandb" / f"offline-run-{name}").mkdir(parents=True)
        (tmp_path / "wandb" / f"offline-run-{name}" / "run-r1.wandb").touch()
    found = [
        path.parent.name.removeprefix("offline-run-") for path in wandb_log.logs_of(tmp_path, "r1")
    ]
    assert found == names
