"""Facts about `opusclip_mlops.folder`: what a run's folder keeps, and when it may go."""

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from opusclip_mlops.errors import OpusclipError
from opusclip_mlops.folder import (
    CONTROL,
    Identity,
    Manifest,
    Progress,
    Rejection,
    RunFolder,
    write_whole,
)
from opusclip_mlops.journal import Journal
from opusclip_mlops.records import Tags


def manifest(**fields: Any) -> Manifest:
    about = {"local_id": "r1", "cwd": "/", "sinks": ["mlflow", "wandb"], "start_time_ms": 1}
    return Manifest(**{**about, **fields})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run's folder with one record in it that no sink has got."""
    made = RunFolder(tmp_path / "journal" / "r1")
    made.create(manifest())
    append(made)
    return made


def append(folder: RunFolder) -> None:
    log = Journal(folder.path, "s1")
    log.append(Tags({"a": "b"}))
    log.close()


def acknowledge(folder: RunFolder, **fields: Any) -> None:
    """What sinks write down once they have everything."""
    for sink in folder.manifest().sinks:
        about = {"position": folder.size_bytes(), "done": True}
        folder.write_progress(sink, Progress(**{**about, **fields}))


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def wait_until(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_waiting_for_a_lock() -> bool:
    """Whether a thread of this process waits for a lock on a file."""
    waiting = [line for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
    return any(str(os.getpid()) in line.split() for line in waiting)


# What is kept


def test_what_is_written_is_read(folder: RunFolder) -> None:
    """Manifest, identity and positions come back as they were written."""
    assert folder.manifest() == manifest()
    assert folder.identity() is None
    assert folder.progress("mlflow") == Progress()
    identity = Identity(mirror_id="r1", experiment_name="films", run_id="abc", last_step=4)
    progress = Progress(
        position={"s1-000000.journal": 10}, given=[{"s1-000000.journal": 20}], row=3,
        state={"file": "é", "sizes": [1, 2]}, error="away", rejected=1,
    )  # fmt: skip
    folder.write_identity(identity)
    folder.write_progress("mlflow", progress)
    assert folder.identity() == identity
    assert folder.progress("mlflow") == progress
    assert folder.progress("wandb") == Progress()


def test_the_first_manifest_is_kept(tmp_path: Path) -> None:
    """Of many processes that open one run at once, one says what it is called, for all."""
    folders = [RunFolder(tmp_path / "journal" / f"r{number}") for number in range(30)]
    start = threading.Barrier(8)

    def open_all(rank: int) -> list[Manifest]:
        seen = []
        for one in folders:
            start.wait()
            one.create(manifest(run_name=f"rank {rank}"))
            seen.append(one.manifest())
        return seen

    with ThreadPoolExecutor(8) as pool:
        seen_by_rank = list(pool.map(open_all, range(8)))
    assert all(seen == seen_by_rank[0] for seen in seen_by_rank)
    assert [one.manifest() for one in folders] == seen_by_rank[0]
    left = [name for name in everything_in(folders[0].path) if not name.startswith("sinks/")]
    assert left == ["checkpoints", "manifest.json", "media", "sinks"]


def test_making_a_folder_again_changes_nothing(folder: RunFolder) -> None:
    """A process that joins a run finds what is there."""
    before = everything_in(folder.path)
    folder.create(manifest(run_name="another"))
    assert folder.manifest() == manifest()
    assert everything_in(folder.path) == before


def test_a_folder_that_is_no_runs_is_told(tmp_path: Path) -> None:
    """A folder without a manifest, and none at all, are named."""
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(OpusclipError, match=f"{path} is not a run's folder"):
            RunFolder(path).manifest()
        assert RunFolder(path).segments() == []
        assert RunFolder(path).identity() is None
        assert not RunFolder(path).is_shipped()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"position": 3}', b"\x00\xff" * 50])
def test_a_position_that_cannot_be_read_is_the_one_before(
    folder: RunFolder, content: bytes
) -> None:
    """A torn write leaves the position of the time before; both torn, a sink begins anew."""
    for number in (1, 2):
        folder.write_progress("mlflow", Progress(number=number, row=number))
    (folder.path / "sinks" / "mlflow.0").write_bytes(content)
    assert folder.progress("mlflow").row == 1
    (folder.path / "sinks" / "mlflow.1").write_bytes(content)
    assert folder.progress("mlflow") == Progress()


def test_a_position_is_kept_on_a_full_disk(folder: RunFolder) -> None:
    """It is written over blocks that the folder took at its start."""
    sizes = {path: path.stat().st_blocks for path in (folder.path / "sinks").iterdir()}
    assert all(sizes.values())
    for number in range(1, 5):
        about = {"s1-000000.journal": number}
        folder.write_progress("mlflow", Progress(number=number, position=about))
        assert folder.progress("mlflow").position == about
    assert {path: path.stat().st_blocks for path in sizes} == sizes


def test_everything_is_private(folder: RunFolder) -> None:
    """Only the user can look into a run's folder, whatever the umask is."""
    descriptor = folder.hold()
    with folder.shipping():
        folder.write_identity(Identity(mirror_id="r1", experiment_name="films"))
        folder.reject(Rejection("mlflow", "why", {}))
        acknowledge(folder)
        paths = [folder.path, *folder.path.rglob("*"), *folder.path.parent.glob(".*.lock")]
        modes = {path: path.stat().st_mode & 0o777 for path in paths}
    os.close(descriptor)
    assert len(paths) == 14
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_everything_is_private_under_an_open_umask(tmp_path: Path) -> None:
    """The same holds where files are made for everyone by default."""
    before = os.umask(0)
    try:
        made = RunFolder(tmp_path / "open" / "r1")
        os.close(made.hold())
        made.create(manifest())
        made.write_progress("mlflow", Progress())
    finally:
        os.umask(before)
    every = [made.path.parent, *made.path.parent.rglob("*")]
    assert {path.stat().st_mode & 0o077 for path in every} == {0}


def test_refused_records_are_lines(folder: RunFolder) -> None:
    """Each refusal is one line of JSON, whole also when two sinks refuse at the same time."""

    def refuse(sink: str) -> None:
        for number in range(200):
            folder.reject(Rejection(sink, "why\nso", {"n": number, "nan": math.nan, "t": "x" * 99}))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(refuse, ["mlflow", "wandb"]))
    lines = [json.loads(line) for line in folder.rejected.read_text().splitlines()]
    assert len(lines) == 400
    assert [one["record"]["n"] for one in lines if one["sink"] == "wandb"] == list(range(200))


