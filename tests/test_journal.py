"""Facts about `opusclip_mlops.journal`: what was appended is read back, whatever happens."""

import contextlib
import itertools
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opusclip_mlops import journal, records
from opusclip_mlops.errors import RecordError
from opusclip_mlops.journal import Damage, Entry, Journal

FUZZ_CASES = int(os.environ.get("OPUSCLIP_FUZZ_CASES", "2000"))
HEADER_BYTES = 12


def metrics(step: int) -> records.Metrics:
    return records.Metrics(1_700_000_000_000 + step, step, {"loss": 1 / (step + 1), "lr": 1e-3})


def text(step: int, words: str) -> records.Text:
    return records.Text(1_700_000_000_000, step, "notes", words)


EVERY_KIND: list[records.Record] = [
    records.RunStarted("s", "host", 1, 2.5, 3, True, {"team": "é日😀"}),
    records.Metrics(1, -(2**63), {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "x": 0.1}),
    records.Params({"lr": "1e-3", "": ""}),
    records.Tags({"mlflow.note.content": "words\nin\x00lines"}),
    records.Dataset("clips", "abc", "local", '{"uri": "/data"}', "training", "{}", ""),
    records.Video(1, 2**63 - 1, "samples/kite", "1-000000-aa.npy", 29.97, "a kite"),
    records.Text(1, 2, "notes", "text " * 1000),
    records.Image(1, 2, "shown/loss", "1.png"),
    records.Table(1, 2, "eval", ["a", "é"], [[math.nan, None], [{"b": [1]}, "x"]]),
    records.Insight(1, 2, "weights", "histograms", {"é": [math.nan, {"n": 1}]}, {"a.npy": "1.npy"}),
    records.Checkpoint(1, 2, 3, "epoch-3", {"val/loss": math.nan}, True),
    records.RunEnded("s", "FAILED", 5, "ValueError: no", False),
]


def read(folder: Path, *, ended: bool = False) -> list[Entry | Damage]:
    paths = sorted(folder.glob("*.journal"))
    return [item for path in paths for item in journal.read(path, ended=ended)]


def found_records(items: list[Entry | Damage]) -> list[records.Record]:
    return [item.record for item in items if isinstance(item, Entry)]


def steps(items: list[Entry | Damage]) -> list[int]:
    return [record.step for record in found_records(items) if isinstance(record, records.Row)]


def segment(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "s-000000.journal"
    path.write_bytes(content)
    return path


def frames(written: list[records.Record], folder: Path) -> list[bytes]:
    """The bytes each record takes in a segment, as the journal itself writes them."""
    log = Journal(folder, "frames")
    path = folder / "frames-000000.journal"
    ends = [0]
    for record in written:
        log.append(record)
        ends.append(path.stat().st_size)
    log.close()
    content = path.read_bytes()
    path.unlink()
    return [content[begin:end] for begin, end in itertools.pairwise(ends)]


# Appending


def test_every_kind_of_record_comes_back(tmp_path: Path) -> None:
    """What was appended is read back in order, with NaN, infinities and any script."""
    log = Journal(tmp_path, "s")
    for record in EVERY_KIND:
        log.append(record)
    log.close()
    items = read(tmp_path)
    assert [repr(record) for record in found_records(items)] == [repr(one) for one in EVERY_KIND]
    assert items[-1].end_bytes == (tmp_path / "s-000000.journal").stat().st_size
    assert (log.lost, log.fault) == (0, "")


def test_a_record_can_be_read_once_append_returns(tmp_path: Path) -> None:
    """Nothing waits in the process: a reader elsewhere sees each record at once."""
    log = Journal(tmp_path, "s")
    for step in range(5):
        log.append(metrics(step))
        assert steps(read(tmp_path)) == list(range(step + 1))
    log.close()


def test_reading_goes_on_from_any_entry(tmp_path: Path) -> None:
    """An entry's end is where the next reading begins."""
    log = Journal(tmp_path, "s")
    for step in range(5):
        log.append(metrics(step))
    log.close()
    path = tmp_path / "s-000000.journal"
    for at, item in enumerate(read(tmp_path), start=1):
        assert steps(list(journal.read(path, item.end_bytes))) == list(range(at, 5))


def test_segments_are_private_and_never_overwritten(tmp_path: Path) -> None:
    """Two journals of one name write to segments of their own, which only the user can read."""
    first, second = Journal(tmp_path, "s"), Journal(tmp_path, "s")
    first.append(metrics(0))
    second.append(metrics(1))
    for log in (first, second):
        log.close()
    paths = sorted(tmp_path.glob("*.journal"))
    assert [path.name for path in paths] == ["s-000000.journal", "s-000001.journal"]
    assert steps(read(tmp_path)) == [0, 1]
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o600}


