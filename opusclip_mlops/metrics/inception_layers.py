"""The layers of the Inception network of 2015-12-05, and the files that they are filled from."""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from opusclip_mlops.errors import WeightsError
from opusclip_mlops.metrics.networks import tensors_in
from opusclip_mlops.redaction import one_line
from opusclip_mlops.weights import Weights

Layer = Literal[64, 192, 768, 2048]
LAYERS: Mapping[Layer, str] = {  # by its number of features, the last layer it takes
    64: "MaxPool_1",
    192: "MaxPool_2",
    768: "Mixed_6e",
    2048: "Mixed_7c",
}
Pool = Literal["", "mean", "most", "halving"]

_SIDE = 299  # pixels
_NORM_EPSILON = 0.001


def prepared(pictures: Tensor) -> Tensor:
    """Bytes (N,3,H,W) as the network takes them: 299x299, -1..1, by (x - 128) / 128."""
    floats = pictures.float()
    if floats.shape[-2:] != (_SIDE, _SIDE):
        rows, columns = (_shares(size).to(floats.device) for size in floats.shape[-2:])
        floats = rows @ floats @ columns.T
    return (floats - 128.0) / 128.0


def _shares(size: int) -> Tensor:
    """How much of each of `size` pixels is in each of 299, (299, size).

    Output i lies at i * size / 299, between two pixels: without the half pixel by which later
    libraries shift it, and without antialiasing.
    """
    places = torch.arange(_SIDE, dtype=torch.float32) * (size / _SIDE)
    left = places.long().clamp(max=size - 1)
    right = (left + 1).clamp(max=size - 1)
    share = (places - left)[:, None]
    return functional.one_hot(left, size) * (1 - share) + functional.one_hot(right, size) * share


def up_to(layer: Layer, layers: nn.Sequential, pictures: Tensor) -> Tensor:
    """The mean over each picture of one layer's features, (N, layer)."""
    features = pictures
    for name, part in layers.named_children():
        features = part(features)
        if name == LAYERS[layer]:
            break
    return features.mean((2, 3))


class _Conv(nn.Module):
    """A convolution, normed by the statistics that it was trained with."""

    def __init__(self, inputs: int, step: "_Step") -> None:
        super().__init__()
        size = (step.kernel, step.stride, step.padding)
        self.conv = nn.Conv2d(inputs, step.outputs, *size, bias=False)
        self.bn = nn.BatchNorm2d(step.outputs, eps=_NORM_EPSILON)

    def forward(self, features: Tensor) -> Tensor:
        normed: Tensor = self.bn(self.conv(features))
        return normed.relu_()


@dataclass(frozen=True, slots=True)
class _Step:
    """One convolution; it keeps the picture's size where it is `even`."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    even: bool = True

    @property
    def padding(self) -> tuple[int, int]:
        height, width = self.kernel
        return (height // 2, width // 2) if self.even else (0, 0)


@dataclass(frozen=True, slots=True)
class _Road:
    """What is done to a block's input: a pool, steps after one another, ends side by side."""

    steps: tuple[_Step, ...] = ()
    ends: tuple[_Step, ...] = ()
    pool: Pool = ""


class _Mixed(nn.Module):
    """Roads side by side, their outputs joined."""

    def __init__(self, inputs: int, *roads: _Road) -> None:
        super().__init__()
        self._roads = roads
        for road in roads:
            width = inputs
            for step in road.steps:
                self.add_module(step.name, _Conv(width, step))
                width = step.outputs
            for end in road.ends:
                self.add_module(end.name, _Conv(width, end))

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([part for road in self._roads for part in self._gone(road, features)], 1)

    def _gone(self, road: _Road, features: Tensor) -> list[Tensor]:
        features = _pooled(features, road.pool)
        for step in road.steps:
            features = self.get_submodule(step.name)(features)
        ends = [self.get_submodule(end.name)(features) for end in road.ends]
        return ends or [features]


def _pooled(features: Tensor, pool: Pool) -> Tensor:
    if pool == "mean":
        return functional.avg_pool2d(features, 3, 1, 1, count_include_pad=False)
    if pool == "most":
        return functional.max_pool2d(features, 3, 1, 1)
    return functional.max_pool2d(features, 3, 2) if pool == "halving" else features


def inception_layers() -> nn.Sequential:
    """The network to its last features, unfilled; parts are named as in the official file."""
    layers = nn.Sequential()
    width = 3
    for step in _FIRST:
        layers.add_module(step.name, _Conv(width, step))
        width = step.outputs
        if step.name in _POOL_AFTER:
            layers.add_module(_POOL_AFTER[step.name], nn.MaxPool2d(3, 2))
    for name, block in _blocks().items():
        layers.add_module(name, block)
    return layers


_POOL_AFTER = {"Conv2d_2b_3x3": "MaxPool_1", "Conv2d_4a_3x3": "MaxPool_2"}
_FIRST = (
    _Step("Conv2d_1a_3x3", 32, (3, 3), 2, even=False),
    _Step("Conv2d_2a_3x3", 32, (3, 3), even=False),
    _Step("Conv2d_2b_3x3", 64, (3, 3)),
    _Step("Conv2d_3b_1x1", 80),
    _Step("Conv2d_4a_3x3", 192, (3, 3), even=False),
)


