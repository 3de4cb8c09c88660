"""Facts about `opusclip_mlops.media`: clips are kept as they are and encoded once, later."""

import contextlib
import os
import random
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from opusclip_mlops import media
from opusclip_mlops.errors import VideoError
from opusclip_mlops.folder import Manifest, RunFolder
from opusclip_mlops.records import Video
from opusclip_mlops.video import read_clip, write_mp4

KINDS = ["mp4", "webp", "png", "gif"]
FRAMES = np.linspace(0, 255, 6 * 32 * 48 * 3).astype(np.uint8).reshape(6, 32, 48, 3)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "journal" / "r1")
    made.create(Manifest(local_id="r1", cwd="/", sinks=[], start_time_ms=1))
    return made


def stage(folder: RunFolder, video: Any, *, step: int = 7, fps: float = 8.0) -> Video:
    name = media.stage(folder, video, value_range=(0.0, 1.0))
    return Video(1_700_000_000_000, step, "samples/kite", name, fps)


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Files may have 100 bytes, as on a disk that has no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.media.iterdir())


# Staging


@pytest.mark.parametrize(
    "video",
    [
        FRAMES,
        FRAMES / 255,
        list(FRAMES),
        torch.from_numpy(FRAMES),
        (torch.from_numpy(FRAMES) / 255).permute(0, 3, 1, 2).requires_grad_(),
        [Image.fromarray(picture) for picture in FRAMES],
    ],
    ids=["uint8", "floats", "list", "tensor", "channels first", "pictures"],
)
def test_pixels_are_staged_as_they_are(folder: RunFolder, video: Any) -> None:
    """Arrays and tensors are kept without loss, as one file and nothing beside it."""
    record = stage(folder, video)
    assert names(folder) == [record.file]
    np.testing.assert_array_equal(np.load(folder.media / record.file), FRAMES)


def test_what_is_staged_is_the_clip_at_that_moment(folder: RunFolder) -> None:
    """A buffer that the next batch overwrites has been copied."""
    buffer = FRAMES.copy()
    record = stage(folder, buffer)
    buffer[:] = 0
    np.testing.assert_array_equal(np.load(folder.media / record.file), FRAMES)


@pytest.mark.parametrize("suffix", [".mp4", ".MP4", ".mkv", ""])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_is_staged_as_a_copy(
    folder: RunFolder, tmp_path: Path, suffix: str, kind: type
) -> None:
    """The same bytes under a name of their own: the original may change or go."""
    original = tmp_path / f"a clip é{suffix}"
    write_mp4(FRAMES, original, fps=12.5)
    content = original.read_bytes()
    record = stage(folder, kind(original))
    original.unlink()
    assert names(folder) == [record.file]
    assert (folder.media / record.file).read_bytes() == content
    assert Path(record.file).suffix == suffix.lower()
    assert read_clip(media.rendition(folder, record, "mp4")).fps == 12.5


@pytest.mark.parametrize("video", ["none.mp4", Path("none.mp4"), ".", "", 3, None, np.zeros(3)])
def test_what_is_no_clip_is_refused_at_once(folder: RunFolder, video: Any) -> None:
    """A missing file, a folder or a wrong shape raises in the caller's line; nothing is left."""
    with pytest.raises(VideoError) as caught:
        stage(folder, video)
    assert "\n" not in str(caught.value)
    assert names(folder) == []


def test_a_clip_that_cannot_be_written_leaves_nothing(folder: RunFolder, tmp_path: Path) -> None:
    """On a full disk no half clip stays behind under a name that counts."""
    write_mp4(FRAMES, tmp_path / "clip.mp4", fps=8)
    for video in (FRAMES, tmp_path / "clip.mp4"):
        with full_disk(), pytest.raises(OSError, match=r"File too large|written"):
            stage(folder, video)
    assert names(folder) == []


# Names


def test_every_clip_has_a_name_of_its_own(folder: RunFolder) -> None:
    """Equal clips at one step, from threads and from a forked child, never share a name."""

    def stage_some(_: int) -> list[Video]:
        return [stage(folder, FRAMES[:1, :2, :2]) for _ in range(25)]

    pid = os.fork()
    if pid == 0:
        stage_some(0)
        os._exit(0)
    with ThreadPoolExecutor(4) as pool:
        records = [one for some in pool.map(stage_some, range(4)) for one in some]
    assert os.waitpid(pid, 0)[1] == 0
    files = names(folder)
    assert len(files) == 125
    assert {one.file for one in records} <= set(files)
    assert len({media.artifact_name(Video(1, 7, "k", file, 8.0)) for file in files}) == 125


def test_a_clips_artifact_has_the_same_name_each_time(folder: RunFolder) -> None:
    """Delivered again after a crash, it replaces itself; names sort by step."""
    first, later = stage(folder, FRAMES, step=9), stage(folder, FRAMES, step=10_000)
    again = Video(*(getattr(first, field) for field in first.__struct_fields__))
    assert media.artifact_name(first) == media.artifact_name(again)
    assert media.artifact_name(first).startswith("step_00000009-")
    assert media.artifact_name(first) < media.artifact_name(later)


