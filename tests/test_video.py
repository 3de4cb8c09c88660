"""Facts about `opusclip_mlops.video`: of any file one is made that every browser plays."""

import hashlib
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from opusclip_mlops.errors import VideoError
from opusclip_mlops.repackaging import repackage
from opusclip_mlops.video import (
    Codec,
    Said,
    Texts,
    encode_mp4,
    file_pictures,
    inspect,
    make_playable,
    problems,
    read_clip,
    read_said,
    repairs,
    video_files,
    write_mp4,
)
from tests.clips import (
    BUNNY,
    CARPHONE,
    half_seen,
    moving,
    write_file,
    write_pictures,
)

FRAMES = moving(12, 64, 96)  # x265 breaks the heap with smaller ones
FAST = {"movflags": "+faststart"}
VP9 = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}}
IDENTITY = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
CLOCKWISE = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
MOST = 1 << 25


def packets(path: Path) -> list[bytes]:
    """The encoded pictures of a file, one by one."""
    with av.open(str(path)) as container:
        return [hashlib.sha256(bytes(one)).digest() for one in container.demux(video=0) if one.size]


def check_right(path: Path, codec: Codec = "h264") -> None:
    """The file has nothing left that keeps a browser from playing it."""
    found = inspect(path)
    assert problems(found, codec=codec, max_bytes=MOST) == ()
    assert repairs(found, codec=codec) == ()


def test_video_files_are_sorted_and_nothing_else(tmp_path: Path) -> None:
    """By suffix in any case; folders, hidden kinds and other files are left out."""
    folder = tmp_path / "clips"
    folder.joinpath("folder.mp4").mkdir(parents=True)
    for name in ("b.mp4", "a.MOV", "c.gif", "d.m4v", "e.mkv", "f.webm", "g.avi", "x.txt", "mp4"):
        folder.joinpath(name).touch()
    names = [path.name for path in video_files(folder)]
    assert names == ["a.MOV", "b.mp4", "c.gif", "d.m4v", "e.mkv", "f.webm", "g.avi"]
    with pytest.raises(VideoError, match="nowhere is not a folder"):
        video_files(tmp_path / "nowhere")


# What is right already


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("clip.mp4", "h264", {"muxing": FAST}), ("clip.webm", "vp9", VP9)],
)
def test_what_is_right_is_copied_byte_for_byte(
    name: str, codec: Codec, options: dict[str, Any], tmp_path: Path
) -> None:
    """And nothing is said of it."""
    source = write_file(tmp_path / name, FRAMES, **options)
    made = tmp_path / "made"
    assert make_playable(source, made, texts=Texts(), codec=codec) == ""
    assert made.read_bytes() == source.read_bytes()


def test_what_was_made_here_is_right_already(tmp_path: Path) -> None:
    """With the texts that it says of itself."""
    source, made = tmp_path / "clip.mp4", tmp_path / "made.mp4"
    write_mp4(FRAMES, source, fps=8, title="a kite", comment="{}")
    assert make_playable(source, made, texts=Texts(title="a kite", comment="{}")) == ""
    assert made.read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("clip.mp4", "h264", {"muxing": FAST}), ("clip.webm", "vp9", VP9)],
)
def test_texts_are_added_without_encoding(
    name: str, codec: Codec, options: dict[str, Any], tmp_path: Path
) -> None:
    """The pictures stay the same bytes; other texts of the file are replaced."""
    source = write_file(tmp_path / name, FRAMES, **options)
    comment = '{"prompt": "é\\n映"}' * 3000
    for number, texts in enumerate([Texts(title="one"), Texts(title="a\nkite", comment=comment)]):
        made = tmp_path / f"{number}"
        assert make_playable(source, made, texts=texts, codec=codec) == ""
        assert packets(made) == packets(source)
        assert read_said(made) == Said(12.0, texts.title, texts.comment)
        check_right(made, codec)
        source = made
    assert make_playable(source, tmp_path / "bare", texts=Texts(), codec=codec) == ""
    assert read_said(tmp_path / "bare") == Said(12.0, "")


