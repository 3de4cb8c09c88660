"""Facts about `opusclip_mlops.pixels`: any video a model makes becomes RGB bytes, or is refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from opusclip_mlops.errors import VideoError
from opusclip_mlops.pixels import to_frames

RGB = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
GRAY = np.repeat(RGB[..., :1], 3, axis=-1)
ALPHA = np.concatenate([RGB, RGB[..., :1]], axis=-1)


@pytest.mark.parametrize(
    ("video", "expected"),
    [
        pytest.param(RGB, RGB, id="THWC"),
        pytest.param(RGB.transpose(0, 3, 1, 2), RGB, id="TCHW"),
        pytest.param(ALPHA, RGB, id="alpha last"),
        pytest.param(ALPHA.transpose(0, 3, 1, 2), RGB, id="alpha first"),
        pytest.param(RGB[..., :1], GRAY, id="gray last"),
        pytest.param(RGB[..., :1].transpose(0, 3, 1, 2), GRAY, id="gray first"),
        pytest.param(RGB[..., 0], GRAY, id="THW"),
        pytest.param(RGB.astype(np.int64), RGB, id="int64"),
        pytest.param(RGB / 255, RGB, id="float64"),
        pytest.param((RGB / 255).astype(np.float16), RGB, id="float16"),
        pytest.param(list(RGB), RGB, id="list of pictures"),
        pytest.param(list(RGB[..., 0]), GRAY, id="list of gray pictures"),
        pytest.param(list(torch.from_numpy(RGB).permute(0, 3, 1, 2)), RGB, id="list of tensors"),
        pytest.param([Image.fromarray(x) for x in RGB], RGB, id="PIL RGB"),
        pytest.param([Image.fromarray(x) for x in ALPHA], RGB, id="PIL RGBA"),
        pytest.param([Image.fromarray(x) for x in RGB[..., 0]], GRAY, id="PIL gray"),
        pytest.param(torch.from_numpy(RGB) / 255, RGB, id="tensor"),
        pytest.param((torch.from_numpy(RGB) / 255).requires_grad_(), RGB, id="tensor with grad"),
        pytest.param(np.stack([RGB, GRAY]), np.concatenate([RGB, GRAY], axis=2), id="BTHWC"),
        pytest.param(
            np.stack([RGB, GRAY]).transpose(0, 1, 4, 2, 3),
            np.concatenate([RGB, GRAY], axis=2),
            id="BTCHW",
        ),
    ],
)
def test_every_layout_gives_the_same_bytes(video: object, expected: np.ndarray) -> None:
    """A video comes out as the same pixels in whatever layout and type it came in."""
    frames = to_frames(video)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, expected)


def test_bfloat16_is_rounded_not_refused() -> None:
    """A bfloat16 tensor, which numpy has no type for, is within its own precision."""
    frames = to_frames((torch.from_numpy(RGB) / 255).bfloat16())
    assert np.abs(frames.astype(int) - RGB).max() <= 1


def test_value_range_scales_black_to_white() -> None:
    """The ends of value_range become 0 and 255, its middle 128; a hair outside is clipped."""
    values = np.array([-1.0, 0.0, 1.0, -1.001, 1.001]).reshape(5, 1, 1, 1)
    frames = to_frames(values, value_range=(-1.0, 1.0))
    assert frames[:, 0, 0, 0].tolist() == [0, 128, 255, 0, 255]


def test_a_shape_that_fits_twice_is_read_as_rgb() -> None:
    """Three channels win over four, wherever they stand."""
    assert to_frames(np.zeros((2, 3, 5, 4), np.uint8)).shape == (2, 5, 4, 3)
    assert to_frames(np.zeros((2, 4, 5, 3), np.uint8)).shape == (2, 4, 5, 3)


def test_the_scale_of_alpha_does_not_matter() -> None:
    """Alpha of 0..255 beside colours of 0..1 is dropped before values are checked."""
    video = np.concatenate([RGB / 255, np.full((5, 6, 7, 1), 255.0)], axis=-1)
    np.testing.assert_array_equal(to_frames(video), RGB)


@pytest.mark.parametrize(
    ("video", "said"),
    [
        pytest.param(RGB / 127.5 - 1, r"-1 to 1, .*value_range=\(-1.0, 1.0\)", id="-1..1"),
        pytest.param(RGB.astype(float), r"0 to 255, .*value_range=\(0.0, 255.0\)", id="0..255"),
        pytest.param(RGB * 9.0, "0 to 2295, .*pass its value_range", id="beyond"),
        pytest.param(np.full((2, 4, 4, 3), np.nan), "NaN or Inf", id="NaN"),
        pytest.param(np.full((2, 4, 4, 3), np.inf), "NaN or Inf", id="Inf"),
        pytest.param(RGB.astype(np.int32) - 1, "from -1 to 254, outside 0..255", id="negative"),
        pytest.param(RGB.astype(np.int32) + 1, "from 1 to 256, outside 0..255", id="above 255"),
        pytest.param(RGB > 9, "bool has no brightness", id="bool"),
        pytest.param(RGB.astype(complex), "complex128 has no brightness", id="complex"),
        pytest.param(RGB[:0], "is empty", id="no frames"),
        pytest.param(RGB[:, :0], "is empty", id="no pixels"),
        pytest.param([], "holds no frames", id="empty list"),
        pytest.param(RGB[0, ..., 0], "put the picture in a list", id="gray picture"),
        pytest.param(RGB[0], "put the picture in a list", id="colour picture"),
        pytest.param(np.zeros((2, 5, 6, 7), np.uint8), r"\(2, 5, 6, 7\) is not", id="no channels"),
        pytest.param(np.zeros(3), r"\(3,\) is not", id="one axis"),
        pytest.param(np.zeros((1,) * 6), "is not", id="six axes"),
        pytest.param([RGB[0], RGB[0, :-1]], "differ in shape", id="two sizes"),
        pytest.param("clip.mp4", "cannot be made from str", id="a path"),
        pytest.param([1, 2], "cannot be made from int", id="numbers"),
        pytest.param(io.BytesIO(b"film"), "cannot be made from bytes", id="an open file"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(video: object, said: str) -> None:
    """Instead of a black or scrambled clip there is one line that says what was seen."""
    with pytest.raises(VideoError, match=said) as error:
        to_frames(video)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_an_impossible_value_range_is_refused(ends: tuple[float, float]) -> None:
    """Black must be below white, and both finite."""
    with pytest.raises(VideoError, match="is not \\(black, white\\)"):
        to_frames(RGB / 255, value_range=ends)