# Renditions


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_made_once(folder: RunFolder, kind: str) -> None:
    """The second who asks gets the same file; it is never written again."""
    record = stage(folder, FRAMES)
    made = media.rendition(folder, record, kind)
    before = made.stat()
    assert media.rendition(folder, record, kind) == made
    assert made.stat() == before
    assert names(folder) == sorted([record.file, made.name])


def test_renditions_show_the_clip(folder: RunFolder) -> None:
    """The mp4 has every frame and the rate; WebP and GIF move; the sheet is a still picture."""
    record = stage(folder, FRAMES, fps=12.5)
    clip = read_clip(media.rendition(folder, record, "mp4"))
    assert clip.frames.shape == FRAMES.shape
    assert clip.fps == 12.5
    assert np.abs(clip.frames.astype(int) - FRAMES).mean() < 6
    for kind, format_name, moves in (
        ("webp", "WEBP", True),
        ("gif", "GIF", True),
        ("png", "PNG", False),
    ):
        with Image.open(media.rendition(folder, record, kind)) as image:
            assert image.format == format_name
            assert getattr(image, "is_animated", False) == moves


@pytest.mark.parametrize("kind", KINDS)
def test_renditions_of_a_staged_file(folder: RunFolder, tmp_path: Path, kind: str) -> None:
    """A file that was given is encoded anew, at its own rate and not the record's."""
    write_mp4(FRAMES, tmp_path / "clip.mkv", fps=4)
    record = stage(folder, tmp_path / "clip.mkv", fps=30.0)
    made = media.rendition(folder, record, kind)
    assert made.name not in (record.file, "clip.mkv")
    assert made.stat().st_size > 0
    assert read_clip(media.rendition(folder, record, "mp4")).fps == 4


def test_two_sinks_may_make_the_same(folder: RunFolder) -> None:
    """Who asks at the same time gets a whole file, and the same one."""
    record = stage(folder, FRAMES)

    def make(_: int) -> tuple[Path, bytes]:
        path = media.rendition(folder, record, "mp4")
        return path, path.read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(make, range(4)))) == 1
    assert len(names(folder)) == 2


def test_a_record_cannot_name_a_file_elsewhere(folder: RunFolder, tmp_path: Path) -> None:
    """Only the run's own clips are read, whatever a record says."""
    np.save(tmp_path / "other.npy", FRAMES)
    record = Video(1, 2, "k", str(tmp_path / "other.npy"), 8.0)
    with pytest.raises(VideoError, match=r"other\.npy"):
        media.rendition(folder, record, "mp4")


def test_a_clip_that_cannot_be_read_is_refused(folder: RunFolder) -> None:
    """Whatever has become of a staged clip, it is one line of VideoError and holds nobody up."""
    record = stage(folder, FRAMES)
    staged = folder.media / record.file
    whole = staged.read_bytes()
    chance = random.Random(0)
    broken = [b"", whole[:5], whole[:200], b"PK\x03\x04", b"\x80\x04.", b"words"]
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(3):
            content[chance.randrange(128)] = chance.randrange(256)
        broken.append(bytes(content))
    refusals = []
    for content in broken:
        staged.write_bytes(content)
        try:
            media.rendition(folder, record, "png").unlink()
        except VideoError as error:
            refusals.append(str(error))
    assert len(refusals) >= 350
    assert not any("\n" in one for one in refusals)


@pytest.mark.parametrize("name", ["none.npy", "none.mp4", "words.mp4", "words.npy"])
def test_a_clip_that_is_none_is_named(folder: RunFolder, name: str) -> None:
    """A staged file that is gone, or is no video, is refused by its name."""
    (folder.media / "words.mp4").write_text("words")
    (folder.media / "words.npy").write_text("words")
    with pytest.raises(VideoError, match=name):
        media.rendition(folder, Video(1, 2, "k", name, 8.0), "mp4")


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_no_fault_of_the_clip(folder: RunFolder, kind: str) -> None:
    """An OSError, so that the clip is tried again and not refused for good; no part is left."""
    record = stage(folder, FRAMES)
    with full_disk(), pytest.raises(OSError, match="File too large"):
        media.rendition(folder, record, kind)
    assert names(folder) == [record.file]
    assert media.rendition(folder, record, kind).stat().st_size > 100


# What comes back from MLflow


def test_a_clip_that_comes_back_is_not_encoded_again(folder: RunFolder, tmp_path: Path) -> None:
    """Its mp4 is the file that came; the other kinds are made of it."""
    first = msgspec.structs.replace(stage(folder, FRAMES), caption="a kite")
    sent = media.rendition(folder, first, "mp4").read_bytes()
    target = RunFolder(tmp_path / "journal" / "r2")
    target.create(Manifest(local_id="r2", cwd="/", sinks=[], start_time_ms=1))
    name = media.delivered_name("0123abcd")
    (target.media / name).write_bytes(sent)
    back = Video(1, 7, "samples/kite", name, 8.0, "a kite")
    assert media.rendition(target, back, "mp4").read_bytes() == sent
    for kind in KINDS:
        assert media.rendition(target, back, kind).exists()
    assert len(names(target)) == 4
    said = media.said_in(target.media / name)
    assert (said.fps, said.caption) == (8.0, "a kite")
