"""Facts about `opusclip_mlops.decoding`, on real clips and on files made for it."""

import struct
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from opusclip_mlops.decoding import Clip, Said, open_frames, read_clip, read_said
from opusclip_mlops.errors import VideoError
from opusclip_mlops.video import encode_mp4, write_mp4
from tests.clips import (
    BUNNY,
    CARPHONE,
    COLOURS,
    flat,
    half_seen,
    moving,
    write_file,
    write_pictures,
)

IDENTITY = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
CLOCKWISE = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)


@pytest.fixture(scope="module")
def carphone() -> Clip:
    """A real clip: 120 frames of 176x144."""
    return read_clip(CARPHONE)


def test_a_clip_has_its_frames_and_its_length(carphone: Clip) -> None:
    """Every frame is decoded, at the rate of the file."""
    assert carphone.frames.shape == (120, 144, 176, 3)
    assert carphone.frames.dtype == np.uint8
    assert carphone.fps == 30000 / 1001
    assert carphone.seconds == pytest.approx(4.004)


def test_pixels_are_those_of_the_file(carphone: Clip) -> None:
    """RGB is the exact BT.601 arithmetic on the decoded planes, not a level darker."""
    with av.open(str(CARPHONE)) as container:
        planes = next(container.decode(video=0)).to_ndarray()
    luma = (planes[:144].astype(float) - 16) * 255 / 219
    u, v = ((planes[a : a + 36].reshape(72, 88) - 128.0) * 255 / 224 for a in (144, 180))
    u, v = (plane.repeat(2, axis=0).repeat(2, axis=1) for plane in (u, v))
    green = luma - 0.344136 * u - 0.714136 * v
    exact = np.stack([luma + 1.402 * v, green, luma + 1.772 * u], axis=-1).clip(0, 255)
    error = carphone.frames[0] - exact
    assert np.abs(error.mean()) < 0.1
    assert np.abs(error).mean() < 1.5  # FFmpeg smooths the colours, this does not


def test_a_square_is_cut_from_the_centre_and_averaged() -> None:
    """A size that divides the height gives the means of blocks of the centre square."""
    whole = read_clip(BUNNY, max_frames=2).frames
    small = read_clip(BUNNY, size=90, max_frames=2).frames
    blocks = whole[:, :, 280:1000].reshape(2, 90, 8, 90, 8, 3).mean(axis=(2, 4))
    assert small.shape == (2, 90, 90, 3)
    assert np.abs(small - blocks).mean() < 1


def test_a_square_may_be_larger_than_the_file(carphone: Clip) -> None:
    """Small clips grow, and stay the same picture."""
    large = read_clip(CARPHONE, size=288, max_frames=1).frames
    assert large.shape == (1, 288, 288, 3)
    halved = large.reshape(144, 2, 144, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved - carphone.frames[0, :, 16:160]).mean() < 2


def test_a_part_is_the_same_as_in_the_whole(carphone: Clip) -> None:
    """start_frame and max_frames cut exactly, also past the end."""
    part = read_clip(CARPHONE, start_frame=50, max_frames=7)
    np.testing.assert_array_equal(part.frames, carphone.frames[50:57])
    assert len(read_clip(CARPHONE, start_frame=115, max_frames=99).frames) == 5


def test_a_clip_filmed_sideways_is_turned_upright(carphone: Clip, tmp_path: Path) -> None:
    """A phone's mp4 says how it was held; its frames come out as a player shows them."""
    data = encode_mp4(carphone.frames[:3], fps=25)
    track = data.index(IDENTITY, data.index(b"tkhd"))
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data[:track] + CLOCKWISE + data[track + len(IDENTITY) :])
    plain = tmp_path / "plain.mp4"
    plain.write_bytes(data)
    expected = np.rot90(read_clip(plain).frames, -1, axes=(1, 2))
    np.testing.assert_array_equal(read_clip(turned).frames, expected)
    assert read_clip(turned, size=64).frames.shape == (3, 64, 64, 3)


