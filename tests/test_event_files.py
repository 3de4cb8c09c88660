import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

from opusclip_mlops import event_files
from opusclip_mlops.event_files import frame, frames
from opusclip_mlops.folder import Identity

CONTENTS = [b"first", b"", b"x" * 5000, b"last"]


def written(path: Path, contents: list[bytes] = CONTENTS) -> Path:
    path.write_bytes(b"".join(map(frame, contents)))
    return path


def read(path: Path, from_bytes: int = 0) -> list[bytes | None]:
    return [content for content, _ in frames(path, from_bytes=from_bytes)]


def test_what_is_written_is_read_by_us_and_by_tensorboard(tmp_path: Path) -> None:
    """The frames are TFRecords, with the checksums TensorBoard expects."""
    path = written(tmp_path / "f")
    assert read(path) == CONTENTS
    assert list(RawEventFileLoader(str(path)).Load()) == CONTENTS


def test_reading_goes_on_where_it_was(tmp_path: Path) -> None:
    """Each offset is one to begin at, the last one is the end of the file."""
    path = written(tmp_path / "f")
    offsets = [end for _, end in frames(path)]
    for number, offset in enumerate(offsets, 1):
        assert read(path, offset) == CONTENTS[number:]
    assert offsets[-1] == path.stat().st_size


def test_a_torn_tail_ends_a_file(tmp_path: Path) -> None:
    """Cut anywhere, only whole records are read, and nothing is damaged."""
    whole = written(tmp_path / "f", [b"one", b"two"]).read_bytes()
    for size_bytes in range(len(whole)):
        (tmp_path / "f").write_bytes(whole[:size_bytes])
        assert read(tmp_path / "f") == ([b"one"] if size_bytes >= len(frame(b"one")) else [])


@pytest.mark.parametrize("place", [12, 13, 17])
def test_a_damaged_content_is_passed_over(tmp_path: Path, place: int) -> None:
    """A flipped byte in a content, or in its checksum, costs this record only."""
    path = written(tmp_path / "f", [b"zero", b"one!!", b"two"])
    content = bytearray(path.read_bytes())
    content[len(frame(b"zero")) + place] ^= 1
    path.write_bytes(content)
    assert read(path) == [b"zero", None, b"two"]


def test_behind_a_damaged_length_all_is_one_damage(tmp_path: Path) -> None:
    """Nothing tells where the next record begins."""
    path = written(tmp_path / "f")
    content = bytearray(path.read_bytes())
    content[len(frame(b"first"))] ^= 1
    path.write_bytes(content)
    assert read(path) == [b"first", None]
    assert [end for _, end in frames(path)][-1] == path.stat().st_size


def test_event_files_stay_in_their_folder(tmp_path: Path) -> None:
    """An experiment's name can't lead out of the folder for event files."""
    for name in ("../../etc", "/etc", "a/../../b", ".."):
        identity = Identity(mirror_id="m", experiment_name=name)
        found = event_files.event_folder(tmp_path, identity)
        assert found.resolve().is_relative_to(tmp_path.resolve())
        assert found.parent != tmp_path


def test_a_new_file_is_read_after_all_others(tmp_path: Path) -> None:
    """Many in one second, and after one of tomorrow: the last made is the last read."""
    (tmp_path / "events.out.tfevents.9876543210.zzz.1.1").touch()
    for _ in range(12):
        path = tmp_path / event_files.fresh_name(tmp_path)
        path.touch()
        assert event_files.event_files(tmp_path)[-1] == path


def test_a_file_of_which_nothing_is_left_is_removed(tmp_path: Path) -> None:
    """Cut behind its first event an event file goes, cut later it stays."""
    path = written(tmp_path / "f")
    event_files.cut(path, len(frame(b"first")) + len(frame(b"")))
    assert read(path) == CONTENTS[:2]
    event_files.cut(path, len(frame(b"first")))
    assert not path.exists()


# One writer

HOLD = """
import sys; from pathlib import Path; from opusclip_mlops import event_files
held = event_files.begin_writing(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    """A second one is told who writes; once the first is killed, nobody does."""
    assert event_files.writer_of(tmp_path) is None
    argv = [sys.executable, "-c", HOLD, str(tmp_path)]
    other = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    assert event_files.begin_writing(tmp_path) is None
    assert event_files.writer_of(tmp_path) == other.pid
    other.kill()
    other.communicate()
    assert event_files.writer_of(tmp_path) is None
    mine = event_files.begin_writing(tmp_path)
    assert mine is not None
    mine.release()
    mine.release()
    assert event_files.writer_of(tmp_path) is None
    assert (tmp_path / event_files.LOCK).stat().st_mode & 0o777 == 0o600


def test_a_folder_that_is_not_there_is_written_by_nobody(tmp_path: Path) -> None:
    """Asking who writes makes nothing."""
    assert event_files.writer_of(tmp_path / "none") is None
    assert event_files.event_files(tmp_path / "none") == []
    assert not event_files.is_replacing(tmp_path / "none")
    assert not (tmp_path / "none").exists()


# Replacing all files by one

REPLACE = """
import os, signal, sys
from pathlib import Path
from opusclip_mlops import event_files
left = int(sys.argv[2])
def killed_in_time(what):
    def call(*words, **named):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return what(*words, **named)
    return call
os.fsync = killed_in_time(os.fsync)
for name in ("replace", "unlink", "write_bytes"):
    setattr(Path, name, killed_in_time(getattr(Path, name)))
event_files.replace_all(Path(sys.argv[1]))
"""


def killed_in_replacing(folder: Path, after_calls: int) -> bool:
    """Replace all in a process that is killed after so many calls; False when it came through."""
    argv = [sys.executable, "-c", REPLACE, str(folder), str(after_calls)]
    done = subprocess.run(argv, check=False, timeout=60)
    assert done.returncode in (0, -signal.SIGKILL)
    return done.returncode != 0


def test_killed_at_any_moment_it_has_replaced_all_or_nothing(tmp_path: Path) -> None:
    """Before it is mended old or new is read, or both; afterwards exactly one of them."""
    mended = set()
    after_calls = 0
    while True:
        folder = tmp_path / str(after_calls)
        folder.mkdir()
        written(folder / "events.out.tfevents.1.a", [b"old"])
        written(folder / "events.out.tfevents.2.b", [b"old"])
        written(folder / event_files.NEW, [b"new"])
        was_killed = killed_in_replacing(folder, after_calls)
        assert event_files.event_files(folder)
        event_files.finish_replacing(folder)
        found = [read(path) for path in event_files.event_files(folder)]
        assert found in ([[b"old"], [b"old"]], [[b"new"]])
        assert {path.name for path in folder.iterdir()} == {
            path.name for path in event_files.event_files(folder)
        }
        mended.add(len(found))
        if not was_killed:
            break
        after_calls += 1
    assert mended == {1, 2}
    assert after_calls > 8


def test_names_in_a_plan_stay_in_the_folder(tmp_path: Path) -> None:
    """What somebody writes into the plan removes nothing elsewhere."""
    folder = tmp_path / "run"
    folder.mkdir()
    victim = written(tmp_path / "victim")
    written(folder / "events.out.tfevents.1")
    plan = '{"new": "events.out.tfevents.1", "old": ["../victim"]}'
    (folder / event_files.REPLACING).write_text(plan)
    event_files.finish_replacing(folder)
    assert victim.exists()
    assert not event_files.is_replacing(folder)