def test_a_longer_comment_of_somebody_else_is_left_out(tmp_path: Path) -> None:
    """Without encoding either."""
    source, made = tmp_path / "clip.mp4", tmp_path / "made.mp4"
    write_mp4(FRAMES, tmp_path / "plain.mp4", fps=12)
    said = {"comment": "x" * 100_000}
    repackage(tmp_path / "plain.mp4", source, codec="h264", metadata=said, audio=frozenset())
    assert make_playable(source, made, texts=Texts()) == ""
    assert packets(made) == packets(source)
    assert read_said(made) == Said(12.0, "")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("clip.mp4", {}, "index at the end"),
        ("clip.mp4", {"muxing": {"movflags": "+frag_keyframe+empty_moov"}}, "index at the end"),
        ("clip.mov", {"muxing": FAST}, "mov"),
        ("clip.mkv", {}, "matroska"),
        ("clip.mp4", {"muxing": FAST, "sound": "ac3"}, "without its sound in ac3"),
    ],
)
def test_only_the_container_is_made_anew_where_that_is_enough(
    name: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """The pictures stay the same bytes, with their times, and the file says what was done."""
    source, made = write_file(tmp_path / name, FRAMES, **options), tmp_path / "made.mp4"
    assert make_playable(source, made, texts=Texts(title="a kite")) == f"repackaged: {said}"
    assert packets(made) == packets(source)
    said_of_it = read_said(made)
    assert (said_of_it.caption, said_of_it.remark) == ("a kite", f"repackaged: {said}")
    assert said_of_it.fps == pytest.approx(12, rel=2e-3)
    check_right(made)


def test_sound_that_browsers_play_is_copied_too(tmp_path: Path) -> None:
    """It is lost only where the pictures are encoded anew, which is said."""
    made = tmp_path / "made.mp4"
    assert make_playable(BUNNY, made, texts=Texts()) == "repackaged: index at the end"
    assert inspect(made).sounds == ("aac",)
    source = write_file(tmp_path / "clip.mp4", FRAMES, codec="mpeg4", sound="aac")
    assert make_playable(source, made, texts=Texts()) == "re-encoded: mpeg4; without its sound"
    assert inspect(made).sounds == ()


# What is encoded anew


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("clip.mp4", {"codec": "libx265"}, "hevc"),
        ("clip.mp4", {"codec": "libsvtav1", "options": {"preset": "12"}}, "av1"),
        ("clip.mkv", {"codec": "libx265", "pix_fmt": "yuv420p10le"}, "hevc"),
        ("clip.mp4", {"pix_fmt": "yuv444p"}, "yuv444p"),
        ("clip.mp4", {"pix_fmt": "yuv420p10le"}, "yuv420p10le"),
        ("clip.mp4", {"pix_fmt": "yuvj420p"}, "yuvj420p"),
        ("clip.avi", {"codec": "mpeg4"}, "mpeg4"),
        ("clip.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}, "mjpeg"),
        ("clip.avi", {}, "avi"),
        ("clip.ts", {}, "mpegts"),
        ("clip.mkv", {"codec": "ffv1"}, "ffv1"),
        ("clip.webm", VP9, "vp9"),
        ("clip.webm", {"codec": "libvpx"}, "vp8"),
    ],
)
@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_any_kind_of_file_becomes_one_that_plays(
    name: str, options: dict[str, Any], said: str, codec: Codec, tmp_path: Path
) -> None:
    """The same pictures, their number and rate, and why they were encoded anew."""
    source, made = write_file(tmp_path / name, FRAMES, **options), tmp_path / "made"
    remark = make_playable(source, made, texts=Texts(title="a kite", comment="{}"), codec=codec)
    if said != codec:
        assert remark.startswith("re-encoded: ")
        assert said in remark or codec == "vp9"
    check_right(made, codec)
    assert read_said(made) == Said(12.0, "a kite", "{}", remark)
    before, after = read_clip(source), read_clip(made)
    assert after.frames.shape == before.frames.shape
    assert np.abs(after.frames.astype(int) - before.frames).mean() < 6


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_every_frame_is_shown_as_long_as_before(codec: Codec, tmp_path: Path) -> None:
    """Also the last one; an odd size grows by one pixel."""
    frames, made = moving(4, 33, 41), tmp_path / "made"
    source = write_pictures(tmp_path / "clip.gif", frames, [100, 500, 40, 2000])
    remark = make_playable(source, made, texts=Texts(), codec=codec)
    assert remark == "re-encoded: gif, odd size 41x33"
    with av.open(str(made)) as container:
        times = [float(frame.time) for frame in container.decode(video=0)]
        assert float(container.duration / 1e6) == pytest.approx(2.64, abs=2e-3)
    assert times == pytest.approx([0, 0.1, 0.6, 0.64], abs=2e-3)
    assert inspect(made).fps == pytest.approx(4 / 2.64, rel=1e-3)
    check_right(made, codec)


def test_uneven_times_come_from_any_container(tmp_path: Path) -> None:
    """A recording with a pause keeps the pause."""
    source = write_file(tmp_path / "clip.mkv", FRAMES[:5], times_ms=[0, 40, 80, 900, 940])
    made = tmp_path / "made.mp4"
    make_playable(source, made, texts=Texts())
    with av.open(str(made)) as container:
        times = [float(frame.time) for frame in container.decode(video=0)]
    assert times == pytest.approx([0, 0.04, 0.08, 0.9, 0.94], abs=2e-3)


