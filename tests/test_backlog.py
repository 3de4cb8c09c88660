"""Facts about `opusclip_mlops.backlog`: what waits, when points are shed, what is given back."""

import contextlib
import errno
import os
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from opusclip_mlops import backlog, journal
from opusclip_mlops.folder import CONTROL, Manifest, Progress, RunFolder
from opusclip_mlops.journal import Damage, Entry, Journal
from opusclip_mlops.records import Metrics

MIB = 1024 * 1024
QUOTA_BYTES = 1000


def a_run(tmp_path: Path, *sinks: str) -> RunFolder:
    """A run's folder for these sinks, without records."""
    folder = RunFolder(tmp_path / "run")
    manifest = Manifest(
        local_id="run", cwd=str(tmp_path), sinks=list(sinks or ("mlflow",)), start_time_ms=0
    )
    folder.create(manifest)
    return folder


def acknowledge(folder: RunFolder, sink: str, **positions: int) -> None:
    """Let a sink have these bytes of the segments `a.journal` and `b.journal`."""
    position = {f"{name}.journal": size for name, size in positions.items()}
    folder.write_progress(sink, Progress(position=position))


def log(folder: RunFolder, name: str, size_bytes: int) -> Path:
    """A segment of real records, at least this large."""
    one = Journal(folder.path, name)
    values = {f"key/{number}": float(number) for number in range(500)}
    path = folder.path / f"{name}-000000.journal"
    step = 0
    while path.stat().st_size < size_bytes:
        one.append(Metrics(1_700_000_000_000, step, values))
        step += 1
    one.close()
    # Delayed allocation would count as no blocks yet.
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def can_punch(folder: Path) -> bool:
    """Whether the file system here gives blocks back."""
    tool = ["fallocate", "--punch-hole", "--offset", "0", "--length", "4096"]
    (folder / "probe").write_bytes(bytes(8192))
    try:
        return subprocess.run([*tool, folder / "probe"], check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def holes(tmp_path: Path) -> None:
    """Skips where the file system of the tests can't do holes."""
    if not can_punch(tmp_path):
        pytest.skip("the file system of the tests gives no blocks back")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> None:
    """Leave no free block on a disk."""
    descriptor = os.open(place / "filling", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size_bytes in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while os.write(descriptor, bytes(size_bytes)):
                    pass
    finally:
        os.close(descriptor)


# What waits


def test_without_acknowledgement_everything_waits(tmp_path: Path) -> None:
    """Before a sink has taken anything, the backlog is the whole journal; the rest is not in it."""
    folder = a_run(tmp_path, "mlflow", "wandb")
    assert backlog.backlog_bytes(folder) == 0
    (folder.path / "a.journal").write_bytes(bytes(100))
    (folder.path / "b.journal").write_bytes(bytes(10))
    (folder.media / "clip.mp4").write_bytes(bytes(1000))
    assert backlog.backlog_bytes(folder) == 110


def test_the_slowest_sink_counts(tmp_path: Path) -> None:
    """What one sink lacks waits, whatever the others have."""
    folder = a_run(tmp_path, "mlflow", "wandb")
    (folder.path / "a.journal").write_bytes(bytes(100))
    (folder.path / "b.journal").write_bytes(bytes(10))
    acknowledge(folder, "mlflow", a=100, b=10)
    assert backlog.backlog_bytes(folder) == 110
    acknowledge(folder, "wandb", a=70)
    assert backlog.backlog_bytes(folder) == 40
    acknowledge(folder, "wandb", a=100, b=10)
    assert backlog.backlog_bytes(folder) == 0


def test_a_sink_that_this_run_does_not_go_to_is_not_waited_for(tmp_path: Path) -> None:
    """Only the sinks of the manifest count."""
    folder = a_run(tmp_path, "mlflow")
    (folder.path / "a.journal").write_bytes(bytes(100))
    acknowledge(folder, "mlflow", a=100)
    acknowledge(folder, "tensorboard", a=1)
    assert backlog.backlog_bytes(folder) == 0


# What is shed


@pytest.mark.parametrize(
    ("waiting_bytes", "before", "after"),
    [
        *((size, level, 0) for size in (0, 750) for level in (0, 1, 2)),
        *((size, 0, 0) for size in (751, 1000)),
        *((size, level, 1) for size in (751, 1000) for level in (1, 2)),
        *((size, level, 1) for size in (1001, 1250) for level in (0, 1)),
        *((size, 2, 2) for size in (1001, 1250)),
        *((size, level, 2) for size in (1251, 10**12) for level in (0, 1, 2)),
    ],
)
def test_when_points_are_shed(waiting_bytes: int, before: int, after: int) -> None:
    """Low ones above the quota, medium ones above 1.25 of it, and no flicker on the way back."""
    assert backlog.shed_level(waiting_bytes, QUOTA_BYTES, before) == after


def test_the_level_reaches_an_open_file(tmp_path: Path) -> None:
    """Who opened the file first sees every later level, in one byte that takes no more room."""
    folder = a_run(tmp_path)
    descriptor = backlog.open_level(folder)
    try:
        assert backlog.read_level(descriptor) == backlog.read_level(folder) == 0
        for level in (2, 1, 1, 0, 2):
            backlog.write_level(folder, level)
            assert backlog.read_level(descriptor) == backlog.read_level(folder) == level
        before = (folder.path / backlog.LEVEL_FILE).stat()
        backlog.write_level(folder, 2)
        after = (folder.path / backlog.LEVEL_FILE).stat()
        assert (after.st_size, after.st_mtime_ns) == (1, before.st_mtime_ns)
        os.close(backlog.open_level(folder))
        assert backlog.read_level(folder) == 2
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("content", [None, b"", b"7", b"\x02", b"on"])
def test_an_unknown_level_sheds_nothing(content: bytes | None, tmp_path: Path) -> None:
    """A file that is missing or says nothing known leaves out no point."""
    folder = a_run(tmp_path)
    if content is not None:
        (folder.path / backlog.LEVEL_FILE).write_bytes(content)
    assert backlog.read_level(folder) == 0
    assert backlog.read_level(-1) == 0


def test_a_level_in_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """No file is left beside a run that was removed."""
    with pytest.raises(FileNotFoundError):
        backlog.write_level(RunFolder(tmp_path / "gone"), 1)


# What is given back


@pytest.mark.usefixtures("holes")
def test_what_every_sink_has_is_given_back(tmp_path: Path) -> None:
    """Whole blocks before the slowest sink go; sizes, times and what follows stay."""
    folder = a_run(tmp_path, "mlflow", "wandb")
    path = log(folder, "s1", 3 * MIB)
    before, content = path.stat(), path.read_bytes()
    folder.write_progress("mlflow", Progress(position={path.name: before.st_size}))
    assert backlog.release(folder) == 0
    acknowledged_bytes = 2 * MIB + 5000
    folder.write_progress("wandb", Progress(position={path.name: acknowledged_bytes}))
    assert backlog.release(folder) == 2 * MIB + 4096
    after = path.stat()
    assert before.st_blocks - after.st_blocks == (2 * MIB + 4096) // 512
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert path.read_bytes()[acknowledged_bytes:] == content[acknowledged_bytes:]
    assert path.read_bytes()[: 2 * MIB + 4096] == bytes(2 * MIB + 4096)


@pytest.mark.usefixtures("holes")
def test_nothing_is_given_back_twice(tmp_path: Path) -> None:
    """A second call finds nothing to do, a later one gives back what came since."""
    folder = a_run(tmp_path)
    path = log(folder, "s1", 6 * MIB)
    folder.write_progress("mlflow", Progress(position={path.name: 2 * MIB}))
    assert [backlog.release(folder) for _ in range(2)] == [2 * MIB, 0]
    folder.write_progress("mlflow", Progress(position={path.name: 5 * MIB}))
    assert [backlog.release(folder) for _ in range(2)] == [3 * MIB, 0]


@pytest.mark.usefixtures("holes")
def test_a_segment_may_be_given_back_whole(tmp_path: Path) -> None:
    """One that ends with a block becomes nothing but a hole, of the same size."""
    folder = a_run(tmp_path)
    path = folder.path / "s1-000000.journal"
    path.write_bytes(b"x" * 2 * MIB)
    folder.write_progress("mlflow", Progress(position={path.name: 2 * MIB}))
    assert [backlog.release(folder) for _ in range(2)] == [2 * MIB, 0]
    assert (path.stat().st_size, path.stat().st_blocks) == (2 * MIB, 0)


@pytest.mark.usefixtures("holes")
def test_the_last_bytes_stay_where_they_are_wanted(tmp_path: Path) -> None:
    """Of each segment, and of one that is shorter than that all of it."""
    folder = a_run(tmp_path)
    long, short = log(folder, "s1", 3 * MIB), log(folder, "s2", MIB // 2)
    sizes = {path.name: path.stat().st_size for path in (long, short)}
    content = long.read_bytes()
    folder.write_progress("mlflow", Progress(position=sizes))
    released = (sizes[long.name] - MIB) // 4096 * 4096
    assert backlog.release(folder, kept_bytes=MIB) == released
    assert long.read_bytes()[released:] == content[released:]
    assert short.read_bytes().strip(b"\0")


@pytest.mark.usefixtures("holes")
def test_positions_are_safe_before_blocks_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What says that a sink has these bytes is on the disk first: a power cut may follow."""
    folder = a_run(tmp_path, "mlflow", "wandb")
    path = log(folder, "s1", 2 * MIB)
    for sink in folder.manifest().sinks:
        folder.write_progress(sink, Progress(position={path.name: 2 * MIB}))
    done = []
    fsync, allocate = os.fsync, backlog._allocate

    def noted_fsync(descriptor: int) -> None:
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noted_allocate(*arguments: int) -> None:
        done.append("hole")
        allocate(*arguments)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(backlog, "_allocate", noted_allocate)
    assert backlog.release(folder) == 2 * MIB
    assert done[-1] == "hole"
    assert set(done[:-1]) == {"sinks", "mlflow.0", "mlflow.1", "wandb.0", "wandb.1"}


@pytest.mark.usefixtures("holes")
def test_little_is_not_worth_it(tmp_path: Path) -> None:
    """Less than 1 MiB over all segments waits for more."""
    folder = a_run(tmp_path)
    paths = [log(folder, name, MIB) for name in ("s1", "s2")]
    least = backlog.LEAST_RELEASE_BYTES
    position = {paths[0].name: least // 2, paths[1].name: least // 2 - 1}
    folder.write_progress("mlflow", Progress(position=position))
    assert backlog.release(folder) == 0
    folder.write_progress("mlflow", Progress(position={**position, paths[1].name: least // 2}))
    assert backlog.release(folder) == least


@pytest.mark.usefixtures("holes")
def test_starts_and_ends_stay(tmp_path: Path) -> None:
    """The journal of starts and ends is read from its beginning, and is never given back."""
    folder = a_run(tmp_path)
    path = log(folder, "s1" + CONTROL, 2 * MIB)
    content = path.read_bytes()
    folder.write_progress("mlflow", Progress(position={path.name: path.stat().st_size}))
    assert backlog.release(folder) == 0
    assert path.read_bytes() == content


def test_a_file_system_without_holes_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is said and nothing changed where blocks can't be given back, nor tried again."""
    asked = []

    def refuse(*arguments: int) -> None:
        asked.append(arguments)
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(backlog, "_allocate", refuse)
    monkeypatch.setattr(backlog, "_devices_without_holes", set())
    folder = a_run(tmp_path)
    path = log(folder, "s1", 2 * MIB)
    content = path.read_bytes()
    folder.write_progress("mlflow", Progress(position={path.name: path.stat().st_size}))
    assert [backlog.release(folder) for _ in range(3)] == [0, 0, 0]
    assert path.read_bytes() == content
    assert len(asked) == 1


def test_a_folder_that_is_gone_is_no_fault(tmp_path: Path) -> None:
    """The folder may be removed at any moment."""
    folder = a_run(tmp_path)
    folder.write_progress("mlflow", Progress(position={"s1-000000.journal": 2 * MIB}))
    assert backlog.release(folder) == 0


@pytest.mark.usefixtures("holes")
def test_a_segment_with_a_hole_is_read_on(tmp_path: Path) -> None:
    """From behind the hole every record is there; from 0 the hole is damage, then the records."""
    folder = a_run(tmp_path)
    path = log(folder, "s1", 3 * MIB)
    entries = [one for one in journal.read(path) if isinstance(one, Entry)]
    acknowledged = next(one.end_bytes for one in entries if one.end_bytes > 2 * MIB)
    rest = [one for one in entries if one.end_bytes > acknowledged]
    folder.write_progress("mlflow", Progress(position={path.name: acknowledged}))
    assert backlog.release(folder) > 0
    assert list(journal.read(path, acknowledged)) == rest
    damage, *found = journal.read(path)
    assert isinstance(damage, Damage)
    assert damage.start_bytes == 0
    assert found == [one for one in entries if one.end_bytes > damage.end_bytes]
    assert found[-len(rest) :] == rest


@pytest.mark.usefixtures("holes")
def test_a_large_hole_is_not_kept_in_memory(tmp_path: Path) -> None:
    """Passing over 64 MiB of hole takes a few MiB."""
    folder = a_run(tmp_path)
    path = log(folder, "s1", MIB)
    with path.open("r+b") as file:
        file.truncate(64 * MIB)
    last = log(folder, "s2", 5000).read_bytes()
    with path.open("ab") as file:
        file.write(last)
    tracemalloc.start()
    try:
        end_bytes = 0
        for item in journal.read(path):
            end_bytes = item.end_bytes
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert end_bytes == path.stat().st_size
    assert peak_bytes < 16 * MIB


# Room for later


def test_reserved_room_outlasts_a_full_disk(small_disk: Path) -> None:
    """What was reserved can be appended when nothing else can, and not a block more."""
    ours = os.open(small_disk / "ours", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    theirs = os.open(small_disk / "theirs", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(ours, bytes(100))
        assert backlog.reserve(ours, MIB)
        assert os.fstat(ours).st_size == 100
        fill(small_disk)
        with pytest.raises(OSError, match="No space"):
            os.write(theirs, b"x")
        assert os.write(ours, bytes(MIB)) == MIB
        os.write(ours, bytes(4096 - 100))
        with pytest.raises(OSError, match="No space"):
            os.write(ours, b"x")
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_full_disk_reserves_nothing(small_disk: Path) -> None:
    """Without room, or on a file that can't be written, it says no and raises nothing."""
    with (small_disk / "ours").open("wb") as file:
        fill(small_disk)
        assert not backlog.reserve(file.fileno(), MIB)
    with (small_disk / "ours").open("rb") as file:
        assert not backlog.reserve(file.fileno(), 4096)
    assert not backlog.reserve(-1, 4096)


def test_given_back_is_free_again(small_disk: Path) -> None:
    """On a disk that is full of journal, what the sinks have makes room for what comes."""
    folder = a_run(small_disk)
    path = log(folder, "s1", 2 * MIB)
    folder.write_progress("mlflow", Progress(position={path.name: path.stat().st_size}))
    fill(small_disk)
    assert backlog.release(folder) >= MIB
    assert (small_disk / "more").write_bytes(bytes(MIB)) == MIB