@pytest.mark.parametrize(
    "words", ["\ud83d", "half \udcff a name", "\ud83d\ude00 in two halves"], ids=ascii
)
def test_half_characters_are_written_out(tmp_path: Path, words: str) -> None:
    """A text or a file name that is no Unicode does not stop training, and is kept legibly."""
    log = Journal(tmp_path, "s")
    log.append(text(1, words))
    log.append(records.Tags({"mlflow.source.name": words}))
    log.append(records.RunEnded("s", "FAILED", 1, words))
    log.close()
    legible = words.encode(errors="backslashreplace").decode()
    note, tags, end = found_records(read(tmp_path))
    assert isinstance(note, records.Text)
    assert isinstance(tags, records.Tags)
    assert isinstance(end, records.RunEnded)
    assert note.text == tags.values["mlflow.source.name"] == end.reason == legible


def test_kin_of_python_types_are_kept_as_python_types(tmp_path: Path) -> None:
    """A key out of a NumPy array and an epoch counted by NumPy are plain text and number."""
    log = Journal(tmp_path, "s")
    log.append(records.Text(1, 2, np.str_("notes"), "words"))
    log.append(records.Checkpoint(1, 2, np.int64(3), "c"))  # type: ignore[arg-type]
    log.append(records.Metrics(1, 2, {np.str_("loss"): 1.0}))
    log.close()
    assert found_records(read(tmp_path)) == [
        records.Text(1, 2, "notes", "words"),
        records.Checkpoint(1, 2, 3, "c"),
        records.Metrics(1, 2, {"loss": 1.0}),
    ]


@pytest.mark.parametrize(
    "record",
    [
        records.Video(1, 2, "k", "f.npy", 8.0, None),  # type: ignore[arg-type]
        records.Checkpoint(1, 2, 2.5, "c"),  # type: ignore[arg-type]
        records.Dataset(3, "d", "t", "s", "c"),  # type: ignore[arg-type]
        records.Text(1, 2, "k", object()),  # type: ignore[arg-type]
        records.Text(1, 2**64, "k", "words"),
    ],
    ids=lambda record: type(record).__name__,
)
def test_what_could_not_be_read_back_is_refused_at_once(
    tmp_path: Path, record: records.Record
) -> None:
    """A field of a wrong type raises in the caller's line; it is not lost in silence later."""
    log = Journal(tmp_path, "s")
    with pytest.raises(RecordError, match=f"^{type(record).__name__} cannot be kept: "):
        log.append(record)
    log.append(metrics(0))
    log.close()
    assert steps(read(tmp_path)) == [0]
    assert log.lost == 0


def test_a_record_too_large_to_be_read_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kind and size are told; a record of just the largest size is kept."""
    largest = text(0, "x" * 5000)
    monkeypatch.setattr(journal, "MAX_PAYLOAD_BYTES", len(msgspec.msgpack.encode(largest)))
    log = Journal(tmp_path, "s")
    log.append(largest)
    with pytest.raises(RecordError, match=r"^Text has 5,\d+ bytes: at most 5,\d+ are kept"):
        log.append(text(1, "x" * 5001))
    log.close()
    assert steps(read(tmp_path)) == [0]


def test_appending_after_the_end_is_counted_not_raised(tmp_path: Path) -> None:
    """A thread that logs on after the journal was closed, even twice, does no harm."""
    log = Journal(tmp_path, "s")
    log.append(metrics(0))
    log.close()
    log.close()
    log.append(metrics(1))
    assert log.lost == 1
    assert log.fault == f"journal {tmp_path}: Bad file descriptor"
    assert steps(read(tmp_path)) == [0]


# Threads, forks, segments


def run_in_threads(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def append_range(log: Journal, first: int, count: int) -> None:
    for step in range(first, first + count):
        log.append(text(step, "x" * (step % 700)))


@contextlib.contextmanager
def in_a_fork(work: Callable[[], None]) -> Iterator[None]:
    """Run something in a forked child at the same time as the block."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    try:
        yield
    finally:
        status = os.waitpid(pid, 0)[1]
    assert status == 0