def test_a_file_filmed_sideways_is_turned_upright(tmp_path: Path) -> None:
    """Its pictures are as a player showed them, and no player has to turn them."""
    data = encode_mp4(FRAMES, fps=8)
    track = data.index(IDENTITY, data.index(b"tkhd"))
    source, made = tmp_path / "turned.mp4", tmp_path / "made.mp4"
    source.write_bytes(data[:track] + CLOCKWISE + data[track + len(IDENTITY) :])
    remark = make_playable(source, made, texts=Texts())
    assert remark == f"re-encoded: turned by {inspect(source).rotation} degrees"
    assert read_clip(made).frames.shape == (12, 96, 64, 3)
    assert np.abs(read_clip(made).frames.astype(int) - read_clip(source).frames).mean() < 6
    check_right(made)


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_pixels_that_are_not_square_are_made_so(codec: Codec, tmp_path: Path) -> None:
    """The clip is shown as wide as before, also in a webm, which knows square ones only."""
    options = {"codec": "mpeg4", "aspect": Fraction(3, 2)}
    source = write_file(tmp_path / "clip.mkv", FRAMES, **options)
    make_playable(source, tmp_path / "made", texts=Texts(), codec=codec)
    found = inspect(tmp_path / "made")
    assert (found.width, found.height, found.aspect) == (144, 64, 1)


def test_what_is_transparent_becomes_black_and_is_said(tmp_path: Path) -> None:
    """Never a colour that was hidden under it."""
    path = write_pictures(tmp_path / "clip.gif", half_seen(3, 32, 48), [100] * 3)
    remark = make_playable(path, tmp_path / "made.mp4", texts=Texts())
    assert remark == "re-encoded: gif, alpha flattened on black"
    assert read_clip(tmp_path / "made.mp4").frames[:, :14].max() < 8


def test_of_a_file_cut_short_the_good_part_is_kept(tmp_path: Path) -> None:
    """It plays to where it was cut, without holding its last frame."""
    source, made = tmp_path / "clip.mp4", tmp_path / "made.mp4"
    write_mp4(moving(24, 96, 128), source, fps=12)
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    assert make_playable(source, made, texts=Texts()) == "re-encoded: cut short"
    found = inspect(made)
    assert found.whole
    assert found.count == len(read_clip(source).frames)
    assert found.seconds == pytest.approx(found.count / 12)


def test_a_file_larger_than_asked_is_made_to_fit(tmp_path: Path) -> None:
    """Even where it is right in every other way; what it cost is said in the file."""
    source, made = tmp_path / "clip.mp4", tmp_path / "made.mp4"
    write_mp4(read_clip(CARPHONE, max_frames=30).frames, source, fps=30)
    assert make_playable(source, made, texts=Texts(), max_bytes=source.stat().st_size) == ""
    for max_bytes in (source.stat().st_size - 1, 10_000, 3000):
        remark = make_playable(source, made, texts=Texts(), max_bytes=max_bytes)
        assert made.stat().st_size <= max_bytes
        assert remark.startswith("re-encoded: larger than ")
        assert read_said(made).remark == remark
        assert inspect(made).seconds == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("content", [None, b"", b"words " * 99, bytes(999)])
def test_what_is_no_video_leaves_nothing(content: bytes | None, tmp_path: Path) -> None:
    """One line that names the file."""
    source = tmp_path / "holiday.mp4"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(VideoError, match=r"holiday\.mp4"):
        make_playable(source, tmp_path / "new" / "made.mp4", texts=Texts())
    assert not (tmp_path / "new").exists()


# Pictures of a file by number


def test_pictures_of_a_file_are_those_of_the_clip() -> None:
    """In order, again, and from the start again."""
    frames = read_clip(CARPHONE).frames
    with file_pictures(CARPHONE) as (pictures, fps):
        assert (pictures.shape, pictures.dtype, fps) == (frames.shape, np.uint8, 30000 / 1001)
        for index in (0, 3, 3, 60, 119, 5, 0):
            np.testing.assert_array_equal(pictures[index], frames[index])


def test_past_the_damage_stands_the_last_good_picture(tmp_path: Path) -> None:
    """A poster of a damaged file shows what there is."""
    source = tmp_path / "clip.mp4"
    write_mp4(moving(24, 96, 128), source, fps=12)
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    good = read_clip(source).frames
    with file_pictures(source) as (pictures, _):
        assert pictures.shape[0] >= len(good)
        np.testing.assert_array_equal(pictures[pictures.shape[0] - 1], good[-1])
