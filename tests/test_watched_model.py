"""Watching a model: when it is looked at, what is logged, and that training never meets it."""

import copy
import gc
import math
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW
from torch.optim.optimizer import (
    _global_optimizer_pre_hooks,
    register_optimizer_step_pre_hook,
)
from torch.utils.checkpoint import checkpoint

from opusclip_mlops import ExperimentTracker, TrackingConfig
from opusclip_mlops.errors import RecordError
from opusclip_mlops.journal import Entry, read
from opusclip_mlops.records import Insight, Metrics
from opusclip_mlops.values import MAX_KEY_CHARACTERS, check_key
from opusclip_mlops.watched_model import MOST_LAYERS, Looking, layers
from tests.looking import Calls, net


@pytest.fixture
def calls() -> Iterator[Calls]:
    made = Calls()
    yield made
    made.unwatch()
    assert not _global_optimizer_pre_hooks


def train(
    model: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    calls: Calls,
    steps: int,
    *,
    before_step: Callable[[], object] = bool,
) -> None:
    """An ordinary loop: what a step did is logged behind it."""
    for _ in range(steps):
        model(torch.randn(4, 3)).square().mean().backward()
        before_step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        calls.step += 1


def test_the_first_step_and_every_so_many_are_looked_at(calls: Calls) -> None:
    """With every=10 steps 1, 11 and 21 are; a look has the step that was logged for it."""
    model = net()
    calls.watch(model, 10)
    train(model, SGD(model.parameters(), lr=0.1), calls, 25)
    for key in ("gradients", "weights"):
        assert [one.step for one in calls.insights(key)] == [1, 11, 21]
        assert {one.kind for one in calls.insights(key)} == {"histograms"}
    assert [step for step, _ in calls.metrics("gradients/norm")] == [1, 11, 21]


def test_gradients_are_those_the_optimizer_takes(calls: Calls) -> None:
    """Their histograms and norms are of what stands in `.grad` when the step begins: clipped."""
    model, seen = net(), {}

    def clip() -> None:
        clip_grad_norm_(model.parameters(), 0.01)
        seen.update({name: one.grad.clone() for name, one in model.named_parameters()})

    calls.watch(model, 3)
    train(model, SGD(model.parameters(), lr=0.1), calls, 1, before_step=clip)
    calls.unwatch()
    found = calls.histograms("gradients")
    assert list(found) == [name for name, _ in model.named_parameters()]
    for name, gradient in seen.items():
        assert (found[name]["min"], found[name]["max"]) == (gradient.min(), gradient.max())
        assert found[name]["count"] == gradient.numel()
    assert calls.metrics("gradients/norm") == [(1, pytest.approx(0.01, rel=1e-4))]


def test_weights_are_those_that_made_the_gradients(calls: Calls) -> None:
    """They are looked at before the optimizer changes them."""
    model = net()
    before = model[0].weight.detach().clone()
    calls.watch(model)
    train(model, SGD(model.parameters(), lr=100.0), calls, 1)
    calls.unwatch()
    found = calls.histograms("weights")["0.weight"]
    assert (found["min"], found["max"]) == (before.min(), before.max())


def test_metrics_are_of_all_and_by_layer(calls: Calls) -> None:
    """A layer's norm is that of its weight and bias together; the whole one that of all layers."""
    model = net()
    weights = copy.deepcopy(model.state_dict())
    calls.watch(model)
    train(model, SGD(model.parameters(), lr=0.1), calls, 1)
    calls.unwatch()
    [values] = [one.values for one in calls.rows if isinstance(one, Metrics)]
    assert set(values) == {
        "gradients/norm", "gradients/nonfinite", "gradients/norms/0", "gradients/norms/2",
        "weights/norm", "weights/nonfinite", "weights/norms/0", "weights/norms/2",
        "activations/dead_share",
    }  # fmt: skip
    first = math.hypot(weights["0.weight"].norm(), weights["0.bias"].norm())
    assert values["weights/norms/0"] == pytest.approx(first, rel=1e-6)
    whole = math.hypot(values["weights/norms/0"], values["weights/norms/2"])
    assert values["weights/norm"] == pytest.approx(whole)
    assert values["gradients/nonfinite"] == values["weights/nonfinite"] == 0