def test_segments_begin_with_what_sessions_start_with(folder: RunFolder) -> None:
    """Starts and ends are read before records, whatever the hosts are called."""
    for name in ("a-1", "z-1" + CONTROL, "b-2", "a-1" + CONTROL):
        Journal(folder.path, name).close()
    (folder.path / "notes.txt").write_text("no segment")
    assert [path.name for path in folder.segments()] == [
        f"a-1{CONTROL}-000000.journal",
        f"z-1{CONTROL}-000000.journal",
        "a-1-000000.journal",
        "b-2-000000.journal",
        "s1-000000.journal",
    ]
    sizes = folder.size_bytes()
    assert sizes.pop("s1-000000.journal") > 0
    assert set(sizes.values()) == {0}


def test_a_segment_that_another_follows_is_seen_whole(folder: RunFolder) -> None:
    """All are listed before any is measured: what was rolled in between is no shorter for it."""
    entries = folder.entries()
    sizes = folder.size_bytes()
    append(folder)
    with (folder.path / "s1-000000.journal").open("ab") as file:
        file.write(b"more")
    [entry] = entries
    assert entry.stat().st_size == sizes[entry.name] + 4
    assert RunFolder(folder.path / "gone").size_bytes() == {}


# Whole files


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    """While one process writes a file again and again, another reads it whole each time."""
    path = tmp_path / "state.json"
    writer = (
        "import sys; from pathlib import Path; from opusclip_mlops.folder import write_whole\n"
        "for n in range(10**9):\n"
        "    write_whole(Path(sys.argv[1]), (b'%d,' % n) * (n % 20_000 + 1))\n"
    )
    write_whole(path, b"0,")
    seen = set()
    with subprocess.Popen([sys.executable, "-c", writer, str(path)]) as process:
        while len(seen) < 300:
            content = path.read_bytes()
            parts = content.split(b",")
            assert set(parts[:-1]) == {parts[0]}
            assert len(parts) == int(parts[0]) % 20_000 + 2
            seen.add(parts[0])
        process.kill()


