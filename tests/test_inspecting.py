"""Facts about `opusclip_mlops.inspecting`: what a file is, and why a browser may not play it."""

import dataclasses
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from opusclip_mlops.errors import VideoError
from opusclip_mlops.inspecting import Inspected, inspect, problems, repairs
from opusclip_mlops.video import write_mp4
from tests.clips import BUNNY, half_seen, moving, write_file, write_pictures

FRAMES = moving(6, 64, 96)  # x265 breaks the heap with smaller ones
FAST = {"movflags": "+faststart"}
MOST = 1 << 25


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Inspected:
    """A file that is right."""
    path = tmp_path_factory.mktemp("right") / "clip.mp4"
    write_mp4(FRAMES, path, fps=12, title="a kite", comment="{}")
    return inspect(path)


def test_a_file_is_seen_as_it_is(right: Inspected) -> None:
    """Container, codec, size, times, texts."""
    assert right == Inspected(
        container="mp4", codec="h264", pix_fmt="yuv420p", width=96, height=64,
        aspect=Fraction(1), rotation=0, has_alpha=False, faststart=True, whole=True,
        count=6, fps=12.0, seconds=0.5, last_seconds=right.last_seconds, steady=True,
        sounds=(), others=0, size_bytes=right.size_bytes, title="a kite", comment="{}",
    )  # fmt: skip
    assert problems(right, max_bytes=MOST) == ()
    assert repairs(right) == ()


def test_a_film_with_sound_is_seen_as_it_is() -> None:
    """Its sound, and that its index is at the end."""
    found = inspect(BUNNY)
    assert (found.count, found.fps, found.sounds) == (132, 25.0, ("aac",))
    assert problems(found, max_bytes=MOST) == ()
    assert repairs(found) == ("index at the end",)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"codec": "hevc"}, "hevc"),
        ({"codec": "gif", "container": "gif"}, "gif"),
        ({"pix_fmt": "yuv444p"}, "yuv444p"),
        ({"container": "avi"}, "avi"),
        ({"has_alpha": True}, "alpha flattened on black"),
        ({"rotation": 90}, "turned by 90 degrees"),
        ({"width": 47}, "odd size 47x64"),
        ({"width": 9000}, "size 9000x64"),
        ({"size_bytes": MOST + 1}, "larger than 32 MiB"),
        ({"whole": False}, "cut short"),
    ],
)
def test_each_problem_is_said(right: Inspected, changed: dict[str, Any], said: str) -> None:
    """In a few words, and nothing else with it."""
    assert problems(dataclasses.replace(right, **changed), max_bytes=MOST) == (said,)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"container": "mov"}, "mov"),
        ({"faststart": False}, "index at the end"),
        ({"sounds": ("ac3",)}, "without its sound in ac3"),
        ({"sounds": ("aac", "aac")}, "further tracks left out"),
        ({"others": 1}, "further tracks left out"),
    ],
)
def test_each_repair_is_said(right: Inspected, changed: dict[str, Any], said: str) -> None:
    """What leaves the pictures as they are is no problem, and is said too."""
    found = dataclasses.replace(right, **changed)
    assert problems(found, max_bytes=MOST) == ()
    assert repairs(found) == (said,)


