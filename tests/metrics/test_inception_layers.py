"""Facts about `opusclip_mlops.metrics.inception_layers`, beside the graph that a package ships."""

import io
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opusclip_mlops.errors import WeightsError
from opusclip_mlops.metrics.inception import FEATURES
from opusclip_mlops.metrics.inception_layers import (
    LAYERS,
    inception_layers,
    parameters_in,
    prepared,
    up_to,
)
from opusclip_mlops.metrics.networks import fill
from opusclip_mlops.weights import Weights, read_weights


@pytest.fixture(scope="module")
def weights() -> Weights:
    """The installed package's file."""
    return read_weights(FEATURES)


@pytest.fixture(scope="module")
def layers(weights: Weights) -> nn.Sequential:
    """Our layers with its parameters."""
    made = inception_layers()
    fill(made, parameters_in(made, weights), weights)
    return made.eval()


def graph(weights: Weights) -> torch.jit.ScriptModule:
    """The network as the package has it, with code of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(io.BytesIO(weights.content)).eval()


def noise(*shape: int) -> Tensor:
    """The same bytes each time."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_the_layers_are_the_shipped_graph(weights: Weights, layers: nn.Sequential) -> None:
    """Features of the last pool differ by rounding alone."""
    pictures = prepared(noise(3, 3, 144, 176))
    with torch.no_grad():
        expected = graph(weights)(pictures)
        found = up_to(2048, layers, pictures)
    assert found.shape == (3, 2048)
    assert float(expected.abs().max()) > 1
    assert float((found - expected).abs().max()) < 5e-6


@pytest.mark.parametrize("layer", [64, 192, 768])
def test_every_layer_has_as_many_features_as_its_name(layers: nn.Sequential, layer: int) -> None:
    """The numbers by which FID names the layers."""
    with torch.no_grad():
        assert up_to(layer, layers, prepared(noise(1, 3, 75, 75))).shape == (1, layer)  # type: ignore[arg-type]
    assert list(LAYERS) == [64, 192, 768, 2048]


def test_parts_are_named_as_in_the_official_file() -> None:
    """So that its state dict fills them."""
    names = inception_layers().state_dict().keys()
    assert len([name for name in names if name.endswith("conv.weight")]) == 94
    assert {
        "Conv2d_1a_3x3.conv.weight",
        "Conv2d_4a_3x3.bn.running_var",
        "Mixed_5b.branch5x5_2.conv.weight",
        "Mixed_5d.branch_pool.bn.bias",
        "Mixed_6a.branch3x3dbl_3.conv.weight",
        "Mixed_6e.branch7x7dbl_5.bn.running_mean",
        "Mixed_7a.branch7x7x3_4.conv.weight",
        "Mixed_7c.branch3x3dbl_3b.bn.weight",
    } <= names


@pytest.mark.parametrize("size", [(299, 299), (144, 176), (16, 700), (1, 2), (598, 300)])
def test_pictures_are_resized_as_by_tensorflow_1(size: tuple[int, int]) -> None:
    """Output pixel i lies at i * size / 299, between its two neighbours, or on the last one."""
    pictures = noise(1, 3, *size)
    found = prepared(pictures)[0] * 128 + 128
    for row, column in ((0, 0), (1, 298), (150, 77), (298, 298)):
        expected = by_hand(pictures[0].double(), row, column)
        torch.testing.assert_close(found[:, row, column].double(), expected, atol=1e-2, rtol=0)


def by_hand(picture: Tensor, row: int, column: int) -> Tensor:
    """One output pixel."""
    height, width = picture.shape[1:]
    y, x = row * height / 299, column * width / 299
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    above = picture[:, top, left] + (picture[:, top, right] - picture[:, top, left]) * (x - left)
    below = picture[:, bottom, left] + (picture[:, bottom, right] - picture[:, bottom, left]) * (
        x - left
    )
    return above + (below - above) * (y - top)


def test_a_traced_file_of_another_network_is_refused(tmp_path: Path) -> None:
    """It has another number of tensors, or others."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), content)
    other = Weights(
        content=content.getvalue(), form="torchscript", path=tmp_path / "x.pt", sha256=""
    )
    with pytest.raises(WeightsError, match=r"x\.pt is of another network: 2 tensors"):
        parameters_in(inception_layers(), other)
    text = Weights(content=b"text", form="torchscript", path=tmp_path / "x.pt", sha256="")
    with pytest.raises(WeightsError, match=r"x\.pt is no TorchScript"):
        parameters_in(inception_layers(), text)
