"""Facts about `opusclip_mlops.encoding`: what is written plays, says where from, and fits."""

import os
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from opusclip_mlops.decoding import Clip, Said, read_clip, read_said
from opusclip_mlops.encoding import (
    MOST_COMMENT_BYTES,
    Codec,
    Texts,
    encode_mp4,
    reel_of,
    write_mp4,
    write_reel,
)
from opusclip_mlops.errors import VideoError
from tests.clips import CARPHONE, COLOURS, flat, moving


@pytest.fixture(scope="module")
def carphone() -> Clip:
    """A real clip: 120 frames of 176x144."""
    return read_clip(CARPHONE)


def boxes(data: bytes) -> list[str]:
    """The names of an mp4's outermost boxes, in order."""
    names, at = [], 0
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        names.append(name.decode())
        at += size
    return names


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


def test_fractions_are_rates(tmp_path: Path) -> None:
    """A rate as PyAV states it can be passed on."""
    path = tmp_path / "clip.mp4"
    write_mp4(flat(COLOURS, 16, 16), path, fps=Fraction(24000, 1001))
    assert read_clip(path).fps == 24000 / 1001


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


ROOT = Path(__file__).parents[1]
TELLING = "é映\n{};#=\\\"'" * 4000


@pytest.mark.parametrize("codec", ["h264", "vp9"])
@pytest.mark.parametrize("comment", ["{}", '{"prompt": "a kite\\n"}', TELLING])
def test_a_comment_comes_back_exactly(codec: Codec, comment: str, tmp_path: Path) -> None:
    """Beside the title and the remark, up to 64 KiB, in an mp4 and in a webm."""
    texts = Texts(title="a kite", comment=comment, remark="looks black")
    write_reel(reel_of(flat(COLOURS, 16, 16), fps=5), tmp_path / "clip", texts=texts, codec=codec)
    assert read_said(tmp_path / "clip") == Said(5.0, "a kite", comment, "looks black")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("é" * (MOST_COMMENT_BYTES // 2) + "x", "comment has 65537 bytes: keep it to 65536"),
        ("\ud800", "half a character"),
        ("a\0b", "NUL"),
    ],
)
def test_a_comment_that_no_file_holds_is_refused(text: str, said: str, tmp_path: Path) -> None:
    """Before a file is made."""
    with pytest.raises(VideoError, match=said):
        write_mp4(flat(COLOURS, 16, 16), tmp_path / "new" / "clip.mp4", fps=5, comment=text)
    assert not (tmp_path / "new").exists()


def test_what_memory_held_before_changes_no_byte(tmp_path: Path) -> None:
    """x264 may look at memory that nobody wrote: here it is filled with other bytes each time."""
    code = (
        "import hashlib, sys; from tests.clips import moving; import opusclip_mlops.video as v\n"
        "frames = moving(20, 144, 176)\n"
        "for codec in ('h264', 'vp9'):\n"
        "    v.write_reel(v.reel_of(frames, fps=8), sys.argv[1], texts=v.Texts(), codec=codec)\n"
        "    print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())"
    )
    found = set()
    for filling in ("0", "77", "200"):
        around = {
            **os.environ,
            "MALLOC_PERTURB_": filling,
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-c", code, str(tmp_path / "clip")]
        found.add(subprocess.run(command, env=around, capture_output=True, check=True).stdout)
    assert len(found) == 1


def test_a_webm_is_vp9_and_looks_like_its_frames(carphone: Clip, tmp_path: Path) -> None:
    """The same pixel format, rate and colours as an mp4, and its index before the pictures."""
    path = tmp_path / "clip.webm"
    write_reel(reel_of(carphone.frames[:30], fps=12.5), path, texts=Texts(), codec="vp9")
    data = path.read_bytes()
    assert data.index(bytes.fromhex("1c53bb6b")) < data.index(bytes.fromhex("1f43b675"))
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert container.format.name == "matroska,webm"
        assert (codec.name, codec.pix_fmt) == ("vp9", "yuv420p")
        assert (codec.colorspace, codec.color_range) == (1, 1)
    clip = read_clip(path)
    assert clip.fps == 12.5
    error = np.mean((clip.frames - carphone.frames[:30].astype(float)) ** 2)
    assert 10 * np.log10(255**2 / error) > 35


# Size

NOISE = np.random.default_rng(0).integers(0, 256, (16, 128, 128, 3), dtype=np.uint8)


@pytest.mark.parametrize("codec", ["h264", "vp9"])
@pytest.mark.parametrize("max_bytes", [100_000, 20_000, 2500])
def test_a_file_is_never_larger_than_asked(codec: Codec, max_bytes: int, tmp_path: Path) -> None:
    """Even noise fits, plays as long as before, and says what it cost."""
    path = tmp_path / "clip"
    reel = reel_of(NOISE, fps=8)
    lost = write_reel(reel, path, texts=Texts(title="t"), codec=codec, max_bytes=max_bytes)
    assert path.stat().st_size <= max_bytes
    assert lost.startswith("made to fit ")
    assert read_said(path).remark == lost
    with av.open(str(path)) as container:
        assert float(container.duration / 1e6) == pytest.approx(2.0, abs=0.01)


def test_quality_goes_before_size_and_size_before_frames(tmp_path: Path) -> None:
    """Each step down is taken only when the one before is used up."""
    lost = [
        write_reel(reel_of(NOISE, fps=8), tmp_path / "clip.mp4", texts=Texts(), max_bytes=limit)
        for limit in (10**7, 100_000, 10_000, 2500)
    ]
    words = [("crf" in one, "x" in one, "fps" in one) for one in lost]
    assert words == [
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (True, True, True),
    ]


@pytest.mark.parametrize("max_bytes", [1, 300])
def test_what_cannot_fit_is_refused(max_bytes: int, tmp_path: Path) -> None:
    """One frame of 64 pixels has its size: nothing is left behind."""
    with pytest.raises(VideoError, match="times max_bytes: allow more"):
        write_reel(reel_of(NOISE, fps=8), tmp_path / "new/c", texts=Texts(), max_bytes=max_bytes)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_size_of_nothing_is_refused(tmp_path: Path) -> None:
    """By its name."""
    with pytest.raises(VideoError, match="max_bytes is 0: pass 1 or more"):
        write_reel(reel_of(NOISE, fps=8), tmp_path / "clip.mp4", texts=Texts(), max_bytes=0)


def test_pictures_wider_than_browsers_play_are_shrunk(tmp_path: Path) -> None:
    """A batch of many clips side by side is still seen whole, and the file says so."""
    wide = moving(1, 16, 12_000)
    lost = write_reel(reel_of(wide, fps=8), tmp_path / "clip.mp4", texts=Texts())
    assert lost == "made smaller: 8192x10"
    assert read_clip(tmp_path / "clip.mp4").frames.shape == (1, 10, 8192, 3)
