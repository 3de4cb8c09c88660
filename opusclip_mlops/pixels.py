"""RGB bytes from whatever a model produced: arrays, tensors, pictures, in any usual layout."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from opusclip_mlops.errors import VideoError

Frames = npt.NDArray[np.uint8]

_LAYOUTS = "(T,H,W,C), (T,C,H,W) or (T,H,W), or the first two with a batch in front; C is 1, 3, 4"
_CHANNEL_COUNTS = (3, 1, 4)  # in the order in which a shape that fits twice is read
_USUAL_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
_SLACK = 1e-3  # how far outside value_range a float may lie, as a share of its width


def to_frames(video: Any, *, value_range: tuple[float, float] = (0.0, 1.0)) -> Frames:
    """Bring a video from any usual form to RGB bytes.

    Args:
        video: a numpy array, a torch tensor, or a list of frames (arrays, tensors or
            PIL images). Layouts: (T,H,W,C), (T,C,H,W), (T,H,W) gray; (B,T,H,W,C) and
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
    pixels = _channels_last(_array(video))
    if pixels.ndim == 5:
        pixels = np.concatenate(list(pixels), axis=2)
    frames = _bytes(pixels, value_range)
    gray = frames.shape[-1] == 1
    return np.ascontiguousarray(np.repeat(frames, 3, axis=-1) if gray else frames)


def _array(video: Any) -> npt.NDArray[Any]:
    """The numbers of a video, or of one frame, in the layout they came in."""
    if isinstance(video, np.ndarray):
        return video
    if hasattr(video, "convert") and hasattr(video, "mode"):
        numbers = video.mode[0] in "IF"  # not 8-bit colours: converting would clip them
        return np.asarray(video if numbers else video.convert("RGB"))
    if isinstance(video, (list, tuple)):
        return stack_frames([_array(frame) for frame in video], "the list")
    if hasattr(video, "detach"):
        return _tensor_array(video)
    raise VideoError(
        f"a video cannot be made from {type(video).__name__}: pass a numpy array, "
        "a torch tensor, or a list of frames"
    )


def _tensor_array(tensor: Any) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu()
    try:
        return np.asarray(tensor.numpy())
    except TypeError:  # bfloat16 has no numpy type
        return np.asarray(tensor.float().numpy())


def stack_frames(frames: list[npt.NDArray[Any]], origin: str) -> npt.NDArray[Any]:
    """Join frames of one shape along a new first axis.

    Raises:
        VideoError: no frames, or frames of different shapes; `origin` says whose.
    """
    if not frames:
        raise VideoError(f"{origin} holds no frames: pass at least one")
    shapes = sorted({frame.shape for frame in frames}, key=str)
    if len(shapes) > 1:
        raise VideoError(
            f"the frames of {origin} differ in shape, {shapes[0]} and {shapes[1]}: "
            "bring them to one size first"
        )
    return np.stack(frames)


def _channels_last(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A view in (T,H,W,C) or (B,T,H,W,C)."""
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


def _bytes(pixels: npt.NDArray[Any], value_range: tuple[float, float]) -> Frames:
    """Pixel values as 0..255; alpha goes first, its scale is its own."""
    pixels = pixels[..., :3] if pixels.shape[-1] == 4 else pixels
    if pixels.dtype == np.uint8:
        return pixels
    if np.issubdtype(pixels.dtype, np.integer):
        return _integer_bytes(pixels)
    if np.issubdtype(pixels.dtype, np.floating):
        return _float_bytes(pixels, value_range)
    raise VideoError(f"a video of {pixels.dtype} has no brightness: pass uint8 or floats")


def _integer_bytes(pixels: npt.NDArray[Any]) -> Frames:
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 255:
        raise VideoError(
            f"a {pixels.dtype} video runs from {low} to {high}, outside 0..255: "
            "pass uint8, or floats with value_range"
        )
    return pixels.astype(np.uint8)


def _float_bytes(pixels: npt.NDArray[Any], value_range: tuple[float, float]) -> Frames:
    black, white = value_range
    if not -math.inf < black < white < math.inf:
        raise VideoError(f"value_range {value_range} is not (black, white), black the smaller")
    _check_floats(pixels, black, white)
    out = np.empty(pixels.shape, np.uint8)
    for source, target in zip(pixels, out, strict=True):  # frame by frame, for memory
        scaled = (source.astype(np.float64) - black) * (255.0 / (white - black))
        target[...] = np.rint(scaled.clip(0.0, 255.0))
    return out


def _check_floats(pixels: npt.NDArray[Any], black: float, white: float) -> None:
    low, high = float(pixels.min()), float(pixels.max())
    seen = f"a float video runs from {low:g} to {high:g}"
    if not (math.isfinite(low) and math.isfinite(high)):
        raise VideoError(f"{seen}, with NaN or Inf: replace them, e.g. by numpy.nan_to_num")
    slack = _SLACK * (white - black)
    if black - slack <= low and high <= white + slack:
        return
    usual = [ends for ends in _USUAL_RANGES if ends[0] <= low and high <= ends[1]]
    advice = f"pass value_range={usual[0]}" if usual else "clip it, or pass its value_range"
    raise VideoError(f"{seen}, outside value_range ({black:g}, {white:g}): {advice}")