def test_nan_and_infinite_gradients_are_counted(calls: Calls) -> None:
    """The whole norm is what it is, NaN; how many elements there are is exact."""
    model = net()

    def spoil() -> None:
        model[0].weight.grad[0, :2] = math.nan  # type: ignore[index]
        model[2].bias.grad[0] = math.inf  # type: ignore[index]

    calls.watch(model)
    train(model, SGD(model.parameters(), lr=0.1), calls, 1, before_step=spoil)
    calls.unwatch()
    assert calls.metrics("gradients/nonfinite") == [(1, 3.0)]
    assert math.isnan(calls.metrics("gradients/norm")[0][1])
    assert calls.metrics("gradients/norms/2") == [(1, math.inf)]
    assert calls.histograms("gradients")["0.weight"]["nans"] == 2


def test_dead_units_are_told_by_share(calls: Calls) -> None:
    """Units whose bias holds them below 0 are dead in every look: here two of eight."""
    model = net()
    with torch.no_grad():
        model[0].bias[:2], model[0].bias[2:] = -1000, 1000
    calls.watch(model, 2)
    train(model, SGD(model.parameters(), lr=0.0), calls, 3)
    assert calls.metrics("activations/dead_share") == [(1, 0.25)]
    calls.unwatch()
    assert calls.metrics("activations/dead_share") == [(1, 0.25), (3, 0.25)]


def test_between_looks_the_model_has_no_hook(calls: Calls) -> None:
    """Only in the step before a look the activations are listened to."""
    model = net()
    optimizer, hooks = SGD(model.parameters(), lr=0.1), []
    calls.watch(model, 4)
    for _ in range(9):
        hooks.append(len(model[1]._forward_hooks))
        train(model, optimizer, calls, 1)
    assert hooks == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert not any(one._backward_hooks for one in model.parameters())


def test_what_is_not_asked_for_is_not_looked_at(calls: Calls) -> None:
    """Each of the three can be left out."""
    model = net()
    calls.watch(model, gradients=False, activations=False)
    train(model, SGD(model.parameters(), lr=0.1), calls, 2)
    assert [one.key for one in calls.rows if isinstance(one, Insight)] == ["weights"]
    assert not calls.metrics("activations/dead_share")
    calls.watch(model, weights=False)
    train(model, SGD(model.parameters(), lr=0.1), calls, 2)
    assert [one.key for one in calls.rows if isinstance(one, Insight)] == ["weights", "gradients"]


def test_accumulated_gradients_are_looked_at_whole(calls: Calls) -> None:
    """Steps of the optimizer count, not backward passes; the gradient is the sum."""
    model, whole = net(), []
    optimizer = SGD(model.parameters(), lr=0.1)
    calls.watch(model, 2)
    for number in range(12):
        model(torch.randn(4, 3)).square().mean().backward()
        if number % 4 == 3:
            whole.append(math.hypot(*(float(one.grad.norm()) for one in model.parameters())))
            optimizer.step()
            optimizer.zero_grad()
            calls.step += 1
    calls.unwatch()
    norms = [norm for _, norm in calls.metrics("gradients/norm")]
    assert norms == pytest.approx([whole[0], whole[2]], rel=1e-5)


