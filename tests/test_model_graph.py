"""The graph of a model: its nodes either way, what it says of them, and a model left alone."""

import inspect
import logging
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from opusclip_mlops import model_graph
from opusclip_mlops.errors import RecordError
from opusclip_mlops.model_graph import MOST_NODES, WAYS, Nodes, graph_of
from tests.looking import Calls


class Block(nn.Module):
    """A layer, a norm with running statistics, chance, and a short cut."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, given: Tensor) -> Tensor:
        made: Tensor = self.drop(self.norm(self.layer(given))) + given * self.gain
        return made


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block(), nn.Linear(4, 2))


def by_name(graph: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["name"]: node for node in graph["nodes"]}


def check_connected(graph: Mapping[str, Any]) -> None:
    """Every name is one node's, and every input is one that came before."""
    known: set[str] = set()
    for node in graph["nodes"]:
        assert set(node["inputs"]) <= known
        assert node["name"] not in known
        known.add(node["name"])


def test_modules_and_what_is_done_between_them_are_nodes() -> None:
    """Layers by their names, operations of the model's own in the module that does them."""
    graph = graph_of(net(), torch.randn(3, 4), by="modules")
    check_connected(graph)
    found = by_name(graph)
    assert (graph["of"], graph["by"], graph["parameters"]) == ("Sequential", "modules", 74)
    assert found["0/layer"]["inputs"] == ["inputs/0"]
    assert found["0/add"]["inputs"] == ["0/drop", "0/mul"]
    assert found["0/mul"]["inputs"] == ["inputs/0", "0/gain"]
    assert found["0/gain"]["op"] == "parameter"
    assert (found["2"]["op"], found["2"]["shapes"]) == ("Linear", [[3, 2]])
    assert found["2"]["attributes"]["parameters"] == "10"
    assert "in_features=4" in found["2"]["attributes"]["settings"]
    assert found["output"]["inputs"] == ["2"]


def test_exported_operations_are_nodes() -> None:
    """Every operation in its module, fed by the parameters it uses, with shapes."""
    graph = graph_of(net(), torch.randn(3, 4), by="export")
    check_connected(graph)
    found = by_name(graph)
    assert (graph["by"], graph["parameters"]) == ("export", 74)
    [linear] = [one for name, one in found.items() if name.startswith("2/linear")]
    assert linear["op"] == "aten.linear.default"
    assert linear["shapes"] == [[3, 2]]
    assert {"2/weight", "2/bias"} < set(linear["inputs"])
    assert found["0/norm/running_mean"]["op"] == "buffer"
    assert found["0/norm/running_mean"]["shapes"] == [[4]]
    [norm] = [one for name, one in found.items() if one["op"].startswith("aten.batch_norm")][:1]
    assert norm["attributes"]["momentum"] == "0.1"


def test_what_cannot_be_exported_is_run() -> None:
    """A model that asks for the values of its input has no export, and a graph all the same."""

    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, given: Tensor) -> Tensor:
            chosen = self.one if float(given.sum()) > 0 else self.other
            made: Tensor = chosen(given)
            return made

    graph = graph_of(Choosing(), torch.ones(1, 4))
    assert (graph["by"], "one" in by_name(graph)) == ("modules", True)
    assert graph_of(net(), torch.ones(1, 4))["by"] == "export"


@pytest.mark.parametrize("by", WAYS)
def test_the_model_is_left_as_it_was(by: str) -> None:
    """Modes, statistics, gradients, hooks and every random generator, however it is run."""
    model = net()
    model[1].eval()
    model(torch.randn(3, 4)).sum().backward()
    state = {name: one.clone() for name, one in model.state_dict().items()}
    gradients = [one.grad.clone() for one in model.parameters()]  # type: ignore[union-attr]
    modes = [one.training for one in model.modules()]
    buffers = {name: id(one) for name, one in model.named_buffers()}
    versions = {name: one._version for name, one in model.named_buffers()}
    chance = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    graph_of(model, torch.randn(3, 4, generator=torch.Generator()), by=by)
    assert all(torch.equal(state[name], one) for name, one in model.state_dict().items())
    assert all(map(torch.equal, gradients, (one.grad for one in model.parameters())))
    assert [one.training for one in model.modules()] == modes
    assert {name: id(one) for name, one in model.named_buffers()} == buffers
    assert {name: one._version for name, one in model.named_buffers()} == versions
    assert torch.equal(torch.get_rng_state(), chance[0])
    assert (random.getstate(), repr(np.random.get_state())) == chance[1:]
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


