"""Optical flow on the CPU: how far each pixel of a picture has moved in the next one.

Lucas and Kanade, "An iterative image registration technique" (1981), in every pixel, iterated and
from coarse to fine, as in Le Besnerais and Champagnat, "Dense optical flow by iterative local
window registration" (2005). A learnt flow is better at thin things and at large motion; this one
needs no weights, gives the same numbers everywhere, and takes about 15 ms for 176x144.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Plane = npt.NDArray[np.float32]

LEAST_SIDE = 16
"""Pixels: below, there is no window to look at."""
SETTINGS: dict[str, str | int | float] = {
    "flow": "iterative Lucas-Kanade",
    "flow_window": 15,
    "flow_steps": 3,
}
"""What a flow depends on, for a passport."""

_WINDOW, _STEPS = 15, 3
_DAMPING = 1e-3  # levels² a pixel: where a window is flat, nothing moves
_INCONSISTENT = (0.01, 0.5)  # of Sundaram, Brox and Keutzer: share of the motion, pixels²


def flow_between(picture: Plane, following: Plane) -> Plane:
    """Where each pixel of a picture is in the following one.

    Args:
        picture: (H, W) of 0..255, at least `LEAST_SIDE` each way.
        following: the same shape.

    Returns:
        (2, H, W): rows and columns to add, so that `picture[y, x]` is about
        `following[y + flow[0], x + flow[1]]`.
    """
    levels = [(picture, following)]
    while min(levels[-1][0].shape) >= 2 * LEAST_SIDE:
        levels.append((_halved(levels[-1][0]), _halved(levels[-1][1])))
    flow: Plane = np.zeros((2, *levels[-1][0].shape), np.float32)
    for first, second in reversed(levels):
        flow = _grown(flow, first.shape)
        for _ in range(_STEPS):
            flow = _refined(flow, first, second)
    return flow


def moved(picture: Plane, flow: Plane) -> Plane:
    """A picture (H, W) as seen from where the flow starts, between pixels linearly."""
    places = np.indices(picture.shape, dtype=np.float32) + flow
    out: Plane = ndimage.map_coordinates(picture, places, order=1, mode="nearest")
    return out


def visible(forward: Plane, backward: Plane) -> npt.NDArray[np.bool_]:
    """Which pixels are seen in both pictures: there and back again ends where it began.

    |f + b'|² <= 0.01 (|f|² + |b'|²) + 0.5, with b' the backward flow where the forward one leads:
    Sundaram et al., "Dense point trajectories" (2010). What leaves the picture is not visible.
    """
    back = np.stack([moved(part, forward) for part in backward])
    apart = np.square(forward + back).sum(0)
    length = np.square(forward).sum(0) + np.square(back).sum(0)
    share, least = _INCONSISTENT
    seen: npt.NDArray[np.bool_] = _inside(forward) & (apart <= share * length + least)
    return seen


def _inside(flow: Plane) -> npt.NDArray[np.bool_]:
    height, width = flow.shape[1:]
    y, x = np.indices((height, width), dtype=np.float32) + flow
    inside: npt.NDArray[np.bool_] = (y >= 0) & (y <= height - 1) & (x >= 0) & (x <= width - 1)
    return inside


def _halved(plane: Plane) -> Plane:
    smooth: Plane = ndimage.gaussian_filter(plane, 1.0, mode="nearest")[::2, ::2]
    return smooth


def _grown(flow: Plane, shape: tuple[int, ...]) -> Plane:
    """The flow of a picture of half the size; the same flow where the size is the same."""
    if flow.shape[1:] == shape:
        return flow
    factors = (shape[0] / flow.shape[1], shape[1] / flow.shape[2])
    return np.stack([ndimage.zoom(2 * part, factors, order=1) for part in flow])


def _refined(flow: Plane, first: Plane, second: Plane) -> Plane:
    """The flow that explains, in each window, what the flow so far has left over."""
    seen = moved(second, flow)
    dy, dx = (np.asarray(slope, np.float32) for slope in np.gradient(seen))
    left = dy * flow[0] + dx * flow[1] - (seen - first)
    yy, xx = (_windowed(slope * slope) + _DAMPING for slope in (dy, dx))
    yx, yl, xl = _windowed(dy * dx), _windowed(dy * left), _windowed(dx * left)
    found = np.stack([xx * yl - yx * xl, yy * xl - yx * yl]) / (yy * xx - yx * yx)
    return np.asarray(found, np.float32)


def _windowed(plane: Plane) -> Plane:
    out: Plane = ndimage.uniform_filter(plane, _WINDOW, mode="nearest")
    return out