def _blocks() -> dict[str, _Mixed]:
    return {
        "Mixed_5b": _fine(192, 32),
        "Mixed_5c": _fine(256, 64),
        "Mixed_5d": _fine(288, 64),
        "Mixed_6a": _halving_fine(),
        "Mixed_6b": _middle(128),
        "Mixed_6c": _middle(160),
        "Mixed_6d": _middle(160),
        "Mixed_6e": _middle(192),
        "Mixed_7a": _halving_middle(),
        "Mixed_7b": _coarse(1280, "mean"),
        "Mixed_7c": _coarse(2048, "most"),
    }


def _single(name: str, outputs: int, pool: Pool = "") -> _Road:
    return _Road((_Step(name, outputs),), pool=pool)


def _fine(inputs: int, pooled: int) -> _Mixed:
    """A block at 35x35."""
    twice = (_Step("branch3x3dbl_2", 96, (3, 3)), _Step("branch3x3dbl_3", 96, (3, 3)))
    return _Mixed(
        inputs,
        _single("branch1x1", 64),
        _Road((_Step("branch5x5_1", 48), _Step("branch5x5_2", 64, (5, 5)))),
        _Road((_Step("branch3x3dbl_1", 64), *twice)),
        _single("branch_pool", pooled, "mean"),
    )


def _halving_fine() -> _Mixed:
    """From 35x35 to 17x17."""
    last = _Step("branch3x3dbl_3", 96, (3, 3), 2, even=False)
    return _Mixed(
        288,
        _Road((_Step("branch3x3", 384, (3, 3), 2, even=False),)),
        _Road((_Step("branch3x3dbl_1", 64), _Step("branch3x3dbl_2", 96, (3, 3)), last)),
        _Road(pool="halving"),
    )


def _middle(width: int) -> _Mixed:
    """A block at 17x17."""
    once = (_Step("branch7x7_2", width, (1, 7)), _Step("branch7x7_3", 192, (7, 1)))
    twice = (
        _Step("branch7x7dbl_2", width, (7, 1)),
        _Step("branch7x7dbl_3", width, (1, 7)),
        _Step("branch7x7dbl_4", width, (7, 1)),
        _Step("branch7x7dbl_5", 192, (1, 7)),
    )
    return _Mixed(
        768,
        _single("branch1x1", 192),
        _Road((_Step("branch7x7_1", width), *once)),
        _Road((_Step("branch7x7dbl_1", width), *twice)),
        _single("branch_pool", 192, "mean"),
    )


def _halving_middle() -> _Mixed:
    """From 17x17 to 8x8."""
    wide = (_Step("branch7x7x3_2", 192, (1, 7)), _Step("branch7x7x3_3", 192, (7, 1)))
    return _Mixed(
        768,
        _Road((_Step("branch3x3_1", 192), _Step("branch3x3_2", 320, (3, 3), 2, even=False))),
        _Road(
            (
                _Step("branch7x7x3_1", 192),
                *wide,
                _Step("branch7x7x3_4", 192, (3, 3), 2, even=False),
            )
        ),
        _Road(pool="halving"),
    )


def _coarse(inputs: int, pool: Pool) -> _Mixed:
    """A block at 8x8."""
    return _Mixed(
        inputs,
        _single("branch1x1", 320),
        _Road((_Step("branch3x3_1", 384),), _crossed("branch3x3_2")),
        _Road(
            (_Step("branch3x3dbl_1", 448), _Step("branch3x3dbl_2", 384, (3, 3))),
            _crossed("branch3x3dbl_3"),
        ),
        _single("branch_pool", 192, pool),
    )


def _crossed(name: str) -> tuple[_Step, _Step]:
    return _Step(f"{name}a", 384, (1, 3)), _Step(f"{name}b", 384, (3, 1))


def parameters_in(layers: nn.Sequential, weights: Weights) -> Mapping[str, Tensor]:
    """The parameters that a file has for the layers, by the official names.

    Raises:
        WeightsError: The file is of another network.
    """
    return tensors_in(weights) if weights.form == "torch" else _traced(layers, weights)


def _traced(layers: nn.Sequential, weights: Weights) -> Mapping[str, Tensor]:
    """The parameters of a TorchScript network, whose convolutions have the same order."""
    network = _loaded(weights)
    found = list(network.state_dict().values())
    state: dict[str, Tensor] = {}
    convs = [name for name, part in layers.named_modules() if isinstance(part, _Conv)]
    if len(found) != 4 * len(convs):
        raise WeightsError(one_line(f"{weights.path} is of another network: {len(found)} tensors"))
    for number, name in enumerate(convs):
        kernel, shift, mean, variance = found[4 * number : 4 * number + 4]
        state[f"{name}.conv.weight"] = kernel
        state |= _norm(f"{name}.bn", shift, mean, variance)
    return state


def _loaded(weights: Weights) -> torch.jit.ScriptModule:
    """Loading runs code of the file: its digest is known, or the caller trusts it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return torch.jit.load(io.BytesIO(weights.content), "cpu")  # type: ignore[no-untyped-call, no-any-return]
        except (RuntimeError, ValueError) as error:
            raise WeightsError(one_line(f"{weights.path} is no TorchScript")) from error


def _norm(name: str, shift: Tensor, mean: Tensor, variance: Tensor) -> dict[str, Tensor]:
    """TensorFlow's graph has no factor: it is one."""
    return {
        f"{name}.weight": torch.ones_like(shift),
        f"{name}.bias": shift,
        f"{name}.running_mean": mean,
        f"{name}.running_var": variance,
    }