def test_buffers_that_a_model_changes_are_put_back() -> None:
    """Also where it writes into them, or takes others, in evaluation; and its use of chance."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("last", torch.zeros(3))

        def forward(self, given: Tensor) -> Tensor:
            self.count += 1
            self.last = given * random.random() * np.random.rand() * torch.rand(())
            return given

    model = Counting()
    last, chance = model.last, (random.getstate(), torch.get_rng_state())
    graph_of(model, torch.ones(3), by="modules")
    assert model.count == 0
    assert model.last is last
    assert random.getstate() == chance[0]
    assert torch.equal(torch.get_rng_state(), chance[1])


@pytest.mark.parametrize("by", WAYS)
def test_what_a_model_keeps_of_its_input_is_put_back(by: str) -> None:
    """Attributes, and what is in its lists and dicts: the exporter's tensors are of no use."""

    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.memory = nn.LSTM(3, 2), nn.Linear(2, 2)
            self.last: Tensor | None = None
            self.seen: list[Tensor] = []
            self.by_name: dict[str, Tensor] = {}

        def forward(self, given: Tensor) -> Tensor:
            self.last = self.memory(self.layer(given)[0])
            self.seen.append(self.last)
            self.by_name["last"] = self.last
            return self.last

    model, example = Keeping(), torch.ones(4, 1, 3)
    graph_of(model, example, by=by)
    assert (model.last, model.seen, model.by_name) == (None, [], {})
    model(example).sum().backward()
    assert all(one.grad is not None for one in model.parameters())


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("given", [(1.0, 2.0), {"left": 1.0, "right": 2.0}])
def test_inputs_are_arguments(by: str, given: Any) -> None:
    """A tuple is taken as arguments, a mapping as named ones."""

    class Adding(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            return {"sum": left + right}

    if isinstance(given, dict):
        example: Any = {name: torch.full((2, 3), value) for name, value in given.items()}
    else:
        example = tuple(torch.full((2, 3), value) for value in given)
    graph = graph_of(Adding(), example, by=by)
    [added] = [one for one in graph["nodes"] if "add" in one["op"]]
    assert len(added["inputs"]) == 2
    assert graph["nodes"][-1]["inputs"] == [added["name"]]


def test_another_call_than_forward_can_be_followed() -> None:
    """Such as a loss that takes captions too: what is no tensor is passed on."""

    class Captioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def loss(self, clip: Tensor, captions: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
            loss = self.layer(clip).sum() * len(captions)
            return loss, {"part": loss / 2}

    model = Captioned()
    graph = graph_of(model, (torch.ones(3, 2), ["a kite"]), call=model.loss)
    found = by_name(graph)
    assert found["sum"]["inputs"] == ["layer"]
    assert found["output"]["inputs"] == ["mul", "div"]


def test_a_module_that_is_called_again_is_another_node() -> None:
    """Each call has its own name, and its own inputs."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, given: Tensor) -> Tensor:
            made: Tensor = self.layer(self.layer(given).t().contiguous())
            return made

    found = by_name(graph_of(Twice(), torch.ones(2, 2), by="modules"))
    assert found["layer_1"]["inputs"] == ["contiguous"]
    assert found["t"]["inputs"] == ["layer"]


def test_a_compiled_model_is_run_as_it_is_written() -> None:
    """Its modules are seen, and it is not compiled for it."""
    model, compiled = net(), []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    model.compile(backend=backend)
    found = by_name(graph_of(model, torch.randn(3, 4), by="modules"))
    assert {"0/layer", "2"} < set(found)
    assert not compiled


def test_a_graph_has_an_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beyond the most that are kept nodes are counted; a last node and stderr say how many."""
    monkeypatch.setattr(model_graph, "MOST_NODES", 5)
    graph = graph_of(net(), torch.randn(3, 4), by="modules")
    assert len(graph["nodes"]) == 6
    last = graph["nodes"][-1]
    assert (last["op"], int(last["attributes"]["nodes"])) == ("left_out", 10)
    assert capsys.readouterr().err == "opusclip: graph: 10 nodes are left out\n"


def test_thousands_of_nodes_of_one_name_are_quickly_named() -> None:
    """For a name no other is asked twice, and none at all where nodes are kept no more."""

    class Asked(set[str]):
        count = 0

        def __contains__(self, name: object) -> bool:
            self.count += 1
            return super().__contains__(name)

    nodes = Nodes()
    nodes._names = asked = Asked()
    nodes.add("add_2", "add")
    for _ in range(2 * MOST_NODES):
        nodes.add("add", "add")
    assert asked.count < 3 * MOST_NODES
    names = [one["name"] for one in nodes.all()]
    assert names[:4] == ["add_2", "add", "add_1", "add_3"]
    assert len(set(names)) == len(names) == MOST_NODES + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_a_buffer_with_nan_is_left_as_it_is(dtype: torch.dtype) -> None:
    """A backward pass that waits for it goes on behind the graph; one that changed is put back."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor([1, math.nan, 0]).to(dtype))
            self.register_buffer("seen", torch.tensor([math.nan, 2.0]).to(dtype))

        def forward(self, given: Tensor) -> Tensor:
            self.seen[0] = 1
            made: Tensor = given * self.scale
            return made

    model, given = Scaled(), torch.ones(3, dtype=dtype, requires_grad=True)
    loss = model(given).abs().sum()
    model.seen[0] = math.nan
    graph_of(model, given, by="modules")
    loss.backward()
    assert given.grad is not None
    assert model.seen.isnan().tolist() == [True, False]


@pytest.mark.parametrize("by", [None, *WAYS])
def test_a_model_that_cannot_be_run_is_refused(
    by: str | None, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The error is one line, names the model and what it said, and the model is left as it was.

    Nothing else is printed: not what the exporter logs of it, with tracebacks.
    """
    model = net()
    with pytest.raises(RecordError, match=r"Sequential cannot be run on example_input: ") as caught:
        graph_of(model, torch.randn(3, 5), by=by)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert capfd.readouterr().err == ""
    assert [one for one in caplog.records if one.levelno >= logging.INFO] == []
    assert model.training
    assert not any(one._forward_hooks for one in model.modules())


class Raising(nn.Module):
    """A model with a fault of its own."""

    def forward(self, _: Tensor) -> Tensor:
        """Ask for what is not there."""
        return self.nothing_of_this_name


def test_a_fault_of_the_model_is_told_with_its_line() -> None:
    """Where the caller's own code raised, and not where torch did."""
    line = inspect.getsourcelines(Raising.forward)[1] + 2
    with pytest.raises(RecordError, match=rf"name.*\(test_model_graph.py, line {line}\)"):
        graph_of(Raising(), torch.ones(1), by="modules")
    with pytest.raises(RecordError, match=r"\(1x3 and 2x2\)$"):
        graph_of(nn.Linear(2, 2), torch.ones(1, 3), by="modules")


def test_a_call_is_a_function() -> None:
    """Not what it gave."""
    with pytest.raises(RecordError, match=r"call must be a function, such as model.loss, not 5"):
        graph_of(net(), torch.ones(1, 4), call=5)  # type: ignore[arg-type]


def test_a_model_that_is_not_made_yet_is_refused() -> None:
    """Running it would make its weights, by chance that training has not asked for."""
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(RecordError, match="weights that are not made yet: run it once"):
        graph_of(model, torch.ones(1, 2))
    assert model[0].has_uninitialized_params()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_torchscript_is_refused() -> None:
    """It can neither be exported nor followed; the error says what to do."""
    with pytest.raises(RecordError, match="is TorchScript: log the graph of the module"):
        graph_of(torch.jit.script(nn.Linear(2, 2)), torch.ones(1, 2))


def test_an_unknown_way_is_refused() -> None:
    """As is an export of something that is not the model's own call."""
    for asked in ({"by": "magic"}, {"by": "export", "call": print}):
        with pytest.raises(RecordError, match=r"by is '\w+': a graph is made by modules"):
            graph_of(net(), torch.ones(1, 4), **asked)  # type: ignore[arg-type]


def test_the_tracker_logs_a_graph() -> None:
    """One record of kind `graph`, at the step that was reached; wrappers are looked through."""
    calls, model = Calls(), net()
    calls.step = 7
    calls.log_graph(nn.DataParallel(model), torch.randn(2, 4), by="modules")
    [record] = calls.insights("graph")
    assert (record.kind, record.step, record.content["of"]) == ("graph", 7, "Sequential")
    assert set(record.content) == {"nodes", "of", "by", "parameters"}
    with pytest.raises(RecordError, match="key"):
        calls.log_graph(model, torch.randn(2, 4), key="a?")
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        calls.log_graph(print, torch.randn(2, 4))  # type: ignore[arg-type]
