"""RGB bytes from whatever a model produced: arrays, tensors, pictures, in any usual layout."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from opusclip_mlops.errors import VideoError

Array = npt.NDArray[Any]
Frames = npt.NDArray[np.uint8]
Range = tuple[float, float]

_LAYOUTS = "(T,H,W,C), (T,C,H,W) or (T,H,W), or the first two with a batch in front; C is 1, 3, 4"
_CHANNEL_COUNTS = (3, 1, 4)  # in the order in which a shape that fits twice is read
_USUAL_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
_SLACK = 1e-3  # how far outside value_range a float may lie, as a share of its width
_REACH = 0.25  # of a usual range's ends: what does not go so far is hardly meant in it
_DARK = 1 / 64  # of the range: what never leaves it looks black
_NOT_FRAMES = (str, bytes, bytearray, Mapping)


def to_frames(video: Any, *, value_range: Range = (0.0, 1.0)) -> Frames:
    """Bring a video from any usual form to RGB bytes.

    Args:
        video: a numpy array, a torch tensor, or frames (arrays, tensors or PIL images) in a list
            or from an iterator. Layouts: (T,H,W,C), (T,C,H,W), (T,H,W) gray; (B,T,H,W,C) and
            (B,T,C,H,W) are laid side by side. C is 1 (gray), 3 (RGB) or 4 (RGBA, alpha is
            dropped). A shape that fits two layouts is read with C of 3 before 1 before 4, and
            then with channels last.
        value_range: what black and white are in a float video. Integers are 0..255 always.

    Returns:
        uint8 (T, H, W, 3). A uint8 video may share its memory with the result.

    Raises:
        VideoError: an unknown type or layout, an empty video, or values outside their range
            (NaN and Inf too), so that a wrong scale is never a black clip.
    """
    array = _whole(video)
    pictures = RgbPictures(array, value_range)
    if array.dtype == np.uint8 and pictures.is_rgb:
        return np.ascontiguousarray(pictures.pixels)
    check_values(array, value_range)
    out = np.empty(pictures.shape, np.uint8)
    for index in range(len(out)):  # frame by frame, for memory
        out[index] = pictures[index]
    return out


class RgbPictures:
    """The pictures of an array in any usual layout, each turned to RGB bytes when asked for.

    Attributes:
        pixels: a view of the array as (T, H, W, C) or (B, T, H, W, C), without alpha.
        shape: (T, H, W, 3), a batch side by side.
        dtype: uint8.

    Raises:
        VideoError: an unknown type or layout, or an empty video.
    """

    def __init__(self, array: Array, value_range: Range) -> None:
        self.pixels = colours(array)
        self.dtype = np.dtype(np.uint8)
        self._ends = value_range
        batch = self.pixels.shape[0] if self.pixels.ndim == 5 else 1
        count, height, width = self.pixels.shape[-4:-1]
        self.shape = (count, height, width * batch, 3)

    @property
    def is_rgb(self) -> bool:
        """Whether nothing is to be done but to look."""
        return self.pixels.ndim == 4 and self.pixels.shape[-1] == 3

    def __getitem__(self, index: int) -> Frames:
        """Picture `index` as uint8 (H, W, 3)."""
        batched = self.pixels.ndim == 5
        picture = np.concatenate(self.pixels[:, index], axis=1) if batched else self.pixels[index]
        return np.ascontiguousarray(np.broadcast_to(self._bytes(picture), self.shape[1:]))

    def _bytes(self, picture: Array) -> Frames:
        if not np.issubdtype(picture.dtype, np.floating):
            return picture.astype(np.uint8, copy=False)
        black, white = self._ends
        wide = picture.astype(np.float32 if picture.dtype.itemsize <= 4 else np.float64)
        scaled = np.multiply(np.subtract(wide, black), 255.0 / (white - black))
        rounded: Frames = np.rint(scaled.clip(0.0, 255.0)).astype(np.uint8)
        return rounded


def frames_of(video: Any) -> Iterator[Any] | None:
    """The frames of a list or an iterator, one by one; None for what is an array by itself."""
    if isinstance(video, (list, tuple)):
        return iter(video)
    array_like = hasattr(video, "__array__") or is_tensor(video) or _is_picture(video)
    if array_like or isinstance(video, _NOT_FRAMES) or not isinstance(video, Iterable):
        return None
    return iter(video)


def as_array(video: Any) -> Array:
    """The numbers of a video, or of one frame, in the layout they came in; shared where possible.

    Raises:
        VideoError: an unknown type.
    """
    if isinstance(video, np.ndarray):
        return video
    if _is_picture(video):
        numbers = video.mode[0] in "IF"  # not 8-bit colours: converting would clip them
        return np.asarray(video if numbers else video.convert("RGB"))
    if is_tensor(video):
        return _tensor_array(video)
    if isinstance(video, (list, tuple)):
        return _whole(video)
    if hasattr(video, "__array__"):
        return np.asarray(video)
    raise VideoError(
        f"a video cannot be made from {type(video).__name__}: pass a numpy array, "
        "a torch tensor, or a list of frames"
    )


def _whole(video: Any) -> Array:
    frames = frames_of(video)
    if frames is None:
        return as_array(video)
    return _stacked([as_array(frame) for frame in frames])


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor of torch; an open file has a `detach` too, which would close it."""
    return hasattr(value, "detach") and hasattr(value, "cpu")