def test_another_codec_may_be_wanted(right: Inspected) -> None:
    """What is right as an mp4 is none of it as a webm."""
    assert problems(right, codec="vp9", max_bytes=MOST) == ("h264",)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("clip.mov", {}, {"container": "mov", "faststart": False}),
        ("clip.mkv", {}, {"container": "matroska", "faststart": True}),
        ("clip.avi", {"codec": "mpeg4"}, {"container": "avi", "codec": "mpeg4"}),
        ("clip.mp4", {"codec": "libx265"}, {"codec": "hevc"}),
        ("clip.mp4", {"codec": "libsvtav1"}, {"codec": "av1"}),
        ("clip.mp4", {"pix_fmt": "yuv444p"}, {"pix_fmt": "yuv444p"}),
        ("clip.mp4", {"muxing": {"movflags": "+frag_keyframe+empty_moov"}}, {"faststart": False}),
        ("clip.webm", {"codec": "libvpx-vp9"}, {"container": "webm", "codec": "vp9"}),
        ("clip.mp4", {"codec": "mpeg4", "aspect": Fraction(4, 3)}, {"aspect": Fraction(4, 3)}),
        ("clip.mkv", {"sound": "ac3"}, {"sounds": ("ac3",)}),
    ],
)
def test_kinds_of_files_are_told_apart(
    name: str, options: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    """By what is in them."""
    found = inspect(write_file(tmp_path / name, FRAMES, **options))
    assert {field: getattr(found, field) for field in expected} == expected
    assert (found.count, found.steady, found.whole) == (6, True, True)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.webm", "clip.mp4", "clip.avi"])
@pytest.mark.parametrize("fps", [7, 24, 30, 60])
def test_frames_are_steady_where_only_their_times_are_rounded(
    name: str, fps: int, tmp_path: Path
) -> None:
    """Matroska counts milliseconds: 30 frames a second are still 30."""
    codec = {"clip.webm": "libvpx-vp9", "clip.avi": "mpeg4"}.get(name, "libx264")
    found = inspect(write_file(tmp_path / name, moving(30, 16, 16), codec=codec, fps=fps))
    assert (found.steady, found.count) == (True, 30)
    assert found.fps == pytest.approx(fps, rel=1e-6)


def test_frames_of_uneven_length_are_not_steady(tmp_path: Path) -> None:
    """The mean rate, the whole length and that of the last frame are known."""
    found = inspect(write_pictures(tmp_path / "a.gif", FRAMES[:4], [100, 500, 40, 2000]))
    assert not found.steady
    assert found.seconds == pytest.approx(2.64)
    assert found.last_seconds == pytest.approx(2.0)
    assert found.fps == pytest.approx(4 / 2.64, rel=1e-3)
    held = inspect(write_pictures(tmp_path / "b.gif", FRAMES[:4], [100, 100, 100, 900]))
    assert not held.steady


def test_only_what_can_be_seen_through_has_alpha(tmp_path: Path) -> None:
    """Every GIF could; most are opaque."""
    assert not inspect(write_pictures(tmp_path / "a.gif", FRAMES, [100] * 6)).has_alpha
    assert inspect(write_pictures(tmp_path / "b.gif", half_seen(3, 16, 16), [100] * 3)).has_alpha
    frames = half_seen(3, 32, 48)
    path = write_file(tmp_path / "c.webm", frames, codec="libvpx-vp9", pix_fmt="yuva420p")
    assert inspect(path).has_alpha


def test_a_file_cut_short_is_not_whole(tmp_path: Path) -> None:
    """It says that it has more than there is."""
    path = tmp_path / "clip.mp4"
    write_mp4(moving(24, 96, 128), path, fps=12)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    found = inspect(path)
    assert not found.whole
    assert found.count < 24


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none.mp4", None),
        ("empty.mp4", b""),
        ("words.mp4", b"hello\n" * 99),
        ("boxes.mp4", struct.pack(">I4sI4s", 8, b"ftyp", 0, b"moov")),
        ("zeros.mp4", bytes(4096)),
        ("riff.avi", b"RIFF\xff\xff\xff\xffAVI LIST"),
        ("ebml.webm", bytes.fromhex("1a45dfa3") + b"webm" * 9),
        ("gif.gif", b"GIF89a\x10\0\x10\0\0\0\0"),
    ],
)
def test_rubbish_is_named_in_one_line(name: str, content: bytes | None, tmp_path: Path) -> None:
    """Whatever the file is called."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match=name) as error:
        inspect(path)
    assert "\n" not in str(error.value)
