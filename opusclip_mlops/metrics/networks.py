"""What the metrics with a network share: pictures in, and the network as it always is."""

import hashlib
import io
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from opusclip_mlops.errors import VideoError, WeightsError
from opusclip_mlops.redaction import one_line
from opusclip_mlops.weights import Weights

ValueRange = tuple[float, float]

_SLACK = 1e-3  # how far outside value_range a float may lie, as a share of its width
_AXES = {4: "(N,H,W,3) or (N,3,H,W)", 5: "(N,T,H,W,3) or (N,T,3,H,W)"}


def pictures_in(
    pictures: Any, *, value_range: ValueRange | None, axes: int = 4, of: str = "pictures"
) -> Tensor:
    """Read pictures, or clips, in the layouts they come in.

    Args:
        pictures: An array or tensor of (N,H,W,3) or (N,3,H,W), with `axes` of 5 a time axis
            behind N. A shape that is both is read with channels last.
        value_range: What black and white are. None: uint8, 0..255. Otherwise floats.
        axes: 4 for pictures, 5 for clips.
        of: What they are, for the messages.

    Returns:
        A view with channels before height and width, in the type that was given.

    Raises:
        VideoError: Another shape or type, no pictures, NaN, or values outside their range.
    """
    tensor = _tensor(pictures, of)
    if tensor.ndim != axes or 3 not in (tensor.shape[-1], tensor.shape[-3]):
        raise VideoError(f"{of} of shape {tuple(tensor.shape)} are not {_AXES[axes]}")
    if 0 in tensor.shape:
        raise VideoError(f"{of} of shape {tuple(tensor.shape)} are none: pass at least one")
    _check_values(tensor, value_range, of)
    return tensor.movedim(-1, -3) if tensor.shape[-1] == 3 else tensor


def _tensor(pictures: Any, of: str) -> Tensor:
    if isinstance(pictures, np.ndarray):
        return torch.from_numpy(pictures if pictures.flags.writeable else pictures.copy())
    if isinstance(pictures, Tensor):
        return pictures.detach()
    raise VideoError(f"{of} are a {type(pictures).__name__}: pass a numpy array or a torch tensor")


def _check_values(tensor: Tensor, value_range: ValueRange | None, of: str) -> None:
    given = str(tensor.dtype).removeprefix("torch.")
    if value_range is None:
        if tensor.dtype != torch.uint8:
            raise VideoError(
                f"{of} are of {given}: pass uint8, or say what black and white are, "
                "such as value_range=(0.0, 1.0)"
            )
        return
    if not tensor.is_floating_point():
        raise VideoError(f"{of} are of {given}, and value_range={value_range} is of floats")
    _check_range(tensor, value_range, of)


def _check_range(tensor: Tensor, value_range: ValueRange, of: str) -> None:
    black, white = value_range
    if not -math.inf < black < white < math.inf:
        raise VideoError(f"value_range {value_range} is not (black, white), black the smaller")
    low, high = (float(end) for end in tensor.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise VideoError(f"{of} hold NaN or Inf: replace them, e.g. by torch.nan_to_num")
    slack = _SLACK * (white - black)
    if low < black - slack or high > white + slack:
        raise VideoError(
            f"{of} run from {low:g} to {high:g}, outside value_range "
            f"({black:g}, {white:g}): clip them, or pass their value_range"
        )


def in_parts(items: Tensor, length: int) -> Iterator[Tensor]:
    """A few at a time, so that memory stays bounded."""
    for start in range(0, len(items), length):
        yield items[start : start + length]


def colour_range(value_range: ValueRange | None) -> str:
    """What the pixels are, for a passport."""
    if value_range is None:
        return "RGB 0..255"
    return f"RGB floats {value_range[0]:g}..{value_range[1]:g}"


def to_unit(pictures: Tensor, value_range: ValueRange | None) -> Tensor:
    """The pictures as float32 in -1..1."""
    black, white = (0.0, 255.0) if value_range is None else value_range
    return (pictures.float() - black) * (2.0 / (white - black)) - 1.0


def to_bytes(pictures: Tensor, value_range: ValueRange | None) -> Tensor:
    """The pictures as uint8, rounded to the nearest."""
    if value_range is None:
        return pictures
    black, white = value_range
    return ((pictures.float() - black) * (255.0 / (white - black))).round().clamp(0, 255).byte()


@contextmanager
def measuring(device: torch.device) -> Iterator[None]:
    """No gradients and no half precision, whatever the training loop around has switched on.

    TF32 on a GPU stays as torch is set: with it, features move by about a thousandth.
    """
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


class Frozen(nn.Module):
    """A network that measures: it is never trained, whatever the model around it is."""

    def freeze(self) -> None:
        """Call once the parameters are there."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Stays as it is: norms by batch would make another metric."""
        return super().train(mode=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves with the model to a device, and stays float32 where the model is made smaller."""
        return super()._apply(  # type: ignore[no-untyped-call, no-any-return]
            lambda tensor: tensor.to(fn(tensor).device), recurse
        )


def tensors_in(weights: Weights) -> Mapping[str, Tensor]:
    """The tensors of a "torch" file by name; nothing else is loaded from it.

    Raises:
        WeightsError: It holds no such thing.
    """
    try:
        content = torch.load(io.BytesIO(weights.content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        problem = one_line(str(error), at_most=200)
        raise WeightsError(f"{weights.path} is no file of tensors: {problem}") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{weights.path} is of another network: it names no tensors")
    return content


def fill(network: nn.Module, state: Mapping[str, Tensor], weights: Weights) -> None:
    """Give a network all its parameters; what else there is in the state is left.

    Raises:
        WeightsError: One is missing, or of another shape.
    """
    own = network.state_dict()
    needed = [name for name in own if not name.endswith("num_batches_tracked")]
    for name in needed:
        if name not in state or state[name].shape != own[name].shape:
            shape = tuple(own[name].shape)
            raise WeightsError(
                one_line(f"{weights.path} is of another network: no {name} of shape {shape}")
            )
    network.load_state_dict({name: state[name] for name in needed}, strict=False)


def parameters_sha256(network: nn.Module) -> str:
    """Digest of what a network computes with: names, shapes and float32 values.

    Two files that hold the same parameters give the same digest, so that their values can be
    compared; it is not the digest of either file.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if tensor.is_floating_point():
            values = tensor.detach().cpu().float().contiguous().numpy()
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(values.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()
