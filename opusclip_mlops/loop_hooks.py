"""Times forward, backward and optimizer steps by the hooks that torch has for it.

Torch is never imported here: who has a model or an optimizer has done so.
"""

import sys
import weakref
from collections.abc import Iterator, Mapping
from time import perf_counter_ns
from types import FrameType
from typing import Any, cast

from opusclip_mlops.errors import RecordError, RecordTypeError
from opusclip_mlops.loop_parts import BACKWARD, EVALUATION, FORWARD, LOOP, OPTIMIZER
from opusclip_mlops.model_hooks import Hook
from opusclip_mlops.operations import Measured, Operations, Use
from opusclip_mlops.redaction import one_line

_MOST_TENSORS = 16
_MOST_TASKS = 64  # backward passes that are under way at once
_CALL = "_call_impl"  # torch's own function that calls a model and its hooks


class LoopHooks:
    """Hangs on models and optimizers; after `release` nothing of it is left there."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._models: weakref.WeakSet[Any] = weakref.WeakSet()
        self._handles: list[Any] = []
        self._times_optimizers = False
        self._passes: _Passes | None = None

    def time_model(self, model: Any) -> None:
        """Time the model's forward passes and the backward passes through its output.

        A pass in evaluation mode counts as evaluation. A timed model inside another one's pass
        takes its time out of that one's own.

        Raises:
            RecordTypeError: it is no module of torch.
            RecordError: it takes no hooks, such as what `torch.jit.script` made.
        """
        if not _is_module(model):
            raise RecordTypeError(f"model must be a torch.nn.Module, not {_called(model)}")
        if not self._operations.is_on or model in self._models:
            return
        passes = self._passes = self._passes or _Passes(self._operations)
        try:
            self._handles.append(model.register_forward_pre_hook(Hook(passes.begin)))
        except RuntimeError as error:
            why = f"{type(model).__name__} takes no hooks: {one_line(str(error))}"
            raise RecordError(f"{why}: time the module that it was made from") from None
        self._handles.append(model.register_forward_hook(Hook(passes.end), always_call=True))
        self._models.add(model)

    def time_optimizers(self) -> None:
        """Time the steps of all optimizers in this process, once torch has been imported."""
        torch: Any = sys.modules.get("torch.optim.optimizer")
        begin_with = getattr(torch, "register_optimizer_step_pre_hook", None)
        end_with = getattr(torch, "register_optimizer_step_post_hook", None)
        if self._times_optimizers or not self._operations.is_on or not (begin_with and end_with):
            return
        self._times_optimizers = True
        operation = _part(self._operations, OPTIMIZER)

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


def _part(operations: Operations, part: str) -> Measured:
    return cast(Measured, operations.named(LOOP, part))


def _is_module(model: Any) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def _called(given: Any) -> str:
    return f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__


def _callers_under_way() -> int:
    """How often what called the hook is under way: an optimizer's step may make another one's."""
    frame: FrameType | None = sys._getframe(3)
    code, count = frame and frame.f_code, 0
    while frame is not None:
        count += frame.f_code is code
        frame = frame.f_back
    return count


class _Passes:
    """The passes through timed models that are under way in this task or thread."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        parts = (FORWARD, EVALUATION, BACKWARD)
        self._forward, self._evaluation, self._backward = (_part(operations, one) for one in parts)
        self._backward_tasks: set[int] = set()
        self._begun: set[Use] = set()

    def begin(self, module: Any, _: Any) -> None:
        """A pass through a model begins."""
        self._forget_broken_off(with_this=False)
        (self._forward if module.training else self._evaluation).__enter__()
        if (use := self._operations.current.get()) is not None:
            self._begun.add(use)

    def end(self, _: Any, __: Any, output: Any) -> None:
        """The pass ends that was begun last, and has given this."""
        self._forget_broken_off(with_this=True)
        if found := self._open():
            found[0].operation.end_here()
            self._begun.discard(found[0])
        within = self._operations.current.get()
        _time_backward(output, _Backward(self._backward, within, self._backward_tasks))

    def _open(self) -> list[Use]:
        """Passes that were begun here and did not end, the innermost first."""
        found, use = [], self._operations.current.get()
        while use is not None:
            if use in self._begun and not use.is_over:
                found.append(use)
            use = use.outer
        return found

    def _forget_broken_off(self, *, with_this: bool) -> None:
        """Drop passes that were broken off, such as by Ctrl-C: nothing told of their end."""
        found = self._open()
        # The usual case: no look at the stack.
        if len(found) > with_this:
            under_way = self._under_way() - (not with_this)
            for use in found[: max(0, len(found) - under_way)]:
                use.operation.forget_open()
                self._begun.discard(use)

    def _under_way(self) -> int:
        """How many calls of timed models this line is inside of."""
        frame: FrameType | None = sys._getframe(2)
        count = 0
        while frame is not None:
            count += frame.f_code.co_name == _CALL and self._times(frame.f_locals.get("self"))
            frame = frame.f_back
        return count

    def _times(self, module: Any) -> bool:
        # Also a replica of a model, which has its hooks.
        hooks = getattr(module, "_forward_pre_hooks", None) or {}
        functions = (getattr(one, "_function", None) for one in hooks.values())
        return any(getattr(one, "__self__", None) is self for one in functions)


class _Backward:
    """A backward pass, from the gradient of a model's output to the end of the whole pass.

    Of several models in one pass, the first to be reached tells of it.
    """

    def __init__(self, operation: Measured, within: Use | None, tasks: set[int]) -> None:
        self._operation, self._within = operation, within
        self._tasks, self._task = tasks, -1
        self._started_ns = 0

    def begin(self, _: Any) -> None:
        """The gradient of the output is there."""
        torch: Any = sys.modules["torch"]
        task = torch._C._current_graph_task_id()
        if not self._started_ns and task not in self._tasks:
            if len(self._tasks) >= _MOST_TASKS:
                # Left by passes that raised.
                self._tasks.clear()
            self._tasks.add(task)
            self._task, self._started_ns = task, perf_counter_ns()
            torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def _end(self) -> None:
        elapsed_ns, self._started_ns = perf_counter_ns() - self._started_ns, 0
        self._tasks.discard(self._task)
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