def test_threads_may_write_one_file(tmp_path: Path) -> None:
    """Whoever is last, the file is whole, and nothing else is left."""
    path = tmp_path / "run" / "state.json"
    path.parent.mkdir()

    def write(number: int) -> None:
        for _ in range(50):
            write_whole(path, bytes([number]) * 10_000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert len(set(path.read_bytes())) == 1
    assert everything_in(path.parent) == ["state.json"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """On a fault the old content stays, and no half file beside it."""
    target = tmp_path / "state"
    (target / "in the way").mkdir(parents=True)
    before = everything_in(tmp_path)
    with pytest.raises(OSError, match="Is a directory"):
        write_whole(target, b"new")
    assert everything_in(tmp_path) == before


# When it may go


def test_a_delivered_folder_goes(folder: RunFolder) -> None:
    """Once every sink has everything nothing of the run is left, not even the lock."""
    assert not folder.is_delivered()
    acknowledge(folder)
    assert folder.is_delivered()
    assert folder.remove_unless_held()
    assert everything_in(folder.path.parent) == []


def test_bytes_that_a_power_cut_took_are_not_waited_for(folder: RunFolder) -> None:
    """What was acknowledged and is no longer in the journal is delivered all the same."""
    acknowledge(folder, position={"s1-000000.journal": 10**9})
    assert folder.is_delivered()


@pytest.mark.parametrize(
    "fields",
    [
        {"done": False},
        {"rejected": 1},
        {"position": {}},
        {"position": {"s1-000000.journal": 1}},
        {"position": {"s2-000000.journal": 10**9}},
    ],
    ids=["not ended", "refused", "nothing", "part", "other"],
)
def test_an_undelivered_folder_stays(folder: RunFolder, fields: dict[str, Any]) -> None:
    """While one sink lacks a byte, the end, or a record it refused, everything is kept."""
    acknowledge(folder)
    folder.write_progress("wandb", msgspec.structs.replace(folder.progress("wandb"), **fields))
    before = everything_in(folder.path)
    assert not folder.remove_unless_held()
    assert everything_in(folder.path) == before


def test_a_folder_that_has_grown_stays(folder: RunFolder) -> None:
    """A record that was logged since, or a segment that was begun, keeps it."""
    acknowledge(folder)
    append(folder)
    assert not folder.remove_unless_held()
    acknowledge(folder)
    Journal(folder.path, "late").close()
    assert not folder.remove_unless_held()
    acknowledge(folder)
    assert folder.remove_unless_held()


def test_a_held_folder_stays(folder: RunFolder) -> None:
    """Each of two holders keeps it; it goes when both have let go."""
    acknowledge(folder)
    first, second = folder.hold(), folder.hold()
    assert not folder.remove_unless_held()
    os.close(first)
    assert not folder.remove_unless_held()
    assert folder.is_delivered()
    os.close(second)
    assert folder.remove_unless_held()


def test_a_killed_holder_lets_go(folder: RunFolder) -> None:
    """A process that dies holds nothing any more."""
    acknowledge(folder)
    code = (
        "import sys, time; from pathlib import Path; from opusclip_mlops.folder import RunFolder\n"
        "RunFolder(Path(sys.argv[1])).hold(); print('held', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert not folder.remove_unless_held()
        process.kill()
        process.wait()
        assert folder.remove_unless_held()


def test_who_holds_while_it_is_removed_waits(folder: RunFolder) -> None:
    """A holder comes in before the removal or after it, never in its middle."""
    removal = os.open(folder.path.parent / ".r1.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(removal, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        holder = pool.submit(folder.hold)
        wait_until(is_waiting_for_a_lock)
        os.unlink(folder.path.parent / ".r1.lock")
        os.close(removal)
        descriptor = holder.result()
    acknowledge(folder)
    assert not folder.remove_unless_held()
    os.close(descriptor)
    assert folder.remove_unless_held()


def test_removing_what_is_gone_is_no_fault(folder: RunFolder) -> None:
    """The second of two who remove it finds it gone, and leaves no lock behind."""
    acknowledge(folder)
    assert folder.remove_unless_held()
    assert folder.remove_unless_held()
    assert everything_in(folder.path.parent) == []


def test_holders_and_removers_race(tmp_path: Path) -> None:
    """Whoever holds a folder finds it whole until it lets go, however often it is removed."""
    folder = RunFolder(tmp_path / "journal" / "r1")
    stop = threading.Event()
    removed = []

    def hold(rounds: int) -> None:
        for _ in range(rounds):
            descriptor = folder.hold()
            folder.create(manifest(sinks=[]))
            time.sleep(0)
            assert folder.manifest().local_id == "r1"
            assert {folder.media.name, "sinks"} <= set(everything_in(folder.path))
            os.close(descriptor)

    def remove() -> None:
        while not stop.is_set():
            removed.append(folder.path.exists() and folder.remove_unless_held())

    with ThreadPoolExecutor(5) as pool:
        removers = [pool.submit(remove) for _ in range(2)]
        holders = [pool.submit(hold, 150) for _ in range(3)]
        results = [one.exception() for one in holders]
        stop.set()
        results += [one.exception() for one in removers]
    assert results == [None] * 5
    assert any(removed)
    assert folder.remove_unless_held()
    assert everything_in(folder.path.parent) == []


def test_nobody_finds_a_folder_half_removed(tmp_path: Path) -> None:
    """While a large folder goes, its manifest is there or the folder is not."""
    folder = RunFolder(tmp_path / "journal" / "r1")
    stop = threading.Event()
    halves = []

    def watch() -> None:
        while not stop.is_set():
            if not (folder.path / "manifest.json").exists() and folder.path.exists():
                halves.append(True)

    for _ in range(20):
        folder.create(manifest(sinks=[]))
        for number in range(100):
            (folder.media / f"{number}.npy").touch()
        stop.clear()
        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(watch)
            assert folder.remove_unless_held()
            stop.set()
        assert watching.exception() is None
    assert halves == []


# Who ships


def test_one_process_ships_at_a_time(folder: RunFolder) -> None:
    """A second is told so, at once or after the time it gives; others can ask without harm."""
    assert not folder.is_shipped()
    with folder.shipping() as first:
        assert folder.is_shipped()
        with folder.shipping() as second, folder.shipping(wait_s=0.1) as third:
            assert (first, second, third) == (True, False, False)
    assert not folder.is_shipped()
    with folder.shipping() as again:
        assert again


def test_who_waits_a_little_takes_over(folder: RunFolder) -> None:
    """A shipper that is just ending is waited for."""

    def ship() -> bool:
        with folder.shipping(wait_s=30) as is_ours:
            return is_ours

    with ThreadPoolExecutor(1) as pool:
        with folder.shipping():
            second = pool.submit(ship)
            assert folder.is_shipped()
        assert second.result()


def test_who_asks_is_not_taken_for_a_shipper(folder: RunFolder) -> None:
    """While one process asks whether the run is shipped, another may ask too."""
    asking = os.open(folder.path / "shipper.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(asking, fcntl.LOCK_SH)
    assert not folder.is_shipped()
    os.close(asking)


def test_who_waits_for_the_shipper_to_die_wakes_when_it_does(folder: RunFolder) -> None:
    """It sleeps as long as one ships, and leaves no lock behind, in forked children neither."""
    with ThreadPoolExecutor(1) as pool:
        with folder.shipping():
            watching = pool.submit(folder.wait_until_unshipped)
            wait_until(is_waiting_for_a_lock)
            child = os.fork()
            if child == 0:
                time.sleep(30)
                os._exit(0)
        watching.result()
        with folder.shipping() as is_free:
            assert is_free
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_who_waited_for_a_folder_that_went_learns_it(folder: RunFolder) -> None:
    """Nobody waits for ever for a shipper of a run that is delivered."""
    acknowledge(folder)
    with ThreadPoolExecutor(1) as pool:
        with folder.shipping():
            watching = pool.submit(folder.wait_until_unshipped)
            wait_until(is_waiting_for_a_lock)
            assert folder.remove_unless_held()
        assert isinstance(watching.exception(), FileNotFoundError)
    with pytest.raises(FileNotFoundError), folder.shipping():
        pass
