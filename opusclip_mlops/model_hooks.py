"""A function that hangs on a model of torch, and goes nowhere with it.

Torch is never imported here: who has a model has done so.
"""

import contextlib
import sys
from collections.abc import Callable
from typing import Any


class Hook:
    """A function that hangs on a model or an optimizer, while it runs in this process.

    In a copy or a pickle of the model a method of the standard library stands in its place that
    does nothing: who loads the model needs nothing of this package.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function
        self._is_compiling: Callable[[], bool] = sys.modules["torch"].compiler.is_compiling

    def __call__(self, *args: Any) -> None:
        """Call it, but not as a part of what torch compiles: there it would break the graph."""
        if not self._is_compiling():
            self._function(*args)

    @property
    def __name__(self) -> str:
        """None: `torch.jit.script` asks for it first, and takes no hook that it cannot compile."""
        raise AttributeError(
            "torch.jit.script takes no model that a run measures: "
            "script it before time_model or watch, or after close()"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")
