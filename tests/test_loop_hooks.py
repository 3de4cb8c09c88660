"""Facts about `opusclip_mlops.loop_hooks`: passes are timed, and models stay as they are."""

import contextlib
import copy
import io
import pickle
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from opusclip_mlops.errors import RecordError
from opusclip_mlops.loop_hooks import LoopHooks
from opusclip_mlops.operation_sums import Taken
from opusclip_mlops.operations import Interval, Operations

PAUSE_S = 0.02


class Sleeping(torch.autograd.Function):
    """Passes on what it gets, and takes its time for the gradient."""

    @staticmethod
    def forward(_: Any, given: torch.Tensor) -> torch.Tensor:
        """The same values."""
        return given.clone()

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        """The same gradient, later."""
        time.sleep(PAUSE_S)
        return gradient


class Model(torch.nn.Module):
    """A layer behind one whose gradient takes its time; gives a dict in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def forward(self, given: torch.Tensor) -> tuple[dict[str, Any], int]:
        """Take some time, too."""
        if given.isnan().any():
            raise ValueError("NaN")
        time.sleep(PAUSE_S)
        return {"out": Sleeping.apply(self.layer(given)), "said": "x"}, 3


class Timed:
    """A model that is timed, and what was."""

    def __init__(self) -> None:
        self.intervals: list[Interval] = []
        self.operations = Operations(self.intervals.append, interval_s=1e6)
        self.hooks = LoopHooks(self.operations)
        self.model = Model()

    def taken(self) -> dict[str, Taken]:
        """What was timed since the last call, by name."""
        self.operations.flush()
        return {one.name: one for one in self.intervals[-1].taken}

    def loss(self, value: float = 1.0) -> torch.Tensor:
        """What a forward pass comes to."""
        found: torch.Tensor = self.model(torch.full((1, 2), value))[0]["out"].sum()
        return found


@pytest.fixture
def timed() -> Iterator[Timed]:
    one = Timed()
    yield one
    one.hooks.release()


def test_forward_and_backward_are_timed(timed: Timed) -> None:
    """Each pass once, by the clock, also with the model given twice and gradients added up."""
    timed.hooks.time_model(timed.model)
    timed.hooks.time_model(timed.model)
    for _ in range(3):
        timed.loss().backward()
    taken = timed.taken()
    assert {name: one.count for name, one in taken.items()} == {"forward": 3, "backward": 3}
    for one in taken.values():
        assert one.total_ms >= 3e3 * PAUSE_S
    # The time between the passes belongs to neither.
    loss = timed.loss()
    time.sleep(PAUSE_S)
    began_s = time.perf_counter()
    loss.backward()
    elapsed_s = time.perf_counter() - began_s
    assert timed.taken()["backward"].total_ms <= 1e3 * elapsed_s


def test_they_are_parts_of_what_they_run_in(timed: Timed) -> None:
    """An operation around a step has as its own time what neither pass took."""
    timed.hooks.time_model(timed.model)
    with timed.operations.named("operation", "step"):
        timed.loss().backward()
    taken = timed.taken()
    inside_ms = taken["forward"].total_ms + taken["backward"].total_ms
    assert taken["step"].self_ms == pytest.approx(taken["step"].total_ms - inside_ms, abs=0.01)


def test_without_training_it_is_evaluation(timed: Timed) -> None:
    """The mode of the model decides; without gradients there is no backward pass."""
    timed.hooks.time_model(timed.model)
    timed.model.eval()
    with torch.no_grad():
        timed.loss()
    assert timed.taken().keys() == {"evaluation"}


def test_a_pass_that_raises_is_over(timed: Timed) -> None:
    """Its error reaches the caller, and nothing stays open."""
    timed.hooks.time_model(timed.model)
    with pytest.raises(ValueError, match="NaN"):
        timed.loss(float("nan"))
    assert timed.operations.current.get() is None
    assert timed.taken()["forward"].count == 1


def test_the_steps_of_all_optimizers_are_timed(timed: Timed) -> None:
    """Also of one whose step raised before: that one counts as none."""
    timed.hooks.time_optimizers()
    timed.hooks.time_optimizers()
    parameters = [torch.nn.Parameter(torch.ones(2))]
    optimizers = [torch.optim.SGD(parameters, lr=0.1), torch.optim.AdamW(parameters)]

    def fail() -> float:
        raise ValueError("closure")

    with pytest.raises(ValueError, match="closure"):
        optimizers[0].step(fail)
    for one in optimizers:
        parameters[0].sum().backward()
        one.step()
    assert timed.taken()["optimizer"].count == 2
    timed.hooks.release()
    optimizers[0].step()
    assert timed.taken() == {}
    assert timed.operations.open_uses() == []


def test_an_optimizer_that_wraps_another_is_timed_whole(timed: Timed) -> None:
    """Its own time counts beside that of the one inside; one that raised inside is none."""
    parameter = torch.nn.Parameter(torch.ones(2))

    class Wrapping(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            """Take time before and after the step of the one inside."""
            time.sleep(PAUSE_S)
            with contextlib.suppress(ValueError):
                inner.step(closure)
            time.sleep(PAUSE_S)

    def fail() -> float:
        raise ValueError("closure")

    inner, outer = torch.optim.AdamW([parameter]), Wrapping([parameter], lr=0.1)
    timed.hooks.time_optimizers()
    parameter.sum().backward()
    outer.step()
    taken = timed.taken()["optimizer"]
    assert taken.count == 2
    assert taken.self_ms >= 2e3 * PAUSE_S
    outer.step(fail)
    taken = timed.taken()["optimizer"]
    assert taken.count == 1
    assert taken.self_ms >= 2e3 * PAUSE_S
    assert timed.operations.open_uses() == []


def test_a_step_that_raised_is_not_what_the_next_one_is_inside_of(timed: Timed) -> None:
    """Also if another optimizer makes that step."""
    parameter = torch.nn.Parameter(torch.ones(2))
    first, second = torch.optim.SGD([parameter], lr=0.1), torch.optim.AdamW([parameter])
    timed.hooks.time_optimizers()
    with pytest.raises(ZeroDivisionError):
        first.step(lambda: 1 / 0)
    second.step()
    assert timed.operations.open_uses() == []
    assert timed.taken()["optimizer"].count == 1


def test_a_step_that_was_not_begun_here_ends_none_of_another_thread(timed: Timed) -> None:
    """Such as one under way when the hooks were hung on."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    operation = timed.operations.named("loop", "optimizer")

    def begin_elsewhere() -> float:
        timed.hooks.time_optimizers()
        thread = threading.Thread(target=operation.__enter__)
        thread.start()
        thread.join()
        return 0.0

    optimizer.step(begin_elsewhere)
    assert [name for name, _ in timed.operations.open_uses()] == ["loop/optimizer"]