def limit(number: int, soft: int | None) -> None:
    """Limit what this process may use; None lifts the limit again."""
    hard = resource.getrlimit(number)[1]
    resource.setrlimit(number, (hard if soft is None else soft, hard))


@pytest.mark.parametrize("segment_bytes", [journal.SEGMENT_BYTES, 20_000, 1])
def test_threads_and_forks_append_whole_frames(tmp_path: Path, segment_bytes: int) -> None:
    """Eight threads here and in a forked child: every record is there once, none is torn."""
    count = 40 if segment_bytes == 1 else 300
    log = Journal(tmp_path, "s", segment_bytes=segment_bytes)

    def work(first: int) -> None:
        run_in_threads(8, lambda n: append_range(log, first + n * count, count))
        assert log.lost == 0

    with in_a_fork(lambda: work(8 * count)):
        work(0)
    log.close()
    items = read(tmp_path, ended=True)
    assert [item for item in items if isinstance(item, Damage)] == []
    assert sorted(steps(items)) == list(range(16 * count))


def test_a_journal_rolls_at_its_size(tmp_path: Path) -> None:
    """A segment ends with the record that fills it; the order of records goes across segments."""
    log = Journal(tmp_path, "s", segment_bytes=1000)
    for step in range(100):
        log.append(metrics(step))
    log.close()
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*.journal"))]
    assert len(sizes) > 3
    assert all(1000 <= size < 1100 for size in sizes[:-1])
    assert steps(read(tmp_path)) == list(range(100))


def test_a_fork_in_the_middle_of_a_roll_does_not_hang(tmp_path: Path) -> None:
    """A child that was forked while a thread was rolling logs on, in the segment it has."""
    log = Journal(tmp_path, "s", segment_bytes=500)
    with log._roll_lock, in_a_fork(lambda: append_range(log, 0, 50)):
        pass
    log.close()
    assert steps(read(tmp_path)) == list(range(50))


def test_a_segment_that_cannot_be_opened_stops_nothing(tmp_path: Path) -> None:
    """Where no file can be opened any more the old segment goes on, and training too."""

    def work() -> None:
        log = Journal(tmp_path, "s", segment_bytes=500)
        limit(resource.RLIMIT_NOFILE, 0)
        append_range(log, 0, 50)
        assert log.lost == 0
        log.close()

    with in_a_fork(work):
        pass
    assert len(list(tmp_path.glob("*.journal"))) == 1
    assert steps(read(tmp_path)) == list(range(50))


