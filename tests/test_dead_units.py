"""Dead units: which dimension units are, which of them never gave anything, who is listened to."""

import copy
import io
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn

from opusclip_mlops.dead_units import DeadUnits, Units


class Faults(list[str]):
    """The layers that something went wrong in."""

    def __call__(self, name: str, fault: Exception) -> None:
        self.append(f"{name}: {fault}")


def heard(model: nn.Module, *examples: Tensor) -> dict[str, Units]:
    listener = DeadUnits(Faults())
    listener.listen(model.named_modules())
    for example in examples:
        model(example)
    return listener.heard()


def biased(layer: nn.Module, dead: int) -> nn.Module:
    """A layer of which the first `dead` units give -1, the others 1, whatever they are given."""
    nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
    with torch.no_grad():
        layer.bias.copy_(torch.ones_like(layer.bias))  # type: ignore[operator, union-attr, arg-type]
        layer.bias[:dead] = -1  # type: ignore[index, operator]
    return layer


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(3, 10), (4, 3)),
        (nn.Linear(3, 10), (4, 7, 3)),
        (nn.Linear(3, 10), (2, 5, 7, 3)),
        (nn.Conv1d(3, 10, 1), (4, 3, 9)),
        (nn.Conv2d(3, 10, 1), (4, 3, 9, 9)),
        (nn.Conv3d(3, 10, 1), (2, 3, 4, 9, 9)),
    ],
)
@pytest.mark.parametrize("kind", [nn.ReLU, nn.GELU, nn.SiLU])
def test_a_unit_that_gives_nothing_is_dead(
    layer: nn.Module, shape: tuple[int, ...], kind: type[nn.Module]
) -> None:
    """Features of a linear layer and channels of a convolution: three of ten are dead."""
    model = nn.Sequential(biased(layer, 3), kind())
    assert heard(model, torch.randn(shape)) == {"1": Units(10, 3)}


def test_a_unit_that_gives_something_once_is_alive() -> None:
    """In any of the batches, at any place."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))  # type: ignore[operator]
    assert heard(model, torch.ones(3, 1)) == {"1": Units(2, 1)}
    assert heard(model, torch.ones(3, 1), torch.tensor([[2.0], [-2.0]])) == {"1": Units(2, 0)}


def test_without_a_layer_before_it_the_last_of_three_dimensions_is_the_units() -> None:
    """Tokens have features last; pictures have channels first."""
    tokens, pictures = -torch.ones(2, 5, 8), -torch.ones(2, 6, 5, 5)
    assert heard(nn.ReLU(), tokens) == {"": Units(8, 8)}
    assert heard(nn.ReLU(), pictures) == {"": Units(6, 6)}
    assert heard(nn.ReLU(), -torch.ones(5)) == {"": Units(5, 5)}


def test_a_module_that_is_called_with_several_widths_has_all_their_units() -> None:
    """One ReLU for the whole network: widths add up, calls of one width are taken together."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, given: Tensor) -> Tensor:
            return self.relu(-given[:, :3]).sum() + self.relu(given).sum() + self.relu(-given).sum()

    assert heard(Net(), torch.ones(2, 7)) == {"relu": Units(10, 3)}


def test_evaluation_is_not_listened_to() -> None:
    """What a model gives while it is validated says nothing about its training."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    assert heard(model.eval(), torch.randn(2, 3)) == {}


def test_an_empty_batch_says_nothing() -> None:
    """A loader's last batch may have nothing in it."""
    assert heard(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.zeros(0, 3)) == {}


def test_when_it_was_heard_no_hook_is_left() -> None:
    """A model is as it was, and what it gives is not held."""
    model, listener = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), DeadUnits(Faults())
    listener.listen(model.named_modules())
    given = model(torch.randn(2, 3))
    assert listener.heard()["1"].count == 4
    held = weakref.ref(given)
    del given
    assert held() is None
    assert not model[1]._forward_hooks
    assert listener.heard() == {}


def test_a_copy_of_the_model_and_a_saved_one_do_not_listen() -> None:
    """Neither `deepcopy`, as for averaged weights, nor `torch.save` takes the listener along."""
    model, listener = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), DeadUnits(Faults())
    listener.listen(model.named_modules())
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(saved, weights_only=False),
    ):
        other(torch.randn(2, 3))
    assert listener.heard() == {}


def test_a_saved_model_needs_no_part_of_the_package() -> None:
    """Saved while it is listened to, it can be loaded without it, run, compiled and saved again."""
    model, listener = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), DeadUnits(Faults())
    listener.listen(model.named_modules())
    example, saved = torch.randn(2, 3), pickle.dumps(model)
    assert b"opusclip_mlops" not in saved
    for other in (pickle.loads(saved), pickle.loads(pickle.dumps(copy.deepcopy(model)))):
        assert torch.equal(other(example), model(example))
        assert torch.equal(torch.compile(other, backend="eager")(example), model(example))
        assert b"opusclip_mlops" not in pickle.dumps(other)


def test_what_a_cuda_graph_captures_is_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph would do it again in every replay."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert heard(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.randn(2, 3)) == {}


def test_a_fault_in_listening_stays_here() -> None:
    """The forward pass goes on; who watches is told which layer it was."""

    class Odd(nn.ReLU):
        def forward(self, given: Tensor) -> Tensor:
            return [super().forward(given)]  # type: ignore[return-value]

    Odd.__module__, Odd.__name__ = "torch.nn.modules.odd", "ReLU"
    faults = Faults()
    listener = DeadUnits(faults)
    model = nn.Sequential(nn.Linear(3, 4), Odd())
    listener.listen(model.named_modules())
    assert len(model(torch.randn(2, 3))) == 1
    assert [one.partition(":")[0] for one in faults] == ["1"]


def test_a_compiled_model_is_compiled_once() -> None:
    """Listening to it makes no graph anew and no break in it; then there is nothing to hear."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.GELU())
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    listener = DeadUnits(Faults())
    compiled = torch.compile(model, backend=backend)
    example = torch.randn(5, 3)
    expected = compiled(example)
    for _ in range(3):
        listener.listen(model.named_modules())
        assert torch.equal(compiled(example), expected)
        assert listener.heard() == {}
        assert torch.equal(compiled(example), expected)
    assert len(graphs) == 1


def test_what_is_compiled_while_it_is_listened_to_does_not_keep_the_listener() -> None:
    """The hook is no part of the graph: later calls are as quick as without it, and not heard."""
    model, listener = nn.Sequential(nn.Linear(3, 4), nn.ReLU()), DeadUnits(Faults())
    listener.listen(model.named_modules())
    compiled = torch.compile(model, backend="eager")
    compiled(torch.randn(2, 3))
    assert listener.heard() == {}
