"""Times forward, backward and optimizer steps by the hooks that torch has for it.

Torch is never imported here: who has a model or an optimizer has done so.
"""

import sys
import weakref
from collections.abc import Iterator, Mapping
from time import perf_counter_ns
from types import FrameType
from typing import Any, cast

from opusclip_mlops.loop_parts import BACKWARD, EVALUATION, FORWARD, LOOP, OPTIMIZER
from opusclip_mlops.model_hooks import Hook
from opusclip_mlops.operations import Measured, Operations, Use

_MOST_TENSORS = 16


class LoopHooks:
    """Hangs on models and optimizers; after `release` nothing of it is left there."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._models: weakref.WeakSet[Any] = weakref.WeakSet()
        self._handles: list[Any] = []
        self._times_optimizers = False

    def time_model(self, model: Any) -> None:
        """Time the model's forward passes and the backward passes through its output.

        A pass in evaluation mode counts as evaluation.

        Raises:
            TypeError: it is no module of torch.
        """
        if not hasattr(model, "register_forward_pre_hook"):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        if not self._operations.is_on or model in self._models:
            return
        self._models.add(model)
        forward, evaluation, backward = map(self._part, (FORWARD, EVALUATION, BACKWARD))

        def begin(module: Any, _: Any) -> None:
            operation = forward if module.training else evaluation
            operation.forget_open()
            operation.__enter__()

        def end(_: Any, __: Any, output: Any) -> None:
            use = self._operations.current.get()
            is_ours = use is not None and use.operation in (forward, evaluation)
            (use.operation if use is not None and is_ours else forward).end_here()
            _time_backward(output, _Backward(backward, self._operations.current.get()))

        self._handles += [
            model.register_forward_pre_hook(Hook(begin)),
            model.register_forward_hook(Hook(end), always_call=True),
        ]

    def time_optimizers(self) -> None:
        """Time the steps of all optimizers in this process, once torch has been imported."""
        torch: Any = sys.modules.get("torch.optim.optimizer")
        begin_with = getattr(torch, "register_optimizer_step_pre_hook", None)
        end_with = getattr(torch, "register_optimizer_step_post_hook", None)
        if self._times_optimizers or not self._operations.is_on or not (begin_with and end_with):
            return
        self._times_optimizers = True
        operation = self._part(OPTIMIZER)

        def begin(*_: Any) -> None:
            if known := operation.depth():
                operation.forget_open(known - _callers_under_way() + 1)
            operation.__enter__()

        def end(*_: Any) -> None:
            if (known := operation.depth()) > 1:
                operation.forget_open(known - _callers_under_way())
            operation.end_here()

        self._handles += [begin_with(Hook(begin)), end_with(Hook(end))]

    def release(self) -> None:
        """Take all hooks off."""
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()
        self._models.clear()

    def _part(self, part: str) -> Measured:
        return cast(Measured, self._operations.named(LOOP, part))


def _callers_under_way() -> int:
    """How often what called the hook is under way: an optimizer's step may make another one's."""
    frame: FrameType | None = sys._getframe(3)
    code, count = frame and frame.f_code, 0
    while frame is not None:
        count += frame.f_code is code
        frame = frame.f_back
    return count


class _Backward:
    """A backward pass, from the gradient of a model's output to the end of the whole pass."""

    def __init__(self, operation: Measured, within: Use | None) -> None:
        self._operation, self._within = operation, within
        self._started_ns = 0

    def begin(self, _: Any) -> None:
        if not self._started_ns:
            self._started_ns = perf_counter_ns()
            engine: Any = sys.modules["torch"].autograd.Variable._execution_engine
            engine.queue_callback(self._end)

    def _end(self) -> None:
        elapsed_ns, self._started_ns = perf_counter_ns() - self._started_ns, 0
        within = self._within
        is_within = within is not None and not within.is_over
        self._operation.add(elapsed_ns, within if is_within else None)


def _time_backward(output: Any, one: _Backward) -> None:
    for tensor in _with_gradient(output):
        tensor.register_hook(one.begin)


def _with_gradient(output: Any) -> list[Any]:
    """The first tensors in a model's output, a few levels deep, that a gradient goes through.

    One that the model did not compute, such as its own parameter, is there at the next pass too.
    """
    found = (one for one in _leaves(output, depth=3) if not getattr(one, "is_leaf", True))
    found = (one for one in found if getattr(one, "requires_grad", False))
    return [one for one, _ in zip(found, range(_MOST_TENSORS), strict=False)]


def _leaves(output: Any, *, depth: int) -> Iterator[Any]:
    if depth and isinstance(output, Mapping | list | tuple):
        for one in output.values() if isinstance(output, Mapping) else output:
            yield from _leaves(one, depth=depth - 1)
    else:
        yield output
