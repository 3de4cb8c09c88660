"""Facts about `opusclip_mlops.media`: clips are kept as they are and encoded once, later."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from opusclip_mlops import media
from opusclip_mlops.errors import VideoError
from opusclip_mlops.folder import Manifest, RunFolder
from opusclip_mlops.records import Video
from opusclip_mlops.video import (
    Codec,
    Said,
    Texts,
    inspect,
    read_clip,
    reel_of,
    write_mp4,
    write_reel,
)
from tests.clips import full_disk, write_file

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


def names(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.media.iterdir())


# Staging


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


# Names


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
    """A file that was given keeps its own rate, and not the record's."""
    write_file(tmp_path / "clip.avi", FRAMES, codec="mpeg4", fps=4)
    record = stage(folder, tmp_path / "clip.avi", fps=30.0)
    made = media.rendition(folder, record, kind)
    assert made.name not in (record.file, "clip.avi")
    assert made.stat().st_size > 0
    assert read_clip(media.rendition(folder, record, "mp4")).fps == 4


@pytest.mark.parametrize("kind", ["webp", "gif", "png"])
def test_pictures_of_a_file_are_those_of_its_frames(
    folder: RunFolder, tmp_path: Path, kind: str
) -> None:
    """Frame by frame out of the file, they are what they would be out of an array."""
    write_file(tmp_path / "clip.mkv", FRAMES, codec="ffv1", pix_fmt="bgr0", fps=8)
    records = [stage(folder, video) for video in (FRAMES, tmp_path / "clip.mkv")]
    one, other = (media.rendition(folder, record, kind).read_bytes() for record in records)
    assert one == other


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "h264"), ("webm", "vp9")])
@pytest.mark.parametrize("given", ["array", "file", "right file"])
def test_a_clip_says_what_it_is(
    folder: RunFolder, tmp_path: Path, kind: str, codec: Codec, given: str
) -> None:
    """Caption and comment are in the file, whatever it was made of, and why it is another one."""
    video: Any = FRAMES
    if given == "file":
        video = write_file(tmp_path / "clip.avi", FRAMES, codec="mpeg4", fps=8)
    if given == "right file":
        video = tmp_path / f"clip.{kind}"
        write_reel(reel_of(FRAMES, fps=8), video, texts=Texts(title="other"), codec=codec)
    record = msgspec.structs.replace(stage(folder, video), caption="a kite")
    made = media.rendition(folder, record, kind, comment='{"prompt": "kite"}')
    remark = "re-encoded: mpeg4" if given == "file" else ""
    assert media.said_in(made) == Said(8.0, "a kite", '{"prompt": "kite"}', remark)
    assert inspect(made).codec == codec


@pytest.mark.parametrize("kind", ["mp4", "webm"])
@pytest.mark.parametrize("given", ["array", "file"])
def test_a_clip_is_no_larger_than_asked(
    folder: RunFolder, tmp_path: Path, kind: str, given: str
) -> None:
    """And says what that cost."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    write_mp4(noise, tmp_path / "clip.mp4", fps=8)
    record = stage(folder, noise if given == "array" else tmp_path / "clip.mp4")
    made = media.rendition(folder, record, kind, max_bytes=5000)
    assert made.stat().st_size <= 5000
    assert "made to fit 4.88 KiB" in media.said_in(made).remark


def test_a_clip_that_looks_black_says_so(folder: RunFolder) -> None:
    """What was warned of when it was logged is kept with it."""
    with pytest.warns(UserWarning, match="looks black"):
        record = stage(folder, FRAMES % 2)
    made = media.rendition(folder, record, "mp4")
    assert media.said_in(made).remark.startswith("looks black: ")


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


@pytest.mark.parametrize("kind", [*KINDS, "webm"])
def test_a_damaged_file_is_no_fault_of_the_disk(
    folder: RunFolder, tmp_path: Path, kind: str
) -> None:
    """FFmpeg calls this one an input/output error: it would be tried again for ever."""
    path = write_file(tmp_path / "clip.mkv", FRAMES)
    content = bytearray(path.read_bytes())
    content[content.index(bytes.fromhex("1549a966")) + 4] = 0x20  # how long that part is
    path.write_bytes(content)
    record = stage(folder, path)
    with pytest.raises(VideoError, match="Input/output error"):
        media.rendition(folder, record, kind)


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
    assert media.said_in(target.media / name) == Said(8.0, "a kite")


def test_a_webm_that_comes_back_is_not_encoded_again(folder: RunFolder) -> None:
    """An mp4 of it is made only where one is asked for."""
    sent = media.rendition(folder, stage(folder, FRAMES), "webm")
    name = media.delivered_name("0123abcd", "webm")
    sent.rename(folder.media / name)
    back = Video(1, 7, "samples/kite", name, 8.0)
    assert media.rendition(folder, back, "webm") == folder.media / name
    assert inspect(media.rendition(folder, back, "mp4")).codec == "h264"
    assert media.rendition(folder, back, "webp").exists()