def test_what_append_returned_for_outlives_the_process(tmp_path: Path) -> None:
    """`kill -9` in the middle of a burst: every record whose append returned is there."""
    child = (
        "import os, sys; from pathlib import Path; from opusclip_mlops import journal, records\n"
        "log = journal.Journal(Path(sys.argv[1]), 's', segment_bytes=100_000)\n"
        "for step in range(10**9):\n"
        "    log.append(records.Text(1, step, 'k', 'x' * (step % 500)))\n"
        "    os.write(1, b'%d\\n' % step)\n"
    )
    command = [sys.executable, "-c", child, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 2000:
                break
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().splitlines(keepends=True)
    returned = [2000, *(int(line) for line in rest if line.endswith(b"\n"))]
    found = steps(read(tmp_path))
    assert found == list(range(len(found)))
    assert len(found) > returned[-1]


# A full disk


def test_a_full_disk_costs_only_what_does_not_fit(tmp_path: Path) -> None:
    """At the largest size a file may have, appending does not raise and counts each loss.

    What was kept before stays, and what comes once there is space again is kept.
    """

    def work() -> None:
        log = Journal(tmp_path, "s")
        log.append(metrics(0))
        size = (tmp_path / "s-000000.journal").stat().st_size
        limit(resource.RLIMIT_FSIZE, size + 20)
        for step in range(1, 6):
            log.append(text(step, "x" * 500))
        assert log.lost == 5
        assert log.fault == f"journal {tmp_path}: File too large"
        limit(resource.RLIMIT_FSIZE, None)
        for step in range(6, 9):
            log.append(metrics(step))
        assert log.lost == 5
        log.close()

    with in_a_fork(work):
        pass
    items = read(tmp_path, ended=True)
    assert steps(items) == [0, 6, 7, 8]
    assert sum(isinstance(item, Damage) for item in items) == 2


def test_a_record_cut_short_is_written_again_whole(tmp_path: Path) -> None:
    """Where only this segment can't grow, the record begins a new one and is not lost."""

    def work() -> None:
        log = Journal(tmp_path, "s")
        append_range(log, 0, 100)
        size = (tmp_path / "s-000000.journal").stat().st_size
        limit(resource.RLIMIT_FSIZE, size + 20)
        append_range(log, 100, 20)
        assert log.lost == 0
        log.close()

    with in_a_fork(work):
        pass
    assert steps(read(tmp_path)) == list(range(120))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can make a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    """Every record is read back or counted as lost, by four threads too; later ones are kept."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(32_768))
    log = Journal(small_disk, "s")
    run_in_threads(4, lambda number: append_range(log, 100 * number, 100))
    lost = log.lost
    kept = steps(read(small_disk, ended=True))
    assert lost > 0
    assert len(kept) == len(set(kept)) == 400 - lost
    assert log.fault.startswith(f"journal {small_disk}: ")
    ballast.unlink()
    append_range(log, 1000, 60)
    log.close()
    assert log.lost == lost
    assert sorted(steps(read(small_disk))) == [*sorted(kept), *range(1000, 1060)]


# Reading


def test_a_torn_tail_is_pending_until_the_writer_has_ended(tmp_path: Path) -> None:
    """Each way of cutting the last frame: not damage while it may grow, damage afterwards."""
    whole = frames([metrics(0), metrics(1), metrics(2)], tmp_path)
    before = b"".join(whole[:2])
    for cut in range(1, len(whole[2])):
        path = segment(tmp_path, before + whole[2][:cut])
        assert steps(list(journal.read(path))) == [0, 1]
        assert list(journal.read(path))[-1].end_bytes == len(before)
        assert list(journal.read(path, ended=True))[2:] == [
            Damage(len(before), len(before) + cut),
        ]
        with path.open("ab") as file:
            file.write(whole[2][cut:])
        assert steps(list(journal.read(path, len(before)))) == [2]


def test_a_torn_frame_is_damage_once_another_follows(tmp_path: Path) -> None:
    """What a full disk tore is passed over, however much it says it would have held."""
    for words in ("x" * 50, "x" * 5_000_000):
        whole = frames([metrics(0), text(1, words), metrics(2)], tmp_path)
        path = segment(tmp_path, whole[0] + whole[1][:40] + whole[2])
        items = list(journal.read(path))
        assert steps(items) == [0, 2]
        assert items[1] == Damage(len(whole[0]), len(whole[0]) + 40)


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 10**6])
@pytest.mark.parametrize("spoil", ["magic", "length", "checksum", "payload", "all"])
def test_damage_in_the_middle_is_told_and_passed_over(
    tmp_path: Path, spoil: str, chunk_bytes: int
) -> None:
    """Wherever a frame is damaged its neighbours are read, and its place is told exactly."""
    whole = frames([metrics(step) for step in range(4)], tmp_path)
    places = {"magic": (0, 4), "length": (4, 8), "checksum": (8, 12), "payload": (12, 20)}
    begin, end = places.get(spoil, (0, len(whole[1])))
    damaged = whole[1][:begin] + bytes(end - begin) + whole[1][end:]
    path = segment(tmp_path, whole[0] + damaged + whole[2] + whole[3])
    items = list(journal.read(path, chunk_bytes=chunk_bytes))
    assert steps(items) == [0, 2, 3]
    assert items[1] == Damage(len(whole[0]), len(whole[0]) + len(whole[1]))


def test_what_only_a_later_version_knows_is_told_and_passed_over(tmp_path: Path) -> None:
    """A record of an unknown tag, or with fields of another kind: its neighbours are read."""
    whole = frames([metrics(step) for step in range(4)], tmp_path)
    later = [framed(["hologram", 1, 2, "k"]), framed(["insight", 1, 2, "k", 3])]
    path = segment(tmp_path, b"".join([whole[0], later[0], whole[1], whole[2], later[1], whole[3]]))
    items = list(journal.read(path, ended=True))
    assert steps(items) == [0, 1, 2, 3]
    damage = [item for item in items if isinstance(item, Damage)]
    assert [one.end_bytes - one.start_bytes for one in damage] == [len(one) for one in later]


def test_an_insight_of_another_version_is_read(tmp_path: Path) -> None:
    """Fields that came later have what stands for none, and fields of later still are passed."""
    earlier = ["insight", 1, 2, "k", "graph", {"nodes": []}]
    path = segment(tmp_path, framed(earlier) + framed([*earlier, {}, "of a later version"]))
    wanted = records.Insight(1, 2, "k", "graph", {"nodes": []})
    assert found_records(list(journal.read(path))) == [wanted, wanted]


def framed(fields: list[object]) -> bytes:
    """The bytes of a record as another version would write it."""
    payload = msgspec.msgpack.encode(fields)
    return struct.pack("<4sII", b"\xf5OpJ", len(payload), zlib.crc32(payload)) + payload


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 5, 11, 12, 13, 100, 1000])
def test_chunks_may_end_anywhere(tmp_path: Path, chunk_bytes: int) -> None:
    """How much is read from the file at a time does not show; a record may be many chunks."""
    written = [metrics(0), text(1, "x" * 3000), metrics(2), text(3, ""), metrics(4)]
    whole = frames(written, tmp_path)
    path = segment(tmp_path, b"".join(whole))
    items = list(journal.read(path, chunk_bytes=chunk_bytes))
    assert found_records(items) == written
    assert items[-1].end_bytes == sum(map(len, whole))


def test_a_record_larger_than_a_chunk(tmp_path: Path) -> None:
    """A text of several megabytes comes back whole, with its neighbours."""
    log = Journal(tmp_path, "s")
    written = [metrics(0), text(1, "é" * 3_000_000), metrics(2)]
    for record in written:
        log.append(record)
    log.close()
    assert found_records(read(tmp_path)) == written


def test_a_reading_holds_no_file_open(tmp_path: Path) -> None:
    """So the journals of many ranks can be read side by side."""
    log = Journal(tmp_path, "s")
    log.append(metrics(0))
    log.close()
    files = len(os.listdir("/proc/self/fd"))
    reading = [journal.read(tmp_path / "s-000000.journal") for _ in range(10)]
    assert steps([next(one) for one in reading]) == [0] * 10
    assert len(os.listdir("/proc/self/fd")) == files


def test_reading_meets_what_is_appended_meanwhile(tmp_path: Path) -> None:
    """A reader that reaches the end sees what was appended since it began."""
    log = Journal(tmp_path, "s")
    log.append(metrics(0))
    reading = journal.read(tmp_path / "s-000000.journal")
    assert steps([next(reading)]) == [0]
    log.append(metrics(1))
    assert steps(list(reading)) == [1]
    log.close()


def test_a_frame_being_written_is_never_taken_for_damage(tmp_path: Path) -> None:
    """A reader beside a writer of large records sees each of them once, whole and in order."""
    path, count = tmp_path / "s-000000.journal", 150
    log = Journal(tmp_path, "s")

    def work() -> None:
        for step in range(count):
            log.append(text(step, "x" * (step % 7) * 30_000))

    items: list[Entry | Damage] = []
    with in_a_fork(work):
        while len(items) < count:
            items += journal.read(path, items[-1].end_bytes if items else 0)
    log.close()
    assert steps(items) == list(range(count))
    assert items[-1].end_bytes == path.stat().st_size


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(100),
        b"\xf5OpJ",
        b"\xf5OpJ" * 40,
        b"\xf5OpJ" + bytes(8),
        b"\xf5OpJ" + b"\xff" * 8,
        b"\xf5OpJ" + (3).to_bytes(4, "little") + zlib.crc32(b"\x93\xa1x").to_bytes(4, "little"),
        b"\xf5OpJ"
        + (1).to_bytes(4, "little")
        + zlib.crc32(b"\xc0").to_bytes(4, "little")
        + b"\xc0",
    ],
    ids=["empty", "zeros", "magic", "magics", "no payload", "endless", "short", "no record"],
)
def test_what_is_no_journal_holds_no_records(tmp_path: Path, content: bytes) -> None:
    """Bytes that are no frames, or a frame that is no record, are all damage and no error."""
    path = segment(tmp_path, content)
    assert list(journal.read(path)) == []
    assert list(journal.read(path, ended=True)) == ([Damage(0, len(content))] if content else [])


# Anything at all

WRITTEN: list[records.Record] = [
    *EVERY_KIND[:6],
    *(metrics(step) for step in range(12)),
    text(100, "x" * 700),
    *EVERY_KIND[7:],
    *(text(step, "y" * (step % 9)) for step in range(200, 212)),
]
SPOILS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "zero", "cut", "repeat"]),
        st.floats(0, 1),
        st.one_of(st.integers(1, 8), st.integers(1, 600)),
        st.integers(0, 7),
    ),
    min_size=1,
    max_size=6,
)


def spoiled(content: bytes, spoils: list[tuple[str, float, int, int]]) -> bytes:
    """Content with bits flipped, ranges zeroed, cut out and written twice."""
    for kind, where, size, bit in spoils:
        at = int(where * len(content))
        chosen, rest = content[at : at + size], content[at + size :]
        if kind == "flip":
            chosen = bytes(byte ^ (1 << bit) for byte in chosen[:1]) + chosen[1:]
        elif kind == "zero":
            chosen = bytes(len(chosen))
        chosen = {"cut": b"", "repeat": chosen + chosen}.get(kind, chosen)
        content = content[:at] + chosen + rest
    return content


@pytest.fixture(scope="module")
def written_frames(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return frames(WRITTEN, tmp_path_factory.mktemp("frames"))


@pytest.fixture(scope="module")
def spoiled_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spoiled") / "s-000000.journal"


@settings(max_examples=FUZZ_CASES, deadline=None)
@given(spoils=SPOILS, chunk_bytes=st.sampled_from([61, 1000, 10**6]))
def test_no_damage_makes_a_record_that_was_not_written(
    written_frames: list[bytes],
    spoiled_path: Path,
    spoils: list[tuple[str, float, int, int]],
    chunk_bytes: int,
) -> None:
    """Whatever happens to a segment, reading it does not fail and returns only what was written.

    Every frame that is still whole is found, and frames and damage together are the whole file.
    """
    content = spoiled(b"".join(written_frames), spoils)
    spoiled_path.write_bytes(content)
    items = list(journal.read(spoiled_path, ended=True, chunk_bytes=chunk_bytes))
    pending = list(journal.read(spoiled_path, chunk_bytes=chunk_bytes))
    begin = 0
    for item in items:
        if isinstance(item, Entry):
            assert content[begin : item.end_bytes] in written_frames
        else:
            assert item.start_bytes == begin
            assert not any(one in content[begin : item.end_bytes] for one in written_frames)
        begin = item.end_bytes
    assert begin == len(content)
    assert repr(pending) == repr(items[: len(pending)])
    assert len(items) - len(pending) <= 1


@settings(max_examples=FUZZ_CASES // 4, deadline=None)
@given(where=st.floats(0, 1))
def test_reading_may_begin_anywhere(
    written_frames: list[bytes], spoiled_path: Path, where: float
) -> None:
    """From the middle of a frame the next whole one is found."""
    content = b"".join(written_frames)
    spoiled_path.write_bytes(content)
    start = int(where * len(content))
    items = list(journal.read(spoiled_path, start, ended=True))
    whole = [item for item in items if isinstance(item, Entry)]
    ends = np.cumsum([len(one) for one in written_frames]).tolist()
    begins = [0, *ends[:-1]]
    assert [item.end_bytes for item in whole] == [
        end for begin, end in zip(begins, ends, strict=True) if begin >= start
    ]


# Rolling to a new segment


def open_descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def test_a_journal_has_one_descriptor_for_its_whole_life(tmp_path: Path) -> None:
    """Over 50 new segments: the same number, no other is left open, no program inherits it."""
    log = Journal(tmp_path, "s", segment_bytes=1)
    first, before = log.descriptor, open_descriptors()
    for step in range(50):
        log.append(metrics(step))
        assert log.descriptor == first
        assert Path(f"/proc/self/fd/{first}").readlink() == tmp_path / f"s-{step + 1:06d}.journal"
    assert open_descriptors() == before
    assert not os.get_inheritable(first)
    log.close()
    assert len(open_descriptors()) == len(before) - 1
    found = [item for path in sorted(tmp_path.glob("*.journal")) for item in journal.read(path)]
    assert [one.record for one in found if isinstance(one, Entry)] == [
        metrics(step) for step in range(50)
    ]
    assert log.lost == 0


def test_threads_that_roll_at_once_leak_no_descriptor(tmp_path: Path) -> None:
    """While one rolls the others append on: nothing is lost or torn."""
    log = Journal(tmp_path, "s", segment_bytes=400)
    before = open_descriptors()

    def append(first: int) -> None:
        for step in range(first, first + 400):
            log.append(metrics(step))

    threads = [threading.Thread(target=append, args=(400 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert open_descriptors() == before
    log.close()
    paths = sorted(tmp_path.glob("*.journal"))
    assert len(paths) > 20
    found = [item for path in paths for item in journal.read(path, ended=True)]
    steps = [one.record.step for one in found if isinstance(one, Entry)]
    assert not any(isinstance(one, Damage) for one in found)
    assert sorted(steps) == list(range(1600))
    assert log.lost == 0
