"""Which units of a network are dead: they gave nothing, for every example of some steps.

What an activation module gives is listened to by a hook on it, from `listen` to `heard`; at any
other time the model has no hook of ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from opusclip_mlops.faults import attempted

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

KINDS = ("ReLU", "ReLU6", "GELU", "SiLU", "Mish", "Hardswish")
"""The modules of `torch.nn` whose units can be dead: what they give is then never above 0."""

_CHANNELS = ("out_channels", "num_features", "num_channels")
_FEATURES = ("out_features", "normalized_shape", "embedding_dim")
OnFault = Callable[[str, Exception], None]


@dataclass(frozen=True)
class Units:
    """How many units a layer has, and how many of them are dead."""

    count: int
    dead: int


def is_activation(module: Module) -> bool:
    """Whether the units of a module can be dead."""
    kind = type(module)
    return kind.__name__ in KINDS and kind.__module__.startswith("torch.nn")


class DeadUnits:
    """Listens to the activation modules of a model while it is trained.

    A unit is a channel or a feature: which dimension that is, the layer before it in the model
    says; else it is dimension 1, and the last one of three. A module that is called several times
    is one layer: a unit is alive when one of the calls gave anything.

    Args:
        on_fault: Called with a layer's name and what went wrong in listening to it.
    """

    def __init__(self, on_fault: OnFault) -> None:
        self._on_fault = on_fault
        self._handles: list[Any] = []
        self._alive: dict[str, dict[int, Tensor]] = {}

    def listen(self, layers: Iterable[tuple[str, Module]]) -> None:
        """Listen from now on to those of a model's modules, in their order, that are activations.

        What was compiled is not heard.
        """
        self.stop()
        before: Module | None = None
        heard: set[Module] = set()
        for name, module in layers:
            if is_activation(module) and module not in heard:
                heard.add(module)
                hook = _Hook(partial(self._hear, name, _units_of(before)))
                self._handles.append(module.register_forward_hook(hook))
            elif any(True for _ in module.parameters(recurse=False)):
                before = module

    def heard(self) -> dict[str, Units]:
        """What was heard, by layer, since `listen`; it listens no more."""
        alive, self._alive = self._alive, {}
        self.stop()
        return {name: _units(list(parts.values())) for name, parts in alive.items()}

    def stop(self) -> None:
        """Listen no more, and forget what was heard."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._alive = [], {}

    def _hear(self, name: str, expected: tuple[bool, int], module: Module, output: Any) -> None:
        if module.training and (fault := attempted(lambda: self._note(name, expected, output))):
            self._alive.pop(name, None)
            self._on_fault(name, fault)

    def _note(self, name: str, expected: tuple[bool, int], output: Tensor) -> None:
        if not output.numel() or not output.dim():
            return
        alive = (output.detach() > 0).movedim(_dimension(output, *expected), -1)
        alive = alive.reshape(-1, alive.shape[-1]).any(0)
        parts = self._alive.setdefault(name, {})
        known = parts.get(len(alive))
        parts[len(alive)] = alive if known is None else known | alive


class _Hook:
    """A forward hook that a copy of the model, or a saved one, has no part of."""

    def __init__(self, hear: Callable[[Module, Any], None]) -> None:
        self._hear = hear

    def __call__(self, module: Module, _: Any, output: Any) -> None:
        import torch

        # What is compiled, or captured, would hold the hook for ever.
        if not torch.compiler.is_compiling() and not is_captured():
            self._hear(module, output)

    def __reduce__(self) -> tuple[Any, ...]:
        # It does nothing, and can be loaded where this package is missing.
        return getattr, (contextlib.nullcontext(), "__exit__")


def is_captured() -> bool:
    """Whether a CUDA graph captures what is done now: then no value can be fetched."""
    import torch

    is_there: Callable[[], bool] = torch.cuda.is_initialized
    return is_there() and torch.cuda.is_current_stream_capturing()


def _units_of(before: Module | None) -> tuple[bool, int]:
    """Whether the units are dimension 1, and how many they are, by the layer before; 0 unknown."""
    for names, is_first in ((_CHANNELS, True), (_FEATURES, False)):
        for name in names:
            if found := getattr(before, name, None):
                return is_first, found[-1] if isinstance(found, tuple) else int(found)
    return True, 0


def _dimension(output: Tensor, is_first: bool, count: int) -> int:
    """The dimension of the units."""
    told = min(1, output.dim() - 1) if is_first else -1
    if count and output.shape[told] == count:
        return told
    return -1 if output.dim() in (1, 3) else 1


def _units(alive: list[Tensor]) -> Units:
    count = sum(map(len, alive))
    return Units(count, count - sum(int(one.sum()) for one in alive))