def test_several_optimizers_are_one_look(calls: Calls) -> None:
    """A model that two optimizers train is looked at as a whole, a foreign one is not counted."""
    model, other = net(), net()
    first, second = SGD(model[0].parameters(), lr=0.1), AdamW(model[2].parameters())
    foreign = SGD(other.parameters(), lr=0.1)
    calls.watch(model, 2)
    for _ in range(3):
        model(torch.randn(4, 3)).sum().backward()
        other(torch.randn(4, 3)).sum().backward()
        for optimizer in (foreign, first, second):
            optimizer.step()
        calls.step += 1
    calls.unwatch()
    assert [one.step for one in calls.insights("gradients")] == [1, 3]
    assert list(calls.histograms("gradients")) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_look_waits_for_one_step_and_not_for_its_own_optimizer(calls: Calls) -> None:
    """Where one optimizer steps five times as often, no look is told late."""
    model = net()
    often, seldom = SGD(model[0].parameters(), lr=0.1), SGD(model[2].parameters(), lr=0.1)
    calls.watch(model, 3)
    for number in range(20):
        model(torch.randn(4, 3)).sum().backward()
        often.step()
        if number % 5 == 4:
            seldom.step()
        calls.step += 1
    calls.unwatch()
    seen = [(one.step, len(one.content["histograms"])) for one in calls.insights("gradients")]
    assert [step for step, count in seen if count == 2 and step <= 4] == [1, 4]
    of_seldom = [
        one.step for one in calls.insights("gradients") if "2.bias" in one.content["histograms"]
    ]
    assert of_seldom == [5, 20]


def test_a_look_waits_for_the_step_that_is_logged_next(calls: Calls) -> None:
    """Of a loop that logs every third step; what the next look comes before has the last step."""
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    for every, steps in ((4, [3, 6, 9]), (1, [0, 0, 3, 3, 3, 6, 6, 6, 9, 9])):
        calls.step, calls.rows[:] = 0, []
        calls.watch(model, every)
        for number in range(1, 11):
            model(torch.randn(4, 3)).sum().backward()
            optimizer.step()
            if number % 3 == 0:
                calls.step = number
        calls.unwatch()
        assert [one.step for one in calls.insights("gradients")] == steps


