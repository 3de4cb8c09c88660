"""Runs a model for its graph, and leaves it as it was.

Modes, attributes, buffers and the random generators are afterwards what they were before.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


@contextlib.contextmanager
def as_in_evaluation(model: Module) -> Iterator[None]:
    """Puts the model into evaluation, and afterwards all back that running it has changed."""
    import torch

    attributes = [_copied(vars(module)) for module in model.modules()]
    copies = [(one, one.clone()) for one in model.buffers() if not one.is_meta]
    devices = {one.device for one in (*model.parameters(), *model.buffers())}
    on_gpus = [one for one in devices if one.type == "cuda"]
    try:
        with torch.no_grad(), torch.random.fork_rng(on_gpus), _python_generators_kept():
            for module in model.modules():
                module.training = False
            yield
    finally:
        # A model that keeps what it has seen would keep what only the exporter can use.
        for one in attributes:
            _restore(one)
        _put_back(copies)


_Copied = tuple[dict[str, Any], dict[str, Any], list[tuple[Any, Any]]]


def _copied(attributes: dict[str, Any]) -> _Copied:
    """A module's attributes, a copy of them, and of the plain collections among them."""
    inner = [(one, one.copy()) for one in attributes.values() if type(one) in (dict, list, set)]
    return attributes, attributes.copy(), inner


def _restore(copied: _Copied) -> None:
    attributes, before, inner = copied
    for one, copy in (*inner, (attributes, before)):
        one.clear()
        if isinstance(one, list):
            one.extend(copy)
        else:
            one.update(copy)


def _put_back(copies: list[tuple[Tensor, Tensor]]) -> None:
    import torch

    with torch.no_grad():
        for one, copy in copies:
            # Written only where it must be: a backward pass may wait for it as it is.
            if not _is_same(one, copy):
                one.copy_(copy)


def _is_same(one: Tensor, copy: Tensor) -> bool:
    """Whether two tensors hold the same; NaN is the same as NaN."""
    import torch

    if torch.equal(one, copy):
        return True
    return one.shape == copy.shape and bool(((one == copy) | (one.isnan() & copy.isnan())).all())


@contextlib.contextmanager
def _python_generators_kept() -> Iterator[None]:
    import numpy as np

    state, of_numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(of_numpy)