def test_a_damaged_end_costs_only_the_end(carphone: Clip, tmp_path: Path) -> None:
    """Of a file that is cut midway the frames before the cut are read."""
    path = tmp_path / "cut.mp4"
    write_mp4(carphone.frames, path, fps=25)
    whole = read_clip(path).frames
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    part = read_clip(path).frames
    assert 10 < len(part) < 120
    np.testing.assert_array_equal(part[:10], whole[:10])


def sound(path: Path) -> None:
    """A file with a sound track and no pictures."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))


def index_only(path: Path) -> None:
    """An mp4 that was cut off where its pictures begin."""
    data = encode_mp4(np.zeros((4, 16, 16, 3), np.uint8), fps=25)
    path.write_bytes(data[: data.index(b"mdat") + 4])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(Path.exists, "does not exist", id="missing"),
        pytest.param(lambda path: path.mkdir(), "is not a file", id="folder"),
        pytest.param(lambda path: path.write_text("hello\n" * 99), "Invalid data", id="text"),
        pytest.param(lambda path: path.touch(), "Invalid data", id="empty"),
        pytest.param(sound, "holds no video stream", id="sound"),
        pytest.param(index_only, "has no frame from number 0 on", id="no pixels"),
        pytest.param(
            lambda path: path.write_bytes(CARPHONE.read_bytes()[:2000]), "cannot be", id="stump"
        ),
    ],
)
def test_what_is_no_video_is_named_in_one_line(
    make: Callable[[Path], object], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error names the file and the reason, and FFmpeg itself prints nothing."""
    path = tmp_path / "holiday.mp4"
    make(path)
    with pytest.raises(VideoError, match=said) as error:
        read_clip(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("option", [{"size": 0}, {"start_frame": -1}, {"max_frames": 0}])
def test_reading_options_have_a_least_value(option: dict[str, int]) -> None:
    """An option that would give an empty clip is refused by its name."""
    with pytest.raises(VideoError, match=f"{next(iter(option))} is .*: pass [01] or more"):
        read_clip(CARPHONE, **option)


def test_a_start_past_the_end_is_refused() -> None:
    """Skipping all there is leaves no clip."""
    with pytest.raises(VideoError, match="no frame from number 120 on"):
        read_clip(CARPHONE, start_frame=120)


def test_a_name_with_a_colon_is_a_file(tmp_path: Path) -> None:
    """FFmpeg would take "http:x.mp4" for an address."""
    path = tmp_path / "http:x.mp4"
    write_mp4(flat(COLOURS, 16, 16), path, fps=5)
    assert len(read_clip(path).frames) == 6


def test_what_is_no_video_says_nothing(tmp_path: Path) -> None:
    """A missing file and one that is no video are named."""
    (tmp_path / "words.mp4").write_text("words")
    for name in ("words.mp4", "gone.mp4"):
        with pytest.raises(VideoError, match=name):
            read_said(tmp_path / name)


# Frame by frame


def test_frames_come_one_by_one_as_the_clip_has_them(carphone: Clip) -> None:
    """The same pictures, rate and size as the whole clip, and nothing of it kept."""
    with open_frames(CARPHONE) as frames:
        assert (frames.fps, frames.width, frames.height) == (carphone.fps, 176, 144)
        for one, other in zip(frames, carphone.frames, strict=True):
            np.testing.assert_array_equal(one, other)


def test_frames_come_upright(tmp_path: Path) -> None:
    """Width and height are those of a picture as a player shows it."""
    data = encode_mp4(moving(3, 32, 48), fps=5)
    track = data.index(IDENTITY, data.index(b"tkhd"))
    path = tmp_path / "turned.mp4"
    path.write_bytes(data[:track] + CLOCKWISE + data[track + len(IDENTITY) :])
    with open_frames(path) as frames:
        assert (frames.width, frames.height) == (32, 48)
        np.testing.assert_array_equal(np.stack(list(frames)), read_clip(path).frames)


def test_frames_come_with_their_times(tmp_path: Path) -> None:
    """Also where each is shown for another time."""
    path = write_pictures(tmp_path / "clip.gif", moving(4, 16, 16), [100, 500, 40, 2000])
    with open_frames(path) as frames:
        times = [time for time, _ in frames.timed()]
    assert times == [Fraction(0), Fraction(1, 10), Fraction(6, 10), Fraction(64, 100)]


def test_frames_end_where_the_damage_begins(carphone: Clip, tmp_path: Path) -> None:
    """A file that is cut midway gives the frames before the cut, and no error."""
    path = tmp_path / "cut.mp4"
    write_mp4(carphone.frames, path, fps=25)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_frames(path) as frames:
        assert sum(1 for _ in frames) == len(read_clip(path).frames)


@pytest.mark.parametrize("read", [read_clip, open_frames])
def test_pictures_that_change_their_size_are_refused(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    """Two streams in one file, one after the other, are no clip."""
    path = tmp_path / "two.ts"
    parts = [tmp_path / f"{height}.ts" for height in (32, 48)]
    path.write_bytes(
        b"".join(write_file(one, moving(9, int(one.stem), 64)).read_bytes() for one in parts)
    )
    with pytest.raises(VideoError, match="differ in shape, 64x32 and 64x48"):
        read_all(read(path))


def read_all(found: object) -> None:
    """Go through the frames, where they were not gone through yet."""
    if not isinstance(found, Clip):
        with found as frames:  # type: ignore[attr-defined]
            list(frames)


@pytest.mark.parametrize("name", ["none.mp4", "words.mp4"])
def test_what_has_no_frames_is_named_before_the_loop(name: str, tmp_path: Path) -> None:
    """A missing file and one that is no video raise where they are opened."""
    (tmp_path / "words.mp4").write_text("words")
    with pytest.raises(VideoError, match=name), open_frames(tmp_path / name):
        pytest.fail("it was opened")


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        (".mov", "qtrle", "argb"),
        (".mov", "png", "rgba"),
        (".webm", "libvpx-vp9", "yuva420p"),
    ],
)
def test_what_is_transparent_is_on_black(
    suffix: str, codec: str, pix_fmt: str, tmp_path: Path
) -> None:
    """Whatever colour lies hidden under it; what is opaque stays as it is."""
    path = write_file(
        tmp_path / f"clip{suffix}", half_seen(3, 32, 48), codec=codec, pix_fmt=pix_fmt
    )
    frames = read_clip(path).frames.astype(int)
    assert frames[:, :15].max() < 8
    assert np.abs(frames[:, 17:] - moving(3, 32, 48)[:, 17:]).mean() < 12


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {}\n",
    ],
    ids=["hls", "concat"],
)
def test_a_list_of_other_files_is_no_video(text: str, tmp_path: Path) -> None:
    """FFmpeg would read whatever it names, on this machine or another."""
    path = tmp_path / "clip.mp4"
    path.write_text(text.format(CARPHONE))
    with pytest.raises(VideoError, match=r"clip\.mp4"):
        read_clip(path)


def test_pictures_too_large_to_decode_are_refused(tmp_path: Path) -> None:
    """A GIF of 50 bytes asks for 1 GB."""
    path = tmp_path / "bomb.gif"
    size = struct.pack("<HH", 16000, 16000)
    frame = b"\x2c\0\0\0\0" + size + b"\0\x02\x02\x44\x01\0\x3b"
    path.write_bytes(b"GIF89a" + size + b"\x80\0\0\0\0\0\xff\xff\xff" + frame)
    with pytest.raises(VideoError, match="16000x16000, more than can be decoded"):
        read_clip(path)


def test_a_file_that_says_nothing_says_so() -> None:
    """A foreign file has its rate, and no caption, comment or remark."""
    assert read_said(CARPHONE) == Said(fps=30000 / 1001, caption="", comment="", remark="")


def test_pictures_of_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    """A codec that nobody has heard of."""
    path = write_file(tmp_path / "clip.mp4", moving(4, 32, 48))
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz9").replace(b"avcC", b"zzzC"))
    with pytest.raises(VideoError, match=r"clip\.mp4 holds pictures of an unknown kind"):
        read_clip(path)