def test_a_step_that_a_cuda_graph_captures_is_not_looked_at(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To fetch a value would break the capture; the next step that is done is the first."""
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    calls.watch(model, 1)
    with monkeypatch.context() as captured:
        captured.setattr(torch.cuda, "is_initialized", lambda: True)
        captured.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        train(model, optimizer, calls, 2)
    train(model, optimizer, calls, 1)
    calls.unwatch()
    assert [one.step for one in calls.insights("gradients")] == [3]
    assert not capsys.readouterr().err


def test_gradients_of_a_scale_that_cannot_be_taken_out_are_left_out(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only those of that look: the weights are seen, and the next gradients."""
    model = net()
    optimizer = SGD(model.parameters(), lr=0.0, fused=True)
    calls.watch(model, 1)
    for scale in (0.0, math.inf, math.nan, 2.0):
        optimizer.grad_scale = torch.tensor(scale)  # type: ignore[attr-defined]
        train(model, optimizer, calls, 1)
    calls.unwatch()
    assert [one.step for one in calls.insights("weights")] == [1, 2, 3, 4]
    assert [one.step for one in calls.insights("gradients")] == [4]
    assert [step for step, _ in calls.metrics("gradients/norm")] == [4]
    assert not capsys.readouterr().err


def test_keys_that_are_too_long_stay_apart() -> None:
    """They end with a digest of what is cut; those that fit are as they are."""
    looking = Looking(name="critic")
    long = "blocks." * 50
    keys = {looking.key(f"gradients/norms/{long}{number}") for number in range(3)}
    assert len(keys) == 3
    assert {len(one) for one in keys} == {MAX_KEY_CHARACTERS}
    for one in keys:
        check_key(one)
    assert looking.key("gradients/norm") == "critic/gradients/norm"


def test_parameters_that_an_optimizer_gets_later_are_seen(calls: Calls) -> None:
    """An optimizer of another model that is given a group of this one's is one of this model."""
    model, other = net(), net()
    optimizer = SGD(other.parameters(), lr=0.1)
    calls.watch(model, 1)
    train(other, optimizer, calls, 2)
    assert not calls.rows
    optimizer.add_param_group({"params": list(model.parameters())})
    train(model, optimizer, calls, 2)
    assert [one.step for one in calls.insights("gradients")] == [3]


def test_several_models_have_names(calls: Calls) -> None:
    """A name begins the keys; without one a second model is refused, and the first watched on."""
    one, two = net(), net()
    calls.watch(one)
    with pytest.raises(RecordError, match=r"another model is watched .*name="):
        calls.watch(two)
    calls.watch(two, name="critic")
    for model in (one, two):
        train(model, SGD(model.parameters(), lr=0.1), calls, 1)
    calls.unwatch()
    assert len(calls.insights("gradients")) == len(calls.insights("critic/gradients")) == 1
    assert calls.metrics("critic/weights/norms/2")


def test_a_model_is_watched_anew(calls: Calls) -> None:
    """The second call's settings hold; the model is not looked at twice."""
    model = net()
    calls.watch(model, 1)
    calls.watch(model, 3, weights=False)
    train(model, SGD(model.parameters(), lr=0.1), calls, 6)
    assert [one.step for one in calls.insights("gradients")] == [1, 4]
    assert not calls.insights("weights")


def test_unwatch_leaves_nothing(calls: Calls) -> None:
    """What was seen last is logged, then no step is looked at, and no hook is left."""
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    calls.watch(model, 1)
    train(model, optimizer, calls, 1)
    assert not calls.rows
    calls.unwatch(model)
    rows = len(calls.rows)
    train(model, optimizer, calls, 3)
    assert len(calls.rows) == rows == 3
    assert not model[1]._forward_hooks


def test_a_watched_model_can_go(calls: Calls) -> None:
    """Watching does not keep it alive, its place is free for another, and training goes on.

    Also with another's hooks behind it, which torch goes through as the model is found to be gone.
    """
    model = net()
    calls.watch(model, 1)
    calls.watch(net(), 1, name="gone at once")
    handle = register_optimizer_step_pre_hook(lambda *_: None)
    train(model, SGD(model.parameters(), lr=0.1), calls, 2)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    other = net()
    train(other, SGD(other.parameters(), lr=0.1), calls, 2)
    calls.watch(other, 1)
    train(other, SGD(other.parameters(), lr=0.1), calls, 1)
    handle.remove()


def test_frozen_parameters_have_no_gradient(calls: Calls) -> None:
    """Neither what wants none nor what no optimizer trains is among the gradients."""
    model = net()
    model[0].weight.requires_grad_(False)
    calls.watch(model)
    train(model, SGD([model[0].weight, *model[2].parameters()], lr=0.1), calls, 2)
    assert list(calls.histograms("gradients")) == ["2.weight", "2.bias"]
    assert list(calls.histograms("weights")) == ["0.weight", "2.weight", "2.bias"]


def test_shared_weights_are_seen_once(calls: Calls) -> None:
    """A tied weight counts once, under its first name."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    calls.watch(model)
    train(model, SGD(model.parameters(), lr=0.1), calls, 2)
    assert list(calls.histograms("weights")) == ["0.weight", "0.bias", "2.bias"]


def test_a_sparse_gradient_is_seen(calls: Calls) -> None:
    """An embedding's gradient holds the rows that were asked for."""
    model = nn.Embedding(100, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(list(model.parameters()))
    calls.watch(model)
    model(torch.tensor([3, 7, 7])).sum().backward()
    optimizer.step()
    calls.unwatch()
    found = calls.histograms("gradients")["weight"]
    assert (found["count"], found["max"]) == (8, 2.0)


def test_gradients_of_mixed_precision_are_told_unscaled(calls: Calls) -> None:
    """Both where the scaler divides and where a fused step does; a skipped step is none."""
    for fused in (False, True):
        model = net()
        optimizer = SGD(model.parameters(), lr=0.0, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        calls.watch(model)
        torch.manual_seed(1)
        for spoiled in (True, False):
            loss = model(torch.randn(4, 3)).square().mean()
            scaler.scale(loss).backward()
            expected = math.hypot(*(float(p.grad.norm()) for p in model.parameters()))
            if spoiled and not fused:
                model[0].weight.grad[0, 0] = math.inf
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            if not (spoiled and not fused):
                break
            optimizer.zero_grad()
        calls.unwatch()
        assert calls.metrics("gradients/norm")[-1][1] == pytest.approx(expected / scale, rel=1e-4)
        assert calls.metrics("gradients/nonfinite")[-1][1] == 0
    assert len(calls.metrics("gradients/norm")) == 2


def test_steps_in_the_midst_of_the_backward_pass_are_one_look(calls: Calls) -> None:
    """An optimizer for each parameter, which steps when its gradient is there."""
    model = net()
    each = {one: SGD([one], lr=0.1) for one in model.parameters()}

    def learn(one: Tensor) -> None:
        each[one].step()  # type: ignore[index]
        each[one].zero_grad()  # type: ignore[index]

    for one in each:
        one.register_post_accumulate_grad_hook(learn)
    calls.watch(model, 2)
    for _ in range(3):
        model(torch.randn(4, 3)).sum().backward()
        calls.step += 1
    calls.unwatch()
    assert [one.step for one in calls.insights("gradients")] == [1, 3]
    assert len(calls.histograms("gradients")) == 4


def test_an_optimizer_that_asks_again_is_looked_at(calls: Calls) -> None:
    """Where the gradients are made inside the step, the first look finds none, and says none."""
    model, given = net(), torch.randn(4, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(given).square().mean()
        loss.backward()
        return loss

    calls.watch(model, 1)
    for _ in range(2):
        optimizer.step(closure)  # type: ignore[arg-type]
        calls.step += 1
    calls.unwatch()
    assert [step for step, _ in calls.metrics("weights/norm")] == [1, 2]
    assert [step for step, _ in calls.metrics("gradients/norm")] == [2]


def test_shards_are_seen_by_the_process_that_has_them(calls: Calls, tmp_path: Path) -> None:
    """Of a model spread over processes each sees its own part, and asks no other for the rest."""
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = fully_shard(net(), mesh=init_device_mesh("cpu", (1,)))
        calls.watch(model)
        train(model, SGD(model.parameters(), lr=0.1), calls, 1)
        calls.unwatch()
    finally:
        distributed.destroy_process_group()
    found = calls.histograms("gradients")
    assert {name: one["count"] for name, one in found.items()} == {
        "0.weight": 24, "0.bias": 8, "2.weight": 16, "2.bias": 2,
    }  # fmt: skip


def test_gradient_checkpointing_changes_nothing(calls: Calls) -> None:
    """What is computed again in the backward pass is heard twice, and counted once."""
    model = net()
    calls.watch(model)
    run = partial(checkpoint, model, use_reentrant=False)
    train(run, SGD(model.parameters(), lr=0.1), calls, 1)
    calls.unwatch()
    assert len(calls.histograms("gradients")) == 4
    assert len(calls.metrics("activations/dead_share")) == 1


def test_a_wrapped_model_is_looked_through(calls: Calls) -> None:
    """Compiled or spread over devices, it has the names of its own parameters."""
    model = net()
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    calls.watch(wrapped)
    train(wrapped.module, SGD(wrapped.parameters(), lr=0.1), calls, 2)
    assert list(calls.histograms("weights")) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    calls.unwatch(model)
    assert not calls._watched


def test_what_is_compiled_gets_no_hook(calls: Calls) -> None:
    """Of a model that is compiled in part, the activations of the rest are listened to."""
    whole, part = net(), nn.Sequential(nn.ReLU(), torch.compile(net(), backend="eager"))
    calls.watch(torch.compile(whole, backend="eager"), name="whole")
    calls.watch(part, name="part")
    assert not whole[1]._forward_hooks
    assert part[0]._forward_hooks
    assert not part[1].get_submodule("_orig_mod.1")._forward_hooks


def test_training_is_the_same_with_and_without(calls: Calls) -> None:
    """Looked at in every step, a model ends with bit for bit the same weights."""
    ends = []
    for watched in (False, True):
        model = net()
        if watched:
            calls.watch(model, 1)
        train(model, AdamW(model.parameters()), calls, 5)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert len(calls.insights("weights")) == 4


def test_a_layer_that_cannot_be_looked_at_is_left_out(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training goes on; the layer is told once, and again at the end; all others are seen."""
    model = net()
    model.register_parameter("odd", nn.Parameter(torch.zeros(3).to(torch.float8_e4m3fn), False))
    calls.watch(model, 1, gradients=False)
    train(model, SGD(model.parameters(), lr=0.1), calls, 4)
    said = capsys.readouterr().err
    assert said.count("opusclip: watch: odd is looked at no more: ") == 1
    assert list(calls.histograms("weights")) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    calls.unwatch()
    said = capsys.readouterr().err
    assert said == "opusclip: watch: of Sequential, not looked at to the end: odd\n"


def test_a_fault_of_the_tracker_never_reaches_training(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a look cannot be logged, watching ends, is told once, and goes when it is unwatched.

    Also with another's hooks behind it, which torch goes through at that moment.
    """
    model = net()

    def refuse(_: object) -> None:
        raise OSError("no room for it")

    calls._append = refuse
    calls.watch(model, 1)
    handle = register_optimizer_step_pre_hook(lambda *_: None)
    train(model, SGD(model.parameters(), lr=0.1), calls, 5)
    assert capsys.readouterr().err == (
        "opusclip: watch: Sequential is looked at no more: OSError: no room for it\n"
    )
    assert not model[1]._forward_hooks
    handle.remove()
    calls.unwatch()
    assert not _global_optimizer_pre_hooks


@pytest.mark.parametrize("every", [0, -5, 2.5, True, "500"])
def test_an_interval_is_a_whole_number_from_one(calls: Calls, every: Any) -> None:
    """Anything else is refused where it is called, and says what is allowed."""
    with pytest.raises(RecordError, match=r"every must be a whole number of steps from 1"):
        calls.watch(net(), every)


def test_only_a_module_is_watched(calls: Calls) -> None:
    """A list of parameters is none; a name must be a legal key."""
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, not list"):
        calls.watch([nn.Linear(2, 2)])  # type: ignore[arg-type]
    with pytest.raises(RecordError, match="key"):
        calls.watch(net(), name="a?")


def test_layers_of_a_deep_model_are_its_blocks() -> None:
    """More layers than can be charted are told together by the begin that leaves few enough."""
    deep = {
        f"blocks.{number}.{name}.weight": ["blocks", str(number), name]
        for number in range(40)
        for name in ("attention", "perceptron")
    }
    found = layers({**deep, "head.weight": ["head"], "place": []})
    assert len(set(found.values())) == 42 <= MOST_LAYERS
    assert found["blocks.3.attention.weight"] == "blocks.3"
    assert (found["head.weight"], found["place"]) == ("head", "model")
    assert layers({str(number): [str(number)] for number in range(MOST_LAYERS + 1)}) == {}
    assert layers({"weight": []}) == {}


def test_names_that_no_key_may_have_are_made_legal() -> None:
    """A parameter may be called anything; a metric's key may not."""
    found = layers({"a?b.weight": ["a?b"], "c.weight": ["c"]})
    assert found == {"a?b.weight": "a_b", "c.weight": "c"}


def test_close_logs_the_last_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real tracker's journal has the look of the last step, and closed it watches no more."""
    monkeypatch.setattr("opusclip_mlops.session.ShipperGuard", _NoShipper)
    config = TrackingConfig(tracking_uri=f"sqlite:///{tmp_path}/store.db", drain_timeout_s=0)
    model = net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with ExperimentTracker(config) as tracker:
        tracker.watch(model, 1)
        for step in range(1, 4):
            model(torch.randn(4, 3)).sum().backward()
            optimizer.step()
            tracker.log_metrics({"loss": 1.0}, step)
        folder = tracker._session.folder
    assert not _global_optimizer_pre_hooks
    items = [item for path in folder.segments() for item in read(path)]
    rows = [item.record for item in items if isinstance(item, Entry)]
    seen = [one for one in rows if isinstance(one, Insight) and one.key == "gradients"]
    assert [one.step for one in seen] == [1, 2, 3]
    norms = [one.step for one in rows if isinstance(one, Metrics) and "weights/norm" in one.values]
    assert norms == [1, 2, 3]


class _NoShipper:
    """Delivers nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def release(self) -> None:
        pass