def _is_picture(video: Any) -> bool:
    return hasattr(video, "convert") and hasattr(video, "mode")


def _tensor_array(tensor: Any) -> Array:
    tensor = tensor.detach().cpu()
    try:
        return np.asarray(tensor.numpy())
    except TypeError:  # bfloat16 has no numpy type
        return np.asarray(tensor.float().numpy())


def _stacked(frames: list[Array]) -> Array:
    if not frames:
        raise no_frames()
    for index, frame in enumerate(frames):
        check_shape(frame, frames[0].shape, index)
    return np.stack(frames)


def no_frames() -> VideoError:
    """What is said of a list or an iterator that holds nothing."""
    return VideoError("the list of frames holds no frames: pass at least one")


def check_shape(frame: Array, shape: tuple[int, ...], index: int) -> None:
    """Accept a frame that fits the first one.

    Raises:
        VideoError: it has another shape.
    """
    if frame.shape != shape:
        raise VideoError(
            f"the frames differ in shape, {shape} and, at frame {index}, {frame.shape}: "
            "bring them to one size first"
        )


def colours(array: Array) -> Array:
    """A view of a video as (T,H,W,C) or (B,T,H,W,C), C of 1 or 3: alpha has a scale of its own.

    Raises:
        VideoError: an unknown type or layout, or an empty video.
    """
    pixels = _channels_last(array)
    if not (_is_integer(pixels) or np.issubdtype(pixels.dtype, np.floating)):
        raise VideoError(f"a video of {pixels.dtype} has no brightness: pass uint8 or floats")
    return pixels[..., :3] if pixels.shape[-1] == 4 else pixels


def _is_integer(pixels: Array) -> bool:
    return np.issubdtype(pixels.dtype, np.integer) and pixels.dtype.kind != "m"


def _channels_last(pixels: Array) -> Array:
    if pixels.ndim in (3, 4, 5) and 0 in pixels.shape:
        raise VideoError(f"a video of shape {pixels.shape} is empty: pass at least one frame")
    if pixels.ndim == 3 and not _one_picture(pixels.shape):
        return pixels[..., None]
    if pixels.ndim in (4, 5):
        for channels in _CHANNEL_COUNTS:
            for axis in (-1, -3):
                if pixels.shape[axis] == channels:
                    return np.moveaxis(pixels, axis, -1)
    hint = "put the picture in a list" if _one_picture(pixels.shape) else "reorder its axes"
    raise VideoError(f"a video of shape {pixels.shape} is not {_LAYOUTS}: {hint}")