def test_a_model_that_returns_its_own_weights_gets_no_hooks_on_them(timed: Timed) -> None:
    """They would be one more at each pass; such an output has no backward pass of the model."""

    class Weights(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

        def forward(self) -> torch.Tensor:
            """Its own parameter."""
            return self.weight

    model = Weights()
    timed.hooks.time_model(model)
    for _ in range(3):
        model().sum().backward()
    assert not model.weight._backward_hooks
    assert timed.taken().keys() == {"forward"}


def test_copies_and_pickles_of_the_model_are_not_timed(timed: Timed) -> None:
    """An average of the weights is a copy; what is saved whole is read where there is no run."""
    timed.hooks.time_model(timed.model)
    timed.hooks.time_model(plain := torch.nn.Linear(2, 2))
    assert b"opusclip_mlops" not in pickle.dumps([plain, copy.deepcopy(plain)])
    given = torch.ones(1, 2)
    copies = [copy.deepcopy(timed.model), pickle.loads(pickle.dumps(timed.model))]
    file = io.BytesIO()
    torch.save(timed.model, file)
    file.seek(0)
    copies.append(torch.load(file, weights_only=False))
    for one in copies:
        assert torch.equal(one(given)[0]["out"], timed.model(given)[0]["out"])
    assert timed.taken()["forward"].count == len(copies)


def test_let_go_nothing_is_left_on_the_model(timed: Timed) -> None:
    """No hook, and no reference that keeps it alive."""
    timed.hooks.time_model(timed.model)
    loss = timed.loss()
    timed.hooks.release()
    assert not timed.model._forward_hooks
    assert not timed.model._forward_pre_hooks
    loss.backward()
    timed.loss().backward()
    assert timed.taken()["forward"].count == 1


def test_what_a_compiled_model_computes_is_timed(timed: Timed) -> None:
    """The compiled one is given; it computes what it did."""
    plain = torch.nn.Linear(2, 2)
    compiled: Any = torch.compile(plain, backend="eager")
    timed.hooks.time_model(compiled)
    given = torch.ones(1, 2)
    out = compiled(given)
    assert torch.equal(out, plain(given))
    out.sum().backward()
    taken = timed.taken()
    assert {name: one.count for name, one in taken.items()} == {"forward": 1, "backward": 1}


def test_a_graph_is_not_broken_by_what_times_the_model(timed: Timed) -> None:
    """Where the model is compiled into something larger it is not timed, and one graph it stays."""
    plain = torch.nn.Linear(2, 2)
    timed.hooks.time_model(plain)
    whole: Any = torch.compile(plain, backend="eager", fullgraph=True)
    assert torch.equal(whole(torch.ones(1, 2)), plain(torch.ones(1, 2)))
    assert timed.taken()["forward"].count == 1


class Outer(torch.nn.Module):
    """A model with another one inside, and with work of its own before and after it."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.breaks_off = False

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Take twice the time that the one inside takes."""
        time.sleep(PAUSE_S)
        with contextlib.suppress(KeyboardInterrupt):
            given = self.inner(given)
        if self.breaks_off:
            raise KeyboardInterrupt
        time.sleep(PAUSE_S)
        return given


class Interrupted(torch.nn.Module):
    """A model in which Ctrl-C comes."""

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        """As the handler of a signal raises."""
        raise KeyboardInterrupt


def test_a_timed_model_inside_another_takes_nothing_from_it(timed: Timed) -> None:
    """Both passes count whole, each moment for one of them, and nothing stays open."""
    outer = Outer(Outer(torch.nn.Linear(2, 2)))
    for one in (outer, outer.inner):
        timed.hooks.time_model(one)
    began_s = time.perf_counter()
    loss = outer(torch.ones(1, 2)).sum()
    elapsed_ms = 1e3 * (time.perf_counter() - began_s)
    taken = timed.taken()["forward"]
    assert taken.count == 2
    assert 4e3 * PAUSE_S <= taken.self_ms <= elapsed_ms
    assert taken.total_ms >= 6e3 * PAUSE_S
    assert timed.operations.open_uses() == []
    loss.backward()
    # One pass goes through both.
    assert timed.taken()["backward"].count == 1


class Recursive(torch.nn.Module):
    """A model that calls itself for the rest of what it is given."""

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Go on with all but the first."""
        time.sleep(PAUSE_S)
        return given if len(given) == 1 else self(given[1:])


def test_a_part_that_is_named_by_hand_around_a_timed_model_counts(timed: Timed) -> None:
    """What the block takes besides is not lost, and no moment is counted twice."""
    timed.hooks.time_model(timed.model)
    began_s = time.perf_counter()
    with timed.operations.named("loop", "forward"):
        time.sleep(PAUSE_S)
        timed.loss()
    elapsed_ms = 1e3 * (time.perf_counter() - began_s)
    taken = timed.taken()["forward"]
    assert taken.count == 2
    assert 2e3 * PAUSE_S <= taken.self_ms <= elapsed_ms


def test_a_model_inside_of_itself_is_timed(timed: Timed) -> None:
    """Each of its calls counts, and each moment once."""
    model = Recursive()
    timed.hooks.time_model(model)
    began_s = time.perf_counter()
    model(torch.ones(3))
    elapsed_ms = 1e3 * (time.perf_counter() - began_s)
    taken = timed.taken()["forward"]
    assert taken.count == 3
    assert 3e3 * PAUSE_S <= taken.self_ms <= elapsed_ms


def test_a_pass_that_was_broken_off_inside_is_none(timed: Timed) -> None:
    """Ctrl-C in the inner model tells no hook of its end: the outer pass goes on and counts."""
    outer = Outer(Interrupted())
    for one in (outer, outer.inner):
        timed.hooks.time_model(one)
    outer(torch.ones(1, 2))
    assert timed.taken()["forward"].count == 1
    assert timed.operations.open_uses() == []


def test_a_pass_that_was_broken_off_holds_nothing_of_the_next_one(timed: Timed) -> None:
    """Of whichever model that is: as in a notebook, where one goes on after Ctrl-C."""
    outer, other = Outer(torch.nn.Linear(2, 2)), Outer(torch.nn.Linear(2, 2))
    for one in (outer, outer.inner, other):
        timed.hooks.time_model(one)
    outer.breaks_off = True
    with pytest.raises(KeyboardInterrupt):
        outer(torch.ones(1, 2))
    timed.taken()
    other(torch.ones(1, 2))
    assert timed.operations.open_uses() == []
    assert timed.operations.current.get() is None
    assert timed.taken()["forward"].count == 1


@pytest.mark.parametrize("given", [None, 5, torch.nn.Linear, "model", lambda: None])
def test_what_is_no_model_is_refused(timed: Timed, given: Any) -> None:
    """In the caller's line; for those who expect it, it is a TypeError too."""
    with pytest.raises(RecordError, match=r"model must be a torch.nn.Module, not ") as caught:
        timed.hooks.time_model(given)
    assert isinstance(caught.value, TypeError)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_torchscript_is_refused(timed: Timed) -> None:
    """It takes no hooks; the error says what to do."""
    with pytest.raises(RecordError, match=r"takes no hooks: .*: time the module that it was made"):
        timed.hooks.time_model(torch.jit.script(torch.nn.Linear(2, 2)))


def test_switched_off_nothing_is_hung_on() -> None:
    """Neither on models nor on optimizers."""
    hooks = LoopHooks(Operations(lambda _: None, interval_s=1.0, is_on=False))
    model = Model()
    hooks.time_model(model)
    hooks.time_optimizers()
    assert not model._forward_hooks
    assert hooks._handles == []
