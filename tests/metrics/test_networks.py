"""Facts about `opusclip_mlops.metrics.networks`: how pictures are read, and networks frozen."""

import pytest
import torch
from torch import nn

from opusclip_mlops.errors import VideoError
from opusclip_mlops.metrics.networks import (
    Frozen,
    colour_range,
    measuring,
    parameters_sha256,
    pictures_in,
    to_bytes,
    to_unit,
)

BYTES = torch.randint(0, 256, (2, 20, 30, 3), dtype=torch.uint8)


def test_pictures_are_read_in_either_layout() -> None:
    """Channels last or first, arrays or tensors: the same pictures."""
    first = BYTES.permute(0, 3, 1, 2)
    for given in (BYTES, first, BYTES.numpy(), first.contiguous()):
        assert torch.equal(pictures_in(given, value_range=None), first)
    clips = BYTES[None]
    assert pictures_in(clips, value_range=None, axes=5).shape == (1, 2, 3, 20, 30)


def test_an_array_that_cannot_be_written_is_read() -> None:
    """Such as a frame that lies in a file."""
    array = BYTES.numpy().copy()
    array.flags.writeable = False
    assert pictures_in(array, value_range=None).shape == (2, 3, 20, 30)
    assert not array.flags.writeable


@pytest.mark.parametrize(
    ("given", "value_range", "message"),
    [
        (BYTES[0], None, r"pictures of shape \(20, 30, 3\) are not \(N,H,W,3\)"),
        (BYTES[..., :1], None, r"shape \(2, 20, 30, 1\) are not"),
        (BYTES[:0], None, "are none: pass at least one"),
        ([1, 2], None, "are a list: pass a numpy array or a torch tensor"),
        (BYTES.float(), None, r"are of float32: pass uint8, or say .* value_range=\(0.0, 1.0\)"),
        (BYTES.int(), None, "are of int32: pass uint8"),
        (BYTES, (0.0, 1.0), r"are of uint8, and value_range=\(0.0, 1.0\) is of floats"),
        (BYTES.float(), (0.0, 1.0), r"run from 0 to 255, outside value_range \(0, 1\)"),
        (BYTES.float() / 255 - 0.5, (0.0, 1.0), "run from -0.5 to 0.5, outside"),
        (torch.full((1, 20, 20, 3), torch.nan), (0.0, 1.0), "hold NaN or Inf"),
        (torch.full((1, 20, 20, 3), torch.inf), (0.0, 1.0), "hold NaN or Inf"),
        (torch.zeros(1, 20, 20, 3), (1.0, 0.0), "is not .black, white., black the smaller"),
    ],
)
def test_other_pictures_are_refused(
    given: object, value_range: tuple[float, float] | None, message: str
) -> None:
    """One line that says what they are, and what is needed."""
    with pytest.raises(VideoError, match=message):
        pictures_in(given, value_range=value_range)


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_every_range_gives_the_same_pictures(value_range: tuple[float, float]) -> None:
    """Bytes scaled to a range come back as those bytes, and as the same -1..1."""
    black, white = value_range
    floats = BYTES.double() / 255 * (white - black) + black
    assert torch.equal(to_bytes(floats, value_range), BYTES)
    torch.testing.assert_close(to_unit(floats, value_range), to_unit(BYTES, None))
    assert to_unit(torch.tensor([0, 255], dtype=torch.uint8), None).tolist() == [-1, 1]


def test_a_passport_names_the_colours() -> None:
    """Floats are not rounded to bytes everywhere, so that they are another protocol."""
    assert colour_range(None) == "RGB 0..255"
    assert colour_range((-1.0, 1.0)) == "RGB floats -1..1"


class Normed(Frozen):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.freeze()


def test_a_frozen_network_is_never_trained() -> None:
    """The model around it may be: its norms stay, and no gradient is kept."""
    network = Normed()
    model = nn.Sequential(network, nn.Conv2d(3, 1, 1))
    model.train()
    assert model.training
    assert not network.training
    assert not network.norm.training
    assert [one.requires_grad for one in network.parameters()] == [False, False]


def test_a_frozen_network_keeps_its_numbers() -> None:
    """A model that is cast to half precision takes it along, and does not round it."""
    network = Normed()
    digest = parameters_sha256(network)
    nn.ModuleList([network]).bfloat16().to("cpu").double()
    assert network.norm.weight.dtype == torch.float32
    assert parameters_sha256(network) == digest
    assert next(nn.ModuleList([network]).to("meta").parameters()).device.type == "meta"


def test_measuring_is_at_full_precision() -> None:
    """Half precision that the training loop switched on stops here."""
    layer = nn.Linear(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
        with measuring(torch.device("cpu")):
            found = layer(torch.ones(1, 4))
    assert found.dtype == torch.float32
    assert not found.requires_grad


def test_the_digest_is_of_the_parameters() -> None:
    """Equal values give one digest, another value, name or shape gives another."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 2)
    digest = parameters_sha256(layer)
    assert len(digest) == 64
    same = nn.Linear(4, 2)
    same.load_state_dict(layer.state_dict())
    assert parameters_sha256(same) == digest
    assert parameters_sha256(nn.Sequential(layer)) != digest
    with torch.no_grad():
        same.weight[0, 0] += 1e-6
    assert parameters_sha256(same) != digest