def _one_picture(shape: tuple[int, ...]) -> bool:
    """Whether three axes are one colour picture (H,W,C), and not a gray clip 3 pixels wide."""
    return len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4) and min(shape[:2]) > 4)


def check_values(array: Array, value_range: Range) -> Range:
    """Accept a video whose values lie within their range; returns the least and the largest.

    uint8, which is always in range, is looked at up to the first frame that is not black.

    Raises:
        VideoError: an unknown type or layout, values outside their range, NaN or Inf.
    """
    pixels = colours(array)
    if pixels.dtype.kind == "f":
        return _check_floats(pixels, value_range)
    if pixels.dtype == np.uint8:
        return 0, _brightest(pixels)
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 255:
        raise VideoError(
            f"a {pixels.dtype} video runs from {low} to {high}, outside 0..255: "
            "pass uint8, or floats with value_range"
        )
    return low, high


def _brightest(pixels: Array) -> int:
    """The largest value, or one above 1 that was found on the way."""
    high = 0
    for part in pixels:
        high = max(high, int(part.max()))
        if high > 1:
            break
    return high


def _check_floats(pixels: Array, value_range: Range) -> Range:
    black, white = value_range
    if not -math.inf < black < white < math.inf:
        raise VideoError(f"value_range {value_range} is not (black, white), black the smaller")
    low, high = _extremes(pixels)
    seen = f"a float video runs from {low:g} to {high:g}"
    if not (math.isfinite(low) and math.isfinite(high)):
        raise VideoError(f"{seen}, with NaN or Inf: replace them, e.g. by numpy.nan_to_num")
    slack = _SLACK * (white - black)
    if black - slack <= low and high <= white + slack:
        return low, high
    # What is a little outside has overshot; only what reaches far into a usual range is of it.
    usual = [
        (a, b)
        for a, b in _USUAL_RANGES
        if a <= low and high <= b and (low <= a * _REACH if a else high >= b * _REACH)
    ]
    advice = f"pass value_range={usual[0]}" if usual else "clip it, or pass its value_range"
    raise VideoError(f"{seen}, outside value_range ({black:g}, {white:g}): {advice}")


def _extremes(pixels: Array) -> Range:
    """The least and the largest value, NaN where there is one; by parts that fit a cache."""
    half = pixels.dtype.itemsize == 2  # numpy compares these one by one
    parts = (part.astype(np.float32) if half else part for part in pixels)
    ends = [(part.min(), part.max()) for part in parts]
    low, high = np.min([low for low, _ in ends]), np.max([high for _, high in ends])
    return float(low), float(high)


def doubt(found: Range, dtype: Any, value_range: Range) -> str:
    """What looks wrong with a video whose values lie within their range, "" for nothing.

    Such a video is not refused, as it may be what was meant: a film that begins in the dark, a
    model that has collapsed. One that is black throughout is not doubted.

    Args:
        found: its least and its largest value, as `check_values` gives them.
        dtype: of its numbers.
        value_range: what black and white are in a float video.
    """
    low, high = found
    if np.dtype(dtype).kind != "f":
        advice = "multiply by 255 what runs from 0 to 1"
        return f"looks black: its values are 0 and 1 of 0..255; {advice}" if high == 1 else ""
    black, white = value_range
    seen = f"its values run from {low:g} to {high:g} of {black:g}..{white:g}"
    if 0 < high - black < _DARK * (white - black):
        within = black <= low and high <= 1 < white
        advice = "is value_range (0, 1)?" if within else "was it scaled twice?"
        return f"looks black: {seen}; {advice}"
    washed = high > low >= 0 > black
    return f"looks washed out: {seen}; is value_range (0, 1)?" if washed else ""
