"""Shares of a batch: what each process draws and learns from is what one alone would have."""

import pytest
import torch

from opusclip_mlops.projects.data import ClipDataset, load_dataset
from opusclip_mlops.projects.models import KINDS, ClipModel, ModelConfig, build_model
from opusclip_mlops.projects.shares import WHOLE, Share
from tests.projects.commands import film

CAPTIONS = ["a red kite over the sea", "", "one", "a green hill and a rabbit that runs"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ClipDataset:
    return load_dataset(film(tmp_path_factory.mktemp("film")), frames=4, size=16)


def shares(of: int) -> list[Share]:
    return [Share(number, of) for number in range(of)]


def loss_of(model: ClipModel, clips: torch.Tensor, share: Share) -> torch.Tensor:
    """The loss of a share, and behind it one more random number."""
    torch.manual_seed(5)
    loss, parts = model(clips[share.rows(len(clips))], CAPTIONS, share)
    return torch.stack([loss, *parts.values(), torch.rand((), dtype=loss.dtype)]).detach()


@pytest.mark.parametrize("of", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_the_shares_losses_is_the_loss_of_the_batch(kind: str, of: int) -> None:
    """Each part of it too, in float64 to rounding; and all have drawn the same numbers behind it.

    The captions have unlike numbers of words: how many are forgotten draws unlike often.
    """
    torch.manual_seed(0)
    model = build_model(ModelConfig(kind=kind, frames=4, size=16)).double()
    clips = torch.rand(4, 4, 3, 16, 16, dtype=torch.float64)
    whole = loss_of(model, clips, WHOLE)
    parts = torch.stack([loss_of(model, clips, share) for share in shares(of)])
    assert torch.equal(parts[:, -1], whole[-1].expand(of))
    assert (parts.mean(dim=0) - whole).abs().max() < 1e-12
    assert not torch.allclose(parts[0, 0], parts[1, 0])


def test_the_windows_of_the_shares_are_those_of_the_batch(dataset: ClipDataset) -> None:
    """In their order; the captions are those of the whole batch in each."""
    drawn = [
        dataset.train_batch(torch.Generator().manual_seed(3), 6, share)
        for share in (WHOLE, *shares(3))
    ]
    (whole, captions), *parts = drawn
    assert torch.equal(torch.cat([windows for windows, _ in parts]), whole)
    assert all(said == captions for _, said in parts)
    assert len(captions) == 6


def test_a_batch_that_cannot_be_shared_out_equally_is_refused() -> None:
    """The mean over unequal shares would be no batch's loss."""
    with pytest.raises(ValueError, match="4 rows are not 3 equal shares"):
        Share(0, 3).rows(4)
